"""The errors a user may meet, each with the exit code the command line returns for it.

Everything else that escapes is a bug (exit code 1, with a traceback). A message says what is
wrong, where (file, row, key) and what to do.
"""

from __future__ import annotations

import errno

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What an operating system says of a full disk."""


class SaccadeError(Exception):
    """Base of all expected errors; `exit_code` is what `saccade` returns."""

    exit_code = 1


class InputError(SaccadeError, ValueError):
    """The user's input is wrong: a key, a value, a path, a data row."""

    exit_code = 2


class OutsideError(SaccadeError, RuntimeError):
    """Something outside is missing: CUDA, credentials, disk space, quota, a package."""

    exit_code = 3


class Preempted(SaccadeError):
    """The run was asked to stop, saved itself, and continues with the same command."""

    exit_code = 143


def of_exit_code(code: int) -> type[SaccadeError] | None:
    """The error that another saccade process ended with; None for any other end."""
    kinds = (InputError, OutsideError, Preempted)
    return next((one for one in kinds if one.exit_code == code), None)


def of_system(error: OSError) -> SaccadeError | None:
    """Turn an operating-system error that a user can mend into a message; None for the others."""
    where = f"{error.filename}: " if error.filename else ""
    missing = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    refused = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
    if error.errno in missing and error.filename:
        return InputError(f"{where}{error.strerror}\n  fix: check the path")
    if error.errno in refused:
        return OutsideError(
            f"{where}{error.strerror}\n  fix: free space, unlock the folder or choose another one"
        )
    return None
