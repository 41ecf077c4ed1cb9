"""Tests of the lab's own logic; `Cycles` and `Images` need the packages and take minutes.

The problem: a lab that signals a foreign process or removes a foreign file does harm, and one
that fails now and then makes every other test worthless.

    cd tools && python3 -m unittest labkit.tests            (seconds)
    SCORIA_LAB_CYCLES=10 python3 -m unittest labkit.tests   (also: up, status, down, ten times)
    SCORIA_LAB_AUTH=1 python3 -m unittest labkit.tests      (also: Keystone, Glance, a volume of an image)
"""

import base64
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from unittest import mock

from . import auth, barbican, cinder, env, glance, keys, keystone, plan, procs, scoria
from .component import Component
from .state import REPO, Lab, LabError, port_free

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class WithLab(unittest.TestCase):
    def setUp(self):
        os.environ.pop(procs.MARKER, None)
        self.tmp = tempfile.TemporaryDirectory(prefix="scoria-labtest-")
        self.root = pathlib.Path(self.tmp.name) / "lab"
        self.lab = Lab(self.root)
        with self.lab.locked():
            self.lab.create()

    def tearDown(self):
        if self.lab.exists:
            procs.kill(self.lab, list(procs.scan(self.lab)))
            self.lab.remove_sockdir()
        self.tmp.cleanup()


class Processes(WithLab):
    def test_a_recycled_pid_is_not_ours(self):
        other = subprocess.Popen(SLEEP)
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        self.lab.path("run").mkdir()
        start = procs.stat(other.pid)[3]
        self.lab.path("run", "mariadb.json").write_text(json.dumps(
            {"pid": other.pid, "start": start - 1, "boot": procs._boot_id(), "argv": []}))
        self.assertIsNone(procs.leader(self.lab, "mariadb"))
        self.assertEqual(procs.scan(self.lab), {})
        procs.kill(self.lab, ["mariadb"])
        self.assertIsNone(other.poll())

    def test_another_lab_does_not_see_ours(self):
        procs.start(self.lab, "x", SLEEP)
        with tempfile.TemporaryDirectory() as tmp:
            other = Lab(tmp)
            other.create()
            self.addCleanup(other.remove_sockdir)
            self.assertEqual(procs.scan(other), {})
        self.assertEqual(list(procs.scan(self.lab)), ["x"])

    def test_children_that_left_the_session_are_found_and_killed(self):
        code = ("import subprocess, sys, time\n"
                f"subprocess.Popen({SLEEP!r}, start_new_session=True)\ntime.sleep(600)")
        leader = procs.start(self.lab, "x", [sys.executable, "-c", code])
        self._until(lambda: len(procs.scan(self.lab).get("x", [])) == 2)
        leader.kill()
        leader.wait()
        self.assertIsNone(procs.leader(self.lab, "x"))
        self.assertEqual(len(procs.scan(self.lab)["x"]), 1)
        self.assertEqual(procs.kill(self.lab, ["x"]), [])
        self.assertEqual(procs.scan(self.lab), {})

    def test_stop_reaches_a_paused_process(self):
        child = procs.start(self.lab, "x", SLEEP)
        procs.signal_all(self.lab, ["x"], signal.SIGSTOP)
        self._until(lambda: procs.paused([child.pid]))
        begin = time.monotonic()
        self.assertEqual(procs.terminate(self.lab, {"x": 5.0}), [])
        self.assertLess(time.monotonic() - begin, 3)
        self.assertEqual(child.wait(), -signal.SIGTERM)

    def test_stop_kills_after_the_grace(self):
        code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint(1, flush=True)\n" \
               "time.sleep(600)"
        child = procs.start(self.lab, "x", [sys.executable, "-c", code])
        self._until(lambda: self.lab.path("log", "x.log").read_text().endswith("1\n"))
        procs.terminate(self.lab, {"x": 0.3})
        self.assertEqual(child.wait(), -signal.SIGKILL)

    def _until(self, check):
        end = time.monotonic() + 10
        while not check():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)


