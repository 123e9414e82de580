"""Decodes image files as they are found in real data sets, upright and whole, or says in one line why not.

* Always (h, w, 3) uint8 BGR: grey is repeated, CMYK converted, 16 bit cut to its upper 8, alpha and palettes resolved.
* An EXIF orientation is applied, as viewers do. Where the annotated size fits the stored pixels only, whoever annotated
  saw those, so they are given unrotated and the boxes stay on their objects.
* Refused: what ends early, has wrong checksums or more than LARGEST pixels, is no image or one of floating point, and
  WebP files with an EXIF orientation, which OpenCV would leave out. Wrong bytes within a complete JPEG can't be told.
"""

import contextlib
import io
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from lib.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
LARGEST = 250_000_000  # pixels: 750 MB decoded; a few bytes may claim more than any memory holds
NO_DATA = ("__MACOSX",)  # folders that a system leaves in copies; names with a dot or an @ before them are such too
PNG, PNG_END = b"\x89PNG\r\n\x1a\n", bytes(4) + b"IEND\xaeB\x60\x82"
TIFF = (b"II*\0", b"MM\0*")
STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
ORIENTATION = 0x0112  # EXIF tag
UNTURNED = (
    "{}: its EXIF orientation is left out, because its annotated size is that of the stored pixels; "
    "remove the orientation from the file, or correct the entry"
)

Image.MAX_IMAGE_PIXELS = None  # LARGEST is asked here, before anything is decoded

Item, Result = TypeVar("Item"), TypeVar("Result")


def pixels(file: Path, what: str = "the image", size: tuple[int, int] | None = None) -> tuple[np.ndarray, bool]:
    """((h, w, 3) uint8 BGR, whether they are the stored pixels of an image that its EXIF orientation would turn).

    `size` (height, width) is the annotated one. UserError if the file is missing, damaged, cut or of another size.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {what} cannot be read ({error.strerror}); restore the file") from error
    if not _complete(data):
        raise UserError(f"{file}: {what} is cut short or damaged ({len(data)} bytes); copy or download it again")
    _refuse(data, file, what)
    image = _decode(data, cv2.IMREAD_COLOR, file, what)
    if size is None or image.shape[:2] == size:
        return image, False
    if image.shape[1::-1] == size:
        stored = _decode(data, STORED, file, what)
        if stored.shape[:2] == size:
            return stored, True
    raise UserError(
        f"{file}: {what} is {image.shape[1]}x{image.shape[0]} pixels, its entry says {size[1]}x{size[0]}; "
        "correct the entry, or the file's EXIF rotation"
    )


def files(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[Path]:
    """The image files below a folder, by name, or those of other suffixes (in small letters).

    Hidden ones are none of a data set's: checkpoints of notebooks, thumbnails, what other systems leave behind.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _is_data(name)]
        found += [Path(place, name) for name in names if _is_data(name) and Path(name).suffix.lower() in suffixes]
    return sorted(file for file in found if file.is_file())


def _is_data(name: str) -> bool:
    return not name.startswith((".", "@")) and name not in NO_DATA


def each(function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None) -> list[Result]:
    """`function` of each item, in order, on threads: decoding leaves Python's lock. One per core by default.

    An exception, Ctrl-C included, drops what is not begun.
    """
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="images")
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(data: bytes, flags: int, file: Path, what: str) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UserError(f"{file}: {what} is refused by OpenCV ({error.err}); re-encode it") from error
    if image is None:
        raise UserError(
            f"{file}: {what} is cut short, damaged or of an unknown format; "
            "copy or download it again, or convert it to PNG or JPEG"
        )
    return image


def _complete(data: bytes) -> bool:
    """False if a PNG ends early or one of its checksums is wrong; other formats are left to OpenCV.

    OpenCV would refuse the file too, but only after libpng has written a line of its own to stderr.
    """
    if not data.startswith(PNG):
        return bool(data)
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return PNG_END in data  # whose own checksum Pillow leaves out


def _refuse(data: bytes, file: Path, what: str) -> None:
    """UserError for what would decode to more than LARGEST pixels, by the header, and for files that OpenCV decodes
    without a complaint, but not to what they show."""
    picture, turned = None, 1
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # of a kind that OpenCV alone knows, or no image
        picture = Image.open(io.BytesIO(data))
        turned = picture.getexif().get(ORIENTATION, 1) if picture.format == "WEBP" else 1
    if picture and math.prod(picture.size) > LARGEST:
        said = f"claims {picture.width}x{picture.height} pixels, more than {LARGEST // 10**6} million"
        raise UserError(f"{file}: {what} {said}; cut it into tiles")
    if data.startswith(TIFF):
        raw = _decode(data, cv2.IMREAD_UNCHANGED, file, what)
        if raw.dtype not in (np.uint8, np.uint16):
            raise UserError(f"{file}: {what} has pixels of {raw.dtype}; convert it to 8 or 16 bits")
        try:
            if picture:
                picture.load()
        except (OSError, SyntaxError, ValueError) as error:  # OpenCV would leave grey what is missing
            raise UserError(f"{file}: {what} is cut short or damaged ({error}); copy or download it again") from error
    elif turned in range(2, 9):
        remedy = "which OpenCV leaves out; re-encode it upright"
        raise UserError(f"{file}: {what} is WebP with EXIF orientation {turned}, {remedy}")
