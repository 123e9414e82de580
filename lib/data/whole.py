"""Folders that appear whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lib.errors import UserError
from lib.record import FULL


@contextmanager
def folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on a clean exit it becomes `target`, otherwise it vanishes.

    UserError if `target` is there already and not an empty folder, before anything is done; and if it can't be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: is there already; choose another folder, or remove it")
    temporary = target.absolute().with_name(f".{uuid.uuid4().hex[:8]}.{target.absolute().name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.rename(temporary, target)  # over an empty folder too
    except OSError as error:
        inside = str(error.filename or "").startswith(str(temporary)) or str(error.filename2 or "").startswith(
            str(temporary)
        )
        if error.errno in FULL:
            raise UserError(
                f"{target}: can't be written ({error.strerror}); free some disk space and run again"
            ) from error
        if inside and error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
            errno.ENAMETOOLONG,
        ):
            raise UserError(f"{target}: can't be written ({error.strerror}); choose another folder") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
