"""Training logs of four kinds, whole, resumed and cut off, in the forms their programs write them."""

import json

import pytest

from lib.__main__ import main
from lib.errors import UserError
from lib.show import curves

TRAIN = (
    "{}Train|Epoch{}/20|Iter{}({}/4)| mem:2.66G| lr:{}| loss_qfl:{}| loss_bbox:{}| loss_dfl:{}| aux_loss_qfl:{}| {}\n"
)
FIRST = (1, 0, 1, "1.00e-06", "1.0000", "0.5000", "0.2500", "0.2500", "")
SAID = "[NanoDet][07-31 21:{}]INFO:"
COLOURED = "\x1b[1m\x1b[35m[NanoDet]\x1b[0m\x1b[34m[07-31 21:10:09]\x1b[0m\x1b[32mINFO:\x1b[0m\x1b[37m"
NANODET = (
    SAID.format("10:00")
    + "Setting up data...\n"
    + TRAIN.format(SAID.format("10:05"), *FIRST)
    + TRAIN.format("INFO:NanoDet:", *FIRST)
    + TRAIN.format(COLOURED, 1, 2, 3, "1.00e-03", "0.8000", "0.4000", "0.2000", "0.2000", "\x1b[0m")
    + SAID.format("18:00")
    + "Val|Epoch1/20|Iter4(1/2)| mem:2.66G| lr:1.00e-03| loss_qfl:9.0000| loss_bbox:9.0000| loss_dfl:9.0000| \n"
    + "| class       | AP50   | mAP   | class       | AP50   | mAP   |\n"
    + SAID.format("18:06")
    + "Val_metrics: {'mAP': 0.2769359509229967, 'AP_50': np.float64(0.475), 'AP_small': 0.02, 'AP_m': nan}\n"
    + SAID.format("18:09")
    + "Train|Epoch2/20|Iter5(2/4)| mem:2.66G| lr:9.00e-04| loss_qfl:0.6000| loss_bbox:0.3000| loss_dfl:0.15"
)

GOLD = """\
Training start...

     Epoch  iou_loss  dfl_loss  cls_loss
       0/2         0         0     1.000:   0%|          | 0/2 [00:00<?, ?it/s]\r\
       0/2     0.900     0.100     1.000:  50%|#####     | 1/2 [00:01<00:01, 1.00it/s]\r\
       0/2     0.800     0.100     0.600: 100%|##########| 2/2 [00:02<00:00, 1.00it/s]
Inferencing model in train datasets.: 100%|##########| 1/1 [00:01<00:00, 1.00it/s]
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.100
Epoch: 0 | mAP@0.5: 0.3125 | mAP@0.50:0.95: 0.15

     Epoch  iou_loss  dfl_loss  cls_loss
       1/2     0.700    0.0900     0.500: 100%|##########| 2/2 [00:02<00:00, 1.00it/s]

     Epoch  iou_loss  dfl_loss  cls_loss
       2/2     0.600    0.0800     0.400:  50%|#####     | 1/2 [00:01<00:01, 1.00it/s]\r       2/2     0.5"""

SUMMARY = """\
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = {:.3f}
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.516
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.369
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = -1.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.470
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.437
"""
DETR_STEP = (
    "Epoch: [{}]  [{:4d}/4]  eta: 0:03:35  lr: 0.000010  loss: {} (13.7817)  loss_vfl: 1.8910 (1.3376)  "
    "loss_bbox_aux_0: 0.3621 (0.3711)  time: 0.3726  data: 0.0123  max mem: 3861\n"
)
DETR = (
    "Start training\n"
    + DETR_STEP.format(0, 0, 20.5)
    + DETR_STEP.format(0, 3, 18.25)
    + "Averaged stats: lr: 0.000010\n"
    + "Test:  [0/2]  eta: 0:00:01  time: 0.5  data: 0.3  max mem: 3861\n"
    + SUMMARY.format(0.101)
    + DETR_STEP.format(1, 1, 12)
    + DETR_STEP.format(1, 2, 11)[:80]
)


def read(tmp_path, text, name="log.txt"):
    (tmp_path / name).write_bytes(text.encode())
    return curves.read(tmp_path / name)


def test_a_console_of_windows_and_a_ports_own_field_at_the_end(tmp_path):
    (tmp_path / "utf-16.txt").write_bytes(NANODET.replace("\n", "\r\n").encode("utf-16"))
    expected = read(tmp_path, NANODET, "logs.txt").curves
    assert str(curves.read(tmp_path / "utf-16.txt").curves) == str(expected) and expected.losses  # NaN is not NaN
    line = (
        "Train|Epoch1/5|Iter300(300/600)| lr:5.98e-04| loss_qfl:0.0518| loss_bbox:0.0522| loss_dfl:0.0528| time:2.0s\n"
    )
    losses = read(tmp_path, line, "port.txt").curves.losses
    assert losses["loss_qfl"] == [(0.5, 0.0518)] and "time" not in losses


