"""What a pickle holds, read without running it: a walk over its opcodes that builds plain containers and inert things.

Nothing that a pickle names is imported, called, compared or hashed: a class, a function and what it would have made are
a `Thing` with the name and the arguments, whatever it is. Deliberate differences from the pickle module:
* a dict keeps its text keys only: other keys may take for ever to hash, and no weight is called by one;
* memory and time are bounded by the pickle's length: a hostile length field asks for no more than is there.
"""

import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

MOST = 1_000_000  # opcodes of any pickle, characters of a model's names: a large one, its average and its optimiser
BYTES_EACH = 64  # and one more for so many bytes: what is long is so by its numbers
LONGEST = 1000  # characters of a global's name
WRAPPINGS = 8  # of one array
TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"}
WRAPPERS = {  # what holds an array as its first argument
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "jittor.jittor_core.Var",
}
TYPED = "torch._tensor._rebuild_from_type_v2"  # (function, type, arguments, state)
FRESH = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
BUFFERED = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}


class Thing:
    """A global, or what would have come of calling it; it is never called."""

    __slots__ = ("made_by", "args", "state", "entries", "members")

    def __init__(self, made_by: str, args: Any = ()) -> None:
        self.made_by = made_by  # e.g. "torch.nn.modules.conv.Conv2d"
        self.args = args if isinstance(args, tuple) else ()
        self.state: Any = None  # what __setstate__ or __dict__ would have got
        self.entries: dict[str, Any] | None = None  # of a class of dict
        self.members: list[Any] | None = None  # of a class of list or set


