"""Publishing through the real client against a loopback hub: names, files, privacy, refusals.

`HF_ENDPOINT` leads to the server of `tests/fake_hub.py`; each command is a process of its own. The
client's Xet upload is switched off, since its storage service cannot be rebuilt here: large files
go through the LFS protocol of the same client.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import NAME, READ_TOKEN, TOKEN, FakeHub, Repo
from tests.scored_run import make_run

SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("published")).path


@pytest.fixture(scope="module")
def space(run_folder: Path) -> Path:
    from saccade.pipeline.deploy import deploy
    from saccade.training.rundir import RunDir

    folder = run_folder.parent / "demo"
    return deploy(run_folder, folder, run=RunDir.open(run_folder), limit=2).folder


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as server:
        yield server


def export(
    hub: FakeHub, *words: str, token: str | None = TOKEN, cwd: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
    }
    environment = kept | {
        "PYTHONPATH": str(SOURCE), "HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "hf-home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        **({"HF_TOKEN": token} if token else {}), **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "saccade.cli", "export", "hub", *words]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def kinds_of(repo: Repo) -> dict[str, set[str]]:
    return {
        one["key"]: {
            line["value"]["path"] for line in repo.commits[-1] if line["key"] == one["key"]
        }
        for one in repo.commits[-1]
        if one["key"] != "header"
    }


def test_a_space_arrives_whole_and_private(hub: FakeHub, space: Path, tmp_path: Path) -> None:
    done = export(hub, str(space), "--repo", "demo", "--space", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["repo"] == f"{NAME}/demo" and said["private"] is True
    repo = hub.repos[f"space/{NAME}/demo"]
    assert repo.private and repo.made["sdk"] == "gradio"
    assert repo.files == on_disk(space)
    sent = kinds_of(repo)
    assert sent["lfsFile"] == {"model/selector.safetensors", "model/base/model.safetensors"}
    assert {"app.py", "requirements.txt", "README.md"} <= sent["file"]
    assert ("POST", "/api/validate-yaml") in hub.seen
    assert not any(TOKEN.encode() in content for content in repo.files.values())
    assert TOKEN not in done.stdout + done.stderr


def test_a_run_is_deployed_first_and_the_model_alone_is_published(
    hub: FakeHub, run_folder: Path, tmp_path: Path
) -> None:
    words = (str(run_folder), "--repo", f"{NAME}/model", "--public")
    done = export(hub, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/{NAME}/model"
    repo = hub.repos[f"model/{NAME}/model"]
    assert not repo.private
    assert {"README.md", "LICENSE", "relevance.json", "base/model.safetensors"} <= set(repo.files)
    assert not any(name.startswith(("saccade/", "app")) for name in repo.files)
    assert b"library_name: saccade" in repo.files["README.md"]


def test_publishing_again_replaces_what_is_old_and_keeps_what_is_not_ours(
    hub: FakeHub, space: Path, tmp_path: Path
) -> None:
    assert export(hub, str(space), "--repo", "demo", "--space", cwd=tmp_path).returncode == 0
    repo = hub.repos[f"space/{NAME}/demo"]
    repo.files |= {"model/old-shard.safetensors": b"old", "packages.txt": b"theirs"}
    again = export(hub, str(space), "--repo", "demo", "--space", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert set(repo.files) == {*on_disk(space), "packages.txt"}


def test_a_private_upload_does_not_go_into_a_public_repository(
    hub: FakeHub, space: Path, tmp_path: Path
) -> None:
    hub.repos[f"space/{NAME}/demo"] = Repo(made={}, private=False)
    done = export(hub, str(space), "--repo", "demo", "--space", cwd=tmp_path)
    assert done.returncode == 2
    assert "everybody can read it; nothing was uploaded" in done.stderr
    assert not hub.repos[f"space/{NAME}/demo"].files


@pytest.mark.parametrize(
    ("token", "repo", "status", "message"),
    [
        (None, "demo", 3, "no Hugging Face token"),
        ("hf_" + "x" * 34, "demo", 3, "the hub answers 401 (Invalid user token)"),
        (READ_TOKEN, "demo", 3, "the hub answers 403 (You must use a write token)"),
        (TOKEN, "someone-else/demo", 3, "the hub answers 403"),
        (TOKEN, "not a name", 2, "--repo not a name"),
        (TOKEN, "", 2, "--repo is missing"),
    ],
    ids=["no token", "a wrong token", "a read token", "another owner", "a bad name", "no name"],
)
def test_what_the_hub_would_refuse_is_one_message_with_a_way_out(
    hub: FakeHub, space: Path, tmp_path: Path, token: str | None, repo: str, status: int,
    message: str,
) -> None:  # fmt: skip
    words = (str(space), "--repo", repo, "--space")
    done = export(hub, *words, token=token, cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert message in " ".join(done.stderr.split()) and "fix:" in done.stderr
    assert "Traceback" not in done.stderr and not hub.repos
    assert token is None or token not in done.stderr


def test_a_missing_token_is_said_before_any_work(
    hub: FakeHub, run_folder: Path, tmp_path: Path
) -> None:
    done = export(hub, str(run_folder), "--repo", "demo", token=None, cwd=tmp_path)
    assert done.returncode == 3 and "writing the model" not in done.stderr
    assert hub.seen == []


def test_a_hub_that_is_down_or_away_is_one_message(
    hub: FakeHub, space: Path, tmp_path: Path
) -> None:
    words = (str(space), "--repo", "demo", "--space")
    hub.status = 500
    done = export(hub, *words, cwd=tmp_path)
    assert done.returncode == 3 and "the hub answers 500" in done.stderr
    away = export(hub, *words, cwd=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode == 3 and "cannot be reached" in away.stderr
    offline = export(hub, *words, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert offline.returncode == 3 and "HF_HUB_OFFLINE is set" in offline.stderr


def test_a_secret_in_a_space_folder_stops_the_upload(
    hub: FakeHub, space: Path, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(space, tmp_path / "copy")
    (copy / "notes.txt").write_text(f"token: {TOKEN}\n")
    done = export(hub, str(copy), "--repo", "demo", "--space", cwd=tmp_path)
    assert done.returncode == 2 and "notes.txt: holds HF_TOKEN" in done.stderr
    assert TOKEN not in done.stderr and not hub.repos


def test_the_loopback_hub_refuses_what_the_real_one_refuses(hub: FakeHub) -> None:
    repo = Repo(made={}, private=True)
    head = {"key": "header", "value": {"summary": "x", "description": ""}}
    absent = {"key": "lfsFile", "value": {"path": "a", "oid": "0", "size": 1, "algo": "sha256"}}
    assert hub.commit(repo, [head, absent])[0] == 400
    content = base64.b64encode(b"weights").decode()
    wrong = {"key": "file", "value": {"path": "a.safetensors", "content": content}}
    assert hub.commit(repo, [head, wrong])[0] == 400
