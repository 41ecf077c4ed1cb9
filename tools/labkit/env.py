"""The names by which tests, the demo and people address a lab.

The problem: others build on these names, so they are defined in one place and only ever added to.
"""

import shlex

from . import ceph, cinder, rabbitmq, scoria


def variables(lab):
    return {
        "SCORIA_LAB": str(lab.root),
        "SCORIA_VENV": str(lab.venv),
        "SCORIA_DATABASE_URL": cinder.database_url(lab, "mysql"),
        "SCORIA_TRANSPORT_URL": rabbitmq.transport_url(lab),
        "SCORIA_CONF": str(scoria.conf(lab)),
        "SITE_A_CONF": str(ceph.client_conf(lab, "a")),
        "SITE_B_CONF": str(ceph.client_conf(lab, "b")),
        **cinder.client_environment(lab),
    }


def exports(lab):
    return "".join(f"export {k}={shlex.quote(v)}\n" for k, v in variables(lab).items())
