"""Which entry and which module of a port stands for which of the original: taken from a file, or inferred and shown.

Entries are paired by equal names, then by equal values that occur once, then, in the order in which both sides keep
them, by shape, whether they are trained, and the last part of the name or what fresh values look like. Modules follow
from their entries; those without entries from their place in a module that is paired.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

from lib.errors import UserError
from lib.record import atomic

# Counters of batches: Jittor's own batch norm keeps none, and no output depends on one.
COUNTER = "num_batches_tracked"
SHOWN = 5  # names that one line of an error lists


@dataclass(frozen=True)
class Entry:
    """A parameter or buffer; `look`: "ones", "zeros" or "values"; `digest`: SHA-256 of its bytes."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    look: str
    digest: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Side:
    """What a side consists of; modules: path -> kind, outermost first. As JSON it is what `asdict` gives."""

    entries: tuple[Entry, ...]
    modules: Mapping[str, str]


@dataclass(frozen=True)
class Names:
    """state: the original's entry -> the port's; `how`, by entry, why. missing, extra: entries of one side alone."""

    state: Mapping[str, str]
    modules: Mapping[str, str]
    how: Mapping[str, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]

    def write(self, path: Path) -> None:
        """As a file to look at, edit, and hand back by --names."""
        content = {
            "about": "original -> port; null: the port has none. Edit, and hand the file back by --names.",
            "state": dict(self.state) | dict.fromkeys(self.missing),
            "port only": list(self.extra),
            "modules": dict(self.modules),
            "how": dict(self.how),
        }
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------ a user's file
def read(path: Path, original: Side, port: Side) -> Names:
    """The map in a file; modules that it leaves out are inferred. UserError where it does not fit the two sides."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        state, extra = dict(content["state"]), tuple(content.get("port only", ()))
        modules = dict(content.get("modules", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: no map of names ({type(error).__name__}: {error}); run without --names to get one"
        ) from error
    paired = {name: theirs for name, theirs in state.items() if theirs is not None}
    ours, theirs = {entry.name: entry for entry in original.entries}, {entry.name: entry for entry in port.entries}
    _known(path, "original has no entry", state, ours)
    _known(path, "port has no entry", [*paired.values(), *extra], theirs)
    _known(path, "original has no module", modules, original.modules)
    _known(path, "port has no module", modules.values(), port.modules)
    if twice := _twice(paired.values()):
        raise UserError(f"{path}: {twice} of the port stands for two entries of the original")
    missing = [name for name in ours if name not in paired and not name.endswith(COUNTER)]
    over = [name for name in theirs if name not in paired.values()]
    unsaid = [name for name in missing if name not in state], [n for n in over if n not in extra and theirs[n].trained]
    if any(unsaid):
        raise UserError(f'{path}: {_leftovers(*unsaid)}; pair them, or say null and "port only"')
    for name, other in paired.items():
        if ours[name].shape != theirs[other].shape:
            raise UserError(
                f"{path}: {other} has shape {theirs[other].shape}, {name} of the original {ours[name].shape}"
            )
    inferred = _modules(original, port, paired)
    return Names(paired, inferred | modules, dict.fromkeys(paired, f"as {path.name} says"), tuple(missing), tuple(over))


def _known(path: Path, said: str, names: Iterable[str], known: Iterable[str]) -> None:
    held = set(known)
    if unknown := [name for name in names if name not in held]:
        raise UserError(f"{path}: the {said} {unknown[0]}")


def _twice(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _leftovers(missing: Sequence[str], extra: Sequence[str]) -> str:
    def listed(names: Sequence[str]) -> str:
        return ", ".join([*names[:SHOWN], *["…"] * (len(names) > SHOWN)]) or "none"

    return (
        f"without a counterpart are {len(missing)} entries of the original ({listed(missing)}) "
        f"and {len(extra)} of the port ({listed(extra)})"
    )


# ---------------------------------------------------------------------------------------------------------- inference
def infer(original: Side, port: Side) -> Names:
    """Pair the entries and modules of both sides; what can't be paired is in `missing` and `extra`."""
    ours, theirs = list(original.entries), list(port.entries)
    state: dict[str, str] = {}
    how: dict[str, str] = {}
    passes = {
        "same name": _by_name,
        "same values": _by_values,
        "order, shape and last part of the name": partial(_in_order, sign=attrgetter("shape", "trained", "last")),
        "order, shape and look of the values": partial(_in_order, sign=attrgetter("shape", "trained", "look")),
        "order and shape": partial(_in_order, sign=attrgetter("shape", "trained")),
    }
    for why, pair in passes.items():
        for a, b in pair(ours, theirs):
            state[a.name], how[a.name] = b.name, why
        ours = [entry for entry in ours if entry.name not in state]
        theirs = [entry for entry in theirs if entry.name not in state.values()]
    order = [entry.name for entry in original.entries if entry.name in state]
    missing = tuple(entry.name for entry in ours if not entry.name.endswith(COUNTER))
    return Names(
        {name: state[name] for name in order},
        _modules(original, port, state),
        {name: how[name] for name in order},
        missing,
        tuple(entry.name for entry in theirs),
    )


