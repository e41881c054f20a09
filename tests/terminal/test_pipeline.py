"""`saccade pipeline`: skip, rerun, continue, stop at gates, recover; with real processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.toy_pipeline import COMMAND, NAME, digests, finished, journal, start, toy_text, write_toy

ALL = ["load", "left", "right", "join"]


def call(folder: Path, *words: str, **env: str) -> tuple[int, str, str]:
    process = start(folder, *words, **env)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def states(folder: Path) -> dict[str, str]:
    done = subprocess.run(
        [*COMMAND, "show", "toy.yaml", "--json"],
        cwd=folder, capture_output=True, text=True, timeout=200, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )  # fmt: skip
    return {row["stage"]: row["state"] for row in json.loads(done.stdout)}


def started(folder: Path) -> list[str]:
    return [line.split()[1] for line in journal(folder) if line.startswith("start")]


def until(condition: Callable[[], bool], *, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_a_finished_pipeline_is_skipped_and_a_change_reruns_what_follows(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    path = write_toy(tmp_path)
    code, out, err = call(tmp_path, *more, "--json")
    assert code == 0, err
    assert [row["state"] for row in json.loads(out)] == ["finished"] * 4
    assert sorted(started(tmp_path)) == sorted(ALL)
    made = digests(tmp_path)
    code, out, err = call(tmp_path, *more, "--json")
    assert (code, [row["ran"] for row in json.loads(out)]) == (0, [False] * 4), err
    assert len(started(tmp_path)) == 4
    path.write_text(path.read_text().replace('"left", "--folder"', '"LEFT", "--folder"'))
    code, out, err = call(tmp_path, *more, "--json")
    assert code == 0, err
    assert started(tmp_path)[4:] == ["LEFT", "join"]
    now = digests(tmp_path)
    assert now["toy-load-data"] == made["toy-load-data"]
    assert [number for number, _ in now["toy-join-data"]] == [1, 2]


def test_a_mistake_in_the_file_is_named_before_anything_runs(tmp_path: Path) -> None:
    write_toy(tmp_path, more="    depends_on: [lod]\n")
    code, out, err = call(tmp_path)
    assert (code, out) == (2, "")
    assert "toy.yaml:23: stages.join.depends_on: unknown stage lod; did you mean load?" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_a_closed_gate_stops_the_pipeline_and_opening_it_reruns_nothing(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    gate = "    gates: {min: {score: 0.9}}\n"
    text = toy_text()
    path = tmp_path / "toy.yaml"
    path.write_text(text.replace("  left:\n", gate + "  left:\n"))
    code, _, err = call(tmp_path, *more)
    assert code == 1
    assert "toy.yaml:8: the gate of load is closed: score is 0.5, at least 0.9" in err
    assert "Traceback" not in err
    assert started(tmp_path) == ["load"]
    assert states(tmp_path)["load"] == "gate closed"
    path.write_text(text.replace("  left:\n", gate.replace("0.9", "0.4") + "  left:\n"))
    assert call(tmp_path, *more)[0] == 0
    assert started(tmp_path).count("load") == 1


@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_a_failing_stage_is_named_and_the_rerun_goes_on(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    write_toy(tmp_path)
    (tmp_path / "fail").write_text("right")
    code, _, err = call(tmp_path, *more, TOY_FAIL="fail")
    assert code == 1
    assert "right: " in err
    assert "ended with 1" in err
    assert "Traceback" not in err
    assert states(tmp_path)["right"] == "failed"
    assert call(tmp_path, *more)[0] == 0
    assert started(tmp_path).count("right") == 2
    assert started(tmp_path).count("load") == started(tmp_path).count("left") == 1


def test_a_stage_is_tried_again_as_often_as_it_says(tmp_path: Path) -> None:
    write_toy(tmp_path, more="    retries: 1\n")
    (tmp_path / "fail").write_text("join")
    code, _, err = call(tmp_path, TOY_FAIL="fail")
    assert code == 0, err
    assert "trying again" in err
    assert started(tmp_path).count("join") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_a_stopped_pipeline_leaves_with_143_and_continues_inside_the_stage(
    tmp_path: Path, number: signal.Signals, more: tuple[str, ...]
) -> None:
    write_toy(tmp_path)
    # the stage is stopped long before its end, however late the signal comes
    slow = {"TOY_TICKS": "600", "TOY_TICK_SECONDS": "0.05", "TOY_QUICK": "load"}
    process = start(tmp_path, *more, **slow)
    ticks = lambda: list((tmp_path / "runs").glob("toy/left-*/ticks"))  # noqa: E731
    until(lambda: bool(ticks()) and int(ticks()[0].read_text()) >= 3)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    assert finished(tmp_path) == {"load"}
    kept = int(ticks()[0].read_text())
    assert 3 <= kept < 600
    assert call(tmp_path, *more, TOY_TICKS="600", TOY_TICK_SECONDS="0")[0] == 0
    assert started(tmp_path).count("left") == 2


@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_a_damaged_artifact_is_one_clear_line_and_its_stage_runs_again(
    tmp_path: Path, damage: str
) -> None:
    write_toy(tmp_path)
    assert call(tmp_path)[0] == 0
    made = digests(tmp_path)
    output = next((tmp_path / "runs" / NAME).glob("left-*/outputs/data")).read_bytes()
    blobs = (tmp_path / "runs" / "artifacts" / "blobs").rglob("*/*")
    blob = next(path for path in blobs if path.read_bytes() == output)
    blob.unlink() if damage == "deleted" else blob.write_bytes(b"y" * len(output))
    assert states(tmp_path)["left"] == "damaged"
    code, _, err = call(tmp_path)
    assert code == 0, err
    assert err.count("left: the artifact toy-left-data:v1 is damaged") == 1
    assert started(tmp_path)[4:] == ["left"]
    assert digests(tmp_path) == made
    assert set(states(tmp_path).values()) == {"finished"}


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No process started inside can write a larger file, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [(), ("--parallel", "2")], ids=["serial", "parallel"])
def test_a_full_disk_is_one_clear_error_and_the_rerun_recovers(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    write_toy(tmp_path, size=400_000)
    with files_limited_to(200_000):
        code, out, err = call(tmp_path, *more)
    assert (code, out) == (3, "")
    assert err.count("error: ") == 1
    assert "no space left for the artifact toy-load-data" in err
    assert "Traceback" not in err
    assert finished(tmp_path) == set()
    assert digests(tmp_path) == {}
    assert not list((tmp_path / "runs").rglob(".tmp-*"))
    assert call(tmp_path, *more)[0] == 0
    assert finished(tmp_path) == set(ALL)


def test_a_disk_too_full_for_the_log_of_a_stage_is_the_same_error(tmp_path: Path) -> None:
    write_toy(tmp_path)
    log = tmp_path / "runs" / NAME / "logs" / "load.log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"x" * 200_000)
    with files_limited_to(200_000):
        code, out, err = call(tmp_path, "--parallel", "2")
    assert (code, out) == (3, "")
    assert err.count("error: ") == 1
    assert "no space left" in err
    assert f"messages: runs/{NAME}/logs/load.log" in err
    assert log.stat().st_size == 200_000
    log.unlink()
    assert call(tmp_path, "--parallel", "2")[0] == 0
    assert finished(tmp_path) == set(ALL)


def test_a_process_that_is_killed_is_named_with_its_log(tmp_path: Path) -> None:
    write_toy(tmp_path)
    process = start(tmp_path, "--parallel", "2", TOY_TICKS="1000")
    until(lambda: started(tmp_path) == ["load"])
    (stage,) = psutil.Process(process.pid).children()
    stage.kill()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert f"load: its process was killed by signal 9\n  messages: runs/{NAME}/logs/load" in err


def test_from_runs_a_stage_and_what_follows_again(tmp_path: Path) -> None:
    write_toy(tmp_path)
    assert call(tmp_path)[0] == 0
    made = digests(tmp_path)
    assert call(tmp_path, "--from", "right")[0] == 0
    assert started(tmp_path)[4:] == ["right", "join"]
    assert digests(tmp_path) == made
    code, _, err = call(tmp_path, "--from", "rigth")
    assert code == 2
    assert "toy.yaml has no stage rigth; did you mean right?" in err


def test_only_needs_what_comes_before(tmp_path: Path) -> None:
    write_toy(tmp_path)
    code, _, err = call(tmp_path, "--only", "left")
    assert code == 2
    assert "left needs load, which is not finished" in err
    assert call(tmp_path, "--only", "load")[0] == 0
    assert call(tmp_path, "--only", "left")[0] == 0
    assert started(tmp_path) == ["load", "left"]


def test_show_draws_states_and_starts_nothing(tmp_path: Path) -> None:
    write_toy(tmp_path, more="    resources: {usd_per_hour: 3600}\n")
    assert states(tmp_path) == {"load": "to do", "left": "waits", "right": "waits", "join": "waits"}
    assert call(tmp_path, "--only", "load")[0] == 0
    assert states(tmp_path)["left"] == "to do"
    code, out, _ = call(tmp_path)
    assert code == 0
    assert "4 of 4 finished" in out
    assert "also needs left" in out
    assert "$" in next(line for line in out.splitlines() if "join " in line)


def test_the_shipped_smoke_pipeline_runs_and_is_then_skipped(tmp_path: Path) -> None:
    words = ("quickstart-smoke", "--json")
    command = [*COMMAND, "run", *words]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    for ran in (True, False):
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr
        rows = json.loads(done.stdout)
        assert [row["stage"] for row in rows] == ["train", "evaluate", "compare", "report"]
        assert {row["ran"] for row in rows} == {ran}
    report = Path(tmp_path / rows[3]["folder"] / "inputs" / "run" / "report.html")
    assert "<html" in report.read_text()
    assert 0 <= rows[1]["metrics"]["accuracy"] <= 1
