"""The command line of training: python -m lib train."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from lib.commands import arguments

PURPOSE = "train a model in this environment's framework"
EXAMPLES = """\
  python -m lib train nanodet-plus-m_320 data/scenes runs/scenes --epochs 20 --batch 8
  python -m lib train nanodet-plus-m_320 coco/ runs/coco     COCO's own layout, the published recipe
  python -m lib train rtdetr_r18vd data/own runs/own --weights rtdetr_r18vd.pth --epochs 50 --batch 4
                                                             fine-tuning; another number of classes is recognised
  python -m lib train rtdetr_r50vd data/own runs/own --backbone ResNet50_vd.pth
                                                             ImageNet weights of the backbone, entry by entry
  python -m lib train rtdetr_r50vd coco/ runs/coco --device cuda --precision mixed
                                                             on a GPU, float16 where it pays
  python -m lib train gold-yolo-s-fuse-ab data/own runs/teacher
  python -m lib train gold-yolo-s-distill data/own runs/student --teacher runs/teacher/weights.safetensors
                                                             Gold-YOLO's own two steps (M, L: gold-yolo-m, gold-yolo-l)
  python -m lib train rtdetr_r18vd coco/ runs/coco --device cuda --processes 4
                                                             four GPUs, each with a quarter of every batch: torchrun
                                                             (without --device on the CPU), in Jittor OpenMPI's mpirun
The same command again continues an interrupted run bit for bit; an interrupt loses the epoch that was running, or of a
long one at most ten minutes. A folder with another run, or a complete one, is refused. runs/scenes then holds log.jsonl
(and the same numbers for TensorBoard: tensorboard --logdir runs), checkpoint.safetensors, and the averaged weights:
weights.safetensors of the evaluation with the best AP, last.safetensors of the last. Images are prepared by threads, so
that nothing can hang in a forked process.
"""


def _place(text: str) -> str:
    """A path as a run knows it: the same with and without a slash at its end."""
    return str(Path(text))


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model")
    parser.add_argument("data", type=_place, help="folder with train.json and val.json, or one COCO file")
    parser.add_argument("folder", type=_place, help="of the run")
    parser.add_argument("--epochs", type=int, help="the published number by default")
    parser.add_argument("--batch", type=int, help="images per step; the published number by default")
    parser.add_argument("--rate", type=float, default=1.0, help="times the published learning rate (%(default)s)")
    parser.add_argument("--evaluate-every", type=int, default=10, help="epochs, and after the first (%(default)s)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--weights", type=_place, help="start from this checkpoint instead of fresh weights")
    start.add_argument("--backbone", type=_place, help="or only the backbone from these weights, strictly")
    parser.add_argument(
        "--teacher", type=_place, help="distil Gold-YOLO from these weights of its size's -fuse-ab model"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "mixed"),
        default="float32",
        help="mixed: float16 where it pays, with a scaled loss; on a GPU (%(default)s)",
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="that share each batch, and train as one would (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments.add_absent(parser)
    arguments.add_workers(parser)
    arguments.add_network(parser)


def run(chosen: argparse.Namespace) -> None:
    """Train, in one process or several, and say what came out."""
    from lib.training import parallel, runs, schedule

    size = arguments.use(chosen)
    asked = {name: value for name, value in vars(chosen).items() if name in runs.Training.__dataclass_fields__}
    plan = runs.Training(**{**asked, "absent": tuple(chosen.absent), "input_size": size})
    if chosen.processes == 1:
        return _train(plan)
    parallel.check(chosen.processes, plan.batch or schedule.recipe(plan.model).batch)
    if not parallel.launched():
        return parallel.launch(chosen.processes, sys.argv[1:])
    with parallel.member(chosen.processes):
        _train(plan)


def _train(plan: Any) -> None:
    from lib import backend
    from lib.data import coco
    from lib.training import runs
    from lib.training.log import read_log

    if plan.model.endswith("-distill") and not plan.teacher:
        alone = "trains alone, without distillation; its teacher's weights are --teacher"
        print(f"warning: {plan.model}: {alone}", file=sys.stderr)
    outcome = runs.train(plan, replace=False)
    if backend.rank():
        return
    before = next((line["evaluation"] for line in read_log(outcome.log) if line["epoch"] < 0), None)
    started = f" (before the first step {before['AP']:.3f})" if before else ""
    print(f"{outcome.weights}: best of {outcome.steps} steps, AP {outcome.best['evaluation']['AP']:.3f}{started}")
    size = ["--size", *plan.input_size] if plan.input_size else []
    again = shlex.join(map(str, [plan.model, outcome.weights, coco.splits(plan.data)[1], *size]))
    print(f"again: python -m lib evaluate {again}")
