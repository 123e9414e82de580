"""What the parsers of several verbs have in common."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lib.errors import UserError, is_memory

if TYPE_CHECKING:
    from lib.backend.nn import Module
    from lib.evaluation.detection import Classes
    from lib.training.checkpoints import Weights

AS_WRITTEN = argparse.RawDescriptionHelpFormatter


def verb(verbs: argparse._SubParsersAction, name: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one more verb, whose help ends in examples."""
    return verbs.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=AS_WRITTEN,
    )


def add_absent(parser: argparse.ArgumentParser) -> None:
    """`--absent`, of verbs that read weights."""
    parser.add_argument(
        "--absent",
        nargs="+",
        default=[],
        metavar="PART",
        help="beginnings or ends of names that the weights may lack, e.g. aux_fpn. aux_head.",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`, of verbs that read a data set."""
    parser.add_argument("--workers", type=int, default=2, help="threads that prepare images (%(default)s)")


def add_size(parser: argparse.ArgumentParser) -> None:
    """`--size`, of verbs that run a model: see `use`."""
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="network input, multiples of 32; the published by default"
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """`--size` and `--device`: see `use`."""
    add_size(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def add_classes(parser: argparse.ArgumentParser) -> None:
    """`--classes`, of verbs that need no data set: see `classes`."""
    names = "COCO file, or a text file with a name per line; those that the weights carry by default, or COCO's 80"
    parser.add_argument("--classes", type=Path, help=names)


def classes(chosen: argparse.Namespace, carried: tuple[str, ...]) -> "Classes":
    """What the labels are called: by `--classes`, else as the weights carry it, else COCO's."""
    from lib.evaluation import detection

    if chosen.classes:
        return detection.read_classes(chosen.classes)
    usual = detection.coco_classes()
    return detection.Classes(carried, tuple(range(1, len(carried) + 1))) if carried not in ((), usual.names) else usual


def fill(
    model: "Module", chosen: argparse.Namespace, weights: "Weights", classes: tuple[str, ...], where: Path
) -> None:
    """Load what was read of `chosen.weights`; say which they are, and where their classes are not those of `where`."""
    from lib import convert

    note = weights.other_classes(classes, where)
    convert.load(model, weights.arrays, absent=tuple(chosen.absent), source=chosen.weights)
    for said in filter(None, (str(weights), note)):
        print(f"note: {chosen.weights}: {said}")


def load(
    model: "Module", chosen: argparse.Namespace, weights: "Weights", classes: tuple[str, ...], where: Path
) -> "Module":
    """Load as `fill` does. Returns the model as it is to be run: its inference form, where the gate says that it is the
    same function; as it was trained where it isn't, and where there is no such form or no memory to judge it."""
    from lib.alignment import form
    from lib.models.inference import Unfolded, inference_form

    fill(model, chosen, weights, classes, where)
    try:
        worst = max(form.judged(chosen.model, model.eval()), key=lambda row: row.ratio)
        if worst.passed:
            return inference_form(model)
        why = f"with norms folded into convolutions, {worst.name} is off by {worst.error:.2g} where {worst.gate:.2g}"
        why += " is allowed"
    except Unfolded as error:
        why = str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        why = "memory ran out while the form with norms folded into convolutions was judged"
    print(f"note: {chosen.weights}: run as trained; {why}")
    return model


def use(chosen: argparse.Namespace) -> tuple[int, int] | None:
    """Choose the device; the network input's height and width, None for the published. UserError where impossible."""
    from lib import backend
    from lib.evaluation import inference

    try:
        backend.set_device(chosen.device)
    except ValueError as error:
        raise UserError(f"--device {chosen.device}: {error}; leave it out to use the CPU") from error
    return inference.checked_size(tuple(chosen.size)) if chosen.size else None
