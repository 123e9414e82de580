"""The published implementations as one more side: what they measured, and how anyone starts from the same state.

Here belongs what is known of golden records alone: nothing is measured or judged. One module per family says which
seeded weights, inputs, boxes and phases its golden records were computed with (`case`), and brings the golden numbers
into the vocabulary of the other sides' records (`STAGES`). The golden files hold whole tensors for some names and
statistics (norm, mean, first values, size of the float32 error) for the rest; these become `fields["statistics"]`,
keyed by the name that the other sides give the array.
"""

from pathlib import Path
from types import ModuleType, SimpleNamespace

from lib.alignment.references import gold_yolo, nanodet_plus, rt_detr
from lib.alignment.references.case import GOLDEN, Case, arrays_of, content_of
from lib.families import FAMILIES
from lib.record import measure

_MODULES = {"nanodet_plus": nanodet_plus, "gold_yolo": gold_yolo, "rt_detr": rt_detr}


def module(model: str) -> ModuleType | None:
    """The reference of the model's family; None for a model that is nobody's but the user's."""
    return next((_MODULES[family] for family, names in FAMILIES.items() if model in names), None)


def case(model: str, stage: str) -> Case:
    """What `stage` ("convert", "forward", "loss", "speed") measures for `model`, one of lib.models.NAMES."""
    return module(model).case(model, stage)


def write(folder: str | Path, model: str, golden: Path = GOLDEN) -> list[Path]:
    """Write the published side's records of `model` into `folder`; stages without a golden file are left out."""
    paths, reference = [], module(model)
    for stage, fill in reference.STAGES.items() if reference else ():
        chosen = case(model, stage)
        source = golden / chosen.file
        if not source.exists():
            continue
        content = content_of(source)
        filled = fill(content, arrays_of(source), chosen)
        if filled is None:
            continue
        inputs = [path for path in (source, source.with_suffix(".npz")) if path.exists()]
        side = SimpleNamespace(
            NAME="published", VERSION=reference.COMMIT, device=lambda: "cpu", cache_path=lambda: None
        )
        with measure(stage, model, folder, inputs=inputs, side=side) as measurement:
            fields, arrays = filled
            measurement.fields |= {"case": chosen.name, "float64": reference.FLOAT64, **fields}
            measurement.arrays |= arrays
        paths.append(measurement.path)
    return paths
