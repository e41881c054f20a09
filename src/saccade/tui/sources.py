"""Where the screens' values come from: the functions the command line calls, and the disk.

Settings of this session flow in, plain values flow out of one method per source; every method may
be slow and is called in a thread. What needs torch runs as the verb itself in a process of its own
(`doctor`, `train --plan`, `pipeline show`), so that the interface neither loads nor waits for it.
Left out: when to read (`poll.py`), what is said about it (`views.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.config.errors import OutsideError, SaccadeError

PATIENCE_S = 300.0


@dataclass
class Sources:
    """What this session looks at."""

    root: Path
    fake: bool = False
    clock: Callable[[], float] = time.time
    _board: Any = None
    _calls: dict[str, Any] = field(default_factory=dict)

    def board(self) -> dict[str, Any]:
        """Runs and launches."""
        from saccade.tui.board import Board

        if self._board is None:
            self._board = Board(self.root)
        return self._board.look(now=self.clock())

    def doctor(self) -> list[dict[str, Any]]:
        """What `saccade doctor --json` says."""
        return verb_json(["doctor", "--json"], codes=(0, OutsideError.exit_code))

    def cloud(self) -> dict[str, Any]:
        """What `saccade cloud status --json` says; {project: None} when there is none."""
        from saccade.cli_cloud import findings_of, open_project, status_values

        if not self.has_cloud():
            return {"project": None, "findings": [], "fake": False}
        google, settings, manifest = open_project(fake=self.fake)
        return status_values(settings, findings_of(google, settings, manifest))

    def has_cloud(self) -> bool:
        """Whether a project (or the stand-in) is configured."""
        from saccade.cli_inputs import export_dotenv

        export_dotenv()
        named = ("GOOGLE_CLOUD_PROJECT", "SACCADE_FAKE_CLOUD")
        return self.fake or any(os.environ.get(name) for name in named)

    def leave_fake(self) -> None:
        """Forget the address of the stand-in, which goes on by itself."""
        os.environ.pop("SACCADE_FAKE_CLOUD", None)

    def prices(self, machine: str | None = None, hours: float | None = None) -> dict[str, Any]:
        """What `saccade prices MACHINE --json` says; without a machine only the table's age."""
        from saccade import cli_prices

        table = cli_prices.load_table()
        if machine is None:
            return cli_prices.table_values(table)
        from saccade.launch.machines import Strategy
        from saccade.launch.machines import machine as find

        found = find(machine)
        ranked, sums = cli_prices.rank_places(found, table, None, list(Strategy), hours=hours)
        return cli_prices.machine_values(found, table, ranked, sums)

    def pipelines(self) -> list[str]:
        """Names of the pipelines that ship, and files of this folder that are pipelines."""
        from saccade.pipeline.pipeline_file import packaged_pipelines

        return [*packaged_pipelines(), *_pipeline_files(Path())]

    def pipeline(self, name: str) -> dict[str, Any]:
        """What `saccade pipeline show NAME --json` says; it loads torch, so not in here."""
        try:
            return {"file": name, "problem": "", "stages": verb_json(
                ["pipeline", "show", name, "--json"])}  # fmt: skip
        except SaccadeError as error:
            return {"file": name, "problem": str(error), "stages": []}

    def results(self) -> list[dict[str, Any]]:
        """What every run has to show: metrics, comparison, figures, report."""
        from saccade.tui.results import results_of

        return results_of(self.root)

    def costs(self) -> dict[str, Any]:
        """What is left in the cloud and what it costs per month; launches and what they cost."""
        from saccade.cli_cloud import open_project
        from saccade.cloud.teardown import scan

        if not self.has_cloud():
            return {"leftovers": [], "unreadable": []}
        google, settings, manifest = open_project(fake=self.fake)
        left, unseen = scan(google, settings, entries=manifest.entries())
        return {
            "leftovers": [one.to_json() for one in left],
            "unreadable": [one.to_json() for one in unseen],
        }


def verb_json(words: Sequence[str], *, codes: Sequence[int] = (0,)) -> Any:
    """Call a verb in a process of its own and read its JSON; raises its error message."""
    done = subprocess.run(
        [sys.executable, "-m", "saccade.cli", *words], capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=PATIENCE_S, check=False, env=quiet_env(),
    )  # fmt: skip
    if done.returncode not in codes:
        said = done.stderr.strip().removeprefix("error: ") or f"exit code {done.returncode}"
        raise OutsideError(said)
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        said = done.stderr.strip() or "no JSON was written"
        raise OutsideError(f"saccade {' '.join(words)}: {said}") from error


def quiet_env() -> dict[str, str]:
    """The environment of a verb whose output nobody sees on a terminal."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "TERM": "dumb"}


def _pipeline_files(folder: Path) -> list[str]:
    found = []
    for path in sorted(folder.glob("*.y*ml"))[:50]:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")[:20_000]
        except OSError:
            continue
        if any(line.startswith("stages:") for line in text.splitlines()):
            found.append(str(path))
    return found