class State(WithLab):
    def test_state_survives_and_is_private(self):
        again = Lab(self.root)
        self.assertEqual(again.state, self.lab.state)
        self.assertEqual(self.lab.path("lab.json").stat().st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.lab.state["sockdir"]).st_mode & 0o777, 0o700)

    def test_ports_are_free_and_none_twice(self):
        ports = list(self.lab.state["ports"].values())
        self.assertEqual(len(set(ports)), len(ports))
        self.assertTrue(all(map(port_free, ports)))

    def test_socket_paths_are_short_whatever_tmpdir_is(self):
        with mock.patch("tempfile.gettempdir", return_value="/" + "x" * 90):
            self.lab.remove_sockdir()
            self.lab.state["sockdir"] = ""
            self.lab.ensure_sockdir()
        self.addCleanup(self.lab.remove_sockdir)
        self.assertLess(len(self.lab.sock("client.rbd-mirror-peer.4194304.site-a.%d.asok" % 2**47)),
                        108)

    def test_purge_leaves_what_is_not_the_labs(self):
        (self.root / "mine.txt").write_text("keep")
        self.lab.path("ceph").mkdir()
        self.lab.purge()
        self.assertEqual([p.name for p in self.root.iterdir()], ["mine.txt"])

    def test_the_lock_serialises(self):
        order = []

        def second():
            with Lab(self.root).locked():
                order.append("second")

        with self.lab.locked(), mock.patch("sys.stderr"):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(0.2)
            order.append("first")
        thread.join(10)
        self.assertEqual(order, ["first", "second"])

    def test_names_that_others_build_on(self):
        self.assertLessEqual(
            {"SCORIA_LAB", "SCORIA_DATABASE_URL", "SCORIA_TRANSPORT_URL", "SCORIA_CONF",
             "SITE_A_CONF", "SITE_B_CONF", "CINDER_ENDPOINT", "OS_AUTH_TYPE", "OS_ENDPOINT",
             "OS_PROJECT_ID", "OS_USER_ID", "OS_VOLUME_API_VERSION"},
            set(env.variables(self.lab)))


class Plan(WithLab):
    def test_a_site_stands_for_its_daemons(self):
        every = plan.components(self.lab)
        self.assertEqual(plan.expand(every, ["site-b"]),
                         ["site-b-mon", "site-b-mgr", "site-b-osd.0", "rbd-mirror-b"])
        with self.assertRaisesRegex(LabError, "unknown component 'nova'"):
            plan.expand(every, ["nova"])

    def test_needs_come_first(self):
        names = plan.with_needs(plan.components(self.lab), ["cinder-api"])
        self.assertEqual(names, ["mariadb", "epmd", "rabbitmq", "cinder-api"])

    def test_what_depends_on_a_failure_is_not_run(self):
        ran = []

        def fail():
            raise LabError("no disk")

        tasks = [plan._Task("c", ["b"], lambda: ran.append("c")),
                 plan._Task("b", ["a"], lambda: ran.append("b")),
                 plan._Task("a", [], fail), plan._Task("d", [], lambda: ran.append("d"))]
        with self.assertRaisesRegex(LabError, "^no disk$"):
            plan.run(tasks)
        self.assertEqual(ran, ["d"])

    def test_a_taken_port_is_named(self):
        class Server(Component):
            name = "server"

            def listens(self):
                return (("127.0.0.1", port),)

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            with self.assertRaisesRegex(LabError, f"127.0.0.1:{port}.*another process"):
                Server(self.lab).start()

    def test_a_start_need_not_wait(self):
        class Slow(Component):
            name = "slow"

            def command(self):
                return SLEEP, {}

            def ready(self):
                return False

        self.assertTrue(Slow(self.lab).start(wait=False))
        self.assertFalse(Slow(self.lab).start(wait=False))

    def test_a_service_that_maps_librados_is_not_well(self):
        for mapped, health in ((False, "ok; librados not mapped"), (True, "LIBRADOS MAPPED; ok")):
            with mock.patch.object(scoria.amqp, "consumers", lambda _, queues: dict.fromkeys(queues, 1)), \
                    mock.patch.object(procs, "leader", return_value=1), \
                    mock.patch.object(procs, "maps", return_value=mapped):
                self.assertEqual(scoria.ScoriaVolume(self.lab).health(), health)

    def test_the_newest_binary_is_taken_unless_one_is_chosen(self):
        target = pathlib.Path(self.tmp.name, "target")
        for age, kind in ((20, "debug"), (10, "release")):
            path = target / kind / "scoria-volume"
            path.parent.mkdir(parents=True)
            path.write_text("")
            path.chmod(0o755)
            os.utime(path, (time.time() - age,) * 2)
        with mock.patch.dict(os.environ, {"CARGO_TARGET_DIR": str(target)}):
            os.environ.pop("SCORIA_BIN_DIR", None)
            self.assertEqual(scoria.binary(), target / "release" / "scoria-volume")
            os.environ["SCORIA_BIN_DIR"] = str(target / "debug")
            self.assertEqual(scoria.binary(), target / "debug" / "scoria-volume")
            os.environ["SCORIA_BIN_DIR"] = str(target)
            self.assertIsNone(scoria.binary())


