"""The container's command, as a real process against the fake cloud: it never claims too much."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("google.cloud.storage", reason="needs pip install saccade[cloud]")

from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from pydantic import SecretStr

from saccade.cloud.api import secrets, services
from saccade.cloud.api.transport import connect
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import InputError
from saccade.config.resolve import resolve, to_yaml
from saccade.launch.entry import Job, Place, training_command
from tests.free_port import free_port

SOURCE = Path(__file__).parents[2] / "src"
CANARY = "canary-7d1f0b42aa"
BUCKET, RUN = "bucket-a", "run-a"
SMALL = ("training.threads=1", "training.steps=3", "training.save_every=2")
STUB = """
import json, os, signal, sys, time
def stop(number, frame):
    print("stub stops", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("stub", sys.argv[1:], flush=True)
print("secret", os.environ.get("HF_TOKEN") == os.environ.get("STUB_EXPECTS"), flush=True)
if os.environ.get("STUB_WAITS"):
    time.sleep(600)
if os.environ.get("STUB_KILLS_ITSELF"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(os.environ.get("STUB_EXIT", "0")))
"""


def archive(files: Mapping[str, str | bytes], **odd: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in odd.values():
            tar.addfile(info)
    return buffer.getvalue()


STUB_CODE = archive({"src/saccade/__init__.py": "", "src/saccade/cli.py": STUB})


@dataclass
class Cloud:
    """The fake cloud with one bucket, and the folder that stands for the container's disk."""

    fake: FakeCloud
    work: Path
    env: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> str:
        self.bucket().blob(name).upload_from_string(data)
        return f"gs://{BUCKET}/{name}"

    def put_code(self, data: bytes) -> str:
        return self.put(f"code/{hashlib.sha256(data).hexdigest()}.tar.gz", data)

    def bucket(self) -> storage.Bucket:
        options = {"api_endpoint": self.fake.url}
        client = storage.Client(
            project="project-a", credentials=AnonymousCredentials(), client_options=options
        )
        return client.bucket(BUCKET)

    def start(self, **env: str) -> subprocess.Popen[str]:
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        base |= {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "saccade.launch.entry"],
            cwd=self.work, env=base | self.env | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, **env: str) -> tuple[int, str]:
        process = self.start(**env)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with serve(tmp_path / "fake") as fake:
        work = tmp_path / "container"
        work.mkdir()
        cloud = Cloud(fake, work)
        cloud.bucket().create(location="us-central1")
        config = to_yaml(resolve("smoke/relevance", overrides=SMALL).config)
        cloud.env = {
            "SACCADE_FAKE_CLOUD": fake.url,
            "STORAGE_EMULATOR_HOST": fake.url,
            "SACCADE_RUN": RUN,
            "SACCADE_STORE": f"gs://{BUCKET}",
            "SACCADE_CONFIG": cloud.put("launches/token-1/config.yaml", config.encode()),
            "SACCADE_CODE": cloud.put_code(STUB_CODE),
            "SACCADE_ATTEMPT": "2",
            "SACCADE_SECRETS": "",
            "SACCADE_GPUS": "0",
        }
        yield cloud


def finish(cloud: Cloud) -> None:
    cloud.put(f"runs/{RUN}/DONE", b"{}")


def test_it_trains_for_real_and_says_0_with_done_in_the_store(cloud: Cloud) -> None:
    code, output = cloud.run(SACCADE_CODE="")
    assert code == 0, output
    assert cloud.bucket().blob(f"runs/{RUN}/DONE").exists()
    assert "distill_steps: 2" in output  # the resolved configuration was echoed
    beat = json.loads(cloud.bucket().blob(f"runs/{RUN}/heartbeat.json").download_as_bytes())
    assert (beat["attempt"], beat["phase"], beat["run"]) == (2, "done", RUN)
    again, output = cloud.run(SACCADE_CODE="")
    assert again == 0
    assert "already finished" in output


def test_exit_0_without_done_is_no_success(cloud: Cloud) -> None:
    code, output = cloud.run()
    assert code == 1
    assert f"{RUN}/DONE is missing" in output
    finish(cloud)
    assert cloud.run()[0] == 0


@pytest.mark.parametrize("exit_code", [1, 2, 3, 143])
def test_the_trainings_exit_code_is_passed_on(exit_code: int, cloud: Cloud) -> None:
    finish(cloud)  # even then
    assert cloud.run(STUB_EXIT=str(exit_code))[0] == exit_code


def test_a_training_that_is_killed_is_no_success(cloud: Cloud) -> None:
    assert cloud.run(STUB_KILLS_ITSELF="1")[0] == 137


def test_sigterm_reaches_the_training_and_is_143(cloud: Cloud) -> None:
    process = cloud.start(STUB_WAITS="1")
    assert process.stdout is not None
    lines: list[str] = []
    while not any(line.startswith("secret") for line in lines):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=200)
    assert process.returncode == 143
    assert "stub stops" in rest


def test_sigterm_before_training_is_143_too(cloud: Cloud) -> None:
    cloud.fake.add_fault("GET .*launches", status="slow", seconds=3.0)
    process = cloud.start(STUB_WAITS="1")  # should the training begin before the signal is sent
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == 143


def test_secrets_reach_the_training_and_nothing_else(cloud: Cloud) -> None:
    google = connect("project-a", env=cloud.env)
    services.enable(google, ["secretmanager.googleapis.com"])
    secrets.create(google, "hf-token", labels={})
    version = secrets.add_version(google, "hf-token", SecretStr(CANARY))
    finish(cloud)
    code, output = cloud.run(
        SACCADE_SECRETS=f"HF_TOKEN={version}", STUB_EXPECTS=CANARY, WANDB_MODE="off"
    )
    assert code == 0, output
    assert "secret True" in output
    assert "HF_TOKEN" in output
    assert CANARY not in output
    written = [path for path in cloud.work.rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]


