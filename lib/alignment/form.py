"""Whether a model's inference form is the same function as the model in eval(), by the gate that judges everything."""

import copy

from lib import backend, models
from lib.alignment import by_family
from lib.alignment.compare import compare_sets
from lib.alignment.measure import Arrays, cast, features
from lib.alignment.seeded import seeded_input
from lib.alignment.verdict import FINER, Row, judge, noise_floors
from lib.backend import nn
from lib.models.inference import inference_form

SIZE = 64, 96  # height, width: so few cells that each is one of RT-DETR's queries, and no near-tie decides which


def judged(name: str, model: nn.Module) -> list[Row]:
    """Rows for what the inference form of a float32 model in eval() gives on a seeded image, features and outputs.

    In float32 it is held to the noise of the model's own float32 run, in float64 FINER closer.
    """
    double = backend.float64(copy.deepcopy(model))
    exact = _run(name, double, "float64")
    floors = noise_floors(exact, _run(name, model, "float32"))
    single = compare_sets(exact, _run(name, inference_form(model), "float32"), "float32")
    sharp = {of: floor.times(FINER) for of, floor in floors.items()}
    both = compare_sets(exact, _run(name, inference_form(double), "float64"))
    return judge(single, floors, "max_abs") + judge(both, sharp, "max_abs", "every element, float64")


def _run(name: str, model: nn.Module, precision: str) -> Arrays:
    image = cast(seeded_input("inference form", (1, 3, *SIZE)), precision)
    with backend.no_grad(), features(model, models.intermediates(name)) as found:
        outputs = model(backend.tensor(image))
    return by_family.named(name, outputs, found)
