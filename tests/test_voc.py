"""Pascal VOC XML: each untidiness of real files has its rule or its line, and nothing in a file is expanded or run."""

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data import formats, voc
from lib.data.annotated import Annotation, Faults, Picture, measured, tidy
from lib.errors import UserError

OBJECT = """<object><name>cat</name><pose>Left</pose><truncated>1</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>"""
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
PLACES = "<folder>nowhere</folder><filename>a.png</filename><path>C:\\x\\a.png</path>"
GOOD = f"<annotation>{PLACES}{SIZE}{OBJECT}</annotation>"


@pytest.fixture
def write(tmp_path):
    """Writes name -> text files and images -> the data set's folder."""

    def write(documents: dict[str, str], images=("a.png",), sets: dict[str, str] | None = None) -> Path:
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in documents.items():
            (tmp_path / "Annotations" / name).write_text(text, encoding="utf-8")
        for name in images:
            data = cv2.imencode(Path(name).suffix or ".png", np.zeros((30, 40, 3), np.uint8))[1]
            (tmp_path / "JPEGImages" / name).write_bytes(data.tobytes())
        for split, text in (sets or {}).items():
            (tmp_path / "ImageSets/Main" / f"{split}.txt").write_text(text)
        return tmp_path

    return write


def only(collection) -> Picture:
    (picture,) = collection.pictures()
    return picture


def faults(folder: Path) -> list[tuple[str, bool]]:
    return [(fault.message, fault.loses) for fault in measured(voc.read(folder)).faults]


def test_pixels_count_from_one_and_include_the_last(write):
    collection = measured(voc.read(write({"a.xml": GOOD})))
    (annotation,) = only(collection).annotations
    assert annotation == Annotation("cat", (0, 1, 40, 30), truncated=True, pose="Left")
    assert (collection.classes, collection.splits.keys(), collection.faults) == (("cat",), {""}, ())
    assert collection.others == {"path": 1}


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


TIDIED = {  # name: (XML, what is read, what is reported)
    "no extension": (changed("a.png", "a"), {}, []),
    "another extension": (changed("<filename>a.png", "<filename>a.bmp"), {}, ["a.bmp", "a.png, which is used"]),
    "another image's name": (changed("<filename>a.png", "<filename>b.png"), {}, ["'b.png'", "a.png, which is used"]),
    "a path as filename": (changed("<filename>a.png", "<filename>/home/me/a.png"), {}, []),
    "a Windows path as filename": (changed("<filename>a.png", "<filename>C:\\me\\a.png"), {}, []),
    "an endless filename": (changed("<filename>a.png", f"<filename>{'n' * 5000}"), {}, ["which is used"]),
    "no filename": (changed("<filename>a.png</filename>", ""), {}, []),
    "no folder": (changed("<folder>nowhere</folder>", ""), {}, []),
    "no flags": (changed("<truncated>1</truncated><difficult>0</difficult>", ""), {"truncated": False}, []),
    "difficult": (changed("<difficult>0", "<difficult> 1\n"), {"difficult": True}, []),
    "an unspecified flag": (changed("<truncated>1", "<truncated>Unspecified"), {"truncated": False}, []),
    "a flag of another kind": (
        changed("<difficult>0", "<difficult>2"),
        {"difficult": False},
        ["difficult '2'", "taken as 0"],
    ),
    "no size": (changed(SIZE, ""), {}, ["has size ['', '']", "taken from the image"]),
    "an empty size": (changed(SIZE, "<size/>"), {}, ["taken from the image"]),
    "a size of zeros": (changed("<width>40", "<width>0"), {}, ["has size ['0', '30']", "taken from the image"]),
    "decimals": (changed("<xmin>1<", "<xmin>3.25<"), {"box": (2.25, 1, 40, 30)}, []),
    "spaces around a name": (changed("<name>cat", "<name>  cat\n "), {}, []),
    "a space inside a name": (changed("<name>cat", "<name>wild cat"), {"name": "wild cat"}, []),
    "another script": (changed("<name>cat", "<name>浣熊"), {"name": "浣熊"}, []),
    "one pixel": (changed("<xmin>1<", "<xmin>40<"), {"box": (39, 1, 40, 30)}, ["one pixel wide or high"]),
    "pixels from zero": (changed("<xmin>1<", "<xmin>0<"), {"box": (-1, 1, 40, 30)}, ["VOC's first pixel is 1"]),
    "across the border": (
        changed("<xmax>40<", "<xmax>50<"),
        {"box": (0, 1, 50, 30)},
        ["10 pixels beyond the image of 40x30"],
    ),
    "parts of a person": (changed("<pose>", "<part><name>head</name></part><pose>"), {}, []),
    "a comment and a processing instruction": (changed("<pose>", "<!-- x --><?php echo 1 ?><pose>"), {}, []),
}


