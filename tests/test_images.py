"""Image files as real data sets hold them: shown as viewers show them, or refused in one line."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from lib.data import images
from lib.errors import UserError

WIDTH, HEIGHT = 60, 40


def pattern() -> np.ndarray:
    """(40, 60, 3) uint8 BGR whose quarters differ, so that a turned or mirrored copy is seen."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:20, :30], image[:20, 30:], image[20:, :30] = (0, 0, 255), (0, 255, 0), (255, 0, 0)
    return image


def jpeg(orientation: int = 1) -> bytes:
    """`pattern` as JPEG with an EXIF orientation."""
    data = cv2.imencode(".jpg", pattern(), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    exif = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, images.ORIENTATION, 3, 1, orientation, 0, 0)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def save(path: Path, image: Image.Image, **settings) -> None:
    image.save(path, **settings)


RGB = Image.fromarray(pattern()[:, :, ::-1])
READABLE = {  # name: (how it is written, largest mean difference from the pattern or from its grey)
    "cmyk.jpg": (lambda path: save(path, RGB.convert("CMYK"), quality=95), 4),
    "cmyk.tif": (lambda path: save(path, RGB.convert("CMYK")), 0),
    "deep.png": (lambda path: cv2.imwrite(str(path), pattern().astype(np.uint16) * 257), 0),
    "deep.tif": (lambda path: cv2.imwrite(str(path), pattern().astype(np.uint16) * 257), 0),
    "alpha.png": (lambda path: save(path, RGB.convert("RGBA")), 0),
    "palette.png": (lambda path: save(path, RGB.quantize(8)), 1),
    "plain.bmp": (lambda path: save(path, RGB), 0),
}


@pytest.mark.parametrize("name", READABLE)
def test_untidy_images_show_what_they_show_elsewhere(tmp_path, name):
    make_file, tolerance = READABLE[name]
    make_file(tmp_path / name)
    image, stored = images.pixels(tmp_path / name, size=(HEIGHT, WIDTH))
    assert image.dtype == np.uint8 and image.shape == (HEIGHT, WIDTH, 3) and not stored
    assert np.abs(image.astype(int) - pattern()).mean() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_images_have_three_equal_channels(tmp_path, mode):
    save(tmp_path / "grey.png", RGB.convert(mode))
    image, _ = images.pixels(tmp_path / "grey.png")
    expected = np.asarray(RGB.convert(mode).convert("L"))
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_unless_the_boxes_are_on_the_stored_pixels(tmp_path, orientation):
    file = tmp_path / "turned.jpg"
    file.write_bytes(jpeg(orientation))
    names = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    turned = RGB.transpose(Image.Transpose[names[orientation - 2]]) if orientation > 1 else RGB
    upright = np.asarray(turned)[:, :, ::-1]
    image, stored = images.pixels(file, size=upright.shape[:2])
    assert not stored and np.abs(image.astype(int) - upright).mean() < 6
    image, stored = images.pixels(file, size=(HEIGHT, WIDTH))
    if orientation >= 5:
        assert stored and np.abs(image.astype(int) - pattern()).mean() < 6
    with pytest.raises(UserError, match="EXIF rotation"):
        images.pixels(file, size=(HEIGHT + 1, WIDTH))


def webp(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    stream = io.BytesIO()
    RGB.save(stream, "WEBP", exif=exif, lossless=True)
    return stream.getvalue()


REFUSED = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "cut short"),
    "half.jpg": (lambda path: path.write_bytes(jpeg()[:-200]), "cut short"),
    "page.jpg": (lambda path: path.write_text("<html>404</html>"), "unknown format"),
    "end.png": (lambda path: path.write_bytes(cv2.imencode(".png", pattern())[1].tobytes()[:-1]), "cut short"),
    "moving.gif": (lambda path: save(path, RGB), "unknown format"),
    "float.tif": (lambda path: cv2.imwrite(str(path), pattern().astype(np.float32) / 255), "pixels of float32"),
    "turned.webp": (lambda path: path.write_bytes(webp(6)), "WebP with EXIF orientation 6"),
    "gone.png": (lambda path: None, "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_would_be_wrong_are_one_line(tmp_path, capfd, name):
    make_file, named = REFUSED[name]
    make_file(tmp_path / name)
    with pytest.raises(UserError, match=named) as caught:
        images.pixels(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "; " in str(caught.value)
    assert capfd.readouterr().err == ""


def test_upright_webp_is_read(tmp_path):
    (tmp_path / "a.webp").write_bytes(webp(1))
    np.testing.assert_array_equal(images.pixels(tmp_path / "a.webp")[0], pattern())


def test_a_picture_that_claims_more_than_any_memory_is_refused_by_its_header(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(bytes(9)), b"IEND")
    content = b"".join(struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks)
    (tmp_path / "bomb.png").write_bytes(images.PNG + content)
    with pytest.raises(UserError, match="claims 30000x30000 pixels, more than 250 million; cut it into tiles"):
        images.pixels(tmp_path / "bomb.png")


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_cut_tiff_is_refused_instead_of_turning_grey(tmp_path, compression):
    file = tmp_path / "a.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(
        file, compression=compression
    )
    assert images.pixels(file)[0].shape == (60, 80, 3)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut short|damaged"):
        images.pixels(file)


def test_what_systems_leave_among_images_is_none_of_them(tmp_path):
    hidden = [".ipynb_checkpoints/a.png", ".thumbnails/a.png", "@eaDir/a.png", "__MACOSX/a.png", "sub/._a.png"]
    for name in ["sub/a.png", "B.PNG", "notes.txt", *hidden]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert images.files(tmp_path) == [tmp_path / "B.PNG", tmp_path / "sub/a.png"]
    inside = tmp_path / ".ipynb_checkpoints"  # who names it means it
    assert images.files(inside) == [inside / "a.png"]
