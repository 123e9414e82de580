"""Reads and writes Pascal VOC: one XML file an image, boxes in pixels that count from 1, lists of images per split.

A VOC box is the first and the last pixel that belong to it, counted from 1, so xmin = 1, xmax = width is the whole
image. In edges from 0 that is x1 = xmin - 1, x2 = xmax, and back exactly. The devkit's layout (JPEGImages, Annotations,
ImageSets/Main, also below VOCdevkit/VOC20xx), images/ with annotations/ or labels/, or images and XML files together in
one folder or in one per split are read.

Real files are untidy; the rules:
* An XML file belongs to the image of its own name; `filename` decides only where there is none or more than one, with
  or without extension. Where it says something else, that is reported. `folder` and `path` mean nothing and are passed
  over.
* No `difficult`, `truncated` or `occluded` is 0. No or an empty `size` is taken from the pixels, and reported.
* Coordinates may have decimals and are kept. Names lose the spaces around them, not those inside.
* xmax < xmin can't be meant; xmax = xmin is one pixel, reported, for tools exist that count from 0.
* A class list in classes.txt, one name a line, orders the classes; without it they are in alphabetical order.
* With ImageSets/Main its train, val and test are the set; trainval is its train where neither train nor val is there. A
  single list of any other name is the set. Without lists folders of the splits' names (train/, valid/ …) are them.
XML comes from strangers: a document type declaration is refused, no entity is ever expanded, no other file opened.
"""

import math
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import defusedxml
from defusedxml.ElementTree import fromstring

from lib.data import annotated, images
from lib.data.annotated import FLAGS, SPLITS, Annotation, Collection, Faults, Picture, stem, text_lines, tidy
from lib.errors import UserError

DOCUMENTS = ("Annotations", "annotations", "labels")
KNOWN = {"folder", "filename", "size", "segmented", "object"}  # root entries that are read, or written again
KNOWN_OF_OBJECT = {"name", "pose", "bndbox", *FLAGS}
CORNERS = ("xmin", "ymin", "xmax", "ymax")
UNSPECIFIED = "Unspecified"  # VOC's word for no pose
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_voc(folder: Path) -> bool:
    """Whether `folder` looks like one."""
    inside = (f"{name}/*.xml" for names in (DOCUMENTS, *SPLITS.values()) for name in names)
    places = ("*.xml", "Annotations/", "VOCdevkit/VOC*/Annotations", *inside)
    return any(any(folder.glob(place)) for place in places)


def read(folder: Path, images_dir: Path | None = None) -> Collection:
    """What the XML files of `folder` say, faulty entries left out and named."""
    root = _root(folder)
    documents = next((root / name for name in DOCUMENTS if images.files(root / name, (".xml",))), root)
    pool = _Pool(images_dir or next((root / name for name in ("JPEGImages", "images") if (root / name).is_dir()), root))
    faults, others, pictures = Faults(), Counter(), {}
    for path in images.files(documents, (".xml",)):
        own = stem(path.relative_to(documents).as_posix())
        try:
            pictures[own] = _picture(path, own, pool, faults, others)
        except UserError as error:
            faults.lost(str(error))
            for name in pool.of(own):  # it has an XML, if a faulty one
                pool.unclaimed.pop(name, None)
    pictures = _one_an_image(pictures, faults)
    splits = _splits(root, pictures, pool, faults, others)
    classes = sorted(
        {annotation.name for chosen in splits.values() for one in chosen for annotation in one.annotations}
    )
    if (root / "classes.txt").is_file():
        classes = dict.fromkeys(line.strip() for line in text_lines(root / "classes.txt") if line.strip())
    faults += annotated.class_faults(root, tuple(classes))
    splits = {split: tuple(_listed(picture, classes, faults) for picture in chosen) for split, chosen in splits.items()}
    return Collection(root, "voc", tuple(classes), splits, tuple(faults), others=others)


