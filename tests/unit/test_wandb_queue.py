"""The W&B queue export, read and run by the real W&B Launch code as far as it goes offline."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from saccade.launch.exports import wandb_submit
from saccade.launch.exports.wandb_queue import LIMITS, RESOURCE, STOCK_RESOURCE, Vertex, render

CANARY = "c" * 40


def vertex(**changes: Any) -> Vertex:
    values: dict[str, Any] = {
        "machine": "a2-highgpu-4g", "replicas": 1, "region": "europe-west4", "bucket": "bucket",
        "service_account": "t@p.iam.gserviceaccount.com", "timeout_s": 43200, "disk_gb": 100,
    }  # fmt: skip
    return Vertex(**(values | changes))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    files = render(
        queue="saccade", entity="me", project="vision",
        words=["relevance", "launch.target=vertex"], vertex=vertex(),
    )  # fmt: skip
    for name, text in files.items():
        path = tmp_path / "queue" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "queue"


def launch_project(export: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The project that a real agent makes of a queued item; only the server's part is played."""
    pytest.importorskip("wandb")
    from wandb.sdk.launch._project_spec import LaunchProject
    from wandb.sdk.launch.utils import construct_launch_spec, validate_launch_spec_source

    api: Any = SimpleNamespace(
        settings={"base_url": "https://api.wandb.ai"}, api_key=CANARY, default_entity="me"
    )
    config = json.loads((export / "example.json").read_text())
    config["overrides"]["run_config"] = {"training": {"steps": 5}, "training.seed": 1}
    spec = construct_launch_spec(
        None, "me/vision/saccade-submit:latest", api, "first", "vision", "me", None, RESOURCE,
        None, None, {RESOURCE: {}}, config, "run1", None, None,
    )  # fmt: skip
    validate_launch_spec_source(spec)
    project = LaunchProject.from_spec(spec, api)
    # what fetching the job's artifact would do
    assert project.project_dir is not None
    shutil.copytree(export / "job", project.project_dir, dirs_exist_ok=True)
    project.set_job_entry_point(["python", "submit.py"])
    project._job_artifact = api
    return project, api, spec


def test_the_agent_accepts_its_configuration(export: Path) -> None:
    agent = pytest.importorskip("wandb.sdk.launch.agent.config")
    for name in ("launch-config.yaml", "stock-vertex-launch-config.yaml"):
        config = yaml.safe_load((export / name).read_text())
        made = agent.AgentConfig(**config)
        assert made.secure_mode is True
        assert made.builder.type == "noop"
    with pytest.raises(agent.ValidationError):
        agent.AgentConfig(entity="me", machine_type="a2-highgpu-1g")


def test_the_agent_of_secure_mode_lets_our_jobs_through(export: Path) -> None:
    agent = pytest.importorskip("wandb.sdk.launch.agent.agent")
    _, _, spec = launch_project(export)
    one = object.__new__(agent.LaunchAgent)
    one._secure_mode = True
    one._assert_secure(spec)
    spec["overrides"]["entry_point"] = ["rm", "-rf", "/"]
    with pytest.raises(ValueError, match="entrypoint"):
        one._assert_secure(spec)


@pytest.mark.slow
def test_launch_runs_our_submission_and_sees_its_run(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, api, _ = launch_project(export)
    from wandb.sdk.launch.runner.local_process import LocalProcessRunner
    from wandb.sdk.launch.utils import PROJECT_SYNCHRONOUS

    tools = tmp_path / "tools"
    tools.mkdir()
    saccade = tools / "saccade"
    saccade.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > "$SEEN/words"; env > "$SEEN/env"\n'
        'echo \'{"run": "relevance", "token": "t1"}\'\n'
    )
    saccade.chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    # a symlinked interpreter looks for its packages beside the link
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    runner = LocalProcessRunner(api, {PROJECT_SYNCHRONOUS: True})
    run = asyncio.run(runner.run(project))
    assert run is not None
    assert str(asyncio.run(run.get_status()).state) == "finished", asyncio.run(run.get_logs())
    assert (tmp_path / "words").read_text().split() == [
        "launch", "relevance", "launch.target=vertex", "training.steps=5", "training.seed=1",
        "--token", "wandb-run1", "--detach", "--yes", "--json",
    ]  # fmt: skip
    assert "WANDB_RUN_ID" not in (tmp_path / "env").read_text()
    [folder] = (tmp_path / "wandb").glob("offline-run-*-run1")
    assert list(folder.glob("*.wandb"))


