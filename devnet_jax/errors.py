"""The one exception that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """A mistake that the user can mend: a wrong setting, file or folder.

    The message says what is wrong, where (file, setting, value) and what to do
    about it. The command line prints it as one line, without a traceback, and
    ends with a non-zero status.
    """
