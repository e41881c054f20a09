"""Programs that a stage or a trial starts: words, environment, and why one cannot be started.

Words as a file gives them flow in; words and an environment in which saccade can be imported flow
out. Left out: waiting for a program and stopping it, which its caller does.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from saccade.config.errors import InputError

NO_PROGRAM = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC)
"""Why a program cannot be started when its name is wrong."""
SACCADE = (sys.executable, "-m", "saccade.cli")
"""How this very saccade is started again."""


def own_programs(words: list[str]) -> list[str]:
    """`python` and `saccade` mean the ones that run this process, also where PATH has neither."""
    if words and words[0] in ("python", "python3"):
        return [sys.executable, *words[1:]]
    if words and words[0] == "saccade":
        return [*SACCADE, *words[1:]]
    return words


def own_environment() -> dict[str, str]:
    """This process's environment, with this saccade in front of any other."""
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(paths)}


def not_started(error: OSError, *, where: str, program: str) -> InputError:
    """What to tell about a program that cannot be started; raises `error` when it is another."""
    if error.errno not in NO_PROGRAM:
        raise error
    return InputError(
        f"{where}: {program} cannot be started ({error.strerror})"
        "\n  fix: give a program that is on PATH, or its path"
    )
