"""The command line: python -m lib <verb>.

Exit code 0 only on success, 1 with one line on stderr for what a user can mend, 2 for a wrong command line, 130 after
Ctrl-C. Frameworks are imported by the verbs that need one: run those in the environment of the framework you want.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.commands import compare, curves, detect, exam, handin, slides, train, verify
from lib.commands import evaluate as beyond
from lib.data import commands
from lib.errors import UserError

CONVERT = """\
  python -m lib convert nanodet-plus-m_320.pth weights.safetensors
  python -m lib convert model_best.ckpt weights.pkl          Lightning checkpoint (its averaged weights) to Jittor
  python -m lib convert weights.pkl weights.pth              Jittor to PyTorch
  python -m lib convert fused.npz out.pth --model nanodet-plus-m_320 --absent aux_fpn. aux_head.
                                                             fail unless it fits the model entry by entry
Read: .pth .pt .ckpt .pkl .npz .safetensors; no code in them is run. Written: .pth .pkl .npz .safetensors.
"""
EVALUATE = """\
  python -m lib evaluate nanodet-plus-m_320 runs/scenes/weights.safetensors data/scenes/val.json
  python -m lib evaluate nanodet-plus-m_320 fused.npz coco/val.json --absent aux_fpn. aux_head. --detections found.json
Prints the twelve COCO numbers; --detections keeps what was found in COCO's result format.
"""
BENCHMARK = """\
  python -m lib benchmark nanodet-plus-m_320 reports/quick/records
  python -m lib benchmark nanodet-plus-m_320 records --batches 1 --train-batches 2 --sides jittor
Times inference and training steps in envs/torch and envs/jt in turn; one record (stage "speed") per side.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was complete is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lib", description=__doc__, formatter_class=_AsWritten)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    commands.add(_verb(verbs, "data", "get, make, convert, check and show data sets", commands.EXAMPLES), _verb)
    _add_convert(_verb(verbs, "convert", "weights from one format to another", CONVERT))
    _add_train(_verb(verbs, "train", "train a model in this environment's framework", train.EXAMPLES))
    _add_evaluate(_verb(verbs, "evaluate", "COCO numbers of trained weights", EVALUATE + beyond.EXAMPLES))
    _add_detect(_verb(verbs, "detect", "boxes on pictures, videos and a webcam", detect.EXAMPLES))
    curves.add(_verb(verbs, "curves", "draw the logs of trainings, ours and published ones", curves.EXAMPLES))
    _add_benchmark(_verb(verbs, "benchmark", "time both frameworks side by side", BENCHMARK))
    compare.add(_verb(verbs, "compare", "the alignment report of recorded models, or of a port of your own", compare.EXAMPLES))
    exam.add(_verb(verbs, "exam", "does the alignment engine find the faults that people make?", exam.EXAMPLES))
    handin.add(_verb(verbs, "handin", "the document that a port's author hands in", handin.EXAMPLES))
    slides.add(_verb(verbs, "slides", "lectures from the notebooks, for a browser without network", slides.EXAMPLES))
    verify.add(_verb(verbs, "verify", "does a report say what its records say?", verify.EXAMPLES))
    return parser


_AsWritten = argparse.RawDescriptionHelpFormatter


def _verb(verbs, name: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    return verbs.add_parser(
        name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.", epilog=f"examples:\n{examples}",
        formatter_class=_AsWritten,
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", help="fail unless the weights fit this model with nothing missing or left over")
    parser.add_argument("--classes", type=int, default=80, help="of --model (%(default)s)")
    _add_absent(parser)
    parser.set_defaults(run=_convert)


def _add_train(parser: argparse.ArgumentParser) -> None:
    train.add(parser)
    _add_running(parser)
    parser.set_defaults(run=_train)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("weights", type=Path)
    parser.add_argument("data", type=Path, help="COCO file")
    parser.add_argument("--images", type=Path, help="folder of the images, where it is not beside the COCO file")
    parser.add_argument("--batch", type=int, default=8, help="images at a time (%(default)s)")
    parser.add_argument("--per-class", action="store_true", help="also the average precision of each class")
    parser.add_argument("--detections", type=Path, help="file to write")
    beyond.add(parser)
    _add_absent(parser)
    _add_running(parser)
    parser.set_defaults(run=_evaluate)


def _add_detect(parser: argparse.ArgumentParser) -> None:
    detect.add(parser)
    _add_absent(parser)
    _add_size_and_device(parser)
    parser.set_defaults(run=_detect)


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("records", type=Path, help="folder of the records")
    parser.add_argument("--sides", nargs="+", choices=("torch", "jittor"), default=["torch", "jittor"])
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8], help="of inference (1 8)")
    parser.add_argument("--train-batches", type=int, nargs="*", default=[8], help="of training steps (8)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_benchmark)


def _add_absent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--absent", nargs="+", default=[], metavar="PART",
                        help="beginnings or ends of names that the weights may lack, e.g. aux_fpn. aux_head.")


def _add_running(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=2, help="threads that prepare images (%(default)s)")
    _add_size_and_device(parser)


def _add_size_and_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="network input; the published by default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def _convert(chosen: argparse.Namespace) -> None:
    from lib import checkpoints

    weights = checkpoints.read(chosen.source)
    note = ""
    if chosen.model:
        from lib import convert, models

        coverage = convert.load(models.build(chosen.model, chosen.classes), weights, absent=tuple(chosen.absent))
        note = f", all that {chosen.model} has" + (f" but {len(coverage.absent)} absent" if coverage.absent else "")
    elif chosen.absent:
        raise UserError("--absent: only with --model, which says what should be there")
    checkpoints.write(chosen.target, weights)
    print(f"{chosen.target}: {len(weights)} entries{note}")


def _train(chosen: argparse.Namespace) -> None:
    _use(chosen.device)
    train.run(chosen)


def _evaluate(chosen: argparse.Namespace) -> None:
    from lib import convert, inference, models
    from lib.data import coco
    from lib.evaluation import published_form
    from lib.record import atomic

    dataset = coco.load(chosen.data, chosen.images)
    _use(chosen.device)
    model = models.build(chosen.model, len(dataset.classes))
    convert.load(model, chosen.weights, absent=tuple(chosen.absent))
    size = tuple(chosen.size) if chosen.size else None
    result, found = inference.evaluate_model(model, chosen.model, dataset, size, chosen.batch, chosen.workers)
    rows = published_form([image.id for image in dataset.images], found, dataset.category_ids)
    if chosen.detections:
        with atomic(chosen.detections) as temporary:
            temporary.write_text(json.dumps(rows))
    for name, value in [*result.numbers.items(), *(result.per_class.items() if chosen.per_class else ())]:
        print(f"{name:<12} {value:.4f}")
    beyond.show(chosen, dataset.path, rows, result)


def _detect(chosen: argparse.Namespace) -> None:
    _use(chosen.device)
    detect.run(chosen)


def _benchmark(chosen: argparse.Namespace) -> None:
    from lib import benchmark, environment

    pythons = {side: environment.interpreter(environment.named(side)) for side in chosen.sides}
    for path in benchmark.benchmark(
        chosen.model, pythons, chosen.records, batches=chosen.batches, train_batches=chosen.train_batches,
        rounds=chosen.rounds, threads=chosen.threads, seed=chosen.seed,
    ):
        print(path)


def _use(device: str) -> None:
    from lib import backend

    try:
        backend.set_device(device)
    except ValueError as error:
        raise UserError(f"--device {device}: {error}; leave it out to use the CPU") from error


if __name__ == "__main__":
    sys.exit(main())
