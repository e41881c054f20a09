"""Run an untrusted Python program in a process of its own, and say what came of it.

A program and its limits flow in, a `Ran` flows out. The work is done by `sandbox_guard.py`, which
is started with an empty environment, in a new session and an empty temporary folder, and killed
with all that belongs to it when it does not come back. What a program cannot do: outlive its time,
start processes without end, hold more memory, write or read files outside its folder and the
Python installation, use the network, see the environment. The last three rest on the kernel
(Landlock, namespaces); `Ran.isolation` says which were in force. Left out: limits on all files
together (each is limited), and programs that search their interpreter to forge their own verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from saccade.config.errors import OutsideError

GUARD = Path(__file__).with_name("sandbox_guard.py")
GRACE_SECONDS = 10.0
"""How long after its program's time the guard may take to clean up."""


@dataclass(frozen=True)
class Limits:
    """What a program may use. Memory holds for each process and for all together."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    file_bytes: int = 8 << 20
    open_files: int = 64
    processes: int = 16
    output_bytes: int = 64 << 10


@dataclass(frozen=True)
class Ran:
    """What came of a program.

    `status` is passed, failed (an exception), exited (it left by itself), crashed (a signal),
    timeout, memory, processes or output (a limit it broke).
    """

    status: str
    detail: str
    seconds: float
    output: str = ""
    processes: int = 0
    isolation: dict[str, bool] = field(default_factory=dict)
    """Whether network, files and processes of the system were out of reach."""

    @property
    def passed(self) -> bool:
        """Whether the program ran to its end."""
        return self.status == "passed"


def run_sandboxed(program: str, *, limits: Limits | None = None) -> Ran:
    """Run a program; raises OutsideError where programs cannot be limited at all."""
    if os.name != "posix":
        raise OutsideError(
            "untrusted code runs on Linux and macOS only: this system limits no processes"
            "\n  fix: judge the predictions there, or in a Linux container"
        )
    limits = limits or Limits()
    job = {
        "program": program, "limits": asdict(limits), "secret": secrets.token_hex(16),
        "starter": os.getpid(),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="saccade-code-", ignore_cleanup_errors=True) as folder:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", str(GUARD)], env={}, cwd=folder,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        try:
            said, complaint = guard.communicate(
                json.dumps(job).encode(), timeout=limits.wall_seconds + GRACE_SECONDS
            )
        except subprocess.TimeoutExpired:
            return Ran("timeout", "its guard had to be killed", limits.wall_seconds)
        finally:
            if guard.poll() is None:
                _kill_group(guard)
    try:
        return Ran(**json.loads(said))
    except (ValueError, TypeError):
        last = complaint.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise OutsideError(
            f"the sandbox could not start: {' '.join(last) or 'no word from its guard'}"
            f"\n  fix: see what `{sys.executable} -I {GUARD}` needs"
        ) from None


def _kill_group(guard: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guard.pid, signal.SIGKILL)
    guard.wait()
