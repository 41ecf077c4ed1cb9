"""Requests as cinder-api and cinder-scheduler send them, for volumes that never saw an API.

The problem: Cinder's scheduler handles five creations a second and its API answers before anything
is on the queue; a test of what is lost must put many requests onto the queue itself, and know which
of them the broker has confirmed. So captured messages serve as the mould, the database row (made
here as the API would have made it) as the content.
"""

import datetime
import json
import os
import pathlib
import uuid

WIRE = pathlib.Path(__file__).resolve().parents[1] / "wire"


def mould(name):
    """The arguments of a captured request."""
    body = json.loads((WIRE / f"{name}.json").read_text())["body"]
    return json.loads(json.loads(body)["oslo.message"])["args"]


def iso(value):
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime.datetime) else value


def type_object(sql, ident):
    row = sql("SELECT * FROM volume_types WHERE id=%s", [ident])[0]
    specs = sql("SELECT `key`, value FROM volume_type_extra_specs WHERE volume_type_id=%s "
                "AND deleted=0", [ident])
    obj = mould("delete_volume-cast-to-cinder-volume")["volume"]["versioned_object.data"]["volume_type"]
    obj["versioned_object.data"].update(
        id=ident, name=row["name"], extra_specs={s["key"]: s["value"] for s in specs},
        created_at=iso(row["created_at"]))
    return obj


def volume_object(sql, ident):
    """A Volume as the row says it."""
    row = sql("SELECT * FROM volumes WHERE id=%s", [ident])[0]
    obj = mould("delete_volume-cast-to-cinder-volume")["volume"]
    data = obj["versioned_object.data"]
    for key in data:
        if key in row:
            value = row[key]
            data[key] = bool(value) if isinstance(data[key], bool) else iso(value)
    data["volume_type"] = type_object(sql, row["volume_type_id"])
    return obj


def snapshot_object(sql, ident):
    row = sql("SELECT * FROM snapshots WHERE id=%s", [ident])[0]
    obj = mould("delete_snapshot-cast-to-cinder-volume")["snapshot"]
    data = obj["versioned_object.data"]
    for key in data:
        if key in row:
            data[key] = bool(row[key]) if isinstance(data[key], bool) else iso(row[key])
    if "volume" in data:
        data["volume"] = volume_object(sql, row["volume_id"])
    return obj


def create_args(sql, ident, image=None, source=None, snapshot=None, reschedule=False):
    """Arguments of create_volume; with `reschedule` the scheduler is ready to place it elsewhere."""
    args = mould("create_volume-cast-to-cinder-volume")
    volume = volume_object(sql, ident)
    row = volume["versioned_object.data"]
    spec = args["request_spec"]["versioned_object.data"]
    spec.update(volume_id=ident, volume=volume, image_id=image, source_volid=source,
                snapshot_id=snapshot,
                volume_type=row["volume_type"])
    properties = spec["volume_properties"]["versioned_object.data"]
    properties.update({k: row[k] for k in properties if k in row and k not in ("metadata", "status")},
                      reservations=[])
    retry = {"num_attempts": 1, "backends": [row["host"]], "hosts": [row["host"]]}
    args.update(volume=volume, filter_properties={"retry": retry} if reschedule else {},
                allow_reschedule=reschedule)
    return args


def insert_volume(sql, type_name, host, size=1, status="creating", worker=True):
    """The row of a volume that cinder-api has accepted and the scheduler has placed; its id."""
    ident, now = str(uuid.uuid4()), datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    type_id = sql("SELECT id FROM volume_types WHERE name=%s AND deleted=0", [type_name])[0]["id"]
    project, user = os.environ["OS_PROJECT_ID"], os.environ["OS_USER_ID"]
    sql("INSERT INTO volumes (id, created_at, deleted, user_id, project_id, host, size, status, "
        "attach_status, availability_zone, scheduled_at, volume_type_id, bootable, multiattach, "
        "shared_targets, use_quota) VALUES (%s,%s,0,%s,%s,%s,%s,%s,'detached','nova',%s,%s,0,0,1,1)",
        [ident, now, user, project, host, size, status, now, type_id])
    if worker and status in ("creating", "deleting"):
        sql("INSERT INTO workers (created_at, updated_at, deleted, resource_type, resource_id, "
            "status, service_id, race_preventer) VALUES (%s,%s,0,'Volume',%s,%s,NULL,0)",
            [now, now, ident, status])
    for resource, delta in (("volumes", 1), ("gigabytes", size)):
        for name in (resource, f"{resource}_{type_name}"):
            if not sql("UPDATE quota_usages SET in_use=in_use+%s WHERE project_id=%s AND "
                       "resource=%s AND deleted=0", [delta, project, name]):
                sql("INSERT INTO quota_usages (created_at, deleted, project_id, resource, in_use, "
                    "reserved, race_preventer) VALUES (%s,0,%s,%s,%s,0,1)",
                    [now, project, name, delta])
    return ident


def begin_delete(sql, ident):
    """What cinder-api writes before it casts delete_volume."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    sql("UPDATE volumes SET status='deleting', terminated_at=%s WHERE id=%s", [now, ident])
    sql("INSERT INTO workers (created_at, updated_at, deleted, resource_type, resource_id, status, "
        "service_id, race_preventer) VALUES (%s,%s,0,'Volume',%s,'deleting',NULL,0)",
        [now, now, ident])
