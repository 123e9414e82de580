"""What a user can mend, as one line."""

import errno
from typing import Optional

PLACES = {  # errors of the machine's disks rather than of the project
    errno.ENOSPC: "free some room on that disk",
    errno.EDQUOT: "free some room within your quota",
    errno.EACCES: "see who may read and write there",
    errno.EPERM: "see who may read and write there",
    errno.EROFS: "choose a place that can be written",
    errno.ENOTDIR: "move away the file in its place",
    errno.EEXIST: "move away the file in its place",
}


class UserError(Exception):
    """A user's mistake: one line that names the file, the entry and the remedy; shown without a traceback."""


def of_a_place(error: OSError) -> Optional[UserError]:
    """An error of a disk or a folder as a user's error, None for any other."""
    if error.errno not in PLACES:
        return None
    place = error.filename2 or error.filename  # of a link: itself, not what it points to
    where = f"{place}: " if place else ""
    remedy = f"{PLACES[error.errno]}; ALIGN_HOME places environments and kernels elsewhere"
    return UserError(f"{where}{error.strerror}: {remedy}")
