"""A user's own port: names are paired, a right port passes, a wrong one fails with its layer named; torch environment.

But for the last tests both sides run here, in PyTorch: what is tested is the tool, not a framework.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import in_process
import numpy as np
import pytest

from lib.__main__ import main
from lib.alignment import port
from lib.alignment.divergence import ROOT
from lib.alignment.port import names, side
from lib.alignment.questions import admission
from lib.errors import UserError
from lib.machine import environment

torch = pytest.importorskip("torch", reason="the original of a port is a PyTorch module")
nn = torch.nn

STAND_IN = SimpleNamespace(NAME="jittor", VERSION="0.0-stand-in", device=lambda: "cpu", cache_path=lambda: None)
SHAPE = "2,3,8,8"


class Block(nn.Module):
    def __init__(self, channels, act, eps=1e-5):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels, eps), act
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.act(self.norm(self.conv(x))))


class Peak(nn.Module):
    """Each place weighted by its strongest channel."""

    def forward(self, x):
        return x * torch.sigmoid(x.max(1, keepdim=True)[0])


class Original(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Block(3, nn.SiLU()), Block(3, Peak())
        self.gate = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(6, 4)

    def join(self, x, y):
        return torch.cat([x, y], 1)

    def forward(self, x):
        fine = self.first(x)
        both = self.join(fine, self.second(fine) * self.gate[:, None, None])
        return {"map": both, "scores": self.head(both.mean((2, 3)))}


class Port(Original):
    """The original under other names, its parts in another order."""

    def __init__(self, second=None, order=1):
        nn.Module.__init__(self)
        self.weighting = nn.Parameter(torch.ones(3))
        self.stages = nn.ModuleList([Block(3, nn.SiLU()), second or Block(3, Peak())])
        self.classify, self.order = nn.Linear(6, 4), order

    def forward(self, x):
        fine = self.stages[0](x)
        both = torch.cat([fine, self.stages[1](fine) * self.weighting[:, None, None]][:: self.order], 1)
        return {"map": both, "scores": self.classify(both.mean((2, 3)))}


class FirstImage(nn.Module):
    """What that line does in Jittor, whose maximum gives no indices: the first image's map for all."""

    def forward(self, x):
        return x * torch.sigmoid(x.max(1, keepdim=True)[0][:1])


def other_eps():
    return Port(Block(3, Peak(), eps=1e-3))


def first_image():
    return Port(Block(3, FirstImage()))


def other_order():
    return Port(order=-1)


def biased():
    class Biased(nn.BatchNorm2d):
        def forward(self, x):
            y = super().forward(x)
            if self.training:
                self.running_var = (
                    self.running_var - self.momentum * (x.var((0, 2, 3)) - x.var((0, 2, 3), unbiased=False)).detach()
                )
            return y

    found = Port()
    found.stages[1].norm = Biased(3)
    nn.init.constant_(found.classify.bias, -4.595)
    return found


def trained_constant():
    found = Port()
    found.places = nn.Parameter(torch.arange(5.0))
    return found


def raising():
    raise ValueError("two\nlines")


def no_module():
    return {"a": 1}


def other_output():
    found = Port()
    found.forward = lambda x: (Port.forward(found, x)["map"],)
    return found


def broken_forward():
    found = Port()
    found.classify = nn.Linear(6, 4)
    found.forward = lambda x: found.classify(x)
    return found


def broken_backward():
    found = Original()
    found.forward = lambda x: {
        **Original.forward(found, x),
        "map": found.gate.exp().mul_(2).add_(found.gate.exp().log_()),
    }
    return found


def nan_weights():
    found = Original()
    found.second.conv.weight.data[0] = float("nan")
    return found


def compared(tmp_path, builder="Port", **changes):
    """The result with both sides run here."""
    settings = {
        "torch": "test_port:Original",
        "jittor": f"test_port:{builder}",
        "inputs": (SHAPE,),
        "folder": str(tmp_path / "out"),
    }
    chosen = port.Port(**(settings | changes))
    chosen.arrays()
    side.original(chosen)
    side.candidate(chosen, STAND_IN)
    with pytest.MonkeyPatch.context() as patch:  # one framework stands for both, as in a forged record
        patch.setattr(admission, "_same_bits", lambda *_: ([], []))
        return port.judge(chosen)


def verdicts(result):
    return {v["question"]: v["verdict"] for v in result.verdicts.fields["verdicts"] if v["verdict"] != "NOT RUN"}


