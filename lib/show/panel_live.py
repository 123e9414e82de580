"""The panel's controls: menus and sliders that change what is shown; a model of this kernel's framework can join."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from lib import backend, convert, models
from lib.errors import UserError
from lib.evaluation import inference
from lib.show.panel import Choice, Detector, Panel

FILE = "weights.safetensors"  # what a training leaves; those of PyTorch are the "common" ones of evaluation records
SIDE = f"{backend.NAME}, live"


@dataclass(frozen=True)
class Live:
    """What can be run: every model, with the weights that trainings left under `runs` or any other file."""

    runs: str | Path  # <runs>/<model>/<side>/weights.safetensors
    size: tuple[int, int] | None = None  # network input, height and width; the published by default

    def models(self) -> list[str]:
        """All names; those that have trained weights here come first."""
        return sorted(models.NAMES, key=lambda name: not self.weights(name))

    def weights(self, model: str) -> list[str]:
        """Files that trainings of the model left."""
        return [str(path) for path in sorted(Path(self.runs, model).glob(f"*/{FILE}"))]

    def join(self, panel: Panel, model: str, path: str) -> dict[str, str]:
        """Load the weights, let the panel ask them, return what of its choice shows them. UserError if they don't fit.

        Under "common" where they are, so that they stand beside what the records say of them, else under their path.
        """
        if model not in models.NAMES:
            raise UserError(f"model: '{model}' is unknown; choose one of {', '.join(models.NAMES)}")
        if not Path(path).is_file():
            raise UserError(f"{path or 'weights'}: no such file; choose weights of {model}")
        common = Path(path).resolve() == Path(self.runs, model, "torch", FILE).resolve()
        weights = "common" if common and (model, "common") in panel.found else str(path)
        panel.add(model, weights, SIDE, self.detector(model, path, len(panel.names())))
        return {"model": model, "weights": weights, "right": SIDE}

    def detector(self, model: str, path: str | Path, classes: int) -> Detector:
        network = models.build(model, classes)
        convert.load(network, path)
        return lambda image: inference.detect_image(network, model, image, self.size)


class Controls:
    """Menus for model, weights, both sides and the image, sliders for thresholds; the figure follows each change.

    live: a row more, to run a model with weights of one's choice; it joins the menus.
    """

    def __init__(self, panel: Panel, choice: Choice, live: Live | None = None):
        self.panel, self.live, self.figure = panel, live, widgets.HTML()
        names, wide = ("model", "weights", "left", "right", "image"), widgets.Layout(width="auto")
        self.menus = {name: widgets.Dropdown(description=name, layout=wide) for name in names}
        share, pixels = {"min": 0, "max": 1, "step": 0.01}, {"min": -3, "max": 2, "readout_format": ".3g"}
        self.sliders = {
            "threshold": widgets.FloatSlider(choice.threshold, description="score from", **share),
            "pixels": widgets.FloatLogSlider(choice.pixels, description="same within", **pixels),
            "scores": widgets.FloatSlider(choice.scores, description="and score", **share),
        }
        self._busy = False
        self._show(**asdict(choice))
        for control in (*self.menus.values(), *self.sliders.values()):
            control.observe(self._changed, "value")
        rows = [widgets.HBox(list(self.menus.values())), widgets.HBox(list(self.sliders.values())), self.figure]
        self.box = widgets.VBox([*([self._live_row(choice.model)] if live else []), *rows])

    def _changed(self, _: dict[str, Any]) -> None:
        if not self._busy:
            self._show(**{name: control.value for name, control in (self.menus | self.sliders).items()})

    def _show(self, **chosen: Any) -> None:
        """Bring menus and figure to a choice; the menus' own changes meanwhile are not the user's."""
        self._busy = True
        try:
            choice = self.panel.choice(**chosen)
            for name, options in self.panel.offered(choice.model, choice.weights).items():
                self.menus[name].options, self.menus[name].value = options, getattr(choice, name)
            self.figure.value = self.panel.picture(choice).html()
        except UserError as error:
            self.figure.value = f"<b>{error}</b>"
        finally:
            self._busy = False

    def _live_row(self, model: str) -> widgets.HBox:
        """Which model to run with which weights, and a button; a file that no menu offers is typed in."""
        names = self.live.models()
        which = widgets.Dropdown(options=names, value=model if model in names else names[0], description="run")
        file = widgets.Combobox(description="weights", placeholder="path of a weights file", ensure_option=False)
        button = widgets.Button(description="detect")

        def offer(_: dict[str, Any] | None = None) -> None:
            file.options = tuple(self.live.weights(which.value))
            file.value = next(iter(file.options), "")

        which.observe(offer, "value")
        button.on_click(lambda _: self._detect(which.value, file.value))
        offer()
        return widgets.HBox([which, file, button])

    def _detect(self, model: str, path: str) -> None:
        self.figure.value = f"{model} detects …"
        try:
            joined = self.live.join(self.panel, model, path)
        except UserError as error:
            self.figure.value = f"<b>{error}</b>"
        else:
            kept = {name: self.menus[name].value for name in ("left", "image")}
            self._show(**kept, **{name: slider.value for name, slider in self.sliders.items()}, **joined)


def controls(panel: Panel, choice: Choice, live: Live | None = None) -> widgets.VBox:
    """The panel as ipywidgets: what to choose above, the figure below."""
    return Controls(panel, choice, live).box
