"""ARC tasks: read, laid out as published, augmented and undone exactly, voted and submitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.errors import InputError
from saccade.config.grids import ArcSource, ArraysSource, ColumnsSource
from saccade.data.generate.puzzles import IGNORED, INPUT, PUZZLE, TARGET
from saccade.data.grids.arc import Pair, Task, read_tasks, tasks_in_common
from saccade.data.grids.arrays import BLANK, PuzzleArrays, build_arc
from saccade.data.grids.augment import Augmentation, SudokuShuffle, parse_name, variants
from saccade.data.grids.canvas import EOS, Grid, crop, grid_hash, place
from saccade.data.grids.columns import DIGITS, MAZE, build_columns, to_text
from saccade.data.grids.source import VARIANT, ArcPuzzles, ColumnPuzzles, StoredPuzzles
from saccade.data.grids.submission import (
    baseline_score,
    copy_input,
    make_submission,
    paint_majority,
    score_submission,
    write_submission,
)
from saccade.data.grids.vote import Ballot, pass_at_k
from saccade.data.samples import DataError
from saccade.data.sources import open_source

grids = st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 10, drawn[:2]).astype(np.uint8)
)
augmentations = st.tuples(st.integers(0, 7), st.permutations(range(1, 10))).map(
    lambda drawn: Augmentation(drawn[0], (0, *drawn[1]))
)


def grid(*rows: str) -> Grid:
    return np.array([[int(cell) for cell in row] for row in rows], dtype=np.uint8)


def task(name: str = "flip", *, tests: int = 1) -> Task:
    pairs = [
        Pair(grid("123", "450"), grid("321", "054")),
        Pair(grid("11", "20"), grid("11", "02")),
        Pair(grid("7080"), grid("0807")),
        Pair(grid("55", "60"), grid("55", "06")),
    ]
    return Task(name, train=tuple(pairs[:2]), test=tuple(pairs[2 : 2 + tests]))


def as_json(one: Task, *, solved: bool = True) -> dict[str, Any]:
    def row(pair: Pair, *, whole: bool) -> dict[str, Any]:
        assert pair.output is not None
        output = {"output": pair.output.tolist()} if whole else {}
        return {"input": pair.input.tolist(), **output}

    return {
        "train": [row(pair, whole=True) for pair in one.train],
        "test": [row(pair, whole=solved) for pair in one.test],
    }


@given(grids, augmentations)
def test_an_augmentation_and_its_inverse_are_the_identity(one: Grid, how: Augmentation) -> None:
    assert np.array_equal(how.undo(how.apply(one)), one)
    assert np.array_equal(how.apply(how.undo(one)), one)
    assert parse_name(how.name("a|||b")) == ("a|||b", how)


def test_the_eight_symmetries_are_distinct_and_follow_the_published_order() -> None:
    one = grid("12", "34")
    shown = [Augmentation(number).apply(one).tolist() for number in range(8)]
    assert shown == [
        [[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]],
        [[2, 1], [4, 3]], [[3, 4], [1, 2]], [[1, 3], [2, 4]], [[4, 2], [3, 1]],
    ]  # fmt: skip


@given(grids)
def test_a_canvas_gives_its_grid_back(one: Grid) -> None:
    assert np.array_equal(crop(place(one)), one)


def test_the_canvas_has_the_published_layout() -> None:
    canvas = place(grid("01", "90"), shape=(4, 4), row=1, column=0).reshape(4, 4)
    assert canvas.tolist() == [[0, 0, 0, 0], [2, 3, EOS, 0], [11, 2, EOS, 0], [EOS, EOS, 0, 0]]
    full = place(np.zeros((4, 4), np.uint8), shape=(4, 4))
    assert (full == 2).all()
    with pytest.raises(ValueError, match="leaves a canvas"):
        place(grid("12"), shape=(4, 4), column=3)


def test_cropping_takes_the_largest_rectangle_at_the_corner() -> None:
    ragged = np.array([[2, 3, 4, 1], [5, 6, 1, 0], [7, 8, 0, 0], [1, 1, 0, 0]])
    assert crop(ragged, shape=(4, 4)).tolist() == [[0, 1], [3, 4], [5, 6]]
    assert crop(np.ones(16, dtype=np.int64), shape=(4, 4)).shape == (0, 0)


def test_hashes_tell_shapes_apart() -> None:
    assert grid_hash(grid("1122")) != grid_hash(grid("11", "22"))
    assert grid_hash(np.asfortranarray(grid("12", "34"))) == grid_hash(grid("12", "34"))


def test_variants_are_distinct_transform_both_grids_alike_and_come_back() -> None:
    made = variants(task(), count=50, rng=np.random.default_rng(0))
    assert len(made) == 51 and made[0].name == "flip"
    seen = {tuple(grid_hash(p.input) for p in one.pairs()) for one in made}
    assert len(seen) == 51
    for one in made:
        name, how = parse_name(one.name)
        assert name == "flip"
        for variant, pair in zip(one.pairs(), task().pairs(), strict=True):
            assert variant.output is not None and pair.output is not None
            assert np.array_equal(how.undo(variant.input), pair.input)
            assert np.array_equal(how.undo(variant.output), pair.output)


def test_a_task_with_few_variants_gets_fewer() -> None:
    blank = Pair(grid("0"), grid("0"))
    only = Task("blank", train=(blank,), test=(blank,))
    assert len(variants(only, count=20, rng=np.random.default_rng(0))) == 1


@given(st.integers(0, 2**32 - 1))
def test_a_sudoku_shuffle_keeps_the_rules_and_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:9, 0:9]
    board = ((row * 3 + row // 3 + column) % 9 + 1).astype(np.uint8)
    how = SudokuShuffle.draw(rng)
    other = how.apply(board)
    boxes = other.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
    for lines in (other, other.T, boxes):
        assert (np.sort(lines, axis=1) == np.arange(1, 10)).all()
    assert np.array_equal(how.undo(other), board)


def test_the_three_layouts_give_the_same_tasks(tmp_path: Path) -> None:
    one, other = task("aa", tests=2), task("bb")
    split = tmp_path / "split" / "kind"
    split.mkdir(parents=True)
    for each in (one, other):
        (split / f"{each.name}.json").write_text(json.dumps(as_json(each)))
    kaggle = tmp_path / "kaggle"
    kaggle.mkdir()
    unsolved = {each.name: as_json(each, solved=False) for each in (one, other)}
    (kaggle / "x_challenges.json").write_text(json.dumps(unsolved))
    without = read_tasks(kaggle)
    assert all(pair.output is None for each in without for pair in each.test)
    solutions = {e.name: [r["output"] for r in as_json(e)["test"]] for e in (one, other)}
    (kaggle / "x_solutions.json").write_text(json.dumps(solutions))
    for path in (tmp_path / "split", kaggle, kaggle / "x_challenges.json"):
        read = read_tasks(path)
        assert [each.name for each in read] == ["aa", "bb"]
        assert [as_json(each) for each in read] == [as_json(one), as_json(other)]
    assert [t.name for t in read_tasks(split / "aa.json")] == ["aa"]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{", "not JSON"),
        ('{"test": []}', "no list 'train'"),
        ('{"train": [], "test": []}', "'train' is empty"),
        ('{"train": [{"input": [[1]], "output": [[1]]}], "test": []}', "'test' is empty"),
        ('{"train": [{"input": [[1]], "output": [[10]]}], "test": [[]]}', "holds the value 10"),
        ('{"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [[]]}', "not a grid"),
        ('{"train": [{"input": [[1]]}], "test": [[]]}', "train 0: output is not a grid"),
    ],
)
def test_a_broken_task_is_named_with_its_place(tmp_path: Path, broken: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(broken)
    with pytest.raises(DataError, match=message) as caught:
        read_tasks(tmp_path)
    assert "bad.json" in caught.value.where


def test_two_tasks_of_one_name_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tasks"):
        read_tasks(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.json").write_text(json.dumps(as_json(task())))
    with pytest.raises(DataError, match="a second task is called same"):
        read_tasks(tmp_path)


def test_shared_tasks_are_found_by_content() -> None:
    assert tasks_in_common([task("new")], [task("old")]) == [("new", "old")]
    assert tasks_in_common([task("new")], []) == []


def test_arc_arrays_have_the_published_boundaries() -> None:
    split = build_arc([task("a")], [task("b", tests=2)], augmentations=3, seed=0, shape=(6, 6))
    train, test = split.train, split.test
    assert train.group_indices.tolist() == [0, 4, 8]
    assert test.group_indices.tolist() == [0, 4]
    # `a` is trained on whole (2 + 1), of `b` only the two demonstrations
    assert np.diff(train.puzzle_indices).tolist() == [3] * 4 + [2] * 4
    assert np.diff(test.puzzle_indices).tolist() == [2] * 4
    assert train.puzzle_identifiers.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert test.puzzle_identifiers.tolist() == [5, 6, 7, 8]
    assert train.identifiers[0] == "<blank>" and train.identifiers[1] == "a"
    assert train.identifiers[5] == "b" and train.identifiers == test.identifiers
    solution = task("b").test[0].output
    assert solution is not None
    assert np.array_equal(crop(test.labels[0], shape=(6, 6)), solution)
    assert (test.inputs[:, 0] >= 2).all()  # asked grids sit at the corner
    for puzzle in range(8):
        rows = train.inputs[train.puzzle_indices[puzzle] : train.puzzle_indices[puzzle + 1]]
        assert (rows[:, 0] >= 2).any()  # one demonstration always does


def test_columns_become_symbols_and_back(tmp_path: Path) -> None:
    row, column = np.mgrid[0:9, 0:9]
    board = ((row * 3 + row // 3 + column) % 9 + 1).reshape(-1)
    answer = "".join(map(str, board))
    question = "".join("." if i % 3 else answer[i] for i in range(81))
    file = tmp_path / "s.csv"
    file.write_text(f"source,question,answer,rating\nx,{question},{answer},7\n")
    arrays = build_columns(file, augmentations=2)
    assert arrays.vocabulary == 11 and arrays.inputs.shape == (3, 81)
    assert arrays.group_indices.tolist() == [0, 3]
    assert arrays.identifiers == (BLANK,)
    assert to_text(arrays.labels[0], alphabet=DIGITS) == answer
    assert to_text(arrays.inputs[0], alphabet=DIGITS) == question.replace(".", "0")
    assert sorted(arrays.labels[1]) == sorted(arrays.labels[0])
    (tmp_path / "m.csv").write_text("source,question,answer,rating\nx,S G#,SoG#,1\n")
    maze = build_columns(tmp_path / "m.csv", augmentations=7)
    assert maze.vocabulary == 6 and len(maze.inputs) == 8
    assert to_text(maze.labels[0], alphabet=MAZE) == "SoG#"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,123,123,1", "no square"),
        ("x,1234,123,1", "answer has 3 cells"),
        ("x,S? #,S? #,1", "unknown character '\\?'"),
        ("x,1234,1234,hard", "rating is not a number"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "s.csv"
    file.write_text(f"source,question,answer,rating\n{line}\n")
    with pytest.raises(DataError, match=message) as caught:
        build_columns(file)
    assert caught.value.where == f"{file}:2"


def vote(ballot: Ballot, name: str, pair: Pair, answer: Grid, *, q: float) -> None:
    _, how = parse_name(name)
    ballot.add_tokens(
        name,
        shown=place(how.apply(pair.input), shape=(8, 8)),
        predicted=place(how.apply(answer), shape=(8, 8)),
        halt_logit=q,
        shape=(8, 8),
    )


def test_votes_of_variants_add_up_under_the_original_and_rank_by_count_then_confidence() -> None:
    one = task()
    (asked,) = one.test
    assert asked.output is not None
    wrong, worse = grid("0000"), grid("1111")
    names = [v.name for v in variants(one, count=5, rng=np.random.default_rng(1))]
    first, second = Ballot(), Ballot()
    for i, name in enumerate(names):
        right = i in (0, 3, 4)
        vote(first if i % 2 else second, name, asked, asked.output if right else wrong, q=float(i))
    vote(second, names[1], asked, worse, q=9.0)
    first.merge(second)
    ranked = first.ranked("flip", asked.input)
    assert [c.votes for c in ranked] == [3, 3, 1]
    assert np.array_equal(ranked[1].grid, asked.output)  # equal votes: more confidence first
    assert pass_at_k(first, [one], ks=(1, 2)) == {1: 0.0, 2: 1.0}
    made = make_submission(first, [one])
    assert made == {"flip": [{"attempt_1": wrong.tolist(), "attempt_2": asked.output.tolist()}]}
    assert score_submission(made, [one]) == 1.0


def test_the_order_of_processes_does_not_change_the_ranking() -> None:
    one = task()
    (asked,) = one.test
    rng = np.random.default_rng(3)
    answers = [grid("0000"), grid("1111"), grid("2222")]
    ballots = [Ballot() for _ in range(3)]
    for number, ballot in enumerate(ballots):
        for answer in answers:
            vote(ballot, "flip", asked, answer, q=float(rng.normal()) + number)
    orders = []
    for order in ([0, 1, 2], [2, 0, 1]):
        total = Ballot()
        for number in order:
            total.merge(ballots[number])
        orders.append(
            [(grid_hash(c.grid), c.confidence) for c in total.ranked("flip", asked.input)]
        )
    assert orders[0] == orders[1]


def test_a_task_counts_by_its_tests_and_no_prediction_is_wrong() -> None:
    two = task(tests=2)
    ballot = Ballot()
    assert two.test[0].output is not None
    vote(ballot, "flip", two.test[0], two.test[0].output, q=0.0)
    assert pass_at_k(ballot, [two, task("other")], ks=(1, 1000)) == {1: 0.25, 1000: 0.25}
    made = make_submission(ballot, [two])
    assert made["flip"][1] == {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert score_submission(made, [two]) == 0.5


def test_a_submission_has_two_attempts_for_every_test(tmp_path: Path) -> None:
    file = tmp_path / "submission.json"
    write_submission(file, make_submission(Ballot(), [task(tests=2)]))
    entry = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert json.loads(file.read_text()) == {"flip": [entry, entry]}


def test_baselines_look_at_the_input_alone() -> None:
    same = Task("same", train=task().train, test=(Pair(grid("12"), grid("12")),))
    plain = Task("plain", train=task().train, test=(Pair(grid("112"), grid("111")),))
    assert baseline_score([same, plain], copy_input) == 0.5
    assert baseline_score([same, plain], paint_majority) == 0.5


def test_the_sources_share_puzzle_numbers_and_leave_padding_unasked(tmp_path: Path) -> None:
    (tmp_path / "flip.json").write_text(json.dumps(as_json(task())))
    settings: dict[str, Any] = {"type": "arc", "path": tmp_path, "augmentations": 2}
    train = open_source(ArcSource(split="train", **settings))
    test = open_source(ArcSource(split="test", **settings))
    assert isinstance(train, ArcPuzzles) and isinstance(test, ArcPuzzles)
    assert (len(train), len(test)) == (6, 3)
    assert train.identities == test.identities == 4
    assert train.length == test.length == 25 and train.vocabulary == 12
    numbers = {train[i].facts[PUZZLE]: train[i].facts[VARIANT] for i in range(6)}
    for i in range(3):
        sample = test[i]
        assert numbers[sample.facts[PUZZLE]] == sample.facts[VARIANT]
        target = sample.facts[TARGET]
        assert IGNORED in target and 0 not in target
        assert sample.facts[INPUT].shape == target.shape == (25,)
    assert test[0].question.splitlines()[0] == "7080|"
    assert test.tasks[0].name == "flip"


def test_training_whole_on_what_is_asked_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text(json.dumps(as_json(task())))
    source = ArcSource(type="arc", path=tmp_path / "one", also=[tmp_path / "two"])
    with pytest.raises(InputError, match="also trained on whole, such as one"):
        open_source(source)


def test_columns_open_as_a_source(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("source,question,answer,rating\nx,S G#,SoG#,1\n")
    source = open_source(ColumnsSource(type="columns", path=tmp_path / "m.csv"))
    assert isinstance(source, ColumnPuzzles)
    assert (source.kind, source.length, source.vocabulary) == ("maze", 4, 6)
    assert source[0].answer == "So\nG#"


def write_published(folder: Path, split: str, arrays: PuzzleArrays) -> None:
    """Arrays as the published builders write them."""
    (folder / split).mkdir(parents=True)
    names = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    for name in names:
        np.save(folder / split / f"all__{name}.npy", getattr(arrays, name))
    about = {
        "seq_len": arrays.length, "vocab_size": arrays.vocabulary, "pad_id": 0,
        "ignore_label_id": 0, "blank_identifier_id": 0,
        "num_puzzle_identifiers": len(arrays.identifiers), "total_groups": arrays.groups,
        "mean_puzzle_examples": 1.0, "sets": ["all"],
    }  # fmt: skip
    (folder / split / "dataset.json").write_text(json.dumps(about))
    (folder / "identifiers.json").write_text(json.dumps(arrays.identifiers))


def stored(folder: Path, **changes: Any) -> StoredPuzzles:
    source = open_source(ArraysSource(type="arrays", path=folder, **changes))
    assert isinstance(source, StoredPuzzles)
    return source


def test_arrays_of_the_published_builders_open_as_a_source(tmp_path: Path) -> None:
    split = build_arc([task("a")], [task("b", tests=2)], augmentations=3, seed=0, shape=(6, 6))
    write_published(tmp_path, "train", split.train)
    write_published(tmp_path, "test", split.test)
    train, test = stored(tmp_path), stored(tmp_path, split="test")
    assert (len(train), len(test)) == (len(split.train.inputs), len(split.test.inputs))
    assert (train.kind, train.length, train.vocabulary, train.identities) == ("arc", 36, 12, 9)
    assert train.digest == test.digest
    for position in (0, 7, len(train) - 1):
        sample = train[position]
        assert sample.facts[INPUT].tolist() == split.train.inputs[position].tolist()
        labels = split.train.labels[position]
        assert np.where(sample.facts[TARGET] == IGNORED, 0, sample.facts[TARGET]).tolist() == (
            labels.tolist()
        )
        number = split.train.puzzle_identifiers[split.train.puzzle_of(position)]
        assert sample.facts[PUZZLE] == number
        assert sample.facts[VARIANT] == split.train.identifiers[number]


def test_the_first_examples_of_arrays_keep_their_puzzles(tmp_path: Path) -> None:
    split = build_arc([task("a")], [task("b")], augmentations=3, seed=0, shape=(6, 6))
    write_published(tmp_path, "train", split.train)
    whole = stored(tmp_path)
    for limit in (1, 3, 4, 13, len(whole), 999):
        some = stored(tmp_path, limit=limit)
        assert len(some) == min(limit, len(whole))
        last = len(some) - 1
        assert some[last].facts[PUZZLE] == whole[last].facts[PUZZLE]
        assert some.identities == whole.identities


def test_arrays_without_names_or_of_other_symbols_are_read_and_broken_ones_named(
    tmp_path: Path,
) -> None:
    arrays = PuzzleArrays(
        inputs=np.array([[1, 2, 0], [3, 1, 1]], np.uint8),
        labels=np.array([[1, 2, 3], [3, 1, 0]], np.uint8),
        puzzle_identifiers=np.array([0, 2], np.int32),
        puzzle_indices=np.array([0, 1, 2], np.int32),
        group_indices=np.array([0, 2], np.int32), vocabulary=4,
    )  # fmt: skip
    write_published(tmp_path, "train", arrays)
    source = stored(tmp_path)
    assert (source.kind, source.identities, source.columns) == ("puzzle", 3, 3)
    assert source[1].question == "#!!"
    assert source[1].facts[VARIANT] == "puzzle-2"
    (tmp_path / "train" / "all__labels.npy").unlink()
    with pytest.raises(DataError, match="no puzzle arrays") as caught:
        stored(tmp_path)
    assert "train" in caught.value.where
    with pytest.raises(DataError, match="no puzzle arrays"):
        stored(tmp_path, split="test")
