"""The code archive: equal trees give equal bytes, and no secret gets in."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from saccade.config.errors import InputError
from saccade.launch.package import code_root, is_checkout, pack, project_file, secret_values

CANARY = "canary-5e1f00d5ecret"
KEY = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA" * 4 + "\n-----END"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "src" / "saccade").mkdir(parents=True)
    (root / "src" / "saccade" / "__init__.py").write_text('"""Code."""\n')
    (root / "pyproject.toml").write_text('[project]\nname = "saccade"\n')
    (root / ".gitignore").write_text("runs/\n.env\n")
    (root / ".env.example").write_text("WANDB_API_KEY=\n")
    return root


def git(root: Path) -> None:
    quiet = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*quiet, "init", "-q"], check=True)
    subprocess.run([*quiet, "add", "."], check=True)
    subprocess.run([*quiet, "commit", "-qm", "first"], check=True)


def names(path: Path) -> list[str]:
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_the_same_tree_gives_the_same_bytes_wherever_and_whenever(
    checkout: Path, tmp_path: Path
) -> None:
    first = pack(checkout, folder=tmp_path / "a")
    other = tmp_path / "elsewhere"
    shutil.copytree(checkout, other)
    (other / "src" / "saccade" / "__init__.py").touch()
    second = pack(other, folder=tmp_path / "b")
    assert first.sha256 == second.sha256
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.path.name == f"{first.sha256}.tar.gz"


def test_packing_twice_writes_once(checkout: Path, tmp_path: Path) -> None:
    first = pack(checkout, folder=tmp_path / "a")
    before = first.path.stat().st_mtime_ns
    assert pack(checkout, folder=tmp_path / "a").path.stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "a").iterdir()] == [first.name]


def test_a_changed_file_changes_the_name(checkout: Path, tmp_path: Path) -> None:
    first = pack(checkout, folder=tmp_path)
    (checkout / "src" / "saccade" / "__init__.py").write_text("x = 1\n")
    assert pack(checkout, folder=tmp_path).sha256 != first.sha256


@pytest.mark.parametrize("with_git", [True, False])
def test_secrets_git_runs_and_caches_stay_here(
    checkout: Path, tmp_path: Path, with_git: bool
) -> None:
    if with_git:
        git(checkout)
    for name in (
        ".env", ".env.local", "deploy.env", "src/.env", "service-account-prod.json", "id_rsa",
        "tls.pem", ".netrc", "gcp-credentials.json", "runs/one/config.yaml", ".venv/x.py",
        "src/saccade/__pycache__/a.pyc", "wandb/run.log", ".training",
    ):  # fmt: skip
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY)
    (checkout / "src" / "saccade" / "new.py").write_text("x = 1\n")
    (checkout / "key.json").write_text('{"private_key": "' + KEY.replace("\n", "\\n") + '"}')
    archive = pack(checkout, folder=tmp_path / "out")
    assert names(archive.path) == [
        ".env.example", ".gitignore", "pyproject.toml", "src/saccade/__init__.py",
        "src/saccade/new.py",
    ]  # fmt: skip
    reasons = {one.path: one.why for one in archive.left_out}
    assert reasons["key.json"] == "holds a private key"
    assert reasons["tls.pem"] == "may hold secrets"
    assert CANARY.encode() not in archive.path.read_bytes()


def test_a_file_with_the_value_of_a_secret_stops_the_packing(
    checkout: Path, tmp_path: Path
) -> None:
    (checkout / "src" / "saccade" / "notes.py").write_text(f"KEY = '{CANARY}'\n")
    with pytest.raises(InputError, match=r"notes.py: holds the value of WANDB_API_KEY") as error:
        pack(checkout, folder=tmp_path / "out", secrets={"WANDB_API_KEY": SecretStr(CANARY)})
    assert CANARY not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_secrets_are_known_from_the_file_and_the_environment(checkout: Path) -> None:
    (checkout / ".env").write_text(f"WANDB_API_KEY={CANARY}\nGOOGLE_CLOUD_PROJECT=plain-project\n")
    found = secret_values(checkout, env={"HF_TOKEN": "hf_12345678"})
    assert {name: value.get_secret_value() for name, value in found.items()} == {
        "WANDB_API_KEY": CANARY,
        "HF_TOKEN": "hf_12345678",
    }
    assert CANARY not in repr(found)


def test_large_files_are_named_and_left_out(checkout: Path, tmp_path: Path) -> None:
    (checkout / "weights.bin").write_bytes(b"\0" * 3_000_000)
    archive = pack(checkout, folder=tmp_path / "out", largest_file_bytes=2_000_000)
    assert [(one.path, one.why) for one in archive.left_out] == [
        ("weights.bin", "3 MB, above the limit of 2 MB")
    ]


def test_a_link_out_of_the_tree_is_not_followed(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text(CANARY)
    (checkout / "link").symlink_to(tmp_path / "private")
    (checkout / "inside").symlink_to(checkout / "pyproject.toml")
    archive = pack(checkout, folder=tmp_path / "out")
    assert "link" not in archive.files
    assert "inside" in archive.files
    with tarfile.open(archive.path) as tar:
        assert all(member.isfile() for member in tar)
        assert all((one.uid, one.gid, one.uname, one.mtime) == (0, 0, "", 315532800) for one in tar)


def test_an_installed_package_is_packed_as_a_checkout_would_be(
    checkout: Path, tmp_path: Path
) -> None:
    package = tmp_path / "site-packages" / "saccade"
    shutil.copytree(checkout / "src" / "saccade", package)
    (package / "assets" / "image" / "docker").mkdir(parents=True)
    (package / "assets" / "image" / "constraints.txt").write_text("torch==2.13.0\n")
    (package / "assets" / "image" / "docker" / "Dockerfile").write_text("FROM x\n")
    assert not is_checkout(package)
    archive = pack(package, folder=tmp_path / "out")
    assert archive.files == ("constraints.txt", "docker/Dockerfile", "src/saccade/__init__.py")
    assert project_file("constraints.txt", root=package) == "torch==2.13.0\n"


def test_this_checkout_packs_to_a_few_megabytes(tmp_path: Path) -> None:
    archive = pack(folder=tmp_path)
    assert is_checkout(code_root())
    assert archive.size_bytes < 20_000_000
    assert {"constraints.txt", "docker/Dockerfile", "src/saccade/cli.py"} <= set(archive.files)
    assert not [name for name in archive.files if name.startswith((".git/", "runs/", ".venv/"))]