def write(folder: Path, classes: tuple[str, ...], splits: dict[str, tuple[Picture, ...]]) -> None:
    """Annotations/, ImageSets/Main/ (where there are splits) and classes.txt; crowds are marked difficult."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for split, pictures in splits.items():
        for picture in pictures:
            path = folder / "Annotations" / f"{stem(picture.name)}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(document(picture))
        if split:
            annotated.write_lines(
                folder / "ImageSets" / "Main" / f"{split}.txt", (stem(picture.name) for picture in pictures)
            )
    annotated.write_lines(folder / "classes.txt", classes)


def document(picture: Picture) -> bytes:
    """The XML of a measured picture."""

    def add(parent: ElementTree.Element, **texts: object) -> None:
        for tag, text in texts.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    root = ElementTree.Element("annotation")
    add(root, folder="JPEGImages", filename=PurePosixPath(picture.name).name)
    add(ElementTree.SubElement(root, "size"), width=picture.size[0], height=picture.size[1], depth=3)
    add(root, segmented=0)
    for annotation in picture.annotations:
        entry = ElementTree.SubElement(root, "object")
        add(entry, name=annotation.name, pose=annotation.pose or UNSPECIFIED, truncated=int(annotation.truncated))
        add(entry, difficult=int(annotation.difficult or annotation.crowd))
        if annotation.occluded:
            add(entry, occluded=1)
        x1, y1, x2, y2 = annotation.box
        values = map(tidy, (x1 + 1, y1 + 1, x2, y2))
        add(ElementTree.SubElement(entry, "bndbox"), **dict(zip(CORNERS, values)))
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="utf-8") + b"\n"


class _Pool:
    """The image files of a folder, found by name with or without extension; `unclaimed` shrinks as they are found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unclaimed = {file.relative_to(folder).as_posix(): file for file in images.files(folder)}
        self.names: dict[str, list[str]] = {}
        for name in self.unclaimed:
            self.names.setdefault(stem(name), []).append(name)

    def of(self, wanted: str) -> list[str]:
        """Names that fit `wanted`, given with or without extension."""
        if wanted in self.names.get(stem(wanted), ()):
            return [wanted]
        return self.names.get(wanted, []) or ([wanted] if os.path.isfile(self.folder / wanted) else [])


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; give the one that holds Annotations, or the XML files")
    inner = [path.parent for path in sorted(folder.glob("VOCdevkit/VOC*/Annotations"))]
    if (folder / "Annotations").is_dir() or not inner:
        return folder
    if len(inner) > 1:
        held = " and ".join(path.name for path in inner)
        raise UserError(f"{folder}: holds {held}; give one of them: {inner[0]}")
    return inner[0]


def _parsed(path: Path) -> ElementTree.Element:
    """The root of an XML file without a document type declaration. UserError if it is none."""
    try:
        return fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file") from error
    except defusedxml.DTDForbidden as error:
        said = "declares a document type, which may hide entities; remove the <!DOCTYPE ...>"
        raise UserError(f"{path}: {said}") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise UserError(f"{path}: no valid XML ({error}); write it again, in UTF-8") from error


def _picture(path: Path, own: str, pool: _Pool, faults: Faults, others: Counter[str]) -> Picture:
    root = _parsed(path)
    if root.tag != "annotation":
        raise UserError(f"{path}: its root is <{root.tag}>, not <annotation>; give Pascal VOC's XML")
    others.update(child.tag for child in root if child.tag not in KNOWN)
    others.update(["segmented"] if _text(root, "segmented") == "1" else [])
    name = _image_name(path, own, _text(root, "filename"), pool, faults)
    pool.unclaimed.pop(name, None)
    annotations = []
    for number, entry in enumerate(root.findall("object"), 1):
        others.update(child.tag for child in entry if child.tag not in KNOWN_OF_OBJECT)
        try:
            annotations.append(_annotation(path, number, entry, faults))
        except UserError as error:
            faults.lost(str(error))
    return Picture(name, pool.folder / name, path, _size(path, root, faults), tuple(annotations))


def _image_name(path: Path, own: str, filename: str, pool: _Pool, faults: Faults) -> str:
    """The image that the XML file at `path` annotates; `own` is its name without suffix."""
    stated = PurePosixPath(filename.replace("\\", "/")).name
    fitting = pool.of(own)
    by_filename = pool.of(str(PurePosixPath(own).with_name(stated)) if stated else own)
    both = [name for name in by_filename if name in fitting]
    chosen = next((names[0] for names in (both, fitting or by_filename) if len(names) == 1), None)
    if chosen is None and fitting:
        raise UserError(f"{path}: may annotate {' or '.join(fitting)}; give <filename> the right one")
    if chosen is None:
        nor = f" and none named {stated}" if stated else ""
        raise UserError(f"{path}: has no image {own}.* in {pool.folder}{nor}; restore the image or remove the XML")
    if stated and stated not in (PurePosixPath(chosen).name.strip(), PurePosixPath(chosen).stem.strip()):
        faults.kept(f"{path}: says filename {stated!r}, its own name fits {chosen}, which is used; correct it")
    elif not fitting:
        faults.kept(f"{path}: its own name fits no image, {chosen} by its filename is used; rename the XML")
    return chosen


def _one_an_image(pictures: dict[str, Picture], faults: Faults) -> dict[str, Picture]:
    """Without XML files whose image another one annotates too: that of the image's own name stays."""
    owner: dict[str, str] = {}
    for own, picture in pictures.items():
        if picture.name not in owner or own == stem(picture.name):
            owner[picture.name] = own
    for own, picture in pictures.items():
        if owner[picture.name] != own:
            other = pictures[owner[picture.name]].source.name
            said = f"annotates {picture.name}, as {other} does; correct its filename or remove it"
            faults.lost(f"{picture.source}: {said}")
    return {own: picture for own, picture in pictures.items() if owner[picture.name] == own}


