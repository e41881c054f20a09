"""A secret stays where it belongs: two canary values are planted, and searched for everywhere.

One is in `.env`, the other in the environment. A whole life (setup, launch with an image build, a
run that fetches its secrets, watch, logs, status) goes through the real command line and the fake
cloud, at the loudest log level. Afterwards the values may be in `.env` and in the fake's Secret
Manager, and in nothing else: no argument of any process, no job, no recorded call, no object, log,
event, report, archive. The same file holds what keeps data inside: archives, store paths, loopback.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from saccade.cloud.api import storage
from saccade.cloud.api.transport import connect
from saccade.cloud.fake.http import Request
from saccade.cloud.fake.scenario import Scenario
from saccade.cloud.fake.server import FakeCloud, serve
from saccade.config.errors import InputError
from saccade.launch.package import pack
from saccade.training.store import open_store
from tests.terminal.saccade_cli import Outcome, saccade
from tests.toy_jobs import TOY

SOURCE = str(Path(__file__).parents[2] / "src")
# made anew each time: a fixed value would be in this file, and the packing of the code refuses it
IN_FILE = "canary-" + os.urandom(12).hex()
IN_ENVIRONMENT = "hf_" + os.urandom(15).hex()
CANARIES = (IN_FILE, IN_ENVIRONMENT)
TRAINING_CODE = """
import hashlib, os
if "WANDB_API_KEY" in os.environ:  # the training process, not the entry point
    keys = [os.environ[name] for name in ("WANDB_API_KEY", "HF_TOKEN")]
    print("secrets arrived:", hashlib.sha256(" ".join(keys).encode()).hexdigest(), flush=True)
