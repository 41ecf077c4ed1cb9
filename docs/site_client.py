#!/usr/bin/env python3
"""Registers a Ceph site over RPC, with stock oslo.messaging, and waits for the result.

    site_client.py CINDER_CONF HOST NAME MONITORS KEY_FILE [USER]

CINDER_CONF has the transport_url of the services, HOST is the [DEFAULT] host of the one that is asked.
Prints the result as JSON; ends with 1 when it was refused or failed.
"""

import json
import sys
import time
import uuid

import oslo_messaging as messaging
from oslo_config import cfg


def main(conf_file, host, name, monitors, key_file, user="cinder"):
    conf = cfg.CONF
    conf(["--config-file", conf_file], project="cinder")
    messaging.set_transport_defaults(control_exchange="openstack")
    transport = messaging.get_rpc_transport(conf)
    target = messaging.Target(topic="scoria", server=host, namespace="site", version="1.0")
    client = messaging.get_rpc_client(transport, target)
    with open(key_file) as file:
        key = file.read()
    # The order has a number of our own: asking again after a time-out does not order twice.
    ordered = client.call({}, "register", name=name, monitors=monitors, key=key, user=user,
                          order=uuid.uuid4().hex)
    while True:
        told = client.call({}, "get_operation", operation=ordered["operation"])
        if told["state"] == "closed":
            print(json.dumps(told))
            return 0 if told["outcome"] == "succeeded" else 1
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
