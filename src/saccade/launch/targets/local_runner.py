"""The keeper of a local job: runs one command in its own session and writes down how it ended.

A job folder with `job.json` flows in; `keeper.json` (process id and start time), `log` and
`exit.json` flow out. Of several keepers started for one folder exactly one goes on. SIGTERM is
handed to the training, which saves and leaves with 143; the training ends with its keeper. Run as
`python -m saccade.launch.targets.local_runner FOLDER`. Left out: deciding anything.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from saccade.config.errors import Preempted
from saccade.launch.targets.local import start_time

PR_SET_PDEATHSIG = 1


def keep(folder: Path) -> int:
    """Run the job of a folder to its end; returns 0 also when another keeper has it."""
    stop_asked = False
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal stop_asked
        stop_asked = True
        if child is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # only now may others learn of this process: a stop that comes at once must not kill it
    if not _claim(folder):
        return 0
    job = json.loads((folder / "job.json").read_text("utf-8"))
    with (folder / "log").open("ab", buffering=0) as log:
        try:
            child = subprocess.Popen(
                job["command"], cwd=job["cwd"], env=os.environ | job["env"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
            )  # fmt: skip
        except OSError as error:
            log.write(f"{job['command'][0]}: {error.strerror}\n".encode())
            _leave(folder, code=3, asked=stop_asked)
            return 0
        if stop_asked:  # it arrived before there was a child
            child.terminate()
        code = child.wait()
    code = 128 - code if code < 0 else code
    if stop_asked and code != 0:
        code = Preempted.exit_code  # torchrun says 1 whatever its processes said
    _leave(folder, code=code, asked=stop_asked)
    return 0


def _claim(folder: Path) -> bool:
    """Write who keeps the folder, whole or not at all; False when somebody does already."""
    pid = os.getpid()
    aside = folder / f".keeper.{pid}.tmp"
    content = {"pid": pid, "start": start_time(pid), "time": time.time()}
    aside.write_text(json.dumps(content), encoding="utf-8")
    try:
        os.link(aside, folder / "keeper.json")
    except FileExistsError:
        return False
    finally:
        aside.unlink()
    return True


def _leave(folder: Path, *, code: int, asked: bool) -> None:
    aside = folder / ".exit.tmp"
    aside.write_text(
        json.dumps({"code": code, "asked": asked, "time": time.time()}), encoding="utf-8"
    )
    aside.replace(folder / "exit.json")


def _end_with_parent() -> None:
    """Ask the system to stop the training when its keeper is killed (Linux only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1])))
