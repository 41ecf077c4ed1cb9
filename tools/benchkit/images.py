"""Images for the section `image`: made once in Glance, asked for in requests, and how much memory that costs.

The problem: an image on the volume's own cluster is cloned, and nothing flows. So the images lie on the
other site, full of data that no zero detection shortens, and every volume is a download.
"""

import os
import pathlib
import subprocess
import tempfile
import threading

import driver
import wire

from .broker import BenchError

STORE = "ceph-b"                # the services' backends are on site a
PATIENCE = 1800
BLOCK = 1 << 20


class Glance:
    """The lab's Glance, asked as admin."""

    def __init__(self):
        self.session = driver.authenticated("admin")
        self.images = driver.glance().images
        self.made = []

    def fields(self):
        """What a request's context has of its user: the service asks Glance in his name."""
        return {**driver.context(), "_context_auth_token": self.session.get_token()}

    def new(self, name, disk_format):
        """An image without data."""
        made = self.images.create(name=f"bench {name}", disk_format=disk_format, container_format="bare")
        self.made.append(made["id"])
        return made["id"]

    def disks(self, mib, directory):
        """The same disk as a raw and as a qcow2 image: {format: id}."""
        found = {}
        with tempfile.TemporaryDirectory(dir=directory) as tmp:
            raw, qcow2 = pathlib.Path(tmp, "raw"), pathlib.Path(tmp, "qcow2")
            with open(raw, "wb") as out:
                for _ in range(mib):
                    out.write(os.urandom(BLOCK))
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True,
                           stdin=subprocess.DEVNULL)
            for disk_format, path in (("raw", raw), ("qcow2", qcow2)):
                found[disk_format] = self.new(disk_format, disk_format)
                with open(path, "rb") as data:
                    self.images.upload(found[disk_format], data, backend=STORE)
        return found

    def take_uploaded(self, ident):
        """Removes an image that a service has uploaded; it must be complete."""
        status = self.images.get(ident)["status"]
        self.remove(ident)
        if status != "active":
            raise BenchError(f"image {ident} is {status} after its upload")

    def remove(self, ident):
        self.made.remove(ident)
        self.images.delete(ident)

    def close(self):
        for ident in list(self.made):
            self.remove(ident)


def create_body(glance, sql, ident, image):
    return driver.envelope({"method": "create_volume", "args": wire.create_args(sql, ident, image=image),
                            "version": "3.0", **glance.fields(), "_unique_id": ident.replace("-", "")})


def upload_body(glance, ident, image, disk_format):
    meta = {"id": image, "disk_format": disk_format, "container_format": "bare", "properties": {}}
    return driver.envelope({"method": "copy_volume_to_image",
                            "args": {"volume_id": ident, "image_meta": meta},
                            "version": "3.0", **glance.fields(), "_unique_id": image.replace("-", "")})


class Peak(threading.Thread):
    """The most memory that a service had while this was entered, in bytes (PSS)."""

    def __init__(self, side, every=0.3):
        super().__init__(daemon=True)
        self.side, self.every, self.most = side, every, 0
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(self.every):
            self.most = max(self.most, self.side.memory()[0])

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
