"""Checkpoint folders on a real disk: whole or absent, verified, pruned, and a full disk."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from saccade.config.errors import OutsideError
from saccade.training.checkpoints import (
    CHECKSUMS,
    COMPLETE,
    Writer,
    clean_leftovers,
    list_checkpoints,
    newest_good,
    set_aside,
    verify,
    write_checkpoint,
)
from saccade.training.state import torch_writer


def writer(data: bytes) -> Writer:
    return lambda file: [file.write(data), None][1]


def save(root: Path, step: int, *, size: int = 1000, keep: int = 5) -> Path:
    files = {"weights.bin": writer(os.urandom(size)), "state.json": writer(b"{}")}
    return write_checkpoint(root, step=step, files=files, keep=keep).folder


def test_a_written_checkpoint_verifies_and_leaves_nothing_aside(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    assert verify(folder) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert (folder / COMPLETE).is_file()


def test_newest_goes_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        save(tmp_path, step)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-10", "step-9", "step-5"]


@pytest.mark.parametrize("name", ["weights.bin", "state.json", CHECKSUMS, COMPLETE])
def test_any_flipped_bit_is_found_and_the_file_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 5)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    damage = verify(folder)
    assert damage is not None
    assert name in str(damage)


@pytest.mark.parametrize("name", ["weights.bin", CHECKSUMS, COMPLETE])
def test_a_truncated_or_missing_file_is_found(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 5)
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    assert name != "weights.bin" or "truncated" in str(verify(folder))
    (folder / name).unlink()
    assert name in str(verify(folder))


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "step-10" / "weights.bin").write_bytes(b"short")
    found = newest_good(tmp_path)
    assert found.folder == tmp_path / "step-5"
    assert [damage.file for damage in found.damaged] == ["weights.bin"]
    set_aside(tmp_path, found.damaged)
    assert newest_good(tmp_path).damaged == ()
    assert (tmp_path / "damaged-step-10").is_dir()
    assert verify(save(tmp_path, 10)) is None


def test_old_checkpoints_go_only_after_the_new_one_is_whole(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def spy(file: object) -> None:
        seen.append([folder.name for folder in list_checkpoints(tmp_path)])

    for step in (5, 10, 15):
        write_checkpoint(tmp_path, step=step, files={"a": writer(b"x"), "b": spy}, keep=2)
    assert seen == [[], ["step-5"], ["step-10", "step-5"]]
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-15", "step-10"]


def test_a_failing_writer_leaves_no_trace(tmp_path: Path) -> None:
    def broken(file: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path, step=5, files={"a": writer(b"x"), "b": broken}, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for name in (".tmp-step-10-123", ".tmp-old-step-5-123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
    assert len(clean_leftovers(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root; the file-size test covers the rest")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("serialiser", ["plain", "torch"])
def test_a_full_disk_leaves_the_last_good_checkpoint_intact(
    small_disk: Path, serialiser: str
) -> None:
    save(small_disk, 5, size=300_000)
    big = torch.zeros(300_000, dtype=torch.float32)
    content = torch_writer({"a": big}) if serialiser == "torch" else writer(bytes(1_200_000))
    with pytest.raises(OutsideError, match=r"no space left while saving step 10.*step-5 is intact"):
        write_checkpoint(small_disk, step=10, files={"weights.bin": content}, keep=2)
    assert [path.name for path in small_disk.iterdir()] == ["step-5"]
    assert verify(small_disk / "step-5") is None


FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from saccade.config.errors import OutsideError
from saccade.training.checkpoints import write_checkpoint
root = Path(sys.argv[1])
write_checkpoint(root, step=5, files={"a": lambda f: f.write(bytes(1000))}, keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    write_checkpoint(root, step=10, files={"a": lambda f: f.write(bytes(90_000))}, keep=2)
except OutsideError as error:
    sys.exit(error.exit_code)
"""


def test_a_file_size_limit_counts_as_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path)])
    assert done.returncode == OutsideError.exit_code
    assert [path.name for path in tmp_path.iterdir()] == ["step-5"]
    assert verify(tmp_path / "step-5") is None


def test_equal_content_is_equal_bytes_whoever_made_its_strings() -> None:
    def written(key: str, other: str) -> bytes:
        file = io.BytesIO()
        torch_writer({0: {key: torch.ones(2)}, 1: {other: torch.zeros(2)}})(file)
        return file.getvalue()

    made_apart = "".join(["exp", "_avg"])
    assert written("exp_avg", "exp_avg") == written("exp_avg", made_apart)