@pytest.mark.parametrize("name", TIDIED)
def test_untidy_files_are_read_by_rule(write, name):
    text, read, reported = TIDIED[name]
    folder = write({"a.xml": text})
    (annotation,) = only(measured(voc.read(folder))).annotations
    expected = {"name": "cat", "box": (0, 1, 40, 30), "truncated": True, "pose": "Left", **read}
    assert annotation == Annotation(**expected)
    found = faults(folder)
    assert len(found) == bool(reported)
    for message, loses in found:
        assert (
            not loses and "\n" not in message and "; " in message and str(folder / "Annotations" / "a.xml") in message
        )
        assert all(part in message for part in reported), message


LOSING = {  # name: (XML, what the message names)
    "swapped corners": (changed("<xmin>1<", "<xmin>41<"), ["object 1 (cat)", "zero or negative size"]),
    "no box": (
        changed(OBJECT[OBJECT.index("<bndbox") : OBJECT.index("</object")], ""),
        ["object 1 (cat)", "four finite numbers"],
    ),
    "a word as number": (changed("<xmin>1<", "<xmin>one<"), ["object 1 (cat)", "'one'"]),
    "nan": (changed("<xmin>1<", "<xmin>nan<"), ["object 1 (cat)", "'nan'"]),
    "infinity": (changed("<xmin>1<", "<xmin>1e999<"), ["object 1 (cat)", "four finite"]),
    "python's own digits": (changed("<xmin>1<", "<xmin>1_0<"), ["object 1 (cat)", "four finite"]),
    "no name": (changed("<name>cat</name>", ""), ["object 1", "name ''"]),
    "outside": (
        changed("<xmin>1<", "<xmin>50<").replace(">40</xmax>", ">60</xmax>"),
        ["object 1 (cat)", "outside the image"],
    ),
    "another size": (changed("<width>40", "<width>41"), ["a.png", "is 40x30 pixels, its entry says 41x30"]),
    "another root": ("<html/>", ["<html>"]),
    "no XML": ("", ["no valid XML"]),
    "cut short": (GOOD[:-20], ["no valid XML"]),
    "an unknown encoding": ('<?xml version="1.0" encoding="klingon"?>' + GOOD, ["no valid XML", "UTF-8"]),
    "a bomb": (
        '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>' + GOOD.replace("cat", "&c;"),
        ["document type"],
    ),
    "an entity of a file": (
        '<!DOCTYPE a [<!ENTITY b SYSTEM "/etc/passwd">]>' + GOOD.replace("cat", "&b;"),
        ["document type"],
    ),
    "an entity that is nowhere": (GOOD.replace("cat", "&b;"), ["no valid XML"]),
}


@pytest.mark.parametrize("name", LOSING)
def test_what_would_be_lost_is_one_line_with_file_entry_and_remedy(write, name):
    text, named = LOSING[name]
    folder = write({"a.xml": text})
    found = [message for message, loses in faults(folder) if loses]
    (message,) = found
    assert "\n" not in message and "; " in message and str(folder) in message
    assert all(part in message for part in named), message