def _annotation(path: Path, number: int, entry: ElementTree.Element, faults: Faults) -> Annotation:
    name, where = " ".join(_text(entry, "name").splitlines()), f"object {number}"
    if not annotated.is_readable(name):
        raise UserError(f"{path}: {where} has name {name!r}; give it a readable one")
    texts = [_text(entry, f"bndbox/{corner}") for corner in CORNERS]
    values = [_number(text) for text in texts]
    what = f"{path}: {where} ({name}) has bndbox {texts}"
    if None in values:
        raise UserError(f"{what}; give four finite numbers xmin, ymin, xmax, ymax")
    xmin, ymin, xmax, ymax = values
    if xmax < xmin or ymax < ymin:
        raise UserError(f"{what} of zero or negative size; swap its corners or remove it")
    if xmax == xmin or ymax == ymin:
        faults.kept(f"{what}, by VOC's rule one pixel wide or high; correct or remove it if it is meant to be empty")
    if min(xmin, ymin) < 1:
        faults.kept(f"{what}, but VOC's first pixel is 1; if the tool counts from 0, add 1 to xmin and ymin")
    flags = {flag: _text(entry, flag) for flag in FLAGS}
    for flag, text in flags.items():
        if text.lower() not in ("", "0", "1", "true", "false", UNSPECIFIED.lower()):
            faults.kept(f"{path}: {where} has {flag} {text!r}, taken as 0; write 0 or 1")
    set_flags = {flag: text.lower() in ("1", "true") for flag, text in flags.items()}
    pose = _text(entry, "pose")
    box = (tidy(xmin - 1), tidy(ymin - 1), xmax, ymax)
    return Annotation(name, box, where=where, **set_flags, pose="" if pose == UNSPECIFIED else pose)


def _size(path: Path, root: ElementTree.Element, faults: Faults) -> tuple[int, int] | None:
    texts = [_text(root, f"size/{side}") for side in ("width", "height")]
    width, height = (_number(text) for text in texts)
    if not width or not height or min(width, height) < 1 or width != int(width) or height != int(height):
        faults.kept(f"{path}: has size {texts}, taken from the image; write its width and height")
        return None
    return int(width), int(height)


def _splits(
    root: Path, pictures: dict[str, Picture], pool: _Pool, faults: Faults, others: Counter[str]
) -> dict[str, tuple[Picture, ...]]:
    places = (root / "ImageSets", root / "ImageSets" / "Main")
    found = {path.stem: path for place in places for path in place.glob("*.txt")}
    lists = {name: found[name] for name in ("train", "val", "test", "trainval") if name in found}
    if len(found) == 1 and not lists:  # by a name of the exporter's
        lists = dict(zip(("",), found.values()))
    whole = lists.pop("trainval", None)
    if whole and not lists.keys() & {"train", "val"}:
        lists["train"] = whole
    if not lists:
        remedy = "write one (without objects if there are none) or remove the image"
        for file in pool.unclaimed.values():
            faults.lost(f"{file}: has no XML; {remedy}")
        return _by_folder(pictures)
    names = {split: _names(path, pictures, pool, faults) for split, path in lists.items()}
    if unlisted := len(pictures.keys() - set().union(*names.values())) + len(pool.unclaimed):
        others["image outside ImageSets/Main"] = unlisted
    return {split: tuple(pictures[name] for name in listed) for split, listed in names.items()}


def _by_folder(pictures: dict[str, Picture]) -> dict[str, tuple[Picture, ...]]:
    """The splits by the folders that they lie in; one set where something lies elsewhere."""
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    found: dict[str, list[Picture]] = {}
    for own, picture in pictures.items():
        found.setdefault(split_of.get(own.split("/")[0], ""), []).append(picture)
    if "" in found or not found:
        return {"": tuple(pictures.values())}
    return {split: tuple(found[split]) for split in SPLITS if split in found}


def _names(path: Path, pictures: dict[str, Picture], pool: _Pool, faults: Faults) -> list[str]:
    """The pictures of one list file; a line may end in the flag of VOC's lists per class."""
    found: dict[str, None] = {}
    for number, line in enumerate(text_lines(path), 1):
        name = line.strip()
        name = name if name in pictures else re.sub(r"\s+-?[01]$", "", name)
        if name in found:
            faults.kept(f"{path}: line {number} lists {name!r} again; remove it")
        elif name in pictures:
            found[name] = None
        elif name:
            remedy = "write its XML" if pool.of(name) else "restore its XML and image"
            said = f"lists {name!r}, which has no sound XML; {remedy} or remove the line"
            faults.lost(f"{path}: line {number} {said}")
    return list(found)


def _listed(picture: Picture, classes: dict[str, None] | list[str], faults: Faults) -> Picture:
    """Without the objects whose class is not in classes.txt."""
    for annotation in picture.annotations:
        if annotation.name not in classes:
            said = f"of class {annotation.name!r}, which classes.txt does not list; add it there or correct the name"
            faults.lost(f"{picture.source}: {annotation.where} is {said}")
    return replace(picture, annotations=tuple(entry for entry in picture.annotations if entry.name in classes))


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _number(text: str) -> float | None:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) and abs(value) < 1e9 else None