# ------------------------------------------------------------------------------------------------------------ verdicts
def test_a_right_port_under_other_names_passes(tmp_path):
    result = compared(tmp_path)
    assert verdicts(result) == dict.fromkeys(
        ("structure", "conversion", "initialisation", "forward", "divergence", "gradients", "batch_norm"), "PASS"
    )
    assert result.first() is None and not result.failing() and result.reproduction() is None
    looked = {layer.path for layer in result.divergence["training"].layers}
    assert looked >= {"", "first.conv", "second.norm", "second.act", "head"}, (
        "modules without weights, and the whole, are paired too"
    )
    columns, *_ = (v["rows"] for v in result.verdicts.fields["verdicts"] if v["question"] == "gradients")
    assert {row[0] for row in columns} >= {"training/gate", "evaluation/head.weight"}


@pytest.mark.parametrize(
    "builder, path", [("other_eps", "second.norm"), ("first_image", "second.act"), ("other_order", "")]
)
def test_the_wrong_layer_is_named(tmp_path, builder, path):
    result = compared(tmp_path, builder)
    assert {layer.path for held in result.divergence.values() for layer in held.blamed("forward")} == {path}
    assert {"forward", "divergence", "gradients"} <= set(result.failing())
    mode, direction, layer = result.first()
    assert (mode, direction, layer.name) == ("evaluation", "forward", path or ROOT)
    script = result.reproduction().read_text()
    assert f"'test_port:{builder}'" in script and (path != "second.norm" or "'stages.1.norm'" in script)


def test_statistics_of_a_biased_variance_and_another_start_fail_alone(tmp_path):
    result = compared(tmp_path, "biased")
    assert result.failing() == ["initialisation", "batch_norm"] and result.first() is None
    [start] = (v for v in result.verdicts.fields["verdicts"] if v["question"] == "initialisation")
    assert (start["reason"], start["values"]["name"]) == ("starts_otherwise", "head.bias")


def test_a_fault_that_mixes_images_does_not_show_in_one(tmp_path):
    assert not compared(tmp_path, "first_image", inputs=("1,3,8,8",)).failing()


def test_records_are_a_hand_in_like_any_other(tmp_path):
    pytest.importorskip("jinja2", reason="reports are rendered in the torch environment")
    from lib.report import handin

    result = compared(tmp_path)
    items = handin.Document(result.port.records, result.port.root, ["my_port"], "zh").ports[0].items
    assert items["environment"].done and not items["results"].done


def test_integers_and_a_file_of_inputs(tmp_path):
    path = tmp_path / "inputs.npz"
    np.savez(path, image=np.random.default_rng(0).random((2, 3, 8, 8)), labels=np.arange(3))
    settings = {"torch": "test_port:TwoInputs", "inputs": (str(path),)}
    assert not compared(tmp_path, "TwoInputs", **settings).failing()
    assert compared(tmp_path, "other_count", **settings).failing() == ["forward", "divergence"]


class TwoInputs(Original):
    def forward(self, x, labels):
        return super().forward(x), labels.sum()


def other_count():
    found = TwoInputs()
    found.forward = lambda x, labels: (Original.forward(found, x), labels.sum() + 1)
    return found


