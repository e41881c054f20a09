"""Images: their tag follows dependencies and not code; the base is named by digest only."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from saccade.cloud.api.transport import Google
from saccade.cloud.findings import Level
from saccade.config.errors import OutsideError
from saccade.launch import images

ROOT = Path(__file__).parents[2]
MANIFEST = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(MANIFEST).hexdigest()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "src" / "saccade" / "launch").mkdir(parents=True)
    (root / "src" / "saccade" / "__init__.py").touch()
    (root / "docker").mkdir()
    for name in ("pyproject.toml", "constraints.txt", "docker/Dockerfile"):
        shutil.copy(ROOT / name, root / name)
    return root


@contextmanager
def registry(*, said: str = DIGEST, token: bool = True) -> Iterator[str]:
    """An OCI registry with one tag, behind an anonymous token as Docker Hub's is."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = f"http://{self.headers['Host']}"
            if self.path.startswith("/token"):
                self._send(200, json.dumps({"token": "anonymous"}).encode(), {})
            elif token and self.headers.get("Authorization") != "Bearer anonymous":
                fields = f'realm="{host}/token",service="r",scope="repository:library/python:pull"'
                self._send(401, b"{}", {"WWW-Authenticate": f"Bearer {fields}"})
            elif self.path == "/v2/library/python/manifests/3.11-slim-bookworm":
                self._send(200, MANIFEST, {"Docker-Content-Digest": said})
            else:
                self._send(404, b"{}", {})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_code_and_comments_keep_the_tag(checkout: Path) -> None:
    tag = images.image_tag(root=checkout)
    assert tag.startswith("deps-")
    (checkout / "src" / "saccade" / "new.py").write_text("x = 1\n")
    file = checkout / "constraints.txt"
    file.write_text("# another comment\n" + file.read_text())
    assert images.image_tag(root=checkout) == tag


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("constraints.txt", "pillow==", "pillow==1"),
        ("pyproject.toml", '"rich>=15"', '"rich>=16"'),
        ("pyproject.toml", '"wandb>=0.31"', '"wandb>=0.32"'),
        ("docker/Dockerfile", "USER saccade", "USER nobody"),
    ],
)
def test_every_dependency_changes_the_tag(
    checkout: Path, name: str, old: str, new: str
) -> None:  # fmt: skip
    tag = images.image_tag(root=checkout)
    file = checkout / name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert images.image_tag(root=checkout) != tag


def test_version_and_other_extras_keep_the_tag(checkout: Path) -> None:
    tag = images.image_tag(root=checkout)
    file = checkout / "pyproject.toml"
    text = file.read_text().replace('version = "0.1.0"', 'version = "0.2.0"')
    file.write_text(text.replace("textual==8.2.8", "textual==8.2.9"))
    assert images.image_tag(root=checkout) == tag


def test_the_starter_is_part_of_the_image(checkout: Path) -> None:
    tag = images.image_tag(root=checkout)
    (checkout / images.STARTERS[0]).write_text("x = 1\n")
    assert images.image_tag(root=checkout) != tag


def test_no_digest_is_written_down_that_no_registry_confirmed() -> None:
    for base in images.BASES.values():
        assert base.digest is None or images._DIGEST.fullmatch(base.digest)


def test_the_dockerfile_has_no_base_of_its_own_and_no_gpu_count() -> None:
    lines = (ROOT / "docker" / "Dockerfile").read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert "ARG BASE_IMAGE" in code
    assert "FROM ${BASE_IMAGE}" in code
    assert not [line for line in code if "CUDA_VISIBLE_DEVICES" in line]
    users = [line for line in code if line.startswith("USER")]
    assert users == ["USER saccade"]


def test_both_ignore_files_are_the_same() -> None:
    def rules(path: Path) -> list[str]:
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]

    assert rules(ROOT / ".dockerignore") == rules(ROOT / "docker" / "Dockerfile.dockerignore")


@pytest.mark.parametrize("token", [True, False])
def test_the_registry_is_asked_once_and_its_answer_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: bool
) -> None:
    with registry(token=token) as url:
        monkeypatch.setattr(images, "BASE", replace(images.BASE, registry=url))
        first = images.base_reference(home=tmp_path, fake=False)
    assert first == f"python@{DIGEST}"
    # the registry is gone, the answer is not
    assert images.base_reference(home=tmp_path, fake=False) == first


def test_a_registry_that_lies_about_its_bytes_is_not_believed() -> None:
    with registry(said="sha256:" + "0" * 64) as url, pytest.raises(OutsideError, match="but its"):
        images.ask_registry(replace(images.BASE, registry=url))


def test_without_a_registry_no_image_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "BASE", replace(images.BASE, registry="http://127.0.0.1:9"))
    with pytest.raises(OutsideError, match=r"fix: .*launch.image=REPOSITORY@sha256"):
        images.base_reference(home=tmp_path, fake=False)


def test_a_pinned_base_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = replace(images.BASE, registry="http://127.0.0.1:9", digest=DIGEST)
    monkeypatch.setattr(images, "BASE", pinned)
    assert images.base_reference(home=tmp_path, fake=False) == f"python@{DIGEST}"


def test_the_build_names_base_and_source_and_is_found_by_its_tag() -> None:
    body = images.build_body(
        image="us-docker.pkg.dev/p/r/train:deps-1",
        tag="deps-1",
        source=("bucket", "code/a.tar.gz"),
        base=f"python@{DIGEST}",
    )
    assert body["source"] == {"storageSource": {"bucket": "bucket", "object": "code/a.tar.gz"}}
    assert body["tags"][0] == "deps-1"
    words = body["steps"][0]["args"]
    assert words[words.index("--build-arg") + 1] == f"BASE_IMAGE=python@{DIGEST}"
    assert words[words.index("--file") + 1] == "docker/Dockerfile"


def test_an_image_elsewhere_is_unknown_rather_than_good() -> None:
    found = images.look_up(Google(project="p"), "docker.io/somebody/train@" + DIGEST)
    assert found.level is Level.UNKNOWN
