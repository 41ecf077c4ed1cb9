#!/usr/bin/env python3
"""Connects a pool of two Ceph sites over RPC, with stock oslo.messaging, and waits for the proof.

    link_client.py CINDER_CONF HOST SITE_A SITE_B POOL KEY_FILE_A KEY_FILE_B

CINDER_CONF has the transport_url of the services, HOST is the [DEFAULT] host of the one that does it. The files have
the keys of client.admin of either cluster, which are for this one order. What is missing is made.
Prints the result as JSON; ends with 1 when it was refused, has failed, or is not proven.
"""

import json
import sys
import time
import uuid

import oslo_messaging as messaging
from oslo_config import cfg


def main(conf_file, host, a, b, pool, key_file_a, key_file_b):
    conf = cfg.CONF
    conf(["--config-file", conf_file], project="cinder")
    messaging.set_transport_defaults(control_exchange="openstack")
    transport = messaging.get_rpc_transport(conf)
    target = messaging.Target(topic="scoria", server=host, namespace="site", version="1.1")
    client = messaging.get_rpc_client(transport, target, version_cap="1.1")
    keys = []
    for name in (key_file_a, key_file_b):
        with open(name) as file:
            keys.append(file.read())
    # The order has a number of our own: asking again after a time-out does not order twice.
    ordered = client.call({}, "connect", a=a, b=b, pools=[pool], create_pools=True,
                          admin_key_a=keys[0], admin_key_b=keys[1], order=uuid.uuid4().hex)
    while True:
        told = client.call({}, "get_operation", operation=ordered["operation"])
        if told["state"] == "closed":
            print(json.dumps(told))
            proven = told["outcome"] == "succeeded" and all(p["verified"] for p in told["result"]["proofs"])
            return 0 if proven else 1
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
