"""The command line of weights in other formats: python -m lib convert. Without --model no framework is imported."""

import argparse
from pathlib import Path

from lib.commands import arguments
from lib.errors import UserError

PURPOSE = "weights from one format to another"
EXAMPLES = """\
  python -m lib convert nanodet-plus-m_320.pth weights.safetensors
  python -m lib convert model_best.ckpt weights.pkl          Lightning checkpoint (its averaged weights) to Jittor
  python -m lib convert checkpoint.pth last.pth --take model the last step's weights where there are averaged ones too
  python -m lib convert weights.pkl weights.pth              Jittor to PyTorch
  python -m lib convert fused.npz out.pth --model nanodet-plus-m_320 --absent aux_fpn. aux_head.
                                                             fail unless it fits the model entry by entry
Read: .pth .pt .ckpt .pkl .bin .tar .npz .safetensors; no code in them is run. Written: .pth .pkl .npz .safetensors.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    taken = "where a checkpoint holds averaged weights (ema) and the last step's (model); averaged ones by default"
    parser.add_argument("--take", choices=("ema", "model"), help=taken)
    parser.add_argument("--model", help="fail unless the weights fit this model with nothing missing or left over")
    parser.add_argument("--classes", type=int, default=80, help="of --model (%(default)s)")
    arguments.add_absent(parser)


def run(chosen: argparse.Namespace) -> None:
    """Read, check where a model is named, write."""
    from lib.training import checkpoints

    weights = checkpoints.read(chosen.source, chosen.take)
    note = f": {weights}" if str(weights) else ""
    if chosen.model:
        from lib import convert, models

        coverage = convert.load(
            models.build(chosen.model, chosen.classes),
            weights.arrays,
            absent=tuple(chosen.absent),
            source=chosen.source,
        )
        note += f", all that {chosen.model} has" + (f" but {len(coverage.absent)} absent" if coverage.absent else "")
    elif chosen.absent:
        raise UserError("--absent: only with --model, which says what should be there")
    checkpoints.write(chosen.target, weights.arrays, weights.classes)
    print(f"{chosen.target}: {len(weights.arrays)} entries{note}")
