"""Decodes image files as they are found in real data sets, upright and whole, or says in one line why not.

* Always (h, w, 3) uint8 BGR: grey is repeated, CMYK converted, 16 bit cut to its upper 8, alpha and palettes resolved.
* An EXIF orientation is applied, as viewers do. Where the annotated size fits the stored pixels only, whoever annotated
  saw those, so they are given unrotated and the boxes stay on their objects.
* Refused: what ends early, has wrong checksums, is no image or one of floating point, and WebP files with an EXIF
  orientation, which OpenCV would leave out. Bytes that are wrong within a complete JPEG can't be told from a picture.
"""

import contextlib
import io
import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from lib.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".ppm", ".pgm"}
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*")
STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
ORIENTATION = 0x0112  # EXIF tag
UNTURNED = (
    "{}: its EXIF orientation is left out, because its annotated size is that of the stored pixels; "
    "remove the orientation from the file, or correct the entry"
)

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
    _refuse_untrue(data, file, what)
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


def files(folder: Path) -> list[Path]:
    """The image files below a folder, by name."""
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]


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
    at = len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def _refuse_untrue(data: bytes, file: Path, what: str) -> None:
    """UserError for files that OpenCV decodes without a complaint, but not to what they show."""
    if data.startswith(TIFF):
        raw = _decode(data, cv2.IMREAD_UNCHANGED, file, what)
        if raw.dtype not in (np.uint8, np.uint16):
            raise UserError(f"{file}: {what} has pixels of {raw.dtype}; convert it to 8 or 16 bits")
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return
    with contextlib.suppress(OSError, SyntaxError, ValueError):  # what is no image is refused by `_decode`
        turned = Image.open(io.BytesIO(data)).getexif().get(ORIENTATION, 1)
        if turned in range(2, 9):
            remedy = "which OpenCV leaves out; re-encode it upright"
            raise UserError(f"{file}: {what} is WebP with EXIF orientation {turned}, {remedy}")
