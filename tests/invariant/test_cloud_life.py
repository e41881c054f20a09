"""The whole life of a cloud training, from setup to teardown, by `benchmarks/cloud_life.py`.

The script's own facts are the assertions: two preemptions, one during an upload, a result equal to
the last bit to an uninterrupted run, money counted, nothing left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIFE = Path(__file__).resolve().parents[2] / "benchmarks" / "cloud_life.py"
ENV = os.environ | {"PYTHONPATH": str(LIFE.parents[1] / "src")}
PROMISED = (
    "setup twice changes nothing",
    "three attempts, two preemptions",
    "the first machine went while step 20 was being uploaded",
    "final weights are byte-equal",
    "the cost is reported",
    "the scan finds nothing left",
    "all of it takes less than ten minutes",
)


@pytest.mark.slow
def test_a_training_lives_through_two_preemptions_and_leaves_nothing_behind(tmp_path: Path) -> None:
    pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    facts = tmp_path / "facts.json"
    words = [sys.executable, str(LIFE), "--folder", str(tmp_path / "life"), "--json", str(facts)]
    done = subprocess.run(words, env=ENV, capture_output=True, text=True, check=False)
    assert facts.is_file(), done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(facts.read_text("utf-8"))["facts"]
    assert [fact for fact in found if not fact["holds"]] == []
    assert set(PROMISED) <= {fact["fact"] for fact in found}
    assert done.returncode == 0


@pytest.mark.slow
def test_the_extra_for_the_cloud_is_small() -> None:
    pytest.importorskip("google.cloud.storage", reason="needs saccade[cloud]")
    probe = "import cloud_speed as c; s = c.extra_size(); print(s.value, s.bar)"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=LIFE.parent, env=ENV,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    size, bar = map(float, done.stdout.split())
    assert 5 < size < bar
