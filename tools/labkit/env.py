"""The names by which tests, the demo and people address a lab.

The problem: others build on these names, so they are defined in one place and only ever added to.
"""

import os
import shlex

from . import auth, ceph, cinder, rabbitmq, scoria


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
    stale = f"unset {' '.join(auth.STALE)}\n" if auth.on(lab) else ""
    return stale + "".join(f"export {k}={shlex.quote(v)}\n" for k, v in variables(lab).items())


def applied(lab, variables_of_ours):
    """Our environment with these in it, without what the other mode may have left there."""
    stale = auth.STALE if auth.on(lab) else ()
    return {**{k: v for k, v in os.environ.items() if k not in stale}, **variables_of_ours}
