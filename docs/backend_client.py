#!/usr/bin/env python3
"""Makes, changes or removes a backend over RPC, with stock oslo.messaging, and waits for the result.

    backend_client.py CINDER_CONF HOST METHOD [ARGUMENTS]

CINDER_CONF has the transport_url of the services, HOST is the [DEFAULT] host of the one that is asked. ARGUMENTS is a JSON
object, for example

    create '{"name": "fast", "options": {"rbd_pool": "fast", "rbd_user": "cinder"}, "volume_type": "fast"}'
    update '{"name": "fast", "options": {"reserved_percentage": 10}}'
    delete '{"name": "fast"}'
    list   '{"all_hosts": true}'

Prints the result as JSON; ends with 1 when it was refused or failed.
"""

import json
import sys
import time
import uuid

import oslo_messaging as messaging
from oslo_config import cfg

# These answer at once; every other method is an order, which answers with the number of its operation.
QUESTIONS = {"list", "show", "validate", "get_operation", "list_operations", "cancel_operation"}


def main(conf_file, host, method, arguments="{}"):
    conf = cfg.CONF
    conf(["--config-file", conf_file], project="cinder")
    messaging.set_transport_defaults(control_exchange="openstack")
    transport = messaging.get_rpc_transport(conf, allowed_remote_exmods=["cinder.exception"])
    target = messaging.Target(topic="scoria", server=host, namespace="backend", version="1.0")
    client = messaging.get_rpc_client(transport, target)
    arguments = json.loads(arguments)
    try:
        if method in QUESTIONS:
            print(json.dumps(client.call({}, method, **arguments)))
            return 0
        # The order has a number of our own: asking again after a time-out does not order twice.
        ordered = client.call({}, method, order=uuid.uuid4().hex, **arguments)
        while True:
            told = client.call({}, "get_operation", operation=ordered["operation"])
            if told["state"] == "closed":
                print(json.dumps(told))
                return 0 if told["outcome"] == "succeeded" else 1
            time.sleep(0.2)
    except messaging.RemoteError as refusal:
        print(json.dumps({"refused": refusal.exc_type, "text": str(refusal.value)}))
        return 1
    except Exception as refusal:  # with Cinder installed, its own exceptions come out
        print(json.dumps({"refused": type(refusal).__name__, "text": str(refusal)}))
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