def load(stream: BinaryIO, size: int, persistent: Callable[[Any], Any]) -> Any:
    """The content of the pickle at the stream's position, which ends up behind it; `size` is that of the whole file.

    `stream.read(n)` must give what is there, however large n is. `persistent` turns a saved id into what it stands for.
    ValueError, IndexError, KeyError or UnicodeError for what is no pickle.
    """
    machine = _Machine(persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _allowed(size):
            raise ValueError(f"a pickle of more than {count} steps")
        if opcode.name == "STOP":
            return machine.stack.pop()
        if opcode.name not in ACTIONS:
            raise ValueError(f"a pickle with the opcode {opcode.name}")
        ACTIONS[opcode.name](machine, argument)
    raise ValueError("a pickle without an end")


def _allowed(size: int) -> int:
    return MOST + size // BYTES_EACH


def mapping(node: Any) -> dict[str, Any]:
    """The named entries of a dict of whatever class; empty if it is none."""
    if isinstance(node, dict):
        return node
    if not isinstance(node, Thing):
        return {}
    pairs = node.args[0] if node.args and isinstance(node.args[0], list) else ()  # Python 2's OrderedDict
    items = {pair[0]: pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is str}
    return items | (node.entries or {})


def members(node: Any) -> list[Any]:
    """What a list, a tuple or a set of whatever class holds; empty if it is none."""
    if isinstance(node, Thing):
        return node.members or (members(node.args[0]) if node.args else [])
    return list(node) if isinstance(node, (list, tuple)) else []


def attributes(node: Any) -> dict[str, Any]:
    """What an object's __dict__ would have held."""
    state = node.state if isinstance(node, Thing) else None
    return mapping(state[0] if isinstance(state, tuple) and state else state)


class Storage(NamedTuple):
    """A run of numbers elsewhere in the file."""

    dtype: str
    key: str
    count: int


class Tensor(NamedTuple):
    """A view of a storage, unchecked; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Array(NamedTuple):
    """A NumPy array, unchecked."""

    raw: Any
    dtype: Any
    shape: tuple[int, ...]
    fortran: bool


class Refused(NamedTuple):
    """A tensor of a kind that is not read."""

    made_by: str


def array(node: Any) -> Tensor | Array | Refused | None:
    """The array that a node of a pickle stands for; None if it is none."""
    for _ in range(WRAPPINGS):
        if isinstance(node, Thing) and node.made_by in WRAPPERS and node.args:
            node = node.args[0]
        elif isinstance(node, Thing) and node.made_by == TYPED:
            node = Thing(node.args[0].made_by, node.args[2])
        else:
            break
    if not isinstance(node, Thing):
        return node if isinstance(node, Tensor) else None
    if node.made_by in TENSORS:
        return Tensor(*node.args[:4])
    if node.made_by in FRESH and node.state:
        _, shape, dtype, fortran, raw = node.state
        return Array(raw, dtype, shape, fortran)
    if node.made_by in BUFFERED:
        raw, dtype, shape, order = node.args
        return Array(raw, dtype, shape, order == "F")
    return Refused(node.made_by) if node.made_by.startswith("torch._utils._rebuild_") else None


def module(node: Any, size: int) -> dict[str, Any]:
    """The entries of a pickled module of any class in the order of its state_dict; empty if it is none.

    ValueError where their names are longer than a file of `size` has use for, as those of a module in itself would be.
    """
    room = _allowed(size)
    found: dict[str, Any] = {}
    waiting = [("", node)]
    while waiting:
        prefix, node = waiting.pop()
        held = attributes(node)
        passing = {name for name in members(held.get("_non_persistent_buffers_set")) if isinstance(name, str)}
        own = mapping(held.get("_parameters")) | mapping(held.get("_buffers"))
        children = mapping(held.get("_modules"))
        room -= sum(len(prefix) + len(name) + 1 for name in (*own, *children))
        if room < 0:
            raise ValueError("modules in modules without an end")
        found |= {prefix + name: entry for name, entry in own.items() if entry is not None and name not in passing}
        waiting += reversed([(f"{prefix}{name}.", child) for name, child in children.items()])
    return found


class _Machine:
    """The stack, its marks and the memo."""

    def __init__(self, persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.persistent = persistent

    def push(self, node: Any) -> None:
        self.stack.append(node)

    def pop(self, count: int) -> list[Any]:
        """The topmost objects, the deepest first."""
        if count > len(self.stack):
            raise IndexError("a pickle takes more than it has put")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def call(self, made_by: Any, *args: Any) -> None:
        """REDUCE, NEWOBJ and their kin: the arguments are kept, nothing is called."""
        self.push(Thing(made_by.made_by if isinstance(made_by, Thing) else "", *args))

    def build(self, _: Any) -> None:
        (state,) = self.pop(1)
        if isinstance(self.stack[-1], Thing):
            self.stack[-1].state = state

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Thing):
            target.entries = target.entries if target.entries is not None else {}
            target = target.entries
        if isinstance(target, dict):
            target.update((key, value) for key, value in _pairs(flat) if type(key) is str)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Thing):
            target.members = target.members if target.members is not None else []
            target = target.members
        if isinstance(target, list):
            target.extend(items)

    def drop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def dictionary(self, _: Any) -> None:
        flat = self.since_mark()
        self.push({})
        self.set_items(flat)

    def instance(self, _: Any) -> None:
        made_by, *args = self.since_mark()
        self.call(made_by, tuple(args))


def _pairs(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _global(argument: str) -> Thing:
    """From a module's name, a space and the name in it."""
    if len(argument) > LONGEST:
        raise ValueError("a global of a name without end")
    return Thing(argument.replace(" ", ".", 1))


LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {  # by the names of pickletools
    **dict.fromkeys(("PROTO", "FRAME"), lambda self, _: None),
    **dict.fromkeys(LITERALS, _Machine.push),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda self, place: self.push(self.memo[place])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda self, place: self.memo.update({place: self.stack[-1]})),
    "MEMOIZE": lambda self, _: self.memo.update({len(self.memo): self.stack[-1]}),
    "NONE": lambda self, _: self.push(None),
    "NEWTRUE": lambda self, _: self.push(True),
    "NEWFALSE": lambda self, _: self.push(False),
    "EMPTY_LIST": lambda self, _: self.push([]),
    "EMPTY_TUPLE": lambda self, _: self.push(()),
    "EMPTY_DICT": lambda self, _: self.push({}),
    "EMPTY_SET": lambda self, _: self.push(Thing("builtins.set")),
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": lambda self, _: self.since_mark(),
    "DUP": lambda self, _: self.push(self.stack[-1]),
    "TUPLE": lambda self, _: self.push(tuple(self.since_mark())),
    "TUPLE1": lambda self, _: self.push(tuple(self.pop(1))),
    "TUPLE2": lambda self, _: self.push(tuple(self.pop(2))),
    "TUPLE3": lambda self, _: self.push(tuple(self.pop(3))),
    "LIST": lambda self, _: self.push(self.since_mark()),
    "APPEND": lambda self, _: self.extend(self.pop(1)),
    "APPENDS": lambda self, _: self.extend(self.since_mark()),
    "ADDITEMS": lambda self, _: self.extend(self.since_mark()),
    "FROZENSET": lambda self, _: self.push(Thing("builtins.frozenset", (self.since_mark(),))),
    "DICT": _Machine.dictionary,
    "SETITEM": lambda self, _: self.set_items(self.pop(2)),
    "SETITEMS": lambda self, _: self.set_items(self.since_mark()),
    "GLOBAL": lambda self, argument: self.push(_global(argument)),
    "STACK_GLOBAL": lambda self, _: self.push(_global(" ".join(self.pop(2)))),
    "REDUCE": lambda self, _: self.call(*self.pop(2)),
    "NEWOBJ": lambda self, _: self.call(*self.pop(2)),
    "NEWOBJ_EX": lambda self, _: self.call(*self.pop(3)[:2]),
    "INST": lambda self, argument: self.call(_global(argument), tuple(self.since_mark())),
    "OBJ": _Machine.instance,
    "BUILD": _Machine.build,
    "PERSID": lambda self, argument: self.push(self.persistent(argument)),
    "BINPERSID": lambda self, _: self.push(self.persistent(self.stack.pop())),
}
