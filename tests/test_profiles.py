"""Every profile gives a plan; what it requires is asked for; a subset is chosen where it says so. Torch only."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lib.data import coco, sets
from lib.errors import UserError
from lib.machine import pipeline
from lib.machine.notebook import declared

pytest.importorskip("papermill", reason="the jt environment runs no reports")
ROOT = Path(__file__).resolve().parent.parent
PROFILES = sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml"))
REQUEST = pipeline.Request("quick", ("rtdetr_r18vd", "nanodet-plus-m_320"), "", 2)


def request_of(folder, profile, **options):
    """A request that gives all that a profile may require."""
    for name in ("coco.json", "weights.pth"):
        (folder / name).write_text("{}")
    return replace(
        REQUEST, profile=profile, data=str(folder / "coco.json"), weights=str(folder / "weights.pth"), **options
    )


def described(job):
    return json.loads(job.file.read_text())


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_gives_a_plan(bare, profile):
    jobs = {job.name: described(job) for job in pipeline.plan(request_of(bare, profile))}
    assert "train_rtdetr_r18vd_torch" in jobs and "compare_all_none" in jobs


def test_a_stage_that_the_profile_leaves_out_can_be_asked_for(bare):
    planned = {job.name: job for job in pipeline.plan(replace(REQUEST, also=("rosetta",)))}
    compare = planned["compare_all_none"]
    assert {str(planned[f"rosetta_all_{side}"].done) for side in ("torch", "jittor")} <= set(compare.needs)
    with pytest.raises(UserError, match="ALSO=rosette: no stage: choose from start, data"):
        pipeline.plan(replace(REQUEST, also=("rosette",)))


@pytest.mark.parametrize(
    "profile, missing, asks",
    [
        ("coco_subset", "data", "DATA="),
        ("coco_subset_80", "data", "DATA="),
        ("finetune_50", "data", "DATA="),
        ("finetune_50", "weights", "WEIGHTS=.*BACKBONE="),
    ],
)
def test_what_a_profile_requires_is_asked_for(bare, profile, missing, asks):
    with pytest.raises(UserError, match=f"PROFILE={profile}: needs {asks}"):
        pipeline.plan(replace(request_of(bare, profile), **{missing: ""}))


def test_weights_that_are_not_there_are_named(bare):
    with pytest.raises(UserError, match="BACKBONE=nowhere.pth: no such file"):
        pipeline.plan(replace(REQUEST, backbone="nowhere.pth"))


def test_a_start_reaches_the_training_and_nothing_else(bare):
    request = request_of(bare, "finetune_50")
    jobs = {job.name: described(job) for job in pipeline.plan(request)}
    assert jobs["train_rtdetr_r18vd_jittor"]["parameters"]["start_weights"] == request.weights
    assert [name for name, job in jobs.items() if request.weights in job["inputs"]] == [
        f"train_{model}_{side}" for model in REQUEST.models for side in ("torch", "jittor")
    ]
    assert "weights" not in jobs["detect_rtdetr_r18vd_none"]["parameters"]  # which has a parameter of this name


def test_a_subset_has_a_place_of_its_own_for_each_choice(bare):
    request = request_of(bare, "coco_subset")
    jobs = {job.name: described(job) for job in pipeline.plan(request)}
    data = jobs["data_all_none"]["parameters"]
    assert (data["source"], data["subset_classes"], data["train_images"], data["val_images"]) == (
        request.data,
        10,
        800,
        200,
    )
    assert jobs["train_rtdetr_r18vd_torch"]["parameters"]["data"] == data["data"] != request.data
    assert [name for name, job in jobs.items() if request.data in job["inputs"]] == ["data_all_none"]
    profile = pipeline.load_profile("coco_subset")
    assert pipeline.dataset(request, profile) == data["data"]
    assert len({pipeline.dataset(request, {**profile, "seed": seed}) for seed in range(3)}) == 3


def test_the_data_stage_chooses_the_subset(shared, tmp_path):
    """The published set of people's reports, cut down to what is here: 16 + 8 images of 40 classes."""
    source = str(shared / "real" / "coco_val_64")
    train, val = sets.prepare(str(tmp_path / "chosen"), 0, 16, 8, source, 40)
    assert (len(train.images), len(val.images), len(train.classes)) == (16, 8, 40)
    assert not {image.id for image in train.images} & {image.id for image in val.images}
    again, _ = sets.prepare(
        str(tmp_path / "chosen"), 0, 16, 8, str(shared / "real" / "coco_val_64" / "instances.json"), 40
    )
    assert [image.id for image in again.images] == [image.id for image in train.images]
    assert coco.splits(tmp_path / "chosen")[1] == val.path


def test_a_folder_without_one_clear_file_to_choose_from_is_named(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="give the file to choose from"):
        sets.prepare(str(tmp_path / "chosen"), 0, 1, 1, str(tmp_path), 0)


def test_threads_sleep_where_jobs_share_the_cores_and_spin_where_one_has_them_all(bare):
    def policies(cores):
        jobs = pipeline.plan(replace(REQUEST, models=REQUEST.models[:1], cores=cores))
        return {job.stage.name: described(job)["wait_policy"] for job in jobs}

    assert {name for name, policy in policies(2).items() if policy != "PASSIVE"} == {"speed"}
    assert policies(2) == policies(4)  # else another number of cores would run every job again


def test_lessons_write_into_a_folder_of_their_own():
    """A notebook that is run by hand with its defaults writes nothing into what `make report` keeps."""
    for path in (ROOT / "notebooks").rglob("[0-9]*.ipynb"):
        for name, value in declared(path).items():
            assert not (
                isinstance(value, str)
                and re.match(r"(reports|data)/(scenes-)?(" + "|".join(PROFILES) + r")(/|$)", value)
            ), f"{path.name}: {name} = {value}"
    assert declared(ROOT / "notebooks" / "90_compare.ipynb")["records"] == "reports/lab/records"