def check(names: Names, port: Side, path: Path) -> None:
    """UserError where an inferred map leaves entries over; what the port does not train keeps its own value."""
    trained = {entry.name for entry in port.entries if entry.trained}
    extra = [name for name in names.extra if name in trained]
    if names.missing or extra:
        raise UserError(f"{_leftovers(names.missing, extra)}; edit {path} and hand it back by --names")


def _by_name(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    named = {entry.name: entry for entry in theirs}
    return [
        (entry, named[entry.name]) for entry in ours if entry.name in named and named[entry.name].shape == entry.shape
    ]


def _by_values(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    def once(entries: Sequence[Entry]) -> dict[str, Entry]:
        digests = [entry.digest for entry in entries]
        return {entry.digest: entry for entry in entries if entry.look == "values" and digests.count(entry.digest) == 1}

    a, b = once(ours), once(theirs)
    return [(entry, b[digest]) for digest, entry in a.items() if digest in b]


def _in_order(
    ours: Sequence[Entry], theirs: Sequence[Entry], sign: Callable[[Entry], tuple]
) -> list[tuple[Entry, Entry]]:
    """The longest runs of equal signs, in the order of both."""
    matcher = difflib.SequenceMatcher(
        None, [sign(entry) for entry in ours], [sign(entry) for entry in theirs], autojunk=False
    )
    return [
        (ours[block.a + i], theirs[block.b + i]) for block in matcher.get_matching_blocks() for i in range(block.size)
    ]


def _modules(original: Side, port: Side, state: Mapping[str, str]) -> dict[str, str]:
    """Modules of the same entries, outer with outer and inner with inner; those without entries by their place."""
    groups: list[dict[frozenset[str], list[str]]] = []
    names = {name: name for name in state}, {theirs: name for name, theirs in state.items()}
    for side, known in zip((original, port), names):
        held: dict[frozenset[str], list[str]] = {}
        for path in side.modules:
            start = f"{path}." if path else ""
            held.setdefault(frozenset(known[name] for name in known if name.startswith(start)), []).append(path)
        groups.append(held)
    found = {"": ""}
    for inside, paths in groups[0].items():
        others = groups[1].get(inside, [])
        if not inside or not others:
            continue
        if len(paths) == len(others):
            found |= zip(paths, others)
        else:  # one side wraps it once more: the innermost own the entries
            found[paths[-1]] = others[-1]
    for path in original.modules:  # outermost first: what is paired here pairs what it holds
        if path in found:
            found |= _below(path, found[path], original, port, found)
    return {path: found[path] for path in original.modules if path in found}


def _below(path: str, other: str, original: Side, port: Side, found: Mapping[str, str]) -> dict[str, str]:
    """Children that are not paired yet: by name, or all in their order where both sides have as many."""
    ours = [child for child in _children(path, original) if child not in found]
    theirs = [child for child in _children(other, port) if child not in found.values()]
    equal = {child: match for child in ours for match in theirs if child.rpartition(".")[2] == match.rpartition(".")[2]}
    rest = [child for child in ours if child not in equal], [child for child in theirs if child not in equal.values()]
    return equal | (dict(zip(*rest)) if len(rest[0]) == len(rest[1]) else {})


def _children(path: str, side: Side) -> list[str]:
    start = f"{path}." if path else ""
    return [
        name
        for name in side.modules
        if name and name.startswith(start) and "." not in name[len(start) :] and name != path
    ]
