"""The controls of the panel: ipywidgets that change a choice and show its figure."""
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from lib.errors import UserError

if TYPE_CHECKING:
    from lib.panel import Choice, Panel


def assemble(panel: "Panel", choice: "Choice") -> widgets.VBox:
    """Menus for model, weights, both sides and the image, sliders for thresholds; the figure follows each change."""
    wide = widgets.Layout(width="auto")
    menus = {name: widgets.Dropdown(description=name, layout=wide) for name in ("model", "weights", "left", "right", "image")}
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
    show(choice)
    return widgets.VBox([widgets.HBox(list(menus.values())), widgets.HBox(list(sliders.values())), figure])


def _options(panel: "Panel", choice: "Choice") -> dict[str, list]:
    """What each menu offers under the present choice."""
    sides = list(panel.found[choice.model, choice.weights])
    return {"model": list(dict.fromkeys(model for model, _ in panel.found)),
            "weights": [weights for model, weights in panel.found if model == choice.model],
            "left": sides, "right": sides, "image": panel.offered_images()}
