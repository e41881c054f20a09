"""Public puzzles load by path alone, and every variant of every task comes back exactly.

Found through SACCADE_SHARED_DATA, else beside the repository in `shared/data`; skipped without.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from saccade.config.grids import ArcSource
from saccade.data.grids.arc import read_tasks, tasks_in_common
from saccade.data.grids.augment import parse_name, variants
from saccade.data.grids.canvas import crop, place
from saccade.data.grids.columns import build_columns
from saccade.data.grids.source import ArcPuzzles
from saccade.data.grids.submission import baseline_score, copy_input, paint_majority
from saccade.data.sources import open_source
from saccade.data.streams import TokenWindows, decode, text_documents

REPOSITORY = Path(__file__).resolve().parents[2]
BESIDE = REPOSITORY.parent / "shared" / "data"
# read at import: a fixture of conftest.py hides the variables of this name from each test
SHARED = Path(os.environ.get("SACCADE_SHARED_DATA", BESIDE))

CANVAS = (100, 100)


@pytest.fixture
def puzzles() -> Path:
    folder = SHARED / "puzzles"
    if not folder.is_dir():
        pytest.skip(f"no public data sets in {folder}; set SACCADE_SHARED_DATA to their folder")
    return folder


@pytest.mark.parametrize(
    ("place_of", "tasks"),
    [("mini-arc", 149), ("1d-arc", 450), ("arc/arc-agi_training_challenges.json", 400),
     ("arc/arc-agi_concept_challenges.json", 160)],
)  # fmt: skip
def test_every_variant_of_every_task_comes_back(puzzles: Path, place_of: str, tasks: int) -> None:
    read = read_tasks(puzzles / place_of)
    assert len(read) == tasks
    rng = np.random.default_rng(0)
    for task in read:
        for variant in variants(task, count=3, rng=rng):
            name, how = parse_name(variant.name)
            assert name == task.name
            for made, pair in zip(variant.pairs(), task.pairs(), strict=True):
                assert np.array_equal(how.undo(made.input), pair.input)
                assert made.output is not None and pair.output is not None
                canvas = place(made.output, shape=CANVAS)
                assert np.array_equal(how.undo(crop(canvas, shape=CANVAS)), pair.output)


def test_the_two_sets_of_the_kaggle_folder_read_as_one_without_common_tasks(puzzles: Path) -> None:
    assert len(read_tasks(puzzles / "arc")) == 560
    both = [read_tasks(puzzles / "arc" / f"arc-agi_{n}_challenges.json") for n in
            ("training", "concept")]  # fmt: skip
    assert tasks_in_common(*both) == []


def test_small_sets_open_by_configuration_alone_with_their_baselines(puzzles: Path) -> None:
    for name, shape in (("mini-arc", (6, 6)), ("1d-arc", (1, 94))):
        source = open_source(
            ArcSource(type="arc", path=puzzles / name, split="test", augmentations=2)
        )
        assert isinstance(source, ArcPuzzles)
        assert source.shape == shape
        assert source.length == shape[0] * shape[1]
        assert baseline_score(source.tasks, copy_input) < 0.02
        assert baseline_score(source.tasks, paint_majority) < 0.05


def test_published_columns_load(puzzles: Path) -> None:
    sudoku = build_columns(puzzles / "sudoku" / "test.csv", augmentations=1)
    assert sudoku.inputs.shape == (400, 81) and sudoku.vocabulary == 11
    maze = build_columns(puzzles / "maze" / "test.csv")
    assert maze.inputs.shape == (200, maze.length) and maze.vocabulary == 6


def test_stories_stream_as_bytes_and_come_back(puzzles: Path) -> None:
    file = puzzles.parent / "text" / "stories" / "valid.txt"
    documents = text_documents(file)
    windows = TokenWindows(documents, length=256)
    inputs = np.concatenate([windows[i][0] for i in range(len(windows))])
    whole = b"".join(document.read() for document in documents)
    assert decode(inputs) == whole