def test_the_other_objects_of_a_faulty_file_stay(write):
    faulty, other = OBJECT.replace("<xmin>1<", "<xmin>x<"), OBJECT.replace("cat", "dog")
    folder = write({"a.xml": GOOD.replace(OBJECT, OBJECT + faulty + other)})
    assert [annotation.name for annotation in only(measured(voc.read(folder))).annotations] == ["cat", "dog"]
    ((message, loses),) = faults(folder)
    assert loses and "object 2" in message


def test_bytes_of_another_encoding_and_endless_nesting(write):
    folder = write({"a.xml": GOOD})
    (folder / "Annotations/a.xml").write_bytes(GOOD.replace("cat", "浣熊").encode("gbk"))
    assert any("no valid XML" in message and "in UTF-8" in message for message, _ in faults(folder))
    (folder / "Annotations/a.xml").write_text("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>")
    assert [loses for _, loses in faults(folder)] == [False]  # no size


def test_images_and_xml_that_lack_each_other(write):
    folder = write({"a.xml": GOOD, "lone.xml": GOOD.replace("a.png", "gone.png")}, ["a.png", "b c.png"])
    found = dict(faults(folder))
    assert len(found) == 2 and all(found.values())
    assert any("lone.xml: has no image lone.*" in message and "none named gone.png" in message for message in found)
    assert any("b c.png: has no XML" in message for message in found)


def test_two_images_of_one_name_need_the_filename(write):
    folder = write({"a.xml": changed("a.png", "a")}, ["a.png", "a.jpg"])
    assert any("may annotate a.jpg or a.png" in message for message, loses in faults(folder) if loses)
    assert only(voc.read(write({"a.xml": GOOD}, ["a.png", "a.jpg"]))).name == "a.png"


def test_filename_where_the_own_name_fits_nothing_and_twice(write):
    folder = write({"z.xml": GOOD})
    assert only(voc.read(folder)).name == "a.png" and "rename the XML" in faults(folder)[0][0]
    folder = write({"z.xml": GOOD, "a.xml": GOOD})
    assert only(voc.read(folder)).source.name == "a.xml"
    assert any("z.xml: annotates a.png, as a.xml does" in message for message, loses in faults(folder) if loses)


def test_an_image_without_extension(write):
    assert only(measured(voc.read(write({"a.xml": changed("a.png", "a")}, ["a"])))).size == (40, 30)


def test_lists_make_the_splits(write):
    names = ["a", "b c", "d", "e"]
    documents = {f"{name}.xml": GOOD.replace("a.png", f"{name}.png") for name in names}
    folder = write(
        documents,
        [f"{name}.png" for name in names],
        {"train": "a\nb c  1\n\nd -1\nd\ngone\n", "val": "d\n", "trainval": "a\ne\n"},
    )
    collection = voc.read(folder)
    assert {split: [picture.name for picture in chosen] for split, chosen in collection.splits.items()} == {
        "train": ["a.png", "b c.png", "d.png"],
        "val": ["d.png"],
    }
    assert collection.others["image outside ImageSets/Main"] == 1
    assert [fault.loses for fault in collection.faults] == [False, True]
    assert (
        "line 5 lists 'd' again" in collection.faults[0].message
        and "line 6 lists 'gone'" in collection.faults[1].message
    )


def test_trainval_alone_is_the_training_split(write):
    assert voc.read(write({"a.xml": GOOD}, sets={"trainval": "a\n"})).splits.keys() == {"train"}


def test_a_single_list_of_an_exporters_name_is_the_set(write):
    folder = write({"a.xml": GOOD, "b.xml": GOOD}, ["a.png", "b.png"], {"default": "a\n"})
    assert [picture.name for picture in voc.read(folder).splits[""]] == ["a.png"]


