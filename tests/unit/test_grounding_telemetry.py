"""What is kept of a group training's episodes, and the order in which questions are asked."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.config.grounding import GroundingConfig
from saccade.data.boxes import Box
from saccade.data.samples import DataError, Sample
from saccade.grounding.coordinates import Convention
from saccade.grounding.environment import Answer, Screen
from saccade.grounding.episodes import Episode, Finish, Task, check_row, task_of
from saccade.training.batches import order_of
from saccade.training.recipes.grounding_episodes import EpisodeLog, read_episodes
from saccade.training.recipes.grounding_order import FIRST_SHARE, Targets
from saccade.training.recipes.grounding_paid import Tally, episode_seeds, paid_group, rows_of

PERMILLE = Convention("0-1000")


# the file ------------------------------------------------------------------------------------


def row(step: int, index: int) -> dict[str, Any]:
    return {
        "step": step,
        "id": f"s{step}",
        "index": index,
        "turns": ["[1, 2]"],
        "iou": float("nan"),
    }


def filled(path: Path, steps: int = 4) -> EpisodeLog:
    log = EpisodeLog(path)
    for step in range(1, steps + 1):
        log.append([row(step, index) for index in range(3)])
    return log


def test_rows_come_back_as_they_were_and_nan_as_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "e.jsonl", steps=2)
    found = list(read_episodes(tmp_path / "e.jsonl"))
    assert [(one["step"], one["index"]) for one in found] == [
        (s, i) for s in (1, 2) for i in range(3)
    ]
    assert found[0]["iou"] is None


def test_a_missing_file_holds_nothing_and_an_empty_step_writes_nothing(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path / "e.jsonl")
    assert list(read_episodes(log.path)) == [] and log.go_back_to(7) == 0
    log.append([])
    assert not log.path.exists()


@given(st.integers(0, 400), st.integers(0, 4))
def test_after_any_kill_no_episode_is_lost_or_doubled(cut: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.jsonl"
        filled(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) - cut])
        there = [one["step"] for one in read_episodes(path)]
        saved = min(step, max((s for s in there if there.count(s) == 3), default=0))
        log = EpisodeLog(path)
        log.go_back_to(saved)
        for again in range(saved + 1, 5):
            log.append([row(again, index) for index in range(3)])
        assert path.read_bytes() == whole


def test_a_torn_line_is_left_out_by_readers(tmp_path: Path) -> None:
    log = filled(tmp_path / "e.jsonl", steps=1)
    with log.path.open("ab") as file:
        file.write(json.dumps(row(2, 0)).encode()[:-4])
    assert len(list(read_episodes(log.path))) == 3


# groups --------------------------------------------------------------------------------------


def sample(number: int, *, side: float = 0.2, group: int | None = None) -> Sample:
    return Sample(
        id=f"s{number}", question="Click the red star.", answers=(), kind="point",
        images=(Image.new("RGB", (64, 48)),), image_key=f"page{group or number}",
        facts={"box": (0.4, 0.4, 0.4 + side, 0.4 + side)},
    )  # fmt: skip


def episode(
    number: int,
    *,
    text: str = "[400, 400, 600, 600]",
    finish: Finish = "answered",
    zoomed: bool = False,
) -> Episode:
    task: Task = task_of(sample(number))
    config = GroundingConfig()
    screen = Screen(task.image, config, PERMILLE, lambda size: size)
    if zoomed:
        screen.call("zoom", {"box": [300, 300, 700, 700]})
    written = torch.tensor([True, True, False, True])
    answer = None
    if finish == "answered":
        left, top, right, bottom = (int(one) / 1000 for one in text.strip("[]").split(","))
        box = Box(left, top, right, bottom)
        answer = Answer(point=box.center, box=box)
    return Episode(
        task=task, index=number, seed=7 + number, turns=[text], ids=torch.arange(4),
        written=written, log_probs=torch.where(written, -0.5, 0.0),
        entropies=torch.where(written, 0.25, 0.0), screen=screen, answer=answer, finish=finish,
    )  # fmt: skip


def group() -> list[Episode]:
    return [
        episode(0), episode(1, zoomed=True), episode(2, text="[0, 0, 10, 10]"),
        episode(3, finish="truncated"),
    ]  # fmt: skip


def test_a_row_holds_what_it_was_worth_and_is_complete() -> None:
    paid = paid_group(group(), config=GroundingConfig())
    rows = rows_of(
        [paid], run="r", step=5, convention=PERMILLE, extra={"run_seed": 3, "config": "abc"}
    )
    for one in rows:
        check_row(one)
        json.dumps(one, allow_nan=False)
    assert [one["hit"] for one in rows] == [True, True, False, False]
    assert [one["zooms"] for one in rows] == [0, 1, 0, 0]
    assert [one["masked"] for one in rows] == [False, False, False, True]
    assert sum(one["advantage"] for one in rows) == pytest.approx(0)
    assert rows[0]["advantage"] > rows[1]["advantage"] > rows[2]["advantage"]
    assert {one["seed"] for one in rows} == {7, 8, 9, 10}
    assert all(one["group_kept"] and not one["group_constant"] for one in rows)
    assert rows[0]["confidence"] == pytest.approx(np.exp(-0.5))
    assert (rows[0]["step"], rows[0]["run_seed"], rows[0]["config"]) == (5, 3, "abc")


def test_a_truncated_episode_is_paid_and_counted_but_not_learned_from() -> None:
    paid = paid_group(group(), config=GroundingConfig())
    assert paid.learned == [True, True, True, False]
    assert Tally.of([paid]).counts["truncated"] == 1


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    config = GroundingConfig()
    groups = [paid_group(group(), config=config), paid_group(group()[::-1], config=config)]
    whole, parts = Tally.of(groups), Tally()
    for one in groups:
        parts.add(Tally.of([one]))
    assert dict(whole.counts) == pytest.approx(dict(parts.counts))
    shares = whole.shares(episodes=8, groups=2)
    assert shares["hit"] == 0.5 and shares["zoomed"] == 0.25 and shares["truncated"] == 0.25
    assert shares["tokens_written"] == 3 and shares["entropy"] == pytest.approx(0.25)
    assert shares["reward"] == pytest.approx(
        sum(value for name, value in shares.items() if name.startswith("reward_"))
    )
    assert shares["groups_taught"] == 1 and shares["groups_left_out"] == 0
    seen = whole.signs()
    assert (seen.answers, seen.taught, seen.zooms) == (0.75, 1, 0.25)
    measured = whole.measured(boxes=True)
    assert measured["accuracy"] == 0.5 and measured["iou_50"] == 0.5
    assert "iou_50" not in whole.measured(boxes=False), "a point overlaps nothing"


def test_a_single_episode_is_measured_without_a_group() -> None:
    paid = paid_group([episode(0)], config=GroundingConfig())
    assert paid.judged.advantages == [0.0] and not paid.judged.teaches


def test_seeds_depend_on_run_step_place_sample_and_number_alone() -> None:
    known: dict[str, Any] = {"step": 3, "place": 0, "sample": "a"}
    seeds = episode_seeds(0, **known, group=8)
    assert len(set(seeds)) == 8 and all(0 <= one < 2**63 for one in seeds)
    assert episode_seeds(0, **known, group=4) == seeds[:4]
    for other in ({"step": 4}, {"sample": "b"}, {"place": 1}):
        assert not set(episode_seeds(0, group=8, **{**known, **other})) & set(seeds)
    assert not set(episode_seeds(1, **known, group=8)) & set(seeds)


# order ---------------------------------------------------------------------------------------


class Pages:
    """Targets of growing difficulty, four to a page; one picture is broken on demand."""

    def __init__(self, size: int, *, broken: int | None = None) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, position: int, /) -> Sample:
        made = sample(position, side=0.5 * (1 - position / self.size), group=position // 4)
        if position == self.broken:
            return Sample(**{**made.__dict__, "images": (b"no picture",)})
        return made

    def groups(self) -> list[list[int]]:
        return [list(range(start, start + 4)) for start in range(0, self.size, 4)]

    def fingerprint(self) -> str:
        return "pages"


def test_every_target_comes_once_per_epoch_and_pages_are_mixed() -> None:
    order = order_of(Targets(Pages(80), seed=1), seed=1)
    first, second = order.take(0, 80), order.take(80, 80)
    assert sorted(first) == sorted(second) == list(range(80)) and first != second
    steps = [first[start : start + 8] for start in range(0, 80, 8)]
    assert min(len({one // 4 for one in step}) for step in steps) >= 5


def test_easy_targets_come_first_and_hard_ones_one_by_one() -> None:
    order = order_of(Targets(Pages(200), seed=1, easy=300), seed=1)
    seen = np.array(order.take(0, 800))
    for start in range(0, 300, 50):
        known = FIRST_SHARE + (1 - FIRST_SHARE) * (start + 50) / 300
        assert seen[start : start + 50].max() <= 200 * known + 1
    assert seen[:50].mean() < seen[100:150].mean() < seen[250:300].mean()
    assert sorted(seen[400:600]) == list(range(200)), "later epochs are whole"
    again = order_of(Targets(Pages(200), seed=1, easy=300), seed=1)
    assert again.take(123, 50) == seen[123:173].tolist(), "a resumed run jumps there"


def test_a_picture_that_cannot_be_decoded_is_a_broken_row() -> None:
    source = Targets(Pages(8, broken=3), seed=0)
    assert source[2].images[0].size == (64, 48)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="s3"):
        source[3]
