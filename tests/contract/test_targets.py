"""The targets `local` and `fake` keep the contract; processes, files and sockets are real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import serve
from saccade.launch.machines import Strategy
from saccade.launch.spec import JobSpec
from saccade.launch.states import State
from saccade.launch.targets.base import Settings, Target
from saccade.launch.targets.fake import FakeTarget
from saccade.launch.targets.local import LocalTarget
from saccade.training.rundir import read_json
from tests.contract.target_contract import TargetContract, until_over, until_runs

SOURCE = str(Path(__file__).parents[2] / "src")


def job(tmp_path: Path, **changes: object) -> JobSpec:
    """A job whose configuration does not exist, so that it ends at once."""
    values = {
        "run": "mine", "token": "abc", "attempt": 1, "recipe": "relevance", "machine": "local",
        "replicas": 1, "strategy": Strategy.ON_DEMAND, "region": "local", "image": None,
        "code": "", "config": str(tmp_path / "absent.yaml"), "store": "",
    }  # fmt: skip
    return JobSpec(**(values | changes)).at(attempt=1)  # type: ignore[arg-type]


class TestLocal(TargetContract):
    """Processes of this machine."""

    @pytest.fixture(autouse=True)
    def _source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", SOURCE)

    @pytest.fixture
    def target(self, tmp_path: Path) -> Target:
        return LocalTarget.open(Settings(home=tmp_path / ".launches"))

    @pytest.fixture
    def spec(self, tmp_path: Path) -> JobSpec:
        return job(tmp_path)

    @pytest.fixture
    def slow_spec(self, tmp_path: Path) -> JobSpec:
        config = tmp_path / "config.yaml"
        config.write_text(f"recipe: smoke/relevance\nrun:\n  root: {tmp_path}/runs\n")
        return job(tmp_path, config=str(config))

    def test_a_job_outlives_the_process_that_started_it(self, tmp_path: Path) -> None:
        code = (
            "import sys, pickle; from pathlib import Path\n"
            "from saccade.launch.targets.local import LocalTarget\n"
            "from saccade.launch.spec import JobSpec\nimport json\n"
            "spec = JobSpec.from_json(json.loads(sys.argv[2]))\n"
            "print(LocalTarget(Path(sys.argv[1])).submit(spec).id, flush=True)\n"
            "import time; time.sleep(600)\n"
        )
        import json

        words = [str(tmp_path / ".launches"), json.dumps(job(tmp_path).to_json())]
        starter = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True
        )
        assert starter.stdout is not None
        starter.stdout.readline()
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        starter.stdout.close()
        target = LocalTarget(tmp_path / ".launches")
        assert until_over(target, target.list()[0]).error_code == 2

    def test_a_killed_keeper_is_seen_and_takes_the_training_with_it(
        self, target: Target, slow_spec: JobSpec
    ) -> None:
        handle = target.submit(slow_spec)
        until_runs(target, handle)
        keeper = read_json(Path(handle.id) / "keeper.json")
        assert keeper is not None
        os.kill(keeper["pid"], signal.SIGKILL)
        status = until_over(target, handle)
        assert status.state is State.PREEMPTED
        assert "gone without an exit code" in status.detail

    def test_sigterm_from_outside_is_a_preemption_not_a_cancel(
        self, target: Target, slow_spec: JobSpec
    ) -> None:
        handle = target.submit(slow_spec)
        until_runs(target, handle)
        keeper = read_json(Path(handle.id) / "keeper.json")
        assert keeper is not None
        os.kill(keeper["pid"], signal.SIGTERM)
        status = until_over(target, handle)
        assert (status.state, status.error_code) == (State.FAILED, 143)

    def test_a_job_gets_no_values_of_a_run_from_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SACCADE_LEARNING_RATE", "7")
        monkeypatch.setenv("SACCADE_NO_SUCH_NAME", "1")
        target = LocalTarget(tmp_path / ".launches")
        handle = target.submit(job(tmp_path))
        assert until_over(target, handle).error_code == 2
        text = " ".join(line.text for line in target.logs(handle, cursor=None)[0])
        assert "absent.yaml" in text
        assert "SACCADE_NO_SUCH_NAME" not in text

    def test_a_process_id_that_was_given_to_another_process_is_not_ours(
        self, tmp_path: Path
    ) -> None:
        target = LocalTarget(tmp_path / ".launches")
        handle = target.submit(job(tmp_path))
        until_over(target, handle)
        folder = Path(handle.id)
        (folder / "exit.json").unlink()
        content = f'{{"pid": {os.getpid()}, "start": "1", "time": {time.time()}}}'
        (folder / "keeper.json").write_text(content)
        assert target.poll(handle).state is State.PREEMPTED
        target.cancel(handle)  # must not touch this process


class TestFake(TargetContract):
    """Vertex jobs in the imitation of Google Cloud."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[Target]:
        (tmp_path / "site").mkdir()
        # a container that takes its time, for what must be cancelled while it runs
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import os, time\nif os.environ.get('SACCADE_RUN') == 'slow': time.sleep(600)\n"
        )
        env = {"PYTHONPATH": f"{tmp_path / 'site'}:{SOURCE}"}
        scenario = Scenario(container_env=env, grace_seconds=1.0)
        with serve(tmp_path / "cloud", scenario=scenario) as cloud:
            yield FakeTarget.open(Settings(env={"SACCADE_FAKE_CLOUD": cloud.url}))

    @pytest.fixture
    def spec(self, tmp_path: Path) -> JobSpec:
        image = "docker.io/library/elsewhere@sha256:" + "0" * 64
        return job(
            tmp_path, machine="a2-highgpu-1g", strategy=Strategy.SPOT, region="us-central1",
            image=image, store="gs://no-such-bucket", config="gs://no-such-bucket/config.yaml",
        )  # fmt: skip

    @pytest.fixture
    def slow_spec(self, spec: JobSpec) -> JobSpec:
        return replace(spec, run="slow").at(attempt=1)
