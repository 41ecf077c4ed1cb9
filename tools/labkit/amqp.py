"""Enough of AMQP 0-9-1 to ask how many consumers a queue has.

The problem: a Cinder service is ready when it consumes from its queue; its database row may be a
leftover of the last run, and `rabbitmqctl list_queues` costs a second of CPU per question. This
logs in, declares queues passively and leaves.
"""

import socket
import struct

from . import rabbitmq


class AmqpError(Exception):
    """The broker does not answer as hoped."""


def _short(text):
    data = text.encode()
    return bytes([len(data)]) + data


def _long(data):
    return struct.pack(">I", len(data)) + data


class _Connection:
    def __init__(self, port, user, password, vhost):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=3)
        self.sock.settimeout(3)
        self.sock.sendall(b"AMQP\x00\x00\x09\x01")
        self.expect(10, 10)
        self.send(0, 10, 11, _long(b"") + _short("PLAIN")
                  + _long(f"\0{user}\0{password}".encode()) + _short("en_US"))
        tune = self.expect(10, 30)
        self.send(0, 10, 31, tune[:8])
        self.send(0, 10, 40, _short(vhost) + _short("") + b"\0")
        self.expect(10, 41)

    def send(self, channel, klass, method, args):
        payload = struct.pack(">HH", klass, method) + args
        self.sock.sendall(struct.pack(">BHI", 1, channel, len(payload)) + payload + b"\xce")

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            more = self.sock.recv(count - len(data))
            if not more:
                raise AmqpError("closed")
            data += more
        return data

    def receive(self):
        while True:
            kind, _, size = struct.unpack(">BHI", self._exactly(7))
            payload = self._exactly(size + 1)[:-1]
            if kind == 1:
                klass, method = struct.unpack(">HH", payload[:4])
                return klass, method, payload[4:]

    def expect(self, klass, method):
        got = self.receive()
        if got[:2] != (klass, method):
            raise AmqpError(f"expected {klass}.{method}, got {got[:2]}")
        return got[2]

    def close(self):
        self.sock.close()


def consumers(lab, queues):
    """{queue: number of consumers}, None for a queue that is not there; None without a broker."""
    found = {}
    try:
        conn = _Connection(lab.state["ports"]["amqp"], rabbitmq.USER,
                           lab.state["secrets"]["rabbit"], rabbitmq.VHOST)
    except (OSError, AmqpError, struct.error):
        return None
    try:
        for channel, queue in enumerate(queues, 1):     # an error closes its channel
            conn.send(channel, 20, 10, _short(""))
            conn.expect(20, 11)
            conn.send(channel, 50, 10, b"\0\0" + _short(queue) + b"\x01" + _long(b""))
            klass, method, args = conn.receive()
            if (klass, method) == (50, 11):
                found[queue] = struct.unpack(">II", args[1 + args[0]:9 + args[0]])[1]
            else:
                found[queue] = None
                conn.send(channel, 20, 41, b"")
        conn.send(0, 10, 50, b"\0\xc8" + _short("") + b"\0\0\0\0")
        conn.expect(10, 51)
    except (OSError, AmqpError, struct.error):
        return None
    finally:
        conn.close()
    return found
