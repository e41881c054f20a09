"""Launches on a fake cloud whose containers are toys: quick processes that follow a script.

A test writes what the container of each attempt does (say a line, send a heartbeat, save DONE,
sleep, exit) and then launches with the real planner, clients and supervisor. Python's
`sitecustomize` runs the script in place of the job's entry point, so that neither torch nor a
model is loaded. Left out: what a test expects.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from saccade.cloud.api import custom_jobs
from saccade.cloud.api.transport import connect
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.resolve import resolve
from saccade.launch import begin
from saccade.launch.drive import Driver, tick
from saccade.launch.plan import LaunchPlan, plan_launch
from saccade.launch.view import LaunchView

BUCKET = "fake-project-saccade-us-central1"
IMAGE = "docker.io/library/elsewhere@sha256:" + "0" * 64
REGIONS = ("us-central1", "europe-west4", "us-west4")
OPEN = ("JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_CANCELLING")
TOY = """
import json, os, sys, time, urllib.request
env = os.environ
if env.get("SACCADE_RUN"):
    script = json.load(open(os.path.join(os.path.dirname(__file__), "toy.json")))
    base, bucket = env["SACCADE_FAKE_CLOUD"], env["SACCADE_STORE"].removeprefix("gs://")
    home = f"{base}/upload/storage/v1/b/{bucket}/o?uploadType=media&name=runs/{env['SACCADE_RUN']}/"
    def put(name, value):
        body = json.dumps(value).encode()
        made = urllib.request.Request(home + name, data=body, method="POST")
        made.add_header("Content-Type", "application/json")
        for wait in (0.1, 0.2, 0.4, 0):  # faults are meant for saccade's calls, not for the toy's
            try:
                return urllib.request.urlopen(made, timeout=60).read()
            except OSError:
                time.sleep(wait)
    for verb, value in script.get(env["SACCADE_ATTEMPT"], script.get("*", [])):
        if verb == "say":
            print(value, flush=True)
        elif verb == "sleep":
            time.sleep(value)
        elif verb == "beat":
            step, saved = value
            put("heartbeat.json", {
                "v": 1, "time": time.time(), "attempt": int(env["SACCADE_ATTEMPT"]), "step": step,
                "steps": 4000, "phase": "training", "loss": 0.5, "samples_per_second": 1.0,
                "last_checkpoint": saved and {"step": saved, "uploaded_at": time.time(),
                                              "bytes": 1, "sha256": "0" * 64}})
        elif verb == "done":
            put("DONE", {"target_step": value, "time": time.time()})
        elif verb == "exit":
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(value)
    os._exit(0)
"""


def quiet(text: str) -> None:
    """Say nothing."""


@dataclass
class Toys:
    """A fake cloud with a bucket and an account, and a folder to launch from."""

    cloud: FakeCloud
    folder: Path
    env: dict[str, str]
    later: float = 0.0
    """Seconds by which the launch's clock is ahead."""
    said: list[str] = field(default_factory=list)

    def script(self, *acts: tuple[str, Any], attempt: int | str = "*") -> None:
        """Let the container of an attempt (or of all others) do this."""
        file = self.folder / "site" / "toy.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        aside = file.with_suffix(".new")
        aside.write_text(json.dumps(known | {str(attempt): acts}))
        aside.replace(file)

    def plan(self, *words: str, token: str = "t") -> LaunchPlan:
        """Plan what `saccade launch` would, on spot A100s of three regions unless told."""
        return plan_launch(resolve("smoke/relevance", overrides=[*self.words(), *words]),
                           env=self.env, token=token)  # fmt: skip

    def words(self) -> list[str]:
        """The words of every launch here."""
        return [
            f"run.root={self.folder}/runs", "run.name=mine", "launch.target=fake",
            f"launch.image={IMAGE}", "launch.backoff_seconds=0", "launch.machine=a2-highgpu-1g",
            "launch.strategy=spot", f"launch.regions=[{','.join(REGIONS)}]",
        ]  # fmt: skip

    def launch(self, *words: str, token: str = "t") -> Driver:
        """Begin a launch, or join the one that goes on; no round is made yet."""
        plan = self.plan(*words, token=token)
        if begin.standing(plan) in (begin.Standing.NEW, begin.Standing.ENDED):
            begin.refuse_blocked(plan)
            begin.begin(plan, say=quiet)
        return Driver(plan.launch, plan.target, env=plan.env, clock=self.now)

    def now(self) -> float:
        """The time of the launch."""
        return time.time() + self.later

    def until(
        self, driver: Driver, reached: Callable[[LaunchView], bool] = lambda view: view.over,
        *, rounds: int = 400, within: float = 120.0,
    ) -> LaunchView:  # fmt: skip
        """Make rounds until something is reached; every message is kept in `said`.

        It gives up after so many rounds, yet not before this many seconds have passed: a slow
        machine may need both.
        """
        end, made = time.monotonic() + within, 0
        while made < rounds or time.monotonic() < end:
            made += 1
            view = tick(driver)
            if view.message and (not self.said or self.said[-1] != view.message):
                self.said.append(view.message)
            if reached(view):
                return view
            assert not view.over, view.message
            time.sleep(0.05)
        raise AssertionError(f"not reached: {driver.launch.view()}")

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs of all regions, oldest first."""
        google = connect(None, env=self.env)
        found = [
            job
            for region in REGIONS
            for job in custom_jobs.list_by_label(google, region=region, labels={"app": "saccade"})
        ]
        return sorted(found, key=lambda job: str(job["createTime"]))

    def open_jobs(self) -> list[str]:
        """Names of the jobs that are not over."""
        return [job["name"] for job in self.jobs() if job["state"] in OPEN]

    def job_id(self, driver: Driver) -> str:
        """The id of the launch's present job."""
        handle = driver.launch.view().handle
        assert handle is not None
        return custom_jobs.job_id(handle.id)


@contextmanager
def toys(folder: Path, *, bucket: bool = True, **scenario: Any) -> Iterator[Toys]:
    """Serve a fake cloud whose containers are toys; the keys are a `Scenario`'s."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(TOY)
    given = {"container_env": {"PYTHONPATH": str(site)}, "grace_seconds": 0.1,
             "queued_seconds": 0.0, "pending_seconds": 0.0}  # fmt: skip
    made = Scenario.model_validate(given | scenario)
    with serve(folder / "cloud", scenario=made) as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(folder / "home")}
        put_up = Toys(cloud, folder, env)
        put_up.script(("sleep", 600))
        if bucket:
            cloud_with_bucket(env)
        yield put_up


def cloud_with_bucket(env: dict[str, str]) -> None:
    """Make the two things that a launch must find."""
    from saccade.cloud.api import storage

    google = connect(None, env=env)
    storage.create_bucket(google, body={"name": BUCKET, "location": "us-central1"})
    google.call(
        "POST", "iam", f"/v1/projects/{google.project}/serviceAccounts",
        body={"accountId": "saccade-trainer"},
    )  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """What a command of this process left behind."""

    code: int
    out: str
    err: str


def type_command(
    *words: str, folder: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Typed:  # fmt: skip
    """Run the real command line inside this process: exit code, stdout, stderr."""
    from saccade import cli

    out, err = io.StringIO(), io.StringIO()
    kept = dict(os.environ)
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["saccade", *words])
        for name in ("WANDB_API_KEY", "HF_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS",
                     "GOOGLE_CLOUD_PROJECT", "SACCADE_FAKE_CLOUD"):  # fmt: skip
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
    os.environ.clear()
    os.environ.update(kept)
    return Typed(code, out.getvalue(), err.getvalue())
