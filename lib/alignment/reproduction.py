"""One layer alone, to look at in each environment: a folder with input, weights, the exact output and a script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import safetensors.numpy

from lib.alignment import store
from lib.errors import UserError
from lib.record import atomic

ARRAYS, SCRIPT = "layer.safetensors", "reproduce.py"
_TEXT = Template('''"""$layer alone: its output against the exact one on the reference's input.

Run it from the project's root, in each environment:
    PYTHONPATH=. envs/torch/bin/python $folder/reproduce.py
    PYTHONPATH=. envs/jt/bin/python $folder/reproduce.py
"""
from importlib import import_module
from pathlib import Path

import numpy as np
import safetensors.numpy

from lib import backend
from lib.alignment import tree
from lib.alignment.compare import compare

BUILDERS = $builders  # by framework: module:function that gives the model, and the layer's path in it
ARGUMENTS = $arguments  # of that function
STRUCTURE = $structure  # of the layer's positional inputs
NAMES = $names  # by framework: the reference's weights -> this layer's, where they have other names

arrays = safetensors.numpy.load_file(Path(__file__).with_name("layer.safetensors"))
part = {kind: {name.split(" ", 1)[1]: array for name, array in arrays.items() if name.startswith(kind + " ")}
        for kind in ("input", "weight", "exact")}
names = NAMES.get(backend.NAME, {})
part["weight"] = {names.get(name, name): array for name, array in part["weight"].items()}
builder, path = BUILDERS[backend.NAME]
module, function = builder.split(":")
layer = dict(getattr(import_module(module), function)(*ARGUMENTS).$mode().named_modules())[path]
own = {name for name, _ in backend.named_state(layer)}
print("weights of the reference that this layer has not:", sorted(part["weight"].keys() - own) or "none")
print("weights of this layer that the reference has not:", sorted(own - part["weight"].keys()) or "none")
backend.load_state(layer, {name: array for name, array in part["weight"].items() if name in own})
output = layer(*tree.put_together(STRUCTURE, {name: backend.tensor(array) for name, array in part["input"].items()}))
_, outputs = tree.take_apart(output, lambda value: isinstance(value, type(backend.tensor(np.zeros(1)))), "output")
for name, exact in part["exact"].items():
    found = compare(name, exact, backend.numpy(outputs[name]), "float32" if exact.dtype.kind == "f" else None)
    error = f"largest error {found.max_abs:.3e} at {found.worst}, relative L2 {found.relative_l2:.3e}"
    print(backend.NAME, name, found.fault or error)
''')


def write(
    captured: str | Path,
    path: str,
    folder: str | Path,
    builders: Mapping[str, tuple[str, str]],
    call: int = 0,
    mode: str = "eval",
    names: Mapping[str, Mapping[str, str]] | None = None,
    arguments: Sequence[str | int] = (),
) -> Path:
    """Write the folder for one call of the module at `path` from what `layers.reference` captured; the script's path.

    builders: framework -> ("package.module:function", path of the layer in what it builds); arguments: of the former.
    names: framework -> the layer's weights in the reference -> in what that framework's builder builds.
    """
    folder = Path(folder)
    with store.reading(captured) as exact, store.reading(Path(captured) / "run") as run:
        found = [entry for entry in exact.content["calls"] if (entry["path"], entry["call"]) == (path, call)]
        if not found or found[0]["unable"]:
            reason = found[0]["unable"] if found else "was not captured"
            raise UserError(f"{captured}: {path} call {call}: {reason}; choose another layer")
        [entry] = found
        start = f"{path}." if path else ""
        state = {name: digest for name, digest in exact.content["state"].items() if name.startswith(start)}
        arrays = {f"input {name}": run.get(digest) for name, digest in entry["input"].items()}
        arrays |= {f"weight {name.removeprefix(start)}": exact.get(digest) for name, digest in state.items()}
        arrays |= {f"exact {name}": exact.get(digest) for name, digest in entry["exact"]["forward"].items()}
    with atomic(folder / ARRAYS) as temporary:
        temporary.write_bytes(safetensors.numpy.save(arrays))
    text = _TEXT.substitute(
        layer=f"{path or 'The whole model'} ({entry['kind']})",
        folder=folder,
        mode=mode,
        arguments=tuple(arguments),
        builders={name: tuple(builder) for name, builder in builders.items()},
        structure=entry["structure"],
        names={name: dict(pairs) for name, pairs in (names or {}).items()},
    )
    with atomic(folder / SCRIPT) as temporary:
        temporary.write_text(text)
    return folder / SCRIPT
