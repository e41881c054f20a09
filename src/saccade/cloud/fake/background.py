"""The fake cloud as a process of its own: find it, start it, stop it.

A state folder flows in, the URL of its one server flows out. A detached server ends by itself when
nobody has called it for two hours and no job runs; its state stays, and the next command starts it
again on the same port. The server itself is `server.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from saccade.config.errors import OutsideError

START_SECONDS = 60.0
ANSWER_SECONDS = 20.0
IDLE_SECONDS = 2 * 3600.0


def default_state() -> Path:
    """Where the fake cloud keeps its state unless told otherwise."""
    named = os.environ.get("SACCADE_FAKE_STATE")
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named) if named else Path(cache) / "saccade" / "fake-cloud"


def running(state: Path) -> str | None:
    """The URL of the server of a state folder, if one answers."""
    known = _server_file(state)
    if known is None:
        return None
    try:
        with urllib.request.urlopen(
            f"{known['url']}/fake/health", timeout=ANSWER_SECONDS
        ) as answer:
            said = json.loads(answer.read())
    except (OSError, ValueError):
        return None
    # another program may have taken the port since
    return str(known["url"]) if said.get("state") == str(state.resolve()) else None


def ensure_running(
    state: Path | None = None, *, scenario: Path | None = None, idle: float = IDLE_SECONDS
) -> str:
    """The URL of the server of a state folder; starts one in the background unless it answers."""
    folder = (state or default_state()).resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands at once start one server
        url = running(folder)
        if url is not None:
            return url
        words = [sys.executable, "-m", "saccade.cloud.fake", "--state", str(folder)]
        words += ["--idle", str(idle)]
        if scenario is not None:
            words += ["--scenario", str(scenario)]
        log = folder / "server.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=folder,
                env=_environment(),
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            url = running(folder)
            if url is not None:
                return url
            if process.poll() is not None:
                break
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise OutsideError(
            f"the fake cloud did not start: {' '.join(last) or 'no message'}"
            f"\n  fix: look at {log}, or run `saccade cloud fake` in a terminal"
        )


def stop(state: Path | None = None, *, within: float = 60.0) -> bool:
    """End the server of a state folder and its containers; says whether there was one."""
    folder = (state or default_state()).resolve()
    known = _server_file(folder)
    if known is None or running(folder) is None:
        return False
    pid = int(known["pid"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + within
    while time.monotonic() < end and not _unlocked(folder):
        time.sleep(0.02)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # when this process started it
    return True


def _unlocked(folder: Path) -> bool:
    """Whether no server holds a state folder."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _environment() -> dict[str, str]:
    """The server's environment: nobody's secrets, and not another fake cloud."""
    hidden = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIALS")
    return {
        name: value
        for name, value in os.environ.items()
        if not any(word in name.upper() for word in hidden) and name != "SACCADE_FAKE_CLOUD"
    }


def _server_file(state: Path) -> dict[str, Any] | None:
    try:
        value = json.loads((state / "server.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if {"pid", "port", "url"} <= set(value) else None
