"""The run directory: configuration kept and compared, lock, DONE, unwritable places."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from saccade.config.errors import InputError, OutsideError
from saccade.config.resolve import Resolved, resolve
from saccade.training.rundir import RunDir


def settings(tmp_path: Path, *overrides: str) -> Resolved:
    return resolve("relevance", overrides=[f"run.root={tmp_path}", "run.name=one", *overrides])


def test_a_created_run_reopens_with_the_same_configuration(tmp_path: Path) -> None:
    resolved = settings(tmp_path, "training.steps=7")
    run = RunDir.create(resolved)
    assert RunDir.open(run.path).config() == resolved.config
    assert RunDir.create(resolved).path == run.path
    assert run.done() is None
    assert run.latest_checkpoint() is None


def test_a_run_without_a_name_is_called_after_its_recipe(tmp_path: Path) -> None:
    resolved = resolve("tiny-base", overrides=[f"run.root={tmp_path}", "run.name=null"])
    assert RunDir.of(resolved.config).path == tmp_path / "tiny-base"


def test_opening_something_else_says_that_it_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run directory.*no config\.yaml"):
        RunDir.open(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        RunDir.open(tmp_path / "absent")


def test_changed_training_values_are_refused_by_name(tmp_path: Path) -> None:
    RunDir.create(settings(tmp_path))
    other = settings(tmp_path, "training.learning_rate=0.5", "training.steps=9", "run.seed=3")
    with pytest.raises(InputError) as caught:
        RunDir.create(other)
    for key in ("training.learning_rate", "training.steps", "run.seed"):
        assert key in str(caught.value)
    assert "run.name" in str(caught.value)


def test_values_that_do_not_move_the_weights_may_change(tmp_path: Path) -> None:
    run = RunDir.create(settings(tmp_path))
    other = settings(tmp_path, "training.save_every=3", "eval.samples=8", "tracking.wandb=off")
    changed = run.adopt(other)
    assert set(changed) == {"training.save_every", "eval.samples", "tracking.wandb"}
    assert run.config() == other.config


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    run = RunDir.create(settings(tmp_path))
    run.config_file.write_text("training: [")
    with pytest.raises(InputError, match=r"config\.yaml: cannot be read"):
        run.config()


def test_a_second_process_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    run = RunDir.create(settings(tmp_path))
    with (
        run.lock(),
        pytest.raises(InputError, match=rf"pid {os.getpid()}\) is training"),
        RunDir(run.path).lock(),
    ):
        pass
    with (
        run.lock(doing="bringing a launched run into"),
        pytest.raises(InputError, match=rf"pid {os.getpid()}\) is bringing a launched run into"),
        RunDir(run.path).lock(),
    ):
        pass
    with RunDir(run.path).lock():
        pass


HOLD = """
import os, sys, time
from pathlib import Path
from saccade.training.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    if os.fork() == 0:
        time.sleep(1.0)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_workers_that_outlive_a_killed_owner_are_waited_for(tmp_path: Path) -> None:
    run = RunDir.create(settings(tmp_path))
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"held\n"
    owner.kill()
    started = time.monotonic()
    with run.lock():
        assert time.monotonic() - started < 40
    owner.wait()
    owner.stdout.close()


def test_done_holds_step_and_metrics(tmp_path: Path) -> None:
    run = RunDir.create(settings(tmp_path))
    run.finish(step=7, metrics={"loss": 0.5})
    done = run.done()
    assert done is not None
    assert done["target_step"] == 7
    assert done["metrics"] == {"loss": 0.5}


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "locked"
    place.mkdir()
    if os.geteuid() != 0:
        place.chmod(0o555)
        yield place
        place.chmod(0o755)
        return
    # permissions do not stop root, a read-only file system does
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a read-only file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_read_only_folder_is_one_clear_message(read_only: Path) -> None:
    with pytest.raises(OutsideError, match=r"cannot be written.*\n.*run\.root"):
        RunDir.create(settings(read_only / "runs"))


def test_a_file_in_the_way_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("a file")
    with pytest.raises(OutsideError, match="cannot be written"):
        RunDir.create(settings(tmp_path))


def test_run_directories_need_no_torch() -> None:
    check = "import sys, saccade.training.rundir, saccade.training.events, saccade.training.run;"
    check += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
