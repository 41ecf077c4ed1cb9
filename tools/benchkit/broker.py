"""One AMQP client for both services: calls and casts, a given number of them in flight.

The problem: a client per caller would measure the client; and what is compared must be asked in
exactly the same way. So one connection and one thread keep a window of requests open: as soon as
one is answered the next is published. What this client and the broker can do at most is measured
by the same loop on a queue that the client answers itself (`echo`).
"""

import itertools
import json
import time
import urllib.parse
import uuid

import amqp

PATIENCE = 180                  # seconds without any progress until a run is given up
EXCHANGE = "openstack"
MSG, UNIQUE, REPLY = "@msg-id@", "@unique-id@", "@reply-queue@"


class BenchError(Exception):
    """A measurement that cannot be had; shown without a traceback."""


class Broker:
    """One connection, one channel, one queue for replies."""

    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)
        self.conn = self._connect()
        self.channel = self.conn.channel()
        self.queue = f"reply_{uuid.uuid4().hex}"
        self.channel.queue_declare(self.queue, exclusive=True, auto_delete=True)
        self.heard = []
        self.channel.basic_consume(self.queue, callback=self.heard.append, no_ack=True)

    def _connect(self):
        conn = amqp.Connection(
            f"{self.url.hostname}:{self.url.port}", userid=urllib.parse.unquote(self.url.username),
            password=urllib.parse.unquote(self.url.password), connect_timeout=5,
            virtual_host=urllib.parse.unquote(self.url.path[1:]) or "/")
        conn.connect()
        return conn

    def close(self):
        self.conn.close()

    def empty(self, queue):
        """Purge a queue; whether it exists. On a connection of its own: a failure closes it."""
        conn = self._connect()
        try:
            conn.channel().queue_purge(queue)
            return True
        except amqp.exceptions.NotFound:
            return False
        finally:
            conn.close()

    def publish(self, key, body, exchange=EXCHANGE):
        self.channel.basic_publish(
            amqp.Message(body, content_type="application/json", content_encoding="utf-8",
                         delivery_mode=2), exchange=exchange, routing_key=key)

    def request(self, body):
        """A body with fresh ids, and the id by which its reply is known."""
        msg_id = uuid.uuid4().hex
        return msg_id, (body.replace(MSG, msg_id).replace(UNIQUE, uuid.uuid4().hex)
                        .replace(REPLY, self.queue))

    def wait(self, seconds):
        """Inner messages of replies that have come, after at most so long."""
        try:
            self.conn.drain_events(timeout=seconds)
        except TimeoutError:
            pass
        found, self.heard[:] = list(self.heard), []
        for message in found:
            yield json.loads(json.loads(message.body)["oslo.message"])

    def first_answer(self, key, body, seconds=PATIENCE, alive=lambda: True):
        """Ask until there is an answer that is none of failure; the moment it came."""
        end = time.monotonic() + seconds
        msg_id, text = self.request(body)
        self.publish(key, text)
        while time.monotonic() < end:
            for reply in self.wait(0.5):
                if reply.get("_msg_id") != msg_id:
                    continue
                if not reply.get("failure"):
                    return time.monotonic()
                time.sleep(0.005)
                msg_id, text = self.request(body)
                self.publish(key, text)
            if not alive():
                raise BenchError(f"the service died before it answered on {key}")
        raise BenchError(f"no answer on {key} within {seconds} s")

    def calls(self, key, body, window, seconds, exchange=EXCHANGE):
        """Keep `window` calls open for so long, then await the last; (latencies, elapsed)."""
        end = time.monotonic() + seconds
        return self.each(key, itertools.takewhile(lambda _: time.monotonic() < end, itertools.repeat(body)),
                         window, exchange)

    def each(self, key, bodies, window, exchange=EXCHANGE):
        """These calls, `window` of them open at a time; (latencies, elapsed)."""
        waiting, pending, latencies = iter(bodies), {}, []
        begin = progress = time.monotonic()
        while True:
            for body in itertools.islice(waiting, window - len(pending)):
                msg_id, text = self.request(body)
                pending[msg_id] = time.monotonic()
                self.publish(key, text, exchange)
            if not pending:
                return latencies, time.monotonic() - begin
            for reply in self.wait(1):
                sent, at = pending.pop(reply.get("_msg_id"), None), time.monotonic()
                if sent is None:
                    continue
                if reply.get("failure"):
                    raise BenchError(f"a call on {key} failed: {reply['failure']}"[:500])
                progress = at
                latencies.append(at - sent)
            if time.monotonic() - progress > PATIENCE:
                raise BenchError(f"{len(pending)} calls on {key} have no answer")

    def echo(self, body, window, seconds):
        """What broker and client alone can do: the message comes back to the client's own queue."""
        return self.calls(self.queue, body, window, seconds, exchange="")

    def operations(self, rows, key, requests, window, done, patience=PATIENCE):
        """Casts, `window` of them under way; each is over when its row says so.

        `requests` are (volume id, body). Returns (latencies, elapsed). The rows are asked in turns
        that cost at most a sixth of the time, and at most every 2 ms.
        """
        waiting, pending, latencies, pause = iter(requests), {}, [], 0.002
        left, begin = len(requests), time.monotonic()
        progress = begin
        while left:
            for ident, body in itertools.islice(waiting, window - len(pending)):
                pending[ident] = time.monotonic()
                self.publish(key, body)
            time.sleep(pause)
            asked = time.monotonic()
            found = rows.statuses(pending)
            at = time.monotonic()
            pause = max(0.002, 5 * (at - asked))
            for ident, status in found:
                if status == done:
                    latencies.append(at - pending.pop(ident))
                    left, progress = left - 1, at
                elif status.startswith("error"):
                    raise BenchError(f"volume {ident} ended in {status} instead of {done} ({key})")
            if at - progress > patience:
                raise BenchError(f"{len(pending)} requests on {key} are not over: {list(pending)[:3]}")
        return latencies, progress - begin