class Auth(WithLab):
    """The mode, without any of its services."""

    def _keystone(self):
        auth.choose(self.lab, "keystone")
        self.lab.state["keystone"] = {
            "projects": {p: f"id-of-{p}" for p in ("admin", "service", "demo")},
            "users": {u: f"id-of-{u}" for u in auth.USERS}}

    def _confs(self):
        cinder.write_conf(self.lab)
        scoria.write_conf(self.lab)
        cinder.StockVolume(self.lab).prepare()
        return {name: self.lab.path("conf", name)
                for name in ("cinder.conf", "scoria.conf", "cinder-volume.conf")}

    def _by_default(self):
        return [c.name for c in plan.components(self.lab).values() if c.by_default]

    def test_a_lab_is_without_keystone_unless_told(self):
        for _ in range(2):
            self.assertFalse(set(auth.COMPONENTS) & set(self._by_default()))
            self.assertFalse(set(auth.PORTS) & set(self.lab.state["ports"]))
            self.assertEqual(env.variables(self.lab)["OS_AUTH_TYPE"], "noauth")
            for name, path in self._confs().items():
                text = path.read_text()
                for word in ("keystone", "glance", "nova", "internal_tenant"):
                    self.assertNotIn(word, text, name)
            self.assertIn("auth_strategy = noauth\n", self.lab.path("conf", "cinder.conf").read_text())
            del self.lab.state["auth"]          # as a lab that was made before there was a choice
            self.assertNotIn("glance-api", self._by_default())
            self.lab.state["auth"] = "noauth"

    def test_with_keystone_the_services_have_what_an_operator_writes(self):
        self._keystone()
        self.assertLessEqual(set(auth.COMPONENTS), set(self._by_default()))
        for name, path in self._confs().items():
            text = path.read_text()
            self.assertEqual(path.stat().st_mode & 0o777, 0o640, name)
            for line in ("[keystone_authtoken]", "[service_user]", "send_service_user_token = true",
                         "[glance]", "[nova]", f"glance_api_servers = {auth.image_url(self.lab)}",
                         "cinder_internal_tenant_project_id = id-of-service",
                         "cinder_internal_tenant_user_id = id-of-cinder"):
                self.assertIn(line + "\n", text, name)
            self.assertNotIn("image_volume_cache_enabled", text)
        self.assertIn("auth_strategy = keystone\n", self.lab.path("conf", "cinder.conf").read_text())
        for client in ("scoria-volume", "cinder-api"):
            self.assertIn("keystone", plan.with_needs(plan.components(self.lab), [client]))

    def test_the_mode_can_be_left_and_taken_again(self):
        before = {name: path.read_text() for name, path in self._confs().items()}
        ports = dict(self.lab.state["ports"])
        self._keystone()
        self.assertLessEqual(ports.items(), self.lab.state["ports"].items())
        self.assertEqual(len(set(self.lab.state["ports"].values())), len(self.lab.state["ports"]))
        kept = Lab(self.root).state
        auth.choose(self.lab, "noauth")
        self.assertEqual({name: path.read_text() for name, path in self._confs().items()}, before)
        auth.choose(self.lab, "keystone")
        self.assertEqual(self.lab.state["ports"], kept["ports"])
        self.assertEqual(self.lab.state["secrets"], kept["secrets"])

    def test_keys_are_in_a_file_or_with_barbican(self):
        with self.assertRaises(LabError):
            keys.choose(self.lab, "barbican")
        self._keystone()
        fixed = {name: path.read_text() for name, path in self._confs().items()}
        self.assertNotIn("barbican", self._by_default())
        for text in fixed.values():
            self.assertIn("fixed_key = ", text)
        keys.choose(self.lab, "barbican")
        self.assertIn("barbican", self._by_default())
        for name, path in self._confs().items():
            text = path.read_text()
            self.assertIn("[key_manager]\nbackend = barbican\n", text, name)
            self.assertNotIn("fixed_key", text, name)
        keys.choose(self.lab, "fixed")
        self.assertEqual({name: path.read_text() for name, path in self._confs().items()}, fixed)

    def test_no_secret_is_on_a_command_line(self):
        self._keystone()
        keys.choose(self.lab, "barbican")
        barbican.write_conf(self.lab)
        keystone.write_conf(self.lab)
        glance.write_conf(self.lab)
        for name in (*auth.COMPONENTS, keys.COMPONENT):
            argv, _ = plan.components(self.lab)[name].command()
            for secret in self.lab.state["secrets"].values():
                self.assertNotIn(secret, " ".join(map(str, argv)))

    def test_names_that_clients_build_on(self):
        self._keystone()
        self.assertLessEqual(
            {"SCORIA_LAB", "SCORIA_CONF", "CINDER_ENDPOINT", "SCORIA_NOVA_ENDPOINT", "OS_AUTH_TYPE",
             "OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_USER_DOMAIN_NAME",
             "OS_PROJECT_DOMAIN_NAME", "OS_REGION_NAME", "OS_PROJECT_ID", "OS_USER_ID",
             "OS_VOLUME_API_VERSION"}, set(env.variables(self.lab)))
        self.assertTrue(env.exports(self.lab).startswith("unset OS_ENDPOINT\n"))
        with mock.patch.dict(os.environ, {"SCORIA_LAB_USER": "demo", "OS_ENDPOINT": "old"}):
            found = env.applied(self.lab, env.variables(self.lab))
            self.assertEqual((found["OS_USERNAME"], found["OS_PROJECT_ID"]), ("demo", "id-of-demo"))
            self.assertNotIn("OS_ENDPOINT", found)
            os.environ["SCORIA_LAB_USER"] = "nobody"
            with self.assertRaisesRegex(LabError, "SCORIA_LAB_USER=nobody.*demo"):
                env.variables(self.lab)

    def test_keys_are_made_once(self):
        keystone.write_keys(self.lab)
        made = {p: p.read_text() for p in self.lab.path("keystone").rglob("*") if p.is_file()}
        self.assertEqual(len(made), 4)
        for path, text in made.items():
            self.assertEqual(len(base64.urlsafe_b64decode(text)), 32)
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        keystone.write_keys(self.lab)
        self.assertEqual({p: p.read_text() for p in made}, made)

    def test_what_keystone_has_is_not_made_again(self):
        asked = []

        class Api(keystone._Api):
            def __init__(self):
                pass

            def _request(self, method, path, body=None):
                asked.append((method, path, body))
                return None, {"user": {"id": "new"}}

        known = [{"name": "demo", "id": "old"}]
        self.assertEqual(Api().ensure("users", known, name="demo"), "old")
        self.assertEqual(asked, [])
        self.assertEqual(Api().ensure("users", known, name="nova"), "new")
        self.assertEqual(asked, [("POST", "/v3/users", {"user": {"name": "nova"}})])

    def test_they_stop_before_what_they_need(self):
        def wave(name):
            return next(i for i, some in enumerate(plan.STOP_ORDER) if name.startswith(some))

        self.assertLess(wave("glance-api"), wave("site-a-osd.0"))
        self.assertLessEqual(wave("keystone"), wave("mariadb"))


@unittest.skipUnless(os.environ.get("SCORIA_LAB_CYCLES"), "SCORIA_LAB_CYCLES is not set")
class Cycles(unittest.TestCase):
    def test_up_and_down_again(self):
        with tempfile.TemporaryDirectory(prefix="scoria-labtest-") as tmp:
            environ = {**os.environ, "SCORIA_LAB": tmp + "/lab"}
            slowest = {}

            def lab(*words, within):
                begin = time.monotonic()
                done = subprocess.run([REPO / "tools/lab", *words], env=environ, text=True,
                                      capture_output=True, check=False)
                took = time.monotonic() - begin
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertLess(took, within, words)
                slowest[words] = max(took, slowest.get(words, 0))

            try:
                for _ in range(int(os.environ["SCORIA_LAB_CYCLES"])):
                    lab("up", within=60)
                    lab("up", within=5)
                    lab("status", within=15)
                    lab("down", within=5)
                    lab("up", "--without", "scoria-volume", within=60)
                    lab("down", "--purge", within=5)
            finally:
                subprocess.run([REPO / "tools/lab", "down", "--purge"], env=environ, check=False,
                               stdout=subprocess.DEVNULL)
            print({" ".join(k): round(v, 1) for k, v in slowest.items()}, file=sys.stderr)