"""


def needles() -> list[bytes]:
    """The canaries as they are, and as base64 at each of its three offsets."""
    found = []
    for canary in CANARIES:
        found.append(canary.encode())
        for offset in range(3):
            code = base64.b64encode(b"\0" * offset + canary.encode())
            found.append(code[4 if offset else 0 : -4])
    return found


def leaks(data: bytes) -> bool:
    """Whether a canary is in these bytes, also inside gzip."""
    if data[:2] == b"\x1f\x8b":
        data += gzip.decompress(data)
    return any(needle in data for needle in needles())


@dataclass
class Arguments:
    """Watches the arguments of all processes of this machine, again and again."""

    guilty: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"saccade" in words:
                self.seen.add(words.replace(b"\0", b" ").decode(errors="replace"))
            if leaks(words):
                self.guilty.add(words.replace(b"\0", b" ").decode(errors="replace"))

    @contextmanager
    def watching(self) -> Iterator[None]:
        def work() -> None:
            while not self._stop.wait(0.05):
                self.look()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


@dataclass
class Life:
    """What a whole life left behind."""

    cloud: FakeCloud
    folder: Path
    env: dict[str, str]
    shown: list[Outcome]
    arguments: Arguments


WORDS = (
    "launch", "smoke/relevance", "run.name=mine", "model.device=cpu", "launch.target=fake",
    "launch.machine=a2-highgpu-1g", "training.steps=2", "training.save_every=1",
    "run.heartbeat_seconds=1", "--yes",
)  # fmt: skip


@contextmanager
def life(folder: Path, *, real: bool) -> Iterator[Life]:
    """Set up, launch (with its image build), watch, and look at everything, loudly."""
    work, site = folder / "work", folder / "site"
    work.mkdir()
    site.mkdir()
    toy = TOY.replace('env.get("SACCADE_RUN")', 'env.get("WANDB_API_KEY")')
    (site / "sitecustomize.py").write_text(TRAINING_CODE + ("" if real else toy))
    acts = [["beat", [1, 1]], ["done", 2], ["exit", 0]]
    (site / "toy.json").write_text(json.dumps({"*": acts}))
    (work / ".env").write_text(f"WANDB_API_KEY={IN_FILE}\nGOOGLE_CLOUD_PROJECT=my-project\n")
    inside = {"PYTHONPATH": f"{site}:{SOURCE}", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    arguments = Arguments()
    with serve(folder / "cloud", scenario=Scenario(container_env=inside)) as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(folder / "home"),
               "HF_TOKEN": IN_ENVIRONMENT, "SACCADE_LOG_LEVEL": "debug"}  # fmt: skip

        def look(request: Request) -> None:
            # the container waits for its answer, so both of its processes are there now
            if "heartbeat" in f"{request.path}{request.query}" or b"heartbeat" in request.body:
                arguments.look()

        cloud.world.watchers.append(look)
        with arguments.watching():
            shown = [
                saccade("cloud", "setup", "--yes", folder=work, env=env),
                saccade(*WORDS, "--dry-run", "--json", folder=work, env=env),
                saccade(*WORDS, folder=work, env=env),
                saccade("watch", "mine", "--once", "--json", folder=work, env=env),
                saccade("logs", "mine", folder=work, env=env),
                saccade("cloud", "status", "--json", folder=work, env=env),
            ]
            if real:  # loads torch
                shown.append(saccade("doctor", "--json", folder=work, env=env))
        yield Life(cloud, work, env, shown, arguments)


def check_life(made: Life) -> None:
    setup, _, launched, _, logs = made.shown[:5]
    assert setup.code == 0, setup.err
    assert launched.code == 0, launched.err + logs.out
    for outcome in made.shown:
        assert not leaks((outcome.out + outcome.err).encode())
    # the run did get both values, and said only what it got
    proof = hashlib.sha256(f"{IN_FILE} {IN_ENVIRONMENT}".encode()).hexdigest()
    assert f"secrets arrived: {proof}" in logs.out
    assert "secrets fetched: HF_TOKEN, WANDB_API_KEY" in logs.out
    check_arguments(made)
    check_calls(made)
    check_bucket(made)
    check_files(made)


def check_arguments(made: Life) -> None:
    assert any("saccade.launch.entry" in words for words in made.arguments.seen)
    assert any("saccade.cli train" in words for words in made.arguments.seen)
    assert made.arguments.guilty == set()


def check_calls(made: Life) -> None:
    """The recorded calls and the jobs, as everybody who may read the project sees them."""
    calls = made.cloud.calls()
    assert [call["path"] for call in calls if call["path"].endswith(":addVersion")]
    assert [call for call in calls if call["method"] == "POST" and "/builds" in call["path"]]
    assert not leaks(json.dumps(calls).encode())
    (job,) = [call["body"] for call in calls
              if call["method"] == "POST" and call["path"].endswith("/customJobs")]  # fmt: skip
    pairs = {one["name"]: one["value"]
             for one in job["jobSpec"]["workerPoolSpecs"][0]["containerSpec"]["env"]}  # fmt: skip
    assert set(pairs) & {"WANDB_API_KEY", "HF_TOKEN"} == set()
    names = r"(HF_TOKEN|WANDB_API_KEY)=projects/my-project/secrets/[a-z-]+/versions/latest"
    assert re.fullmatch(f"{names},{names}", pairs["SACCADE_SECRETS"])


def check_bucket(made: Life) -> None:
    """Every object, the code archive and build context among them, unpacked."""
    google = connect("my-project", env=made.env)
    bucket = "my-project-saccade-us-central1"
    names = [str(one["name"]) for one in storage.list_objects(google, bucket)]
    assert any(name.startswith("code/") for name in names)
    assert any(name.startswith("launches/") for name in names)
    for name in names:
        assert not leaks(storage.read_object(google, bucket, name)), name


def check_files(made: Life) -> None:
    """Every file on disk: launch log, run directory, manifest, archive, the fake's own state."""
    searched = 0
    for path in made.folder.parent.rglob("*"):
        if not path.is_file() or path == made.folder / ".env":
            continue
        searched += 1
        if is_secret_manager(path, cloud=made.cloud):
            continue
        assert not leaks(path.read_bytes()), path
    assert searched > 20
    assert list((made.folder / "runs" / ".launches").glob("mine-*/events.jsonl"))


def is_secret_manager(path: Path, *, cloud: FakeCloud) -> bool:
    """The fake has to keep secret values somewhere: there, readable by its owner alone."""
    if not path.is_relative_to(cloud.state) or "secret" not in str(path).lower():
        return False
    assert cloud.state.stat().st_mode & 0o077 == 0
    return True


