"""Published data sets from their publishers, a mirror or a folder: checked, unpacked, whole or not at all.

Archives come with pooch into `<folder>.download` beside the set, a half-written one continues where it ended, and its
MD5 (as torchvision publishes it) decides whether it is used: nothing of an archive that is not the published one, byte
for byte, is ever looked at, whatever it may hold. They are removed when the set is there. Archives in a folder of yours
are used where they lie and stay.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from lib.errors import UserError
from lib.record import FULL, unwritten

RECEIPT = "fetched.json"
CHUNK = 1 << 16  # bytes at a time: what a broken connection may lose of them
SECONDS = (10, 60)  # to connect, to wait for the next bytes
VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """One file of a published set."""

    part: str  # what a user asks for
    url: str
    md5: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


SETS = {
    "voc2007": (
        Archive("trainval", f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64"),
        Archive("test", f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f"),
    ),
    "voc2012": (Archive("trainval", f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd"),),
    "coco2017": (
        Archive("annotations", f"{COCO}/annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c"),
        Archive("val", f"{COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80"),
        Archive("train", f"{COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2"),
    ),
}


def fetch(
    name: str, folder: Path, source: str | None = None, parts: Sequence[str] = (), tell: Callable[[str], None] = print
) -> int:
    """Make the new `folder` the published set `name`; the number of files, 0 where it is there already.

    `source` is a folder with the archives or the URL under which they lie by name; the publishers' by default. `parts`
    are some of the set's archives. UserError if one can't be had, is not the published one, or would write elsewhere.
    """
    chosen = [archive for archive in SETS[name] if not parts or archive.part in parts]
    if unknown := set(parts) - {archive.part for archive in SETS[name]}:
        known = ", ".join(archive.part for archive in SETS[name])
        raise UserError(f"{name}: has no part {sorted(unknown)[0]!r}; its parts are {known}")
    receipt = {"set": name, "archives": {archive.name: archive.md5 for archive in chosen}}
    if _is_there(folder, receipt):
        return 0
    downloads = folder.absolute().with_name(f"{folder.absolute().name}.download")
    with whole_folder(folder) as temporary:
        for file in [_have(archive, source, downloads, tell) for archive in chosen]:
            tell(f"{file}: unpacking")
            extract(file, temporary)
        count = sum(path.is_file() for path in temporary.rglob("*"))
        (temporary / RECEIPT).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(downloads, ignore_errors=True)
    return count


def _is_there(folder: Path, receipt: dict) -> bool:
    try:
        return json.loads((folder / RECEIPT).read_text(encoding="utf-8")) == receipt
    except (OSError, ValueError):  # no set of ours: `whole_folder` says what to do
        return False


def _have(archive: Archive, source: str | None, downloads: Path, tell: Callable[[str], None]) -> Path:
    """The checked file of an archive, downloaded where it is not at hand."""
    scheme = urlsplit(source or archive.url).scheme
    if scheme in ("http", "https"):
        url = f"{source.rstrip('/')}/{archive.name}" if source else archive.url
        return _downloaded(url, archive, downloads, tell)
    file = Path(unquote(urlsplit(source).path) if scheme == "file" else source) / archive.name
    if not file.is_file():
        raise UserError(f"{file}: is not there; put the archive of {archive.url} into this folder")
    tell(f"{file}: checking")
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "md5").hexdigest()
    if found != archive.md5:
        raise UserError(f"{file}: has MD5 {found}, the published archive {archive.md5}; copy it again")
    return file


def _downloaded(url: str, archive: Archive, downloads: Path, tell: Callable[[str], None]) -> Path:
    import pooch
    import requests

    part = downloads / f"{archive.name}.part"

    def continued(url: str, output: str, _: object) -> None:
        _download(url, part)
        os.replace(part, output)

    pooch.get_logger().setLevel("WARNING")
    tell(f"{url}: to {downloads}")
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        return Path(pooch.retrieve(url, f"md5:{archive.md5}", archive.name, downloads, downloader=continued))
    except requests.RequestException as error:
        have = part.stat().st_size if part.is_file() else 0
        stopped = f"stopped after {have} bytes ({' '.join(str(error).split())[:160]})"
        raise UserError(f"{url}: {stopped}; run the same again to continue, or give --from") from error
    except ValueError as error:  # pooch: the checksum is another one
        remedy = "it was removed: run again, or give --from a mirror you trust"
        raise UserError(f"{url}: is not the published archive, its MD5 differs; {remedy}") from error
    except OSError as error:
        raise unwritten(downloads, error) from error


def _download(url: str, part: Path) -> None:
    """Bring `part` to the whole of `url`, beginning after the bytes it has where the server can."""
    import requests

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=SECONDS) as response:
        stated = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status_code == 416 and stated and stated[2] == str(have):
            return  # all of it was there
        if response.status_code == 416:
            part.unlink()  # longer than the file: not of this one
            raise requests.ConnectionError("the half-written file was none of this one and is removed")
        response.raise_for_status()
        start = have if response.status_code == 206 and stated and stated[1] == str(have) else 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else None
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as progress,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise requests.ConnectionError(f"{total - part.stat().st_size} bytes are missing")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on a clean exit it becomes `target`, otherwise it vanishes.

    UserError if `target` is there already and not an empty folder, before anything is done; and if it can't be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: is there already; choose another folder, or remove it")
    temporary = target.absolute().with_name(f".{uuid.uuid4().hex[:8]}.{target.absolute().name}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise unwritten(target, error) from error
    try:
        yield temporary
        os.rename(temporary, target)  # over an empty folder too
    except OSError as error:
        inside = any(str(name).startswith(str(temporary)) for name in (error.filename, error.filename2))
        if error.errno not in FULL and (not inside or error.errno == errno.ENOENT):
            raise
        raise unwritten(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def extract(archive: Path, folder: Path) -> None:
    """Unpack an archive whose checksum is the published one into `folder`."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder)
        return
    with tarfile.open(archive) as content:
        for member in content:
            content.extract(member, folder, set_attrs=False)  # nobody else's owner, mode or time
