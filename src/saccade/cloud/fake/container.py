"""The first process of a fake container: starts the command, passes signals on, leaves no orphans.

Run as a script of its own (`python -I -S container.py COMMAND...`), with a pipe from the server as
stdin. A `T` on the pipe is SIGTERM for the command; a `K`, or the end of the pipe because the
server is gone, kills the command and everything it started. The exit code is the command's, 128
plus the signal's number when a signal ended it. Only the standard library, nothing of saccade.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

SET_PDEATHSIG, SET_CHILD_SUBREAPER = 1, 36
POLL_SECONDS = 0.05


def prctl(option: int, value: int) -> None:
    """Linux's process control; elsewhere the pipe alone has to do."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def in_child() -> None:
    """Die with the first process; it has one thread, so this is safe between fork and exec."""
    prctl(SET_PDEATHSIG, signal.SIGKILL)


def descendants() -> list[int]:
    """Children of this process, orphans of theirs included (Linux)."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def kill_everything(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the command's group, then for what is left, until nothing is."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    for _ in range(100):
        left = descendants()
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def wait(child: subprocess.Popen[bytes]) -> int:
    """The command's exit code, obeying the pipe meanwhile."""
    pipe = sys.stdin.fileno()
    while True:
        code = child.poll()
        if code is not None:
            return code
        ready, _, _ = select.select([pipe], [], [], POLL_SECONDS)
        if not ready:
            continue
        order = os.read(pipe, 1)
        if order == b"T":
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        else:
            kill_everything(child)
            return -signal.SIGKILL


def main() -> int:
    """Run the command of this process's arguments."""
    prctl(SET_CHILD_SUBREAPER, 1)
    # a Ctrl+C at the server's terminal must not reach containers by another way than the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(
            sys.argv[1:],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=in_child,
            restore_signals=True,
        )
    except OSError as error:
        sys.stderr.write(f"exec failed: {sys.argv[1]}: {error.strerror}\n")
        return 127
    code = wait(child)
    kill_everything(child)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
