"""An unmodified oslo.messaging client: one JSON request per line in, one JSON answer per line out.

    client.py CONFIG_FILE...

A request: {"kind": "call"|"cast"|"fanout", "topic", "server", "version", "method", "args",
"timeout", "monitor", "context"}. The answer: {"result": ...} or {"class", "module", "text"}.
"""

import json
import sys

import oslo_messaging as messaging
from oslo_config import cfg

CONTEXT = {"read_deleted": "no", "is_admin": True, "request_id": "req-test", "project_id": "p",
           "user_id": "u", "roles": ["admin"], "auth_token": "s3cret-token"}


def main():
    conf = cfg.CONF
    conf([a for f in sys.argv[1:] for a in ("--config-file", f)], project="cinder")
    transport = messaging.get_rpc_transport(conf, allowed_remote_exmods=["cinder.exception"])
    for line in sys.stdin:
        request = json.loads(line)
        target = messaging.Target(topic=request["topic"], server=request.get("server"),
                                  fanout=request["kind"] == "fanout" or None,
                                  version=request.get("version", "3.0"))
        client = messaging.get_rpc_client(transport, target)
        client = client.prepare(timeout=request.get("timeout", 20),
                                call_monitor_timeout=request.get("monitor"))
        context = {**CONTEXT, **request.get("context", {})}
        send = client.call if request["kind"] == "call" else client.cast
        try:
            answer = {"result": send(context, request["method"], **request["args"])}
        except Exception as error:  # whatever it is, the test wants to see it
            name, module = type(error).__name__, type(error).__module__
            answer = {"class": name, "module": module, "text": str(error),
                      "exc_type": getattr(error, "exc_type", None)}
        print(json.dumps(answer), flush=True)


main()