def test_what_notebooks_and_thumbnails_leave_is_no_part_of_a_set(write):
    folder = write({"a.xml": GOOD})
    for name in ("Annotations/.ipynb_checkpoints/a-checkpoint.xml", "Annotations/._a.xml", "JPEGImages/@eaDir/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((folder / "Annotations/a.xml").read_bytes())
    assert faults(folder) == [] and len(list(voc.read(folder).pictures())) == 1


def test_a_class_list_orders_and_bounds_the_classes(write):
    folder = write({"a.xml": GOOD.replace(OBJECT, OBJECT + OBJECT.replace("cat", "dog"))})
    (folder / "classes.txt").write_text("zebra\ncat\n")
    collection = voc.read(folder)
    assert collection.classes == ("zebra", "cat")
    assert "class 'dog', which classes.txt does not list" in collection.faults[0].message


def test_names_that_look_like_one_class_are_reported(write):
    folder = write({"a.xml": GOOD.replace(OBJECT, OBJECT + OBJECT.replace(">cat", ">Cat"))})
    assert any("'Cat' and 'cat' differ only in case" in message for message, _ in faults(folder))


def test_other_layouts(write, tmp_path):
    folder = write({"a.xml": GOOD})
    inner = tmp_path / "sets/VOCdevkit/VOC2007"
    inner.parent.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (inner / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(inner / name)
    assert voc.is_voc(tmp_path / "sets") and only(voc.read(tmp_path / "sets")).name == "a.png"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for file in ("Annotations/a.xml", "JPEGImages/a.png"):
        (inner / file).rename(mixed / Path(file).name)
    assert voc.is_voc(mixed) and only(measured(voc.read(mixed))).size == (40, 30)
    (tmp_path / "sets/VOCdevkit/VOC2012/Annotations").mkdir(parents=True)
    with pytest.raises(UserError, match="VOC2007 and VOC2012"):
        voc.read(tmp_path / "sets")


@pytest.mark.parametrize(
    "files, splits",
    [
        (["images/a", "annotations/a"], {"": ["a.png"]}),
        (["images/a", "labels/a"], {"": ["a.png"]}),
        (["train/a", "valid/b", "test/c"], {"train": ["train/a.png"], "val": ["valid/b.png"], "test": ["test/c.png"]}),
        (["train/a", "other/b"], {"": ["other/b.png", "train/a.png"]}),
        (["JPEGImages/val/a", "Annotations/val/a"], {"val": ["val/a.png"]}),
    ],
)
def test_layouts_of_exporters(tmp_path, files, splits):
    image = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    for file in map(tmp_path.joinpath, files):
        file.parent.mkdir(parents=True, exist_ok=True)
        if "nnotations" not in str(file) and "labels" not in str(file):
            Path(f"{file}.png").write_bytes(image)
        if "mages" not in str(file):
            Path(f"{file}.xml").write_text(GOOD.replace("a.png", f"{file.name}.png"))
    assert formats.detect(tmp_path) == "voc" and formats.verify(tmp_path) == []
    found = formats.read(tmp_path).splits
    assert {split: [picture.name for picture in pictures] for split, pictures in found.items()} == splits


coordinates = st.decimals(0, 20_000, places=6).map(float)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1)
)
names = (
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1)
    .map(lambda text: " ".join(text.split()))
    .filter(lambda text: text and text.isprintable())
)


@given(names, boxes, st.booleans(), st.booleans(), st.booleans())
def test_what_is_written_is_read_again(name, box, difficult, truncated, occluded):
    box = tuple(map(tidy, box))
    annotation = Annotation(name, box, difficult=difficult, truncated=truncated, occluded=occluded)
    folder = Path("/nowhere")
    text = voc.document(Picture("a.png", folder, folder, (20_001, 20_001), (annotation,)))
    root = ElementTree.fromstring(text)
    assert voc._annotation(folder, 1, root.find("object"), Faults()) == annotation


def test_real_raccoons_are_sound(shared):
    collection = measured(voc.read(shared / "real/voc_raccoon_40"))
    texts = [path.read_text() for path in (shared / "real/voc_raccoon_40/Annotations").glob("*.xml")]
    assert collection.faults == () and collection.classes == ("raccoon",)
    assert len(list(collection.pictures())) == len(texts)
    assert len(list(collection.annotations())) == sum(text.count("<object>") for text in texts)