def test_the_search_finds_a_canary_in_every_disguise() -> None:
    for canary in CANARIES:
        plain = b"x" + canary.encode() + b"y"
        assert leaks(plain)
        assert leaks(gzip.compress(plain))
        assert all(leaks(base64.b64encode(b"-" * n + plain)) for n in range(4))
    assert not leaks(b"canary- hf_ and nothing else")


def test_a_secret_is_found_nowhere_but_where_it_belongs(tmp_path: Path) -> None:
    with life(tmp_path, real=False) as made:
        check_life(made)


@pytest.mark.slow
def test_a_secret_is_found_nowhere_after_a_real_training_either(tmp_path: Path) -> None:
    with life(tmp_path, real=True) as made:
        check_life(made)


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example", *words],
        check=True, capture_output=True,
    )  # fmt: skip


def test_the_archive_holds_neither_dotenv_nor_git_data_nor_runs(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    files = {
        "pyproject.toml": '[project]\nname = "saccade"\n', "src/saccade/__init__.py": "",
        "src/saccade/new.py": "untracked = 1\n", ".env": f"WANDB_API_KEY={IN_FILE}\n",
        "deep/.env": IN_FILE, ".env.local": IN_FILE, ".training": IN_FILE,
        "runs/mine/events.jsonl": IN_FILE, "wandb/run/log": IN_FILE, "key.pem": IN_FILE,
        ".gitignore": "ignored.txt\n", "ignored.txt": IN_FILE,
    }  # fmt: skip
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(root, "init", "-q")
    # even what somebody committed by mistake stays here
    git(root, "add", "-f", ".env", "runs", "pyproject.toml", "src/saccade/__init__.py")
    git(root, "commit", "-q", "-m", f"a message with {IN_FILE}")
    (root / "outside").symlink_to(tmp_path)
    archive = pack(root, folder=tmp_path / "packed")
    data = archive.path.read_bytes()
    assert not leaks(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = sorted(tar.getnames())
    assert names == [
        ".gitignore", "pyproject.toml", "src/saccade/__init__.py", "src/saccade/new.py",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", "..", "a\\..\\x", "a\0b", ""])
def test_no_name_leaves_its_prefix_in_a_store(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "x").write_text("not yours")
    with pytest.raises(InputError):
        store.write(name, b"gotcha")
    with pytest.raises(InputError):
        store.read(name)
    assert (tmp_path / "x").read_text() == "not yours"


@pytest.mark.parametrize(
    "word", ["run.name=../../x", "run.name=a/b", "run.store=gs://other-bucket/../my-project"]
)
def test_no_run_name_or_store_of_a_launch_leaves_the_bucket_prefix(
    tmp_path: Path, word: str
) -> None:
    with serve(tmp_path / "cloud") as cloud:
        env = {"SACCADE_FAKE_CLOUD": cloud.url, "SACCADE_HOME": str(tmp_path / "home")}
        words = [one for one in WORDS if not one.startswith(word.split("=")[0])]
        done = saccade(*words, word, folder=tmp_path, env=env)
        assert done.code == 2, done.err + done.out
        assert "error: " in done.err
        assert cloud.calls("^(POST|PUT) .*(upload|customJobs)") == []


def addresses_of(port: int) -> set[str]:
    """Local addresses that listen on a port, as the kernel has them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).is_file():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if int(number, 16) == port and fields[3] == "0A":
                found.add(address)
    return found


def test_the_fake_cloud_listens_on_loopback_only_and_for_local_names_only(tmp_path: Path) -> None:
    with serve(tmp_path / "cloud") as cloud:
        if Path("/proc/net/tcp").is_file():
            assert addresses_of(cloud.port) == {"0100007F"}
        for host in ("evil.example", "metadata.google.internal"):
            with socket.create_connection(("127.0.0.1", cloud.port), timeout=60) as client:
                client.sendall(f"GET /fake/health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert b" 403 " in client.recv(200).splitlines()[0]
    for address in ("http://0.0.0.0:8123", "http://192.168.1.2:80", "https://example.com"):
        with pytest.raises(InputError, match="loopback"):
            connect(None, env=dict(os.environ) | {"SACCADE_FAKE_CLOUD": address})
