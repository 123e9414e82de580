"""A model's weights out and in, under the published names, with nothing silently missing, left over or reshaped."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lib import backend
from lib.backend import nn
from lib.errors import UserError
from lib.training import checkpoints


@dataclass(frozen=True)
class Coverage:
    """What `load` did; every name is a published one, in the model's order (`left_over`: the checkpoint's).

    After a strict load only `loaded` and `absent` can hold names.
    """

    loaded: tuple[str, ...]
    absent: tuple[str, ...]  # allowed to be missing, and missing: these keep the model's values
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    misshapen: tuple[str, ...]  # another shape, or integers for real numbers
    not_finite: tuple[str, ...]  # NaN or infinity inside, or numbers that the model's type can't hold


def state(model: nn.Module) -> dict[str, np.ndarray]:
    """A copy of every parameter and buffer under its published name, in published order."""
    return {name: np.array(backend.numpy(tensor)) for name, tensor in backend.named_state(model)}


def load(
    model: nn.Module,
    mapping_or_path: Mapping[str, np.ndarray] | str | os.PathLike,
    strict: bool = True,
    absent: tuple[str, ...] = (),
    source: str | os.PathLike = "the given weights",
) -> Coverage:
    """Copy weights into the model; dtypes become the model's.

    `absent` holds beginnings ("aux_fpn.") or ends (".num_batches_tracked") of names that the checkpoint may lack, each
    as a whole: half an auxiliary branch is an error. Strict: UserError, with the model untouched, unless every other
    entry is there, with its shape, finite, and nothing is left over. Otherwise what fits is loaded. `source` is what
    the error calls a mapping.
    """
    given = isinstance(mapping_or_path, Mapping)
    values = mapping_or_path if given else checkpoints.read(mapping_or_path).arrays
    own = state(model)
    may_lack = {name for part in absent for name in _whole(part, own, values)}
    present = [name for name in own if name in values]
    misshapen = tuple(name for name in present if not _fits(np.asarray(values[name]), own[name]))
    sound = [name for name in present if name not in misshapen]
    cast = {name: _cast(np.asarray(values[name]), own[name].dtype) for name in sound}
    not_finite = tuple(name for name in sound if cast[name] is None)
    coverage = Coverage(
        loaded=tuple(name for name in sound if name not in not_finite),
        absent=tuple(name for name in own if name in may_lack),
        missing=tuple(name for name in own if name not in values and name not in may_lack),
        left_over=tuple(name for name in values if name not in own),
        misshapen=misshapen,
        not_finite=not_finite,
    )
    if strict and (faults := _faults(coverage, own, values)):
        parts = dict.fromkeys(name.split(".")[0] + "." for name in coverage.missing)
        left_out = [part for part in parts if _whole(part, own, values)]
        remedy = f" (where whole parts are left out on purpose: --absent {' '.join(left_out)})" if left_out else ""
        if not coverage.loaded:
            remedy = " (no entry fits: they are another model's)"
        elif (
            len(coverage.misshapen) == len(own) - len(coverage.loaded) - len(coverage.absent) and not coverage.left_over
        ):
            remedy = " (all but shapes fit: they may be of another number of classes)"
        raise UserError(f"{source if given else mapping_or_path}: {'; '.join(faults)}; nothing was loaded{remedy}")
    backend.load_state(model, {name: cast[name] for name in coverage.loaded})
    return coverage


def _whole(part: str, own: Mapping, values: Mapping) -> list[str]:
    """The model's names that begin or end with `part`, if the checkpoint has none of them."""
    names = [name for name in own if name.startswith(part) or name.endswith(part)]
    return [] if any(name in values for name in names) else names


def _fits(value: np.ndarray, own: np.ndarray) -> bool:
    """Same shape, and real numbers for real numbers, integers for integers."""
    return value.shape == own.shape and (value.dtype.kind == "f") == (own.dtype.kind == "f")


def _cast(value: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """In the model's type; None where that is not finite, or not the same whole numbers."""
    with np.errstate(over="ignore"):
        cast = value.astype(dtype)
    return cast if np.isfinite(cast).all() and (dtype.kind == "f" or (cast == value).all()) else None


def _faults(coverage: Coverage, own: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> list[str]:
    """One phrase per kind of fault, with the count and the first three names."""

    def described(name: str) -> str:
        value = np.asarray(values[name])
        return f"{name} {value.dtype}{list(value.shape)} for {own[name].dtype}{list(own[name].shape)}"

    kinds = {
        "missing": coverage.missing,
        "left over": coverage.left_over,
        "of the wrong shape or kind": tuple(described(name) for name in coverage.misshapen),
        "with NaN, infinity or too large a number": coverage.not_finite,
    }
    return [
        f"{len(names)} {kind}: {', '.join([*names[:3], *['…'] * (len(names) > 3)])}"
        for kind, names in kinds.items()
        if names
    ]