def test_the_stock_queue_is_what_the_vertex_runner_reads(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    _stand_in_for_missing_clients(monkeypatch)
    runner = importlib.import_module("wandb.sdk.launch.runner.vertex_runner")
    project, api, _ = launch_project(export)
    config = yaml.safe_load((export / "stock-vertex-queue.yaml").read_text())
    project.resource_args = {STOCK_RESOURCE: config}
    seen: dict[str, Any] = {}

    async def launch(_: Any, spec: Any, run: Any, *rest: Any) -> None:
        seen.update(spec=spec, run=run)

    monkeypatch.setattr(runner, "launch_vertex_job", launch)
    one = runner.VertexRunner(api, {"SYNCHRONOUS": False}, SimpleNamespace(), SimpleNamespace())
    asyncio.run(one.run(project, "image@sha256:1"))
    [pool] = seen["spec"]["worker_pool_specs"]
    assert pool["container_spec"]["image_uri"] == "image@sha256:1"
    assert pool["machine_spec"]["accelerator_count"] == 4
    # why the export says so: the key is in the job's specification
    env = {one["name"]: one["value"] for one in pool["container_spec"]["env"]}
    assert env["WANDB_API_KEY"] == CANARY
    assert seen["run"] == {
        "timeout": 43200, "service_account": "t@p.iam.gserviceaccount.com",
        "restart_job_on_worker_restart": False,
    }  # fmt: skip


def _stand_in_for_missing_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that only the agent's environment uses, which is not asked here."""
    import google

    for name in ("cloud", "cloud.compute_v1", "cloud.storage"):
        try:
            importlib.import_module(f"google.{name}")
        except ImportError:
            made = ModuleType(f"google.{name}")
            monkeypatch.setitem(sys.modules, made.__name__, made)
            parent = google if name == "cloud" else sys.modules["google.cloud"]
            monkeypatch.setattr(parent, name.rpartition(".")[2], made, raising=False)


@pytest.mark.slow
def test_the_stock_queue_parses_in_googles_own_types(export: Path) -> None:
    types = pytest.importorskip("google.cloud.aiplatform_v1.types")
    config = yaml.safe_load((export / "stock-vertex-queue.yaml").read_text())
    for pool in config["spec"]["worker_pool_specs"]:
        made = types.WorkerPoolSpec(pool)
        assert made.machine_spec.accelerator_type.name == "NVIDIA_TESLA_A100"


def test_helpers_are_a_second_pool_in_the_stock_queue() -> None:
    files = render(queue="q", entity=None, project="p", words=[], vertex=vertex(replicas=3))
    config = yaml.safe_load(files["stock-vertex-queue.yaml"])
    assert [one["replica_count"] for one in config["spec"]["worker_pool_specs"]] == [1, 2]
    assert config["run"]["restart_job_on_worker_restart"] is True


def test_every_file_says_what_stock_launch_cannot_do(export: Path) -> None:
    def plain(text: str) -> str:
        return " ".join(text.replace("#", " ").split())

    for name, resource in (
        ("queue.yaml", RESOURCE), ("launch-config.yaml", RESOURCE),
        ("stock-vertex-queue.yaml", STOCK_RESOURCE),
    ):  # fmt: skip
        text = plain((export / name).read_text())
        assert all(limit in text for limit in LIMITS[resource])
    assert "clear text" in (export / "README.md").read_text()


def test_the_submission_reads_overrides_in_pieces_and_drops_launchs_variables() -> None:
    env = {
        "WANDB_CONFIG_0": '{"training": {"steps"', "WANDB_CONFIG_1": ': 5, "keep": [0.1]}}',
        "WANDB_RUN_ID": "x", "WANDB_API_KEY": CANARY, "PATH": "/bin",
    }  # fmt: skip
    assert wandb_submit.overrides(env) == ["training.steps=5", "training.keep=[0.1]"]
    assert wandb_submit.clean(env) == {"WANDB_API_KEY": CANARY, "PATH": "/bin"}


def test_the_verb_shows_the_limits_and_keeps_changed_files(tmp_path: Path) -> None:
    env = {name: text for name, text in os.environ.items() if not name.startswith("GOOGLE")}
    command = [sys.executable, "-m", "saccade.cli", "export", "wandb-queue"]

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words], cwd=tmp_path, env=env | {"WANDB_API_KEY": CANARY},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    first = call("relevance")
    assert first.returncode == 0, first.stderr
    assert "WANDB_API_KEY in clear text" in first.stderr
    assert call("relevance").returncode == 0  # the same files again
    (tmp_path / "wandb-queue" / "example.json").write_text("mine")
    refused = call("relevance")
    assert refused.returncode == 2
    assert "--force" in refused.stderr
    assert CANARY not in "".join(
        path.read_text() for path in (tmp_path / "wandb-queue").rglob("*") if path.is_file()
    )
