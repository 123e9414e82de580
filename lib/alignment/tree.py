"""What goes into a module and comes out of it, taken apart into named tensors and put together again."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

Structure = dict[str, Any]  # plain JSON


def take_apart(value: Any, is_tensor: Callable[[Any], bool], name: str = "") -> tuple[Structure, dict[str, Any]]:
    """The value's structure, and its tensors by where they stand in it ("0", "1/boxes"); a lone tensor is called
    `name`.

    Lists, tuples, dictionaries, data classes and plain values are seen through; anything else is opaque.
    """
    tensors: dict[str, Any] = {}

    def visit(part: Any, path: str) -> Structure:
        if is_tensor(part):
            tensors[path or name] = part
            return {"tensor": path or name}
        if part is None or isinstance(part, bool | int | float | str):
            return {"plain": part}
        if isinstance(part, list | tuple):
            items = [visit(item, _below(path, index)) for index, item in enumerate(part)]
            return {"list" if isinstance(part, list) else "tuple": items}
        if isinstance(part, Mapping):
            return {"dict": {str(key): visit(item, _below(path, key)) for key, item in part.items()}}
        if is_dataclass(part):
            for field in fields(part):
                visit(getattr(part, field.name), _below(path, field.name))
        return {"opaque": type(part).__name__}

    return visit(value, ""), tensors


def put_together(structure: Structure, tensors: Mapping[str, Any]) -> Any:
    """The inverse of `take_apart`, with other tensors in the places of the first ones; nothing in it may be opaque."""
    [(kind, held)] = structure.items()
    match kind:
        case "tensor":
            return tensors[held]
        case "plain":
            return held
        case "dict":
            return {key: put_together(item, tensors) for key, item in held.items()}
        case _:
            items = [put_together(item, tensors) for item in held]
            return items if kind == "list" else tuple(items)


def opaque(structure: Structure) -> str | None:
    """The type of something in it that can't be kept, or None."""
    [(kind, held)] = structure.items()
    if kind == "opaque":
        return held
    items = held.values() if kind == "dict" else held if kind in ("list", "tuple") else ()
    return next((found for item in items if (found := opaque(item))), None)


def _below(path: str, key: Any) -> str:
    return f"{path}/{key}" if path else str(key)
