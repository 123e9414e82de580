"""Unpacks tar and zip archives into a folder of ours: plain files and folders only, none outside it.

Paths that are absolute, name a drive or climb with `..`, links of either kind and devices are refused, each by its name, as
is an archive that ends early. Of a path that comes twice the last file stays, as with tar itself. Whoever calls this throws
the folder away after a refusal (`lib.data.whole`).
"""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from lib.errors import UserError

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)


def extract(archive: Path, folder: Path) -> int:
    """Unpack `archive` into `folder`, which holds nothing but what this function wrote; the number of files."""
    try:
        if zipfile.is_zipfile(archive):
            return _extract_zip(archive, folder)
        return _extract_tar(archive, folder)
    except DAMAGED as error:
        raise UserError(f"{archive}: is damaged or no tar or zip archive ({error}); download it again") from error


def _extract_tar(archive: Path, folder: Path) -> int:
    count = 0
    with tarfile.open(archive) as content:
        for member in content:
            target = _inside(archive, member.name, folder)
            if member.isdir():
                _folder(archive, member.name, target)
            elif member.isreg():
                _copy(archive, member.name, content.extractfile(member), target)
                count += 1
            else:
                raise UserError(f"{archive}: {member.name!r} is a link or a device; unpack it by hand if you trust it")
        content.fileobj.seek(content.offset)
        if (
            content.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE
        ):  # tarfile takes a cut for the end
            raise tarfile.ReadError("no end mark")
    return count


def _extract_zip(archive: Path, folder: Path) -> int:
    count = 0
    with zipfile.ZipFile(archive) as content:
        needed, free = sum(member.file_size for member in content.infolist()), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{archive}: unpacks to {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on the disk of "
                f"{folder.parent}; free some space"
            )
        for member in content.infolist():
            target = _inside(archive, member.orig_filename, folder)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive}: {member.filename!r} is a link or a device; unpack it by hand if you trust it"
                )
            if member.flag_bits & 1:
                raise UserError(f"{archive}: {member.filename!r} is encrypted; unpack it by hand")
            if member.is_dir():
                _folder(archive, member.filename, target)
            else:
                _copy(archive, member.filename, content.open(member), target)
                count += 1
    return count


def _inside(archive: Path, name: str, folder: Path) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not name.isprintable() or not name:
        raise UserError(f"{archive}: {name!r} leads out of the folder; get the archive from its publisher")
    return folder / path


def _folder(archive: Path, name: str, target: Path) -> None:
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{archive}: {name!r} is in it as a file and as a folder; get it from its publisher") from error


def _copy(archive: Path, name: str, source: IO[bytes], target: Path) -> None:
    _folder(archive, name, target.parent)
    if target.is_dir():
        raise UserError(f"{archive}: {name!r} is in it as a file and as a folder; get it from its publisher")
    with source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy, 1 << 20)
