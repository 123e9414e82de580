"""The controls of the panel: ipywidgets that change a choice and show its figure."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from lib.errors import UserError

if TYPE_CHECKING:
    from lib.show.panel import Choice, Panel
    from lib.show.panel_live import Live


def assemble(panel: "Panel", choice: "Choice", live: "Live | None" = None) -> widgets.VBox:
    """Menus for model, weights, both sides and the image, sliders for thresholds; the figure follows each change.

    live: a row more, to run a model with weights of one's choice; it joins the menus.
    """
    wide = widgets.Layout(width="auto")
    menus = {
        name: widgets.Dropdown(description=name, layout=wide) for name in ("model", "weights", "left", "right", "image")
    }
    sliders = {
        "threshold": widgets.FloatSlider(choice.threshold, min=0, max=1, step=0.01, description="score from"),
        "pixels": widgets.FloatLogSlider(choice.pixels, min=-3, max=2, description="same within", readout_format=".3g"),
        "scores": widgets.FloatSlider(choice.scores, min=0, max=1, step=0.01, description="and score"),
    }
    figure = widgets.HTML()
    state = {"choice": choice, "busy": False}

    def show(chosen: "Choice") -> None:
        """Bring menus and figure to a choice; their own changes meanwhile are not the user's."""
        state["choice"], state["busy"] = chosen, True
        try:
            for name, options in _options(panel, chosen).items():
                menus[name].options, menus[name].value = options, getattr(chosen, name)
            figure.value = panel.picture(chosen).html()
        except UserError as error:
            figure.value = f"<b>{error}</b>"
        finally:
            state["busy"] = False

    def changed(change: dict[str, Any]) -> None:
        if not state["busy"]:
            chosen = {name: control.value for name, control in {**menus, **sliders}.items()}
            show(panel.choice(**chosen))

    for control in (*menus.values(), *sliders.values()):
        control.observe(changed, "value")

    def detect(model: str, path: str) -> None:
        figure.value = f"{model} detects …"
        try:
            joined = live.join(panel, model, path)
        except UserError as error:
            figure.value = f"<b>{error}</b>"
        else:
            now = {name: menus[name].value for name in ("left", "image")} | {
                name: slider.value for name, slider in sliders.items()
            }
            show(panel.choice(**now, **joined))

    show(choice)
    rows = [widgets.HBox(list(menus.values())), widgets.HBox(list(sliders.values())), figure]
    return widgets.VBox([*([_live_row(live, choice.model, detect)] if live else []), *rows])


def _live_row(live: "Live", model: str, detect: Callable[[str, str], None]) -> widgets.HBox:
    """Which model to run with which weights, and a button; a file that no menu offers is typed in."""
    names = live.models()
    which = widgets.Dropdown(options=names, value=model if model in names else names[0], description="run")
    file = widgets.Combobox(description="weights", placeholder="path of a weights file", ensure_option=False)
    button = widgets.Button(description="detect")

    def offer(_: dict[str, Any] | None = None) -> None:
        """The files that fit the model, the first of them chosen."""
        file.options = tuple(live.weights(which.value))
        file.value = next(iter(file.options), "")

    which.observe(offer, "value")
    button.on_click(lambda _: detect(which.value, file.value))
    offer()
    return widgets.HBox([which, file, button])


def _options(panel: "Panel", choice: "Choice") -> dict[str, list]:
    """What each menu offers under the present choice."""
    sides = list(panel.found[choice.model, choice.weights])
    return {
        "model": list(dict.fromkeys(model for model, _ in panel.found)),
        "weights": [weights for model, weights in panel.found if model == choice.model],
        "left": sides,
        "right": sides,
        "image": panel.offered_images(),
    }
