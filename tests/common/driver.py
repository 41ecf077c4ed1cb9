"""Cinder's API, its database and its broker for the tests: one request a line, one answer a line.

The problem: tests should use Cinder as its users do, through python-cinderclient, but a `cinder`
command costs a second of start-up; and there is no Rust client to check ours against. So one
process of Cinder's own virtual environment serves a whole test.

    {"op": "api", ...} -> {"ok": value} or {"error": {"type": ..., "message": ..., "code": ...}}

Nothing here retries: a failure is the test's to judge.
"""

import datetime
import decimal
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
import types
import urllib.parse
import uuid

import wire

CLIENTS, ACCOUNTS = {}, {}
STATE = {"sql": None, "amqp": None, "channel": None, "collect": {}}


# ---- API ------------------------------------------------------------------------------------------
def with_keystone():
    return os.environ["OS_AUTH_TYPE"] == "password"


def account(user):
    """The environment of one of the lab's users (admin is the one that the test was started for)."""
    if user == os.environ.get("OS_USERNAME"):
        return os.environ
    if user not in ACCOUNTS:
        lab = pathlib.Path(__file__).parents[2] / "tools/lab"
        said = subprocess.run([lab, "env"], env={**os.environ, "SCORIA_LAB_USER": user}, text=True,
                              check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
        words = (line.removeprefix("export ") for line in said.splitlines() if line.startswith("export "))
        ACCOUNTS[user] = dict("".join(shlex.split(word)).split("=", 1) for word in words)
    return ACCOUNTS[user]


def password(user):
    """How keystoneauth logs in."""
    from keystoneauth1.identity import v3
    env = account(user)
    return v3.Password(auth_url=env["OS_AUTH_URL"], username=env["OS_USERNAME"],
                       password=env["OS_PASSWORD"], project_name=env["OS_PROJECT_NAME"],
                       user_domain_name=env["OS_USER_DOMAIN_NAME"],
                       project_domain_name=env["OS_PROJECT_DOMAIN_NAME"])


def authenticated(user, service=False):
    """A session with Keystone; `service` sends nova's token beside it, as nova itself does."""
    from keystoneauth1 import service_token, session
    auth = password(user)
    if service:
        auth = service_token.ServiceTokenAuthWrapper(user_auth=auth, service_auth=password("nova"))
    return session.Session(auth=auth)


def client(version, project=None, user=None):
    """One cinderclient per microversion, project (without Keystone) and user (with it)."""
    key = (version, project, user)
    if key not in CLIENTS:
        from cinderclient import client as cinderclient
        # Deleting an attachment of a server needs a service token; noauth takes the role's name.
        if with_keystone():
            sess = authenticated(user or "admin", service=True)
        else:
            from cinderclient.contrib import noauth
            from keystoneauth1 import session
            project_id = project or os.environ["OS_PROJECT_ID"]
            auth = noauth.CinderNoAuthPlugin(os.environ["OS_USER_ID"], project_id, None,
                                             os.environ["CINDER_ENDPOINT"])
            sess = session.Session(auth=auth, additional_headers={"X-Service-Roles": "service"})
        CLIENTS[key] = cinderclient.Client(version, session=sess)
    return CLIENTS[key]


def plain(value):
    """What JSON can hold of an answer of cinderclient."""
    if hasattr(value, "_info"):
        return value._info
    if isinstance(value, tuple):          # (response, body)
        return plain(value[-1])
    if isinstance(value, (list, set, types.GeneratorType)) or type(value).__name__ == "ListWithMeta":
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat(sep=" ")
    if isinstance(value, decimal.Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def method(target, call):
    for name in call.split("."):
        target = getattr(target, name)
    return target


def api(call, args=(), kwargs=None, version="3.71", project=None, user=None):
    """`call` is a method of the client, such as volumes.create."""
    return method(client(version, project, user), call)(*args, **(kwargs or {}))


def http(method, path, body=None, version="3.71"):
    """A request that cinderclient has no method for."""
    kwargs = {"body": body} if body is not None else {}
    response, answer = getattr(client(version).client, method.lower())(path, **kwargs)
    return {"status": response.status_code, "body": answer}


# ---- images ---------------------------------------------------------------------------------------
def glance(user=None):
    """One glanceclient per user."""
    key = ("glance", user)
    if key not in CLIENTS:
        from glanceclient import client as glanceclient
        CLIENTS[key] = glanceclient.Client("2", session=authenticated(user or "admin"))
    return CLIENTS[key]


def image(call, args=(), kwargs=None, user=None):
    """`call` is a method of glanceclient, such as images.get."""
    return method(glance(user), call)(*args, **(kwargs or {}))


def image_of_file(path, user=None, store=None, **attributes):
    """An active image with this file's content; its attributes."""
    images = glance(user).images
    made = images.create(**{"container_format": "bare", "disk_format": "raw", **attributes})
    with open(path, "rb") as data:
        images.upload(made["id"], data, **({"backend": store} if store else {}))
    return images.get(made["id"])


def image_from_file(ident, path, user=None):
    """Uploads data into an image that has none."""
    with open(path, "rb") as data:
        glance(user).images.upload(ident, data)


def image_to_file(ident, path, user=None):
    """Downloads an image; the number of its bytes. Its checksum has been looked at."""
    size = 0
    with open(path, "wb") as out:
        for part in glance(user).images.data(ident):
            size += out.write(part)
    return size


def image_list():
    """Every image there is, whoever may see it."""
    return [dict(found) for found in glance().images.list(filters={"visibility": "all"})]


def forget_images():
    """Removes every image; what is left, with the reason."""
    left = {}
    for found in image_list():
        try:
            if found.get("protected"):
                glance().images.update(found["id"], protected=False)
            glance().images.delete(found["id"])
        except Exception as e:             # the caller judges what is left
            left[found["id"]] = f"{found['status']}: {type(e).__name__}: {e}"
    return left


# ---- barbican -------------------------------------------------------------------------------------
def barbican(method, path, **kwargs):
    """A request of admin's to the key manager."""
    return authenticated("admin").request(path, method, endpoint_filter={"service_type": "key-manager"}, **kwargs)


def secrets():
    """Id and bytes, in hex, of every secret of admin's project."""
    found = []
    for secret in barbican("GET", "/v1/secrets?limit=100").json()["secrets"]:
        ident = secret["secret_ref"].rsplit("/", 1)[1]
        payload = barbican("GET", f"/v1/secrets/{ident}/payload", headers={"Accept": "application/octet-stream"})
        found.append({"id": ident, "hex": payload.content.hex()})
    return found


def forget_secret(ident):
    """Deletes a secret that the volume service may still want."""
    barbican("DELETE", f"/v1/secrets/{ident}")


# ---- database -------------------------------------------------------------------------------------
def sql(query, args=()):
    """Rows as objects; for a statement the number of rows it matched."""
    import pymysql
    from pymysql.constants import CLIENT
    for last in (False, True):
        if STATE["sql"] is None:
            url = urllib.parse.urlsplit(os.environ["SCORIA_DATABASE_URL"])
            STATE["sql"] = pymysql.connect(
                host=url.hostname, port=url.port, user=url.username, password=url.password,
                database=url.path.lstrip("/"), autocommit=True, charset="utf8mb4", connect_timeout=5,
                client_flag=CLIENT.FOUND_ROWS, cursorclass=pymysql.cursors.DictCursor)
        try:
            with STATE["sql"].cursor() as cursor:
                cursor.execute(query, tuple(args) if args else None)
                return list(cursor.fetchall()) if cursor.description else cursor.rowcount
        except (pymysql.err.OperationalError, pymysql.err.InterfaceError):
            STATE["sql"] = None
            # A connection from before the database was restarted; a question can be asked again.
            if last or not query.lstrip().upper().startswith(("SELECT", "SHOW")):
                raise


# ---- broker ---------------------------------------------------------------------------------------
def _connect():
    import amqp
    url = urllib.parse.urlsplit(os.environ["SCORIA_TRANSPORT_URL"])
    conn = amqp.Connection(f"{url.hostname}:{url.port}", userid=urllib.parse.unquote(url.username),
                           password=urllib.parse.unquote(url.password),
                           virtual_host=urllib.parse.unquote(url.path[1:]) or "/",
                           confirm_publish=True, connect_timeout=5)
    conn.connect()
    return conn


def _channel():
    if STATE["amqp"] is None or not STATE["amqp"].connected:
        STATE["amqp"] = _connect()
        STATE["channel"] = STATE["amqp"].channel()
    return STATE["channel"]


def forget_broker():
    """After a restart of the broker nothing of the old connection is usable."""
    STATE["amqp"] = STATE["channel"] = None


def forget_connections():
    """Start afresh after a restart of the broker or the database. What is being collected goes on."""
    forget_broker()
    STATE["sql"] = None


def publish(routing_key, body, exchange="openstack", expiration=None, content_type="application/json"):
    """Returns once the broker has confirmed that it has the message; raises when no queue took it."""
    import amqp
    channel = _channel()
    returned = []
    channel.events["basic_return"].clear()
    channel.events["basic_return"].add(lambda *info: returned.append(info[1:3]))
    properties = {"content_type": content_type, "content_encoding": "utf-8", "delivery_mode": 2}
    if isinstance(body, dict):                # bytes that JSON cannot carry
        body = bytes.fromhex(body["hex"])
    if expiration is not None:
        properties["expiration"] = str(expiration)
    try:
        channel.basic_publish(amqp.Message(body, **properties), exchange=exchange,
                              routing_key=routing_key, mandatory=True, timeout=20)
    except Exception:
        forget_broker()
        raise
    if returned:
        raise RuntimeError(f"no queue took {routing_key}: {returned}")
    return True


def publish_all(messages, exchange="openstack"):
    """[{routing_key, body, unique_id}]: publishes on, whatever fails; the ids that were confirmed.

    Not confirmed is not the same as not delivered: such messages are of no interest to a caller
    who wants to know what must not be lost.
    """
    confirmed = []
    for message in messages:
        try:
            publish(message["routing_key"], message["body"], exchange)
            confirmed.append(message["unique_id"])
        except Exception:
            time.sleep(0.2)
        time.sleep(message.get("pause", 0))
    return confirmed


def envelope(inner):
    return json.dumps({"oslo.version": "2.0", "oslo.message": json.dumps(inner)})


def context():
    """A request context as cinder-api sends it."""
    return {
        "_context_user": os.environ["OS_USER_ID"], "_context_project_id": os.environ["OS_PROJECT_ID"],
        "_context_system_scope": None, "_context_project": os.environ["OS_PROJECT_ID"],
        "_context_domain": None, "_context_user_domain": None, "_context_project_domain": None,
        "_context_is_admin": True, "_context_read_only": False, "_context_show_deleted": False,
        "_context_auth_token": None, "_context_request_id": f"req-{uuid.uuid4()}",
        "_context_global_request_id": None, "_context_resource_uuid": None,
        "_context_roles": ["admin"], "_context_user_identity": "- - - - -",
        "_context_is_admin_project": True, "_context_user_id": os.environ["OS_USER_ID"],
        "_context_project_name": None, "_context_domain_id": None, "_context_read_deleted": "no",
        "_context_remote_address": "127.0.0.1",
        "_context_timestamp": datetime.datetime.utcnow().isoformat(),
        "_context_quota_class": None, "_context_service_catalog": [],
        "_context_message_resource_id": None, "_context_message_resource_type": None,
        "_context_message_action": None}


def rpc(routing_key, method, args=None, version="3.0", timeout=20, inner=None, drop=(),
        exchange="openstack", raw=None):
    """A call; returns the reply's inner message, or None when none came in time.

    `inner` overrides keys of the request, `drop` removes some, `raw` replaces the body as a whole
    (then REPLY and MSGID in it are filled in).
    """
    import amqp
    conn = _connect()
    try:
        channel = conn.channel()
        reply_queue = f"reply_{uuid.uuid4().hex}"
        channel.queue_declare(reply_queue, exclusive=True, auto_delete=True)
        replies = []
        channel.basic_consume(reply_queue, callback=replies.append, no_ack=True)
        msg_id = uuid.uuid4().hex
        message = {"method": method, "args": args or {}, "version": version, **context(),
                   "_msg_id": msg_id, "_reply_q": reply_queue, "_timeout": None,
                   "_unique_id": uuid.uuid4().hex, **(inner or {})}
        for key in drop:
            message.pop(key, None)
        body = (raw.replace("REPLY", reply_queue).replace("MSGID", msg_id) if raw is not None
                else envelope(message))
        channel.basic_publish(
            amqp.Message(body, content_type="application/json", content_encoding="utf-8",
                         delivery_mode=2, expiration=str(int(timeout * 1000))),
            exchange=exchange, routing_key=routing_key)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                conn.drain_events(timeout=max(0.01, end - time.monotonic()))
            except TimeoutError:
                break
            for reply in replies:
                found = json.loads(json.loads(reply.body)["oslo.message"])
                if found.get("_msg_id") == msg_id and found.get("ending"):
                    if found.get("failure"):
                        found["failure"] = json.loads(found["failure"])
                    return found
            replies.clear()
        return None
    finally:
        conn.close()


def oslo(topic, server, namespace, version, method, args=None, kind="call", timeout=30):
    """A call or cast of an unmodified oslo.messaging client: {result} or {class, module, text}."""
    import oslo_messaging as messaging
    from oslo_config import cfg
    if "oslo" not in STATE:
        cfg.CONF([], project="cinder", default_config_files=[])
        STATE["oslo"] = messaging.get_rpc_transport(cfg.CONF, url=os.environ["SCORIA_TRANSPORT_URL"],
                                                    allowed_remote_exmods=["cinder.exception"])
    target = messaging.Target(topic=topic, server=server, namespace=namespace, version=version)
    client = messaging.get_rpc_client(STATE["oslo"], target).prepare(timeout=timeout)
    caller = {"read_deleted": "no", "is_admin": True, "request_id": f"req-{uuid.uuid4()}", "roles": ["admin"],
              "project_id": os.environ["OS_PROJECT_ID"], "user_id": os.environ["OS_USER_ID"]}
    try:
        return {"result": (client.call if kind == "call" else client.cast)(caller, method, **(args or {}))}
    except Exception as error:             # a refusal is an answer, too
        return {"class": type(error).__name__, "module": type(error).__module__, "text": str(error),
                "exc_type": getattr(error, "exc_type", None)}


def collect(name, binding, exchange="openstack"):
    """Begin to collect what is published with this key; `collected` returns it."""
    conn = _connect()
    channel = conn.channel()
    queue = channel.queue_declare("", exclusive=True, auto_delete=True).queue
    channel.queue_bind(queue, exchange, binding)
    found = []
    channel.basic_consume(queue, callback=found.append, no_ack=True)
    STATE["collect"][name] = (conn, found)
    return queue


def collected(name):
    """Everything since the last time, decoded; what was not JSON in an envelope is left as text."""
    conn, found = STATE["collect"][name]
    while True:
        try:
            conn.drain_events(timeout=0.05)
        except TimeoutError:
            break
    out = []
    for message in found:
        try:
            body = json.loads(message.body)
            out.append(json.loads(body["oslo.message"]) if "oslo.message" in body else body)
        except (ValueError, TypeError):
            out.append(message.body)
    found.clear()
    return out


def cast(routing_key, method, args=None, version="3.0", inner=None, unique_id=None):
    """A cast, confirmed by the broker; its unique id."""
    unique_id = unique_id or uuid.uuid4().hex
    publish(routing_key, envelope({"method": method, "args": args or {}, "version": version,
                                   **context(), "_unique_id": unique_id, **(inner or {})}))
    return unique_id


def insert_volume(**kwargs):
    return wire.insert_volume(sql, **kwargs)


def volume_object(ident):
    return wire.volume_object(sql, ident)


def snapshot_object(ident):
    return wire.snapshot_object(sql, ident)


def create_args(ident, **kwargs):
    return wire.create_args(sql, ident, **kwargs)


def creations(routing_key, type_name, host, count, pause=0.0):
    """New rows, and the requests to create them, for publish_all."""
    messages = []
    for _ in range(count):
        ident, unique_id = wire.insert_volume(sql, type_name, host), uuid.uuid4().hex
        body = envelope({"method": "create_volume", "args": wire.create_args(sql, ident),
                         "version": "3.0", **context(), "_unique_id": unique_id})
        messages.append({"routing_key": routing_key, "body": body, "unique_id": unique_id,
                         "volume": ident, "pause": pause})
    return messages


def deletions(routing_key, volumes, pause=0.0):
    """The rows as the API leaves them, and the requests to delete them, for publish_all."""
    messages = []
    for ident in volumes:
        wire.begin_delete(sql, ident)
        unique_id = uuid.uuid4().hex
        args = {"volume": wire.volume_object(sql, ident), "unmanage_only": False, "cascade": False}
        body = envelope({"method": "delete_volume", "args": args, "version": "3.0", **context(),
                         "_unique_id": unique_id})
        messages.append({"routing_key": routing_key, "body": body, "unique_id": unique_id,
                         "volume": ident, "pause": pause})
    return messages


def depth(queue):
    """Messages and consumers of a queue."""
    conn = _connect()
    try:
        found = conn.channel().queue_declare(queue, passive=True)
        return {"messages": found.message_count, "consumers": found.consumer_count}
    finally:
        conn.close()


OPS = {f.__name__: f for f in (api, http, image, image_of_file, image_from_file, image_to_file, image_list, forget_images,
                               secrets, forget_secret,
                               sql, publish, publish_all, rpc, oslo, cast, collect, collected,
                               depth, forget_connections, envelope, context, insert_volume,
                               creations, deletions, volume_object, snapshot_object, create_args)}


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                          # whatever prints must not break the protocol
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": plain(OPS[request.pop("op")](**request))}
        except Exception as e:             # the test judges it
            answer = {"error": {"type": type(e).__name__, "message": str(e),
                                "code": getattr(e, "code", None) or
                                (e.args[0] if e.args and isinstance(e.args[0], int) else None)}}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
