"""Sample order as a pure function, dealt out equally whatever the batch shape."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.data.samples import DataError, Sample
from saccade.training.batches import (
    Loaded,
    LoadedSamples,
    SampleOrder,
    Share,
    StepBatches,
)

GROUPS = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [10]]


def order(groups: list[list[int]] = GROUPS, *, seed: int = 0, keep: bool = False) -> SampleOrder:
    return SampleOrder(groups, seed=seed, keep_order=keep)


@given(start=st.integers(0, 200), count=st.integers(1, 40), seed=st.integers(0, 5))
def test_any_stretch_equals_the_same_stretch_of_the_whole(
    start: int, count: int, seed: int
) -> None:
    assert order(seed=seed).take(start, count) == order(seed=seed).take(0, start + count)[start:]


def test_every_epoch_holds_each_sample_once_in_another_order() -> None:
    epochs = [order().take(11 * number, 11) for number in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert order(seed=1).take(0, 11) != order(seed=0).take(0, 11)


def test_samples_of_one_image_stay_adjacent() -> None:
    for number in range(5):
        epoch = order().take(11 * number, 11)
        for group in GROUPS:
            start = epoch.index(group[0])
            assert epoch[start : start + len(group)] == group


def test_a_batch_of_sixteen_with_four_questions_each_shows_four_images() -> None:
    groups = [[4 * image + question for question in range(4)] for image in range(50)]
    whole = order(groups)
    for step in range(30):
        assert len({index // 4 for index in whole.take(16 * step, 16)}) == 4


def test_an_ordered_source_is_played_as_it_is() -> None:
    assert order(keep=True).take(0, 22) == list(range(11)) * 2


def dealt(share: Iterable[Share], *, step: int) -> list[int]:
    taken: list[int] = []
    for one in share:
        batches = StepBatches(order(), share=one, steps=step + 1, first_step=lambda: step)
        taken += [index for batch in batches for index in batch]
    return taken


@pytest.mark.parametrize("step", [0, 1, 7])
def test_batch_accumulation_and_processes_see_the_same_samples(step: int) -> None:
    one = dealt([Share(8, 1, 1, 0)], step=step)
    accumulated = dealt([Share(4, 2, 1, 0)], step=step)
    two = dealt([Share(4, 1, 2, rank) for rank in range(2)], step=step)
    both = dealt([Share(2, 2, 2, rank) for rank in range(2)], step=step)
    assert one == accumulated == two == both
    assert one == order().take(8 * step, 8)


def test_the_length_counts_all_steps_and_iteration_begins_at_the_current_one() -> None:
    batches = StepBatches(order(), share=Share(2, 3, 1, 0), steps=10, first_step=lambda: 7)
    assert len(batches) == 30
    assert len(list(batches)) == 9


class Rows:
    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 5

    def __getitem__(self, position: int, /) -> Sample:
        if position in self.broken:
            raise DataError("no such image", where=f"row {position}")
        return Sample(id=str(position), question="", answers=("",))

    def groups(self) -> list[list[int]]:
        return [[index] for index in range(5)]

    def fingerprint(self) -> str:
        return "rows"


def test_a_broken_row_stops_or_is_replaced_by_the_next_whole_one() -> None:
    with pytest.raises(DataError, match="row 4"):
        LoadedSamples(Rows({4, 0}), skip_broken=False)[4]
    loaded = LoadedSamples(Rows({4, 0}), skip_broken=True)[4]
    assert loaded == Loaded(Rows(set())[1], problem="row 4: no such image")


def test_a_source_of_broken_rows_only_stops_even_when_skipping() -> None:
    with pytest.raises(DataError, match="row 2"):
        LoadedSamples(Rows(set(range(5))), skip_broken=True)[2]
