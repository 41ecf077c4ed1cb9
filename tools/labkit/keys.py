"""Who keeps the keys of encrypted volumes, and what that means for everybody's configuration.

The problem: one key in a file is enough for most tests, and a real key manager costs another service. So a
lab with Keystone has a mode, remembered like its ports: `fixed`, or `barbican`. The service itself is in
barbican.
"""

import pathlib

from . import auth
from .state import REPO, LabError

MODES = ("fixed", "barbican")
USER = "barbican"
COMPONENT = "barbican"


def mode(lab):
    return lab.state.get("keys", MODES[0])       # labs made before there was a choice


def on(lab):
    return mode(lab) == "barbican" and auth.on(lab)


def choose(lab, wanted):
    """Change the mode; the first change to barbican makes what it needs to have for life."""
    if wanted == "barbican":
        if not auth.on(lab):
            raise LabError("Barbican asks Keystone who is who: tools/lab up --auth keystone --keys barbican")
        lab.add_ports((COMPONENT,))
        lab.add_secrets(f"user-{USER}", f"database-{USER}", "barbican-kek")
    lab.state["keys"] = wanted
    lab.save()


def venv(lab):
    return lab.barbican_venv


def unavailable(lab):
    """Why Barbican cannot be started, or None."""
    if not on(lab):
        return "this lab is without Barbican: tools/lab up --auth keystone --keys barbican"
    if not (pathlib.Path(venv(lab)) / ".scoria-hash").exists():
        return f"no environment of Barbican in {venv(lab)} ({REPO}/tools/install barbican)"
    return None


def url(lab):
    return f"http://127.0.0.1:{lab.state['ports'][COMPONENT]}"


def section(lab):
    """How Cinder's services come to keys; a lab from before there were any has none before its next `up`."""
    if on(lab):
        return f"""\
[key_manager]
backend = barbican

[barbican]
auth_endpoint = {auth.url(lab)}/v3
barbican_region_name = {auth.REGION}

"""
    key = lab.state["secrets"].get("fixed-key")
    return "" if key is None else f"""\
[key_manager]
backend = cinder.keymgr.conf_key_mgr.ConfKeyManager
fixed_key = {key}

"""
