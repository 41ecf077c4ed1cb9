"""A RabbitMQ node and an epmd of the lab's own.

The problem: RabbitMQ wants to be the machine's only node: one epmd on a fixed port, a cookie in
the home directory, files in /var and /etc. Environment variables move all of it into the lab, and
epmd is started by us, because one that the node starts by itself would outlive it, unowned.

The mode decides how queues are declared; both sides must agree, so cinder.conf and scoria.conf
take the same options from here, and a changed mode starts with an empty vhost.
"""

import os
import shutil
import socket
import subprocess

from . import procs
from .component import Component
from .state import LabError, port_free, write_if_changed

USER, VHOST = "cinder", "cinder"
SCRIPTS = "/usr/lib/rabbitmq/bin"       # not /usr/sbin: those change to the user rabbitmq
MODES = {
    "default": {},
    "durable": {"amqp_durable_queues": "true"},
    "quorum": {"rabbit_quorum_queue": "true"},
    "transient-quorum": {"rabbit_quorum_queue": "true", "rabbit_transient_quorum_queue": "true"},
}
# rabbitmqctl commands about one vhost.
VHOST_COMMANDS = ("list_queues", "list_exchanges", "list_bindings", "list_consumers",
                  "list_channels", "purge_queue", "delete_queue", "list_permissions",
                  "set_permissions", "set_policy", "clear_policy", "list_policies")


def oslo_options(lab):
    """The section [oslo_messaging_rabbit] that fits the lab's mode."""
    lines = [f"{k} = {v}" for k, v in MODES[lab.state["rabbit_mode"]].items()]
    return "\n".join(["[oslo_messaging_rabbit]", *lines]) + "\n"


def transport_url(lab):
    return (f"rabbit://{USER}:{lab.state['secrets']['rabbit']}@127.0.0.1:"
            f"{lab.state['ports']['amqp']}/{VHOST}")


def environment(lab):
    """What moves a node, and the tools that talk to it, into the lab."""
    base, ports = lab.path("rabbitmq"), lab.state["ports"]
    erl = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "HOME": str(base),
        "ERL_EPMD_PORT": str(ports["epmd"]),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"scoria-{lab.state['id']}@localhost",
        "RABBITMQ_DIST_PORT": str(ports["rabbit-dist"]),
        "RABBITMQ_MNESIA_BASE": str(base / "data"),
        "RABBITMQ_LOG_BASE": str(base / "log"),
        "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "schema"),
        # Schedulers that do not spin: an idle node should cost nothing.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
            f"{erl} +S 2:2 +SDcpu 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        "RABBITMQ_CTL_ERL_ARGS": erl + " +S 1:1 +sbwt none",
    }


class Epmd(Component):
    name = "epmd"
    grace = 0.2        # it does not end on SIGTERM while nodes are registered

    def available(self):
        return None if shutil.which("epmd") else "epmd is not installed (tools/install packages)"

    @property
    def port(self):
        return self.lab.state["ports"]["epmd"]

    def listens(self):
        return (("127.0.0.1", self.port),)

    def prepare(self):
        self.lab.path("rabbitmq").mkdir(exist_ok=True)

    def command(self):
        return ["epmd", "-port", str(self.port), "-address", "127.0.0.1"], {}

    def ready(self):
        return not port_free(self.port)

    def address(self):
        return f"127.0.0.1:{self.port}"


class RabbitMq(Component):
    name = "rabbitmq"
    needs = ("epmd",)
    grace = 3.5

    @property
    def port(self):
        return self.lab.state["ports"]["amqp"]

    def available(self):
        if not os.path.exists(f"{SCRIPTS}/rabbitmq-server"):
            return "rabbitmq-server is not installed (tools/install packages)"
        return None

    def listens(self):
        return (("127.0.0.1", self.port),
                ("127.0.0.1", self.lab.state["ports"]["rabbit-dist"]))

    def prepare(self):
        base = self.lab.path("rabbitmq")
        base.mkdir(exist_ok=True)
        cookie = base / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(self.lab.state["secrets"]["cookie"])
            cookie.chmod(0o400)
        write_if_changed(base / "enabled_plugins", "[].\n")
        write_if_changed(base / "rabbitmq.conf", f"""\
listeners.tcp.1 = 127.0.0.1:{self.port}
default_vhost = {VHOST}
default_user = {USER}
default_pass = {self.lab.state["secrets"]["rabbit"]}
default_permissions.configure = .*
default_permissions.read = .*
default_permissions.write = .*
default_user_tags.administrator = true
loopback_users = none
log.file.level = info
log.console = false
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.absolute = 1GB
num_acceptors.tcp = 4
collect_statistics_interval = 10000
""")

    def command(self):
        return [f"{SCRIPTS}/rabbitmq-server"], environment(self.lab)

    def ready(self):
        """Speaks AMQP: answers the protocol header with Connection.Start."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as s:
                s.settimeout(2)
                s.sendall(b"AMQP\x00\x00\x09\x01")
                return s.recv(1) == b"\x01"
        except OSError:
            return False

    def finish(self):
        """A mode that changed since the vhost was made: start it again empty."""
        mode = self.lab.state["rabbit_mode"]
        if self.lab.state.get("rabbit_mode_made", mode) != mode:
            ctl(self.lab, "delete_vhost", VHOST)
            ctl(self.lab, "add_vhost", VHOST)
            ctl(self.lab, "set_permissions", "-p", VHOST, USER, ".*", ".*", ".*")
        if self.lab.state.get("rabbit_mode_made") != mode:
            self.lab.state["rabbit_mode_made"] = mode
            self.lab.save()

    def address(self):
        return f"127.0.0.1:{self.port}"


def ctl_command(lab, args):
    return ([f"{SCRIPTS}/rabbitmqctl", *args],
            {**procs.clean_env(lab, procs.HELPER), **environment(lab)})


def ctl(lab, *args):
    argv, env = ctl_command(lab, args)
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60,
                              check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise LabError(f"rabbitmqctl {args[0]}: no answer within 60 s") from None
    if done.returncode:
        raise LabError(f"rabbitmqctl {args[0]}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout
