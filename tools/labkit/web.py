"""OpenStack's web services as ordinary processes.

The problem: cinder-api, keystone and glance-api are WSGI applications that expect a web server. Each
runs under a uWSGI of its own on loopback; what they have in common is here.
"""

import http.client

from .component import Component


def uwsgi(venv, port, module, *more, processes=1, threads=4):
    """The command of a service; nothing secret may be on it."""
    return [venv / "bin/uwsgi", "--http-socket", f"127.0.0.1:{port}", "--master",
            "--processes", str(processes), "--threads", str(threads), "--need-app",
            "--die-on-term", "--buffer-size", "65535",
            "--add-header", "Connection:close", "--virtualenv", venv,
            "--listen", "100", "--disable-logging", "--log-4xx", "--log-5xx",
            "--module", f"{module}:application", *more]


class Web(Component):
    """What answers on a port of the lab."""

    port_name = ""
    grace = 2.0

    @property
    def port(self):
        return self.lab.state["ports"].get(self.port_name)

    def listens(self):
        return (("127.0.0.1", self.port),)

    def ready(self):
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3)
        try:
            conn.request("GET", "/")
            return conn.getresponse().status in (200, 300)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            conn.close()

    def address(self):
        return f"127.0.0.1:{self.port}" if self.port else "-"
