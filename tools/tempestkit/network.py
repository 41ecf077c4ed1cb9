"""A test double of Neutron that has nothing.

The problem: tempest leaves out classes that might give a server a network unless there is a Neutron, and where
there is one, asks it for the security groups of each project that it removes. The volume tests in those classes
want no network at all. So a server with empty lists stands in the catalogue while tests run.
"""

import contextlib
import http.server
import json
import threading

from labkit import auth
from labkit.state import LabError


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        """`/v2.0/security-groups?…` has a list of that name, and it is empty."""
        kind = self.path.partition("?")[0].rstrip("/").rpartition("/")[2].replace("-", "_")
        body = json.dumps({kind: []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(admin):
    """The double, running and in the catalogue; `admin` is a connection of the SDK."""
    import openstack
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        try:
            _register(admin.identity, f"http://127.0.0.1:{server.server_address[1]}")
        except openstack.exceptions.SDKException as e:
            raise LabError(f"no network in the catalogue: {e}") from None
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _register(identity, url):
    service = next((s for s in identity.services() if s.type == "network"), None) or \
        identity.create_service(name="neutron", type="network")
    known = {e.interface: e for e in identity.endpoints(service_id=service.id)}
    for interface in ("public", "internal", "admin"):
        if interface in known:
            identity.update_endpoint(known[interface], url=url)
        else:
            identity.create_endpoint(service_id=service.id, interface=interface, url=url, region_id=auth.REGION)