def test_nanodet(tmp_path):
    found = read(tmp_path, NANODET, "logs.txt")
    assert (found.kind, found.name) == ("NanoDet", tmp_path.name)
    assert found.curves.losses["loss"] == [
        (0.25, 2.0),
        (0.75, 1.6),
    ]  # the sum; the line cut off in the middle is left out
    assert found.curves.losses["aux_loss_qfl"] == [(0.25, 0.25), (0.75, 0.2)]
    assert found.curves.rates == [(0.25, 1e-6), (0.75, 1e-3)]
    assert found.curves.evaluations["AP"] == [(1.0, 0.2769359509229967)] and found.curves.evaluations["AP50"] == [
        (1.0, 0.475)
    ]
    assert set(found.curves.evaluations) == {"AP", "AP50", "APs", "APm"}


def test_nanodets_first_console(tmp_path):
    """Its trainer wrote in small letters, and of an evaluation there is only what pycocotools prints."""
    step = "[root][11-30 19:15:21]INFO:{}|Epoch{}/190|Iter{}({}/2)| lr:3.16e-05| loss_qfl:{}| loss_bbox:1.0| \n"
    lines = step.format("train", 1, 0, 0, 2.0) + step.format("train", 1, 1, 1, 1.5) + step.format("val", 1, 1, 0, 9.0)
    found = read(tmp_path, lines + SUMMARY.format(0.206) + step.format("train", 2, 2, 0, 0.5))
    assert found.kind == "NanoDet" and found.curves.losses["loss"] == [(0.0, 3.0), (0.5, 2.5), (1.0, 1.5)]
    assert found.curves.evaluations["AP"] == [(1.0, 0.206)]
    again = NANODET.replace("Val_metrics", SUMMARY.format(0.2) + "Val_metrics", 1)  # then both: the longer number
    assert read(tmp_path, again).curves.evaluations["AP"] == [(1.0, 0.2769359509229967)]


def test_lists_in_lists_without_an_end_are_no_log(tmp_path):
    with pytest.raises(UserError, match="no training log that is known"):
        read(tmp_path, '{"step": ' + 10**5 * "[" + "\n")


def test_nanodet_interrupted_in_a_line_and_started_again(tmp_path):
    """Half a line would give half a loss."""
    first, rest = NANODET.split("\n", 2)[1:]
    assert read(tmp_path, first[:-20] + "\n" + first + "\n").curves.losses["loss"] == [(0.25, 2.0)]
    assert read(tmp_path, NANODET + "\n" + first + "\n").curves.losses["loss"] == [(0.25, 2.0)] and rest


def test_nanodet_before_it_named_its_batches(tmp_path):
    lines = [
        f"INFO:root:Train|Epoch{epoch}/9|Iter{2 * epoch + i}({i})| lr:1.00e-03| loss_qfl:{loss}| \n"
        for epoch, i, loss in ((1, 0, 3.0), (1, 1, 2.0), (2, 0, 1.0))
    ]
    assert read(tmp_path, "".join(lines)).curves.losses["loss"] == [(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)]


def test_gold_yolo(tmp_path):
    found = read(tmp_path, GOLD)
    assert found.kind == "Gold-YOLO"
    assert found.curves.losses["loss"] == [
        (1.0, pytest.approx(1.5)),
        (2.0, pytest.approx(1.29)),
        (2.5, pytest.approx(1.08)),
    ]
    assert found.curves.losses["dfl_loss"] == [(1.0, 0.1), (2.0, 0.09), (2.5, 0.08)]
    assert found.curves.evaluations == {"AP50": [(1.0, 0.3125)], "AP": [(1.0, 0.15)]}


def test_gold_yolo_with_more_columns(tmp_path):
    text = GOLD.replace("cls_loss\n", "cls_loss  cwd_loss\n").replace(":  50%", "     2.000:  50%")
    text = text.replace("600: 100%", "600     2.500: 100%")
    losses = read(tmp_path, text).curves.losses
    assert losses["cwd_loss"] == [(1.0, 2.5), (2.5, 2.0)] and losses["loss"][0] == (1.0, pytest.approx(4.0))


def test_rt_detr_file(tmp_path):
    entries = [
        {
            "train_lr": 1e-5,
            "train_loss": 20.0 - epoch,
            "train_loss_vfl": 2.0,
            "test_coco_eval_bbox": [0.1 * (epoch + 1)] * 12,
            "epoch": epoch,
            "n_parameters": 20,
        }
        for epoch in (0, 1, 2, 1)
    ]  # resumed after the second
    found = read(tmp_path, "".join(json.dumps(entry) + "\n" for entry in entries) + '{"train_lr": 1e-05, "train_lo')
    assert found.kind == "RT-DETR"
    assert found.curves.losses == {"loss": [(1.0, 20.0), (2.0, 19.0)], "loss_vfl": [(1.0, 2.0), (2.0, 2.0)]}
    assert found.curves.evaluations["ARl"] == [(1.0, 0.1), (2.0, 0.2)] and found.curves.rates == [
        (1.0, 1e-5),
        (2.0, 1e-5),
    ]