# --------------------------------------------------------------------------------------------------------------- names
def test_names_are_inferred_shown_and_can_be_handed_back(tmp_path):
    result = compared(tmp_path)
    held = json.loads(result.port.map.read_text())
    assert (
        held["state"]["second.conv.weight"] == "stages.1.conv.weight"
        and held["modules"]["second.act"] == "stages.1.act"
    )
    assert held["state"]["gate"] == "weighting" and "other names" in result.pairs()
    swapped = {
        name: theirs.replace("stages.0", "stages.x").replace("stages.1", "stages.0").replace("stages.x", "stages.1")
        for name, theirs in held["state"].items()
    }
    edited = tmp_path / "edited.json"
    edited.write_text(json.dumps({"state": swapped}))
    assert "forward" in compared(tmp_path, names=str(edited)).failing()
    edited.write_text(json.dumps(held))
    assert not compared(tmp_path, names=str(edited)).failing()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda held: held["state"].update({"nowhere": "gate"}), "original has no entry nowhere"),
        (lambda held: held["state"].update({"gate": "nowhere"}), "port has no entry nowhere"),
        (lambda held: held["state"].update({"gate": "stages.0.norm.weight"}), "two entries"),
        (lambda held: held["state"].pop("gate"), "of the original \\(gate\\).*of the port \\(weighting\\)"),
        (
            lambda held: (
                held["state"].update({"gate": "head.bias", "head.bias": "gate"})
                or held["state"].update({"gate": "classify.bias", "head.bias": "weighting"})
            ),
            "shape",
        ),
        (lambda held: held["modules"].update({"gate": ""}), "original has no module gate"),
        (lambda held: held.pop("state"), "no map of names"),
    ],
)
def test_a_map_that_does_not_fit_is_one_line(tmp_path, change, said):
    ours, theirs = side.side_of(Original()), side.side_of(Port())
    names.infer(ours, theirs).write(tmp_path / "names.json")
    held = json.loads((tmp_path / "names.json").read_text())
    change(held)
    (tmp_path / "names.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match=said) as raised:
        names.read(tmp_path / "names.json", ours, theirs)
    assert "\n" not in str(raised.value)


def test_a_constant_that_is_trained_is_left_over_and_fails_when_confirmed(tmp_path):
    with pytest.raises(UserError, match="0 entries of the original .* 1 of the port \\(places\\)"):
        compared(tmp_path, "trained_constant")
    result = compared(tmp_path, "trained_constant", names=str(tmp_path / "out" / "names.json"))
    assert {"structure", "conversion", "gradients"} <= set(result.failing())


def test_equal_values_pair_entries_whose_order_differs():
    def entry(name, digest):
        return names.Entry(name, (3,), True, "values", digest)

    ours = names.Side((entry("a.x", "1"), entry("b.y", "2")), {"": "Net", "a": "A", "b": "B"})
    theirs = names.Side((entry("c.y", "2"), entry("d.x", "1")), {"": "Net", "c": "B", "d": "A"})
    found = names.infer(ours, theirs)
    assert found.state == {"a.x": "d.x", "b.y": "c.y"} and found.modules == {"": "", "a": "d", "b": "c"}


def test_constants_that_hide_faults_are_varied_and_others_kept():
    kept = {"w": np.float32([1, 2]), "count": np.array(0), "scale": np.float32([0.5])}
    found, replaced = side.varied({"norm.running_var": np.ones(4, np.float32), "bias": np.zeros(4, np.float32), **kept})
    assert replaced == ["norm.running_var", "bias"] and all(found[name] is array for name, array in kept.items())
    assert len(set(found["norm.running_var"])) == len(set(found["bias"])) == 4 and found["norm.running_var"].min() > 0


# ---------------------------------------------------------------------------------------------------------- bad inputs
@pytest.mark.parametrize(
    "changes, said",
    [
        ({"jittor": "test_port"}, "not of the form"),
        ({"jittor": "no_such_module:build"}, "can't be imported .*No module named"),
        ({"jittor": "test_port:nothing"}, "has no function nothing"),
        ({"jittor": "test_port:raising"}, "raised ValueError: two lines"),
        ({"jittor": "test_port:no_module"}, "gave a dict, not a module"),
        ({"jittor": "test_port:Original.forward"}, "has no function"),
        ({"jittor": "test_port:other_output"}, "output has the tensors 0, the original's map, scores"),
        ({"jittor": "test_port:broken_forward"}, "its forward raised RuntimeError"),
        ({"jittor": "test_port:broken_backward"}, "its backward raised RuntimeError"),
        ({"torch": "test_port:nan_weights"}, "its entry second.conv.weight holds NaN"),
        ({"inputs": ("2,x",)}, "--input 2,x: not a shape"),
        ({"inputs": ("2,0",)}, "not a shape"),
        ({"inputs": ("none.npz",)}, "can't be read"),
    ],
)
def test_a_bad_input_is_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as raised:
        compared(tmp_path, **changes)
    assert "\n" not in str(raised.value)


def test_inputs_that_are_not_finite_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.full((2, 2), np.nan))
    with pytest.raises(UserError, match="must be numbers"):
        compared(tmp_path, inputs=(str(tmp_path / "x.npz"),))


@pytest.mark.parametrize(
    "arguments", [["--torch", "a:b"], ["--torch", "a:b", "--jittor", "c:d"], ["records", "--input", "1,3"]]
)
def test_a_command_line_that_lacks_something_says_what(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments])
    assert ended.value.code == 2 and "also needs" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- both frameworks
@pytest.fixture
def both():
    for one in environment.ENVIRONMENTS:
        if not environment.complete(one.link):
            pytest.skip(f"envs/{one.name} is not built")


@pytest.mark.slow
def test_the_example_in_both_frameworks(both, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)
    in_process.patch(monkeypatch)
    arguments = ["compare", "--torch", "notebooks.ports.original:build", "--input", "2,3,32,32", "--out", str(tmp_path)]
    assert main([*arguments, "--jittor", "notebooks.ports.port:build"]) == 1
    said = capsys.readouterr()
    assert (
        "look at body.0.gate (Gate)" in said.out
        and "not the original's: forward, divergence, gradients, batch_norm" in said.err
    )
    assert (tmp_path / "reproduce" / "evaluation" / "reproduce.py").is_file() and (tmp_path / "index.html").is_file()
    assert main([*arguments, "--jittor", "notebooks.ports.mended:build"]) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_what_a_process_says_reaches_the_user(both, tmp_path):
    wrong = port.Port("notebooks.ports.nothing:build", "notebooks.ports.port:build", (SHAPE,), str(tmp_path))
    with pytest.raises(UserError, match="notebooks.ports.nothing:build: can't be imported"):
        port.compare(wrong)
