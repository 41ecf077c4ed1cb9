"""The rows that cinder-api would have written, as many as wanted, and their removal.

The problem: ten thousand volumes cannot be made through the API in the time of a benchmark, and a
request on the queue needs its row. So rows are inserted in sets. All belong to a project of the
bench's own, by which a later run finds what an interrupted one left.
"""

import datetime
import hashlib
import os
import urllib.parse
import uuid

import pymysql
from pymysql.constants import CLIENT

PROJECT = hashlib.md5(b"scoria bench project").hexdigest()
BATCH = 1000
VOLUME = ("INSERT INTO volumes (id, created_at, updated_at, deleted, user_id, project_id, host, size, "
          "status, attach_status, availability_zone, scheduled_at, launched_at, volume_type_id, "
          "bootable, multiattach, shared_targets, use_quota, service_uuid) VALUES "
          "(%s,%s,%s,0,%s,%s,%s,1,%s,'detached','nova',%s,%s,%s,0,0,0,1,%s)")
WORKER = ("INSERT INTO workers (created_at, updated_at, deleted, resource_type, resource_id, status, "
          "service_id, race_preventer) VALUES (%s,%s,0,'Volume',%s,%s,NULL,0) "
          # One that ends with its row is removed a moment after it.
          "ON DUPLICATE KEY UPDATE status=VALUES(status), service_id=NULL")
CHILDREN = ("snapshots", "volume_metadata", "volume_admin_metadata", "volume_glance_metadata", "volume_attachment")


def now():
    return datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None, microsecond=0)


class Rows:
    """Cinder's database, as the bench uses it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.conn = pymysql.connect(
            host=parts.hostname, port=parts.port, user=parts.username, password=parts.password,
            database=parts.path.lstrip("/"), autocommit=True, charset="utf8mb4", connect_timeout=5,
            client_flag=CLIENT.FOUND_ROWS, cursorclass=pymysql.cursors.DictCursor)
        self.types = {}

    def close(self):
        self.conn.close()

    def sql(self, query, args=()):
        """Rows; for a statement the number of rows that it matched."""
        kept = (query, tuple(args)) if "FROM volume_type" in query else None
        if kept in self.types:
            return self.types[kept]
        with self.conn.cursor() as cursor:
            cursor.execute(query, tuple(args) if args else None)
            found = list(cursor.fetchall()) if cursor.description else cursor.rowcount
        if kept:
            self.types[kept] = found
        return found

    @staticmethod
    def now():
        return now()

    def many(self, query, values):
        with self.conn.cursor() as cursor:
            for i in range(0, len(values), BATCH):
                cursor.executemany(query, values[i:i + BATCH])

    def insert(self, host, type_name, count, status):
        """Volumes of 1 GiB in this status, with their worker rows and quota; their ids."""
        type_id = self.sql("SELECT id FROM volume_types WHERE name=%s AND deleted=0",
                           [type_name])[0]["id"]
        # As after the first start of a service: it would set it, once, for all of its volumes.
        found = self.sql("SELECT uuid FROM services WHERE host=%s AND `binary`='cinder-volume' AND "
                         "deleted=0", [host.partition("#")[0]])
        service, at = found[0]["uuid"] if found else None, now()
        ids = [str(uuid.uuid4()) for _ in range(count)]
        launched = at if status == "available" else None
        self.many(VOLUME, [(i, at, at, os.environ["OS_USER_ID"], PROJECT, host, status, at, launched,
                            type_id, service) for i in ids])
        if status == "creating":
            self.many(WORKER, [(at, at, i, status) for i in ids])
        self._quota(type_name, count, at)
        return ids

    def begin_delete(self, ids):
        """What cinder-api writes before it casts delete_volume."""
        at = now()
        for i in range(0, len(ids), BATCH):
            self.sql("UPDATE volumes SET status='deleting', terminated_at=%s, updated_at=%s WHERE id "
                     "IN %s", [at, at, ids[i:i + BATCH]])
        self.many(WORKER, [(at, at, i, "deleting") for i in ids])

    def replicate(self, host, type_name, ids, driver_data):
        """These volumes are replicated ones of this host, well and at home."""
        type_id = self.sql("SELECT id FROM volume_types WHERE name=%s AND deleted=0", [type_name])[0]["id"]
        for i in range(0, len(ids), BATCH):
            self.sql("UPDATE volumes SET host=%s, volume_type_id=%s, status='available', "
                     "replication_status='enabled', replication_extended_status=NULL, "
                     "replication_driver_data=%s WHERE id IN %s",
                     [host, type_id, driver_data, ids[i:i + BATCH]])

    def _quota(self, type_name, count, at):
        for name in (n + s for n in ("volumes", "gigabytes") for s in ("", f"_{type_name}")):
            if not self.sql("UPDATE quota_usages SET in_use=in_use+%s WHERE project_id=%s AND "
                            "resource=%s AND deleted=0", [count, PROJECT, name]):
                self.sql("INSERT INTO quota_usages (created_at, deleted, project_id, resource, "
                         "in_use, reserved, race_preventer) VALUES (%s,0,%s,%s,%s,0,1)",
                         [at, PROJECT, name, count])

    def statuses(self, ids):
        """(id, status) of the volumes that are there."""
        with self.conn.cursor(pymysql.cursors.Cursor) as cursor:
            cursor.execute("SELECT id, status FROM volumes WHERE id IN %s", [list(ids)])
            return cursor.fetchall()

    def ours(self):
        return [r["id"] for r in self.sql("SELECT id FROM volumes WHERE project_id=%s", [PROJECT])]

    def purge(self):
        """Remove every row of the bench's project."""
        ids = self.ours()
        for i in range(0, len(ids), BATCH):
            part = ids[i:i + BATCH]
            self.sql("DELETE s FROM attachment_specs s JOIN volume_attachment a ON "
                     "a.id=s.attachment_id WHERE a.volume_id IN %s", [part])
            for child in CHILDREN:
                self.sql(f"DELETE FROM {child} WHERE volume_id IN %s", [part])
            self.sql("DELETE FROM workers WHERE resource_id IN %s", [part])
            self.sql("DELETE FROM volumes WHERE id IN %s", [part])
        self.sql("DELETE FROM reservations WHERE project_id=%s", [PROJECT])
        self.sql("DELETE FROM quota_usages WHERE project_id=%s", [PROJECT])
        self.sql("DELETE FROM messages WHERE project_id=%s", [PROJECT])