def test_rt_detr_console(tmp_path):
    found = read(tmp_path, DETR)
    assert found.kind == "RT-DETR" and found.curves.losses["loss"] == [(0.25, 20.5), (1.0, 18.25), (1.5, 12.0)]
    assert found.curves.losses["loss_bbox_aux_0"][0] == (0.25, 0.3621)
    assert {name: points[0] for name, points in found.curves.evaluations.items()} == {
        "AP": (1.0, 0.101),
        "AP50": (1.0, 0.516),
        "AP75": (1.0, 0.369),
        "APs": (1.0, -1.0),
        "AR10": (1.0, 0.47),
        "ARm": (1.0, 0.437),
    }


def our_log(folder, epochs=3, per_epoch=4, cut=True):
    lines = []
    for step in range(epochs * per_epoch):
        epoch = step // per_epoch
        lines.append(
            {
                "step": step,
                "epoch": epoch,
                "learning_rate": 0.1,
                "loss": 8.0 - step / 2,
                "loss_qfl": 5.0,
                "loss_dfl": 3.0 - step / 2,
                "gradient_norm": 1.0,
                "step_seconds": 0.1,
            }
        )
        if step % per_epoch == per_epoch - 1:
            lines.append(
                {
                    "step": step,
                    "epoch": epoch,
                    "evaluation": {"AP": 0.1 * epoch, "AP50": 0.2},
                    "evaluation_seconds": 1.0,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 12, "ep' * cut)
    return folder


def test_ours(tmp_path):
    found = curves.read(our_log(tmp_path / "scenes"))
    assert (found.name, found.kind) == ("scenes", "this suite") and curves.read(
        tmp_path / "scenes" / "log.jsonl"
    ) == found
    assert found.curves.losses["loss"][:2] == [(0.25, 8.0), (0.5, 7.5)] and found.curves.losses["loss"][-1] == (
        3.0,
        2.5,
    )
    assert set(found.curves.losses) == {"loss", "loss_qfl", "loss_dfl"}
    assert found.curves.evaluations["AP"] == [(1.0, 0.0), (2.0, 0.1), (3.0, 0.2)] and len(found.curves.rates) == 12
    assert found.standing() == "scenes (this suite): 3 epochs, last loss 2.5, best AP 0.2000 after epoch 3"


@pytest.mark.parametrize(
    "text", ["", "no log\n", "Epoch 1: loss 3\n" * 9, '{"a": 1}\n', "[1]\n{broken\n", "\x00\xff" * 99]
)
def test_an_unknown_log_is_one_line(tmp_path, text):
    with pytest.raises(
        UserError, match="log.txt: no training log that is known; give this suite's log.jsonl"
    ) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="nowhere.txt: can't be read"):
        curves.read(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("text", [NANODET.replace("nan}", "0.1}"), GOLD, DETR])
def test_every_beginning_of_a_log_is_a_beginning_of_its_curves(tmp_path, text):
    """However a log is cut, no value appears that the whole log does not have (a bar's earlier states aside)."""
    whole = read(tmp_path, text + "\n")
    for end in range(0, len(text), 13):
        try:
            part = read(tmp_path, text[:end])
        except UserError:
            continue
        assert part.kind == whole.kind
        for name, points in part.curves.evaluations.items():
            assert points == whole.curves.evaluations[name][: len(points)]
        if text is not GOLD:
            for name, points in part.curves.losses.items():
                assert points == whole.curves.losses[name][: len(points)]


def test_drawing_beside_each_other(tmp_path):
    trainings = [
        curves.read(our_log(tmp_path / "ours", per_epoch=80)),
        read(tmp_path, NANODET, "nano.txt"),
        read(tmp_path, GOLD, "gold.txt"),
        read(tmp_path, DETR, "detr.txt"),
    ]
    first, again = (curves.draw(trainings, components=True) for _ in range(2))
    assert first.data == again.data and first.kind == "image/svg+xml" and "nano.txt" in first.alt
    assert len(first.data) > len(curves.draw(trainings).data)
    assert curves.draw(trainings[1:2], dense=True).data.startswith(b"\x89PNG")


def test_command_line(capsys, tmp_path):
    our_log(tmp_path / "ours")
    (tmp_path / "nano.txt").write_text(NANODET)
    out = tmp_path / "curves.png"
    logs = [str(tmp_path / "ours"), str(tmp_path / "nano.txt")]
    assert main(["curves", *logs, "-o", str(out), "--names", "mine", "published"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("mine (this suite): 3 epochs")
    assert "best AP 0.2769 after epoch 1" in shown[1] and shown[2] == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")
    for arguments, message in (
        ([*logs, "-o", str(tmp_path / "x.gif")], "x.gif: curves are drawn as"),
        ([*logs, "-o", str(out), "--names", "one"], "--names: 1 names for 2 logs"),
        ([str(tmp_path / "nothing"), "-o", str(out)], "can't be read"),
    ):
        assert main(["curves", *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
