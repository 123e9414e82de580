"""The one exception for what a user can mend."""


class UserError(Exception):
    """A user's mistake: one line that names the file, the entry and the remedy; shown without a traceback."""
