"""The table of what runs.

The problem: with a dozen processes, some of them killed or paused on purpose, one wants to see at
a glance what serves; and a hung cluster must not hang the table. So all components are asked at
the same time, each with a deadline of its own.
"""

import threading

from . import procs


def _size(count):
    return f"{count / (1 << 20):.0f} MB" if count else "-"


def rows(lab, every):
    scanned = procs.scan(lab)
    table = {}

    def look(component):
        pids = component.pids(scanned)
        leader = procs.leader(lab, component.name)
        if not pids:
            if component.by_default:
                health = component.available() or "stopped"
                table[component.name] = ("-", component.address(), health, 0)
            return
        if not leader:
            health = "LEADER DEAD, children left"
        elif procs.paused(pids):
            health = "paused"
        else:
            health = component.health()
        table[component.name] = (leader or pids[0], component.address(), health,
                                 procs.memory(pids)[0])

    threads = [threading.Thread(target=look, args=(c,), daemon=True) for c in every.values()]
    for t in threads:
        t.start()
    for t in threads:
        t.join(12)
    for name, component in every.items():
        if name in table:
            yield (name, *table[name])
        elif component.pids(scanned):
            yield name, procs.leader(lab, name), component.address(), "does not answer", 0


def show(lab, every):
    """Print the table; returns whether everything that runs is well."""
    lines = [("COMPONENT", "PID", "ADDRESS", "HEALTH", "MEMORY (PSS)")]
    total, well = 0, True
    for name, pid, address, health, memory in rows(lab, every):
        total += memory
        if pid != "-" and not health.startswith(("ok", "leader", "peon", "active")):
            well = False
        lines.append((name, str(pid), address, health, _size(memory)))
    lines.append(("total", "", "", "", _size(total)))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    for line in lines:
        print("  ".join([*(f"{line[i]:<{widths[i]}}" for i in range(4)), f"{line[4]:>12}"]).rstrip())
    return well
