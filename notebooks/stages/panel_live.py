"""The panel's controls: menus and sliders that change what is shown; a model of this kernel's framework can join."""

import html
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from lib import backend, convert, models
from lib.errors import UserError
from lib.evaluation import inference
from lib.show.messages import words
from lib.show.style import called
from lib.training import checkpoints
from notebooks.stages.panel import Choice, Detector, Panel, Source, named

FILE = "weights.safetensors"  # what a training leaves
SIDE = words()("panel.live").format(side=called(backend.NAME))
WIDEST = "290px"  # of a menu, however long its entries are: four of them stand side by side
FITTING = "<style>.detections img { max-width: 100%; height: auto; }</style>"  # a picture is no wider than the page


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

    def join(self, panel: Panel, model: str, path: str) -> dict[str, str | Source]:
        """Load the weights, let the panel ask them; what of its choice shows them. UserError if they don't fit."""
        if model not in models.NAMES:
            raise UserError(f"model: '{model}' is unknown; choose one of {', '.join(models.NAMES)}")
        if not Path(path).is_file():
            raise UserError(f"{path or 'weights'}: no such file; choose weights of {model}")
        panel.add(model, path, SIDE, self.detector(model, path, panel.names()))
        return {"model": model, "right": (path, SIDE)}

    def detector(self, model: str, path: str | Path, classes: tuple[str, ...]) -> Detector:
        weights = checkpoints.read(path)
        weights.other_classes(classes, "the panel's images")  # what it would say is seen in the figure
        network = models.build(model, len(classes))
        convert.load(network, weights.arrays, source=path)
        return lambda image: inference.detect_image(network, model, image, self.size)


class Controls:
    """Menus for the model, what stands left and right, and the image, sliders for thresholds; the figure follows.

    live: a row more, to run a model with weights of one's choice; it joins the menus.
    """

    def __init__(self, panel: Panel, choice: Choice, live: Live | None = None):
        self.panel, self.live, self.figure = panel, live, widgets.HTML()
        self.figure.add_class("detections")
        self.menus = {name: _narrow(widgets.Dropdown, f"panel.{name}") for name in ("model", "left", "right", "image")}
        share, pixels = {"min": 0, "max": 1, "step": 0.01}, {"min": -3, "max": 2, "readout_format": ".3g"}
        self.sliders = {
            "threshold": widgets.FloatSlider(choice.threshold, description=words()("panel.threshold"), **share),
            "pixels": widgets.FloatLogSlider(choice.pixels, description=words()("panel.pixels"), **pixels),
            "scores": widgets.FloatSlider(choice.scores, description=words()("panel.scores"), **share),
        }
        self._busy = False
        self._show(**asdict(choice))
        for control in (*self.menus.values(), *self.sliders.values()):
            control.observe(self._changed, "value")
        rows = [_row(self.menus.values()), _row(self.sliders.values()), self.figure]
        self.box = widgets.VBox([*([self._live_row(choice.model)] if live else []), *rows])

    def _changed(self, _: dict[str, Any]) -> None:
        if not self._busy:
            self._show(**{name: control.value for name, control in (self.menus | self.sliders).items()})

    def _show(self, **chosen: Any) -> None:
        """Bring menus and figure to a choice; the menus' own changes meanwhile are not the user's."""
        self._busy = True
        try:
            choice = self.panel.choice(**chosen)
            for name, options in self.panel.offered(choice.model).items():
                sources = name in ("left", "right")
                self.menus[name].options = [(named(one), one) for one in options] if sources else options
                self.menus[name].value = getattr(choice, name)
            self.figure.value = FITTING + self.panel.picture(choice).html()
        except UserError as error:
            self._say(error)
        finally:
            self._busy = False

    def _say(self, text: object) -> None:
        """Show a text in the figure's place; a file's name in it is no markup."""
        self.figure.value = f"<b>{html.escape(str(text))}</b>"

    def _live_row(self, model: str) -> widgets.HBox:
        """Which model to run with which weights, and a button; a file that no menu offers is typed in."""
        names = self.live.models()
        which = _narrow(widgets.Dropdown, "panel.run", options=names, value=model if model in names else names[0])
        file = _narrow(widgets.Combobox, "panel.file", placeholder=words()("panel.path"), ensure_option=False)
        file.layout = widgets.Layout(width="480px")
        button = widgets.Button(description=words()("panel.detect"))

        def offer(_: dict[str, Any] | None = None) -> None:
            file.options = tuple(self.live.weights(which.value))
            file.value = next(iter(file.options), "")

        which.observe(offer, "value")
        button.on_click(lambda _: self._detect(which.value, file.value))
        offer()
        return _row([which, file, button])

    def _detect(self, model: str, path: str) -> None:
        self._say(words()("panel.detecting").format(model=model))
        try:
            joined = self.live.join(self.panel, model, path)
        except UserError as error:
            self._say(error)
        else:
            kept = {name: self.menus[name].value for name in ("left", "image")}
            self._show(**kept, **{name: slider.value for name, slider in self.sliders.items()}, **joined)


def controls(panel: Panel, choice: Choice, live: Live | None = None) -> widgets.VBox:
    """The panel as ipywidgets: what to choose above, the figure below."""
    return Controls(panel, choice, live).box


def _narrow(kind: type[widgets.Widget], word: str, **options: Any) -> widgets.Widget:
    """A control that stays narrow, however long its entries are."""
    return kind(description=words()(word), layout=widgets.Layout(width="auto", max_width=WIDEST), **options)


def _row(controls: Iterable[widgets.Widget]) -> widgets.HBox:
    """Controls beside each other, on further lines where the window is narrow."""
    return widgets.HBox(list(controls), layout=widgets.Layout(flex_flow="row wrap"))