def test_a_secret_in_a_file_is_read_and_a_value_in_the_list_is_refused(
    cloud: Cloud, tmp_path: Path
) -> None:
    (tmp_path / "HF_TOKEN").write_text(f"{CANARY}\n")
    finish(cloud)
    where = f"HF_TOKEN=file:{tmp_path / 'HF_TOKEN'}"
    code, output = cloud.run(SACCADE_SECRETS=where, STUB_EXPECTS=CANARY)
    assert (code, CANARY in output, "secret True" in output) == (0, False, True)
    code, output = cloud.run(SACCADE_SECRETS=f"HF_TOKEN={CANARY}")
    assert code == 2
    assert CANARY not in output
    assert "Traceback" not in output


def test_gpus_that_are_not_there_end_the_job_at_once(cloud: Cloud, tmp_path: Path) -> None:
    code, output = cloud.run(SACCADE_GPUS="4", PATH=str(tmp_path))
    assert code == 3
    assert "4 GPU(s) were asked for, but there is no nvidia-smi" in output
    assert "stub" not in output


def test_a_driver_without_gpus_for_torch_ends_the_job_too(cloud: Cloud, tmp_path: Path) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho GPU 0\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "torch.py").write_text(
        "class cuda:\n    is_available = lambda: False\n    device_count = lambda: 0\n"
    )
    both = os.pathsep.join([str(tmp_path), str(SOURCE)])
    code, output = cloud.run(SACCADE_GPUS="1", PATH=str(tmp_path), PYTHONPATH=both)
    assert code == 3
    assert "1 GPU(s) were asked for, but torch sees 0" in output


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "data",
    [
        archive({"../escaped": "x"}),
        archive({"/tmp/escaped": "x"}),
        archive({"a/../../escaped": "x"}),
        archive({}, link=link("etc", "/etc")),
        archive({"a": "x"})[:-20],
        b"no archive",
    ],
    ids=["parent", "absolute", "inside out", "link", "cut", "garbage"],
)
def test_an_unsafe_archive_is_refused(data: bytes, cloud: Cloud) -> None:
    code, output = cloud.run(SACCADE_CODE=cloud.put_code(data))
    assert code == 3
    assert "not a safe code archive" in output
    assert "Traceback" not in output
    assert not list(cloud.work.parent.rglob("escaped"))


def test_an_archive_that_is_not_what_its_name_says_is_refused(cloud: Cloud) -> None:
    code, output = cloud.run(SACCADE_CODE=cloud.put(f"code/{'0' * 64}.tar.gz", STUB_CODE))
    assert code == 3
    assert "does not match its name" in output


def test_missing_things_are_named(cloud: Cloud) -> None:
    code, output = cloud.run(SACCADE_RUN="", SACCADE_CONFIG="")
    assert code == 2
    assert "SACCADE_RUN, SACCADE_CONFIG not set" in output
    code, output = cloud.run(SACCADE_CONFIG=f"gs://{BUCKET}/launches/none/config.yaml")
    assert code == 3
    assert "does not exist" in output
    code, _ = cloud.run(SACCADE_RUN="../x")
    assert code == 2


def job(**env: str) -> Job:
    needed = {"SACCADE_RUN": RUN, "SACCADE_STORE": "gs://b", "SACCADE_CONFIG": "gs://b/c"}
    return Job.read(needed | env)


def cluster(pool: str, index: int) -> dict[str, str]:
    pools = {"workerpool0": ["chief:2222"], "workerpool1": ["one:2222", "two:2222"]}
    spec = {"cluster": pools, "task": {"type": pool, "index": index}}
    return {"CLUSTER_SPEC": json.dumps(spec)}


def test_several_gpus_and_machines_train_under_torchrun() -> None:
    words = {"config": Path("c.yaml"), "root": Path("runs")}
    alone = training_command(job(SACCADE_GPUS="1"), Place.read({}), **words)
    assert alone[1:4] == ["-m", "saccade.cli", "train"]
    four = training_command(job(SACCADE_GPUS="4"), Place.read({}), **words)
    assert four[1:3] == ["-m", "torch.distributed.run"]
    assert "--nproc-per-node=4" in four
    last = training_command(job(SACCADE_GPUS="8"), Place.read(cluster("workerpool1", 1)), **words)
    assert {"--nnodes=3", "--node-rank=2", "--master-addr=chief", "--master-port=2222"} <= set(last)
    assert Place.read(cluster("workerpool0", 0)).node == 0


def test_a_count_that_is_no_number_is_the_users() -> None:
    with pytest.raises(InputError, match="SACCADE_GPUS = many"):
        job(SACCADE_GPUS="many")


@pytest.mark.slow
def test_two_machines_train_one_run(cloud: Cloud, tmp_path: Path) -> None:
    port = free_port()
    pools = {"workerpool0": [f"127.0.0.1:{port}"], "workerpool1": ["127.0.0.1:1"]}
    processes = []
    for pool in pools:
        spec = json.dumps({"cluster": pools, "task": {"type": pool, "index": 0}})
        machine = Cloud(cloud.fake, tmp_path / pool, cloud.env)
        machine.work.mkdir()
        processes.append(machine.start(CLUSTER_SPEC=spec, SACCADE_CODE=""))
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert cloud.bucket().blob(f"runs/{RUN}/DONE").exists()
