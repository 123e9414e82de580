"""Where the time of a piece of Jittor work goes, under names that a person can read."""

import re

from .jittor_import import jt


def profile(call) -> list[tuple[str, float, int]]:
    """(operator, own milliseconds, calls) of one `call()`, slowest first."""
    with jt.profile_scope() as report:
        call()
        jt.sync_all(True)
    head, *rows = report
    columns = [head.index(name) for name in ("Name", "TotalTime", "Count")]
    found = {}
    for name, nanoseconds, count in ([row[column] for column in columns] for row in rows):
        time, calls = found.get(_short(name), (0.0, 0))
        found[_short(name)] = time + float(nanoseconds) / 1e6, calls + int(count)
    return sorted(((name, *cost) for name, cost in found.items()), key=lambda row: -row[1])


def _short(name: str) -> str:
    """Jittor names a kernel by all that it was compiled from: its label, its operators joined, or the one operator."""
    if label := re.search(r"kernel: ([^;]*)", name):
        return label[1]
    operators = re.findall(r"opkey\d+:(\w+)[^\n]*?(?=«opkey|«JIT)", name)
    details = re.findall(r"OP:(\w+)", name)
    return "fused " + "+".join(dict.fromkeys([*operators, *details])) if operators else name.split("«")[0]