@unittest.skipUnless(os.environ.get("SCORIA_LAB_AUTH"), "SCORIA_LAB_AUTH is not set")
class Images(unittest.TestCase):
    """With the stock service, so that what fails is the lab."""

    def test_a_volume_of_an_image_is_a_clone(self):
        with tempfile.TemporaryDirectory(prefix="scoria-labtest-") as tmp:
            self.environ = {**os.environ, "SCORIA_LAB": tmp + "/lab"}
            image = pathlib.Path(tmp, "image.raw")
            image.write_bytes(os.urandom(9 << 20))
            try:
                self._lab("up", "--auth", "keystone", "--without", "scoria-volume")
                self._lab("start", "cinder-volume")
                self._until(lambda: "stock@ceph" in self._lab("cinder", "get-pools"), "no report of the backend")
                for store, site in glance.STORES.items():
                    made = self._table("glance", "image-create", "--name", store, "--disk-format", "raw",
                                       "--container-format", "bare", "--visibility", "public", "--store",
                                       store, "--file", image)
                    fsid = self._lab("ceph", site, "fsid").strip()
                    self.assertEqual(made["direct_url"], f"rbd://{fsid}/images/{made['id']}/snap")
                    self.assertEqual(made["status"], "active")
                    volume = self._create("admin", made["id"])
                    clone = self._lab("rbd", "a", "info", f"volumes/volume-{volume}")
                    # Only what lies in the volume's own cluster can be cloned; the other is copied.
                    check = self.assertIn if site == "a" else self.assertNotIn
                    check(f"parent: images/{made['id']}@snap", clone)
                theirs = self._create("demo", made["id"])
                listed = self._lab("cinder", "list", user="demo")
                self.assertIn(theirs, listed)
                self.assertNotIn(volume, listed)
                self._lab("down")
                self._lab("up", "--without", "scoria-volume")
                self.assertIn("keystone", self._lab("status"))
                self.assertIn(theirs, self._lab("cinder", "list", user="demo"))
                self._lab("up", "--auth", "noauth", "--without", "scoria-volume")
                self.assertNotIn("keystone", self._lab("status"))
                self.assertIn(theirs, self._lab("cinder", "list", "--all-tenants"))
            finally:
                subprocess.run([REPO / "tools/lab", "down", "--purge"], env=self.environ, check=False,
                               stdout=subprocess.DEVNULL)

    def _lab(self, *words, user="admin"):
        done = subprocess.run([REPO / "tools/lab", *words], env={**self.environ, "SCORIA_LAB_USER": user},
                              text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        self.assertEqual(done.returncode, 0, f"{words}: {done.stdout}{done.stderr}")
        return done.stdout

    def _table(self, *words, user="admin"):
        """A client's table of properties; a long value goes on in the next row."""
        found, last = {}, None
        for line in self._lab(*words, user=user).splitlines():
            if line.startswith("|"):
                name, value = (cell.strip() for cell in line.strip("|").split("|", 1))
                last = name or last
                found[last] = found.get(last, "") + value
        return found

    def _create(self, user, image):
        volume = self._table("cinder", "create", "--image-id", image, "--volume-type", "stock-ceph", "1",
                             user=user)["id"]
        status = None

        def settled():
            nonlocal status
            status = self._table("cinder", "show", volume, user=user)["status"]
            return status == "available" or "error" in status

        self._until(settled, "the volume is not made")
        self.assertEqual(status, "available", self._lab("cinder", "message-list", user=user))
        return volume

    def _until(self, check, what):
        end = time.monotonic() + 120
        while not check():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(1)


if __name__ == "__main__":
    unittest.main()
