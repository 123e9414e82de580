"""A detector as an ONNX file, for those who deploy it: written from PyTorch, read back by onnxruntime.

The file holds the network in its inference form, for one size of the input and any number of images. Its metadata say
which model it is, what its classes are called, how an image becomes its input, and where it came from.
"""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from lib import backend, record
from lib.backend import nn
from lib.data import transforms
from lib.data.transforms.gold_yolo import GREY, SIZE
from lib.errors import UserError
from lib.families import NAMES, family
from lib.models.inference import inference_form

SUFFIX = ".onnx"
# GridSample came with 16, LayerNormalization with 17; 18 is what PyTorch's exporter writes by itself, every other
# version a conversion of that. onnxruntime reads it since 1.14.
OPSET = 18
PREPROCESSING = {  # of a decoded image, by family
    "nanodet_plus": "BGR, resized bilinearly to the input's size whatever its ratio; (grey level - {mean}) / {std}",
    "gold_yolo": "RGB / 255, resized to fit {inner}/{size} of the input's size, ratio kept, centred on grey {grey}/255",
    "rt_detr": "RGB / 255, resized bilinearly with antialiasing to the input's size whatever its ratio",
}


def needed(package: str, shown: Path) -> ModuleType:
    """onnx or onnxruntime, when a file asks for it; UserError outside the torch environment, which alone has them."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        said = f"this Python has no {package}; use envs/torch/bin/python (made by `make envs`)"
        raise UserError(f"{shown}: {said}") from error


def write(
    model: nn.Module, name: str, classes: tuple[str, ...], size: tuple[int, int], weights: Path, path: Path
) -> None:
    """Write a model in eval() for a size of the input (height, width); weights: the file that its own came from.

    UserError outside the environment that has PyTorch and its exporter.
    """
    onnx = needed("onnx", path)
    form, images = inference_form(model), backend.tensor(np.zeros((2, 3, *size), np.float32))
    with backend.no_grad():
        given = form(images)
        backend.write_onnx(form, images, tuple(given) if isinstance(given, dict) else ("output",), OPSET, str(path))
    (commit, changed), held = record.git_state(), onnx.load(path)
    preprocessing = PREPROCESSING[family(name)].format(**vars(transforms.recipe(name)), size=SIZE, grey=GREY)
    notes = {
        "model": name,
        "classes": json.dumps(classes, ensure_ascii=False),
        "input": json.dumps(size),
        "preprocessing": preprocessing,
        "commit": f"{commit}{', changed' if changed else ''}",
        "weights": f"sha256 {record.sha256(weights)}",
    }
    onnx.helper.set_model_props(held, notes)
    onnx.checker.check_model(held)
    onnx.save(held, path)


class Exported(nn.Module):
    """A file that `write` wrote, as a model: images (n, 3, *size) -> what the model gives in eval()."""

    def __init__(self, path: Path, shown: Path | None = None):
        """UserError for a file that onnxruntime can't read, and for one that is somebody else's.

        shown: what errors call the file, where it does not yet lie in its place.
        """
        super().__init__()
        shown = shown or path
        onnxruntime = needed("onnxruntime", shown)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = record.threads()
        options.log_severity_level = 3  # errors only
        try:
            self.session = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
        except OSError as error:
            raise UserError(f"{shown}: can't be read ({error.strerror}); check the path") from error
        except Exception as error:  # onnxruntime's errors have no class of their own; the bytes are a stranger's
            said = str(error).splitlines()[0][:200]
            raise UserError(f"{shown}: onnxruntime can't read it ({said}); export it again") from error
        notes = self.session.get_modelmeta().custom_metadata_map
        try:
            self.name, self.classes = NAMES[NAMES.index(notes["model"])], tuple(json.loads(notes["classes"]))
            self.size = tuple(json.loads(notes["input"]))
        except (KeyError, ValueError) as error:
            said = "its metadata name no model of ours; give a file that python -m lib export wrote"
            raise UserError(f"{shown}: {said}") from error

    def forward(self, images):
        names = [output.name for output in self.session.get_outputs()]
        found = [backend.tensor(array) for array in self.session.run(names, {"images": backend.numpy(images)})]
        return dict(zip(names, found)) if len(found) > 1 else found[0]
