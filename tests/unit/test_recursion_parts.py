"""Parts of recursive models around the published core: slots, halting, averages, extras, scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.carry import joined, restored
from saccade.models.recursion.core import Extra, Moment, State
from saccade.models.recursion.halting import halted, least_steps
from saccade.models.recursion.model import Geometry, RecursiveModel, load_model, save_model
from saccade.models.recursion.puzzle_embedding import PuzzleEmbedding, SignDescent
from saccade.models.recursion.trace import trace
from saccade.scoring.grids import (
    StepVerdicts,
    by_kind,
    careful_step,
    halting_step,
    metrics,
    summarise,
    tradeoff,
)
from saccade.training.averages import WeightAverage
from saccade.training.batches import SampleOrder, Share
from saccade.training.recipes.slots import SlotBatches, Slots, no_samples

LENGTH, VOCABULARY = 6, 5


def settings(**changes: Any) -> RecursionConfig:
    chosen: dict[str, Any] = {
        "width": 16, "heads": 2, "mixer": "mlp", "positions": "none", "cycles": 2,
        "inner_cycles": 1, "ffn_multiple": 8, "max_steps": 4,
    }  # fmt: skip
    return RecursionConfig(**{**chosen, **changes})


def model(*extras: Extra, **changes: Any) -> RecursiveModel:
    torch.manual_seed(0)
    return RecursiveModel(settings(**changes), Geometry(LENGTH, VOCABULARY, 3), extras=extras)


def fresh(count: int, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": ids.flip(1), "puzzles": torch.zeros(count).long()}


# slots -------------------------------------------------------------------------------------------


def play(share: Share, *, size: int, steps: int) -> list[list[int]]:
    """The samples that one process takes in each micro-batch, when slot g needs g + 1 steps."""
    slots = Slots(model(), share=share)
    order = SampleOrder([[i] for i in range(size)], seed=1, keep_order=False)
    batches = SlotBatches(order, slots=slots, steps=steps, first_step=lambda: 0)
    taken, micro = [], 0
    for positions in batches:
        carry = slots.refill(micro, fresh(len(positions)) if positions else no_samples(LENGTH))
        count = carry.steps + 1
        slot = torch.arange(len(carry)) + slots.first_slot(micro)
        state = State(carry.y, carry.z)
        slots.carries[micro] = carry.after(state, steps=count, halted=count > slot)
        taken.append(positions)
        micro = (micro + 1) % share.accumulation
    return taken


def test_every_sample_is_taken_once_per_epoch_by_slots_of_different_speed() -> None:
    taken = [one for step in play(Share(4, 1, 1, 0), size=12, steps=24) for one in step]
    order = SampleOrder([[i] for i in range(12)], seed=1, keep_order=False)
    # slot g takes every (g+1)-th step the next of the positions g, g + 4, ...
    for slot in range(4):
        wanted = [order.take(slot + 4 * n, 1)[0] for n in range(24 // (slot + 1))]
        steps = play(Share(4, 1, 1, 0), size=12, steps=24)
        got = []
        for number, step in enumerate(steps):
            active = [s for s in range(4) if number % (s + 1) == 0]
            if slot in active:
                got.append(step[active.index(slot)])
        assert got == wanted
    assert set(taken) == set(range(12))


def test_the_cut_of_a_step_changes_nothing_about_who_takes_what() -> None:
    whole = play(Share(4, 1, 1, 0), size=50, steps=9)
    cut = play(Share(2, 2, 1, 0), size=50, steps=9)
    ranks = [play(Share(2, 1, 2, rank), size=50, steps=9) for rank in (0, 1)]
    assert [a + b for a, b in zip(cut[::2], cut[1::2], strict=True)] == whole
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_saved_slots_come_back_in_another_cut() -> None:
    slots = Slots(model(), share=Share(4, 1, 1, 0))
    slots.refill(0, fresh(4))
    saved = slots.saved()
    two = Slots(model(), share=Share(2, 2, 1, 0))
    two.restore(saved)
    back = joined([carry.saved() for carry in two.carries])
    assert all(bool((back[name] == saved[name]).all()) for name in saved)
    part = restored(saved, first=1, slots=2, device=torch.device("cpu"))
    assert bool((part.input_ids == saved["input_ids"][1:3]).all())


def test_a_wrong_number_of_fresh_samples_is_noticed() -> None:
    carry = model().empty_carry(3)
    with pytest.raises(ValueError, match="one fresh sample"):
        carry.refilled(fresh(2), start=model().start(3))


# halting -----------------------------------------------------------------------------------------


def test_halting_waits_for_the_drawn_minimum_but_not_beyond_the_last_step() -> None:
    steps = torch.tensor([1, 1, 3, 4, 4])
    scores = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    least = torch.tensor([0, 0, 4, 4, 4])
    done = halted(steps, scores, least, max_steps=4)
    assert done.tolist() == [True, False, False, True, True]


def test_a_single_step_always_halts() -> None:
    ones = torch.ones(3, dtype=torch.long)
    assert bool(halted(ones, -ones.float(), ones * 0, max_steps=1).all())
    assert int(least_steps(8, seed=0, step=0, chance=1.0, max_steps=1).sum()) == 0


def test_minimums_are_drawn_anew_per_step_with_the_chance_asked_for() -> None:
    draws = torch.stack(
        [least_steps(64, seed=3, step=n, chance=0.25, max_steps=16) for n in range(200)]
    )
    assert float((draws > 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert set(draws.unique().tolist()) == {0, *range(2, 17)}
    again = least_steps(64, seed=3, step=7, chance=0.25, max_steps=16)
    assert bool((again == draws[7]).all())
    assert not bool((draws[8] == draws[7]).all())


def test_the_first_sure_step_is_where_a_sample_stops() -> None:
    scores = torch.tensor([[-1.0, 2.0, -1.0], [1.0, 2.0, -1.0], [-1.0, -1.0, -1.0]])
    assert [halting_step(one) for one in scores.T.tolist()] == [2, 1, 3]


# thinking ----------------------------------------------------------------------------------------


def test_thinking_is_what_the_carry_goes_through() -> None:
    thinker, batch = model().eval(), fresh(3)
    carry = thinker.empty_carry(3).refilled(batch, start=thinker.start(3))
    never = torch.full((3,), 9)
    seen = list(thinker.think(batch["input_ids"], batch["puzzles"], steps=3))
    for thought in seen:
        carry, step, _ = thinker.step(carry, least_B=never)
        assert bool((step.logits_BLV == thought.logits_BLV).all())
        assert not thought.logits_BLV.requires_grad
    assert torch.is_grad_enabled()


def test_a_trace_tells_answer_score_and_change_of_every_step() -> None:
    thinker, batch = model().eval(), fresh(4)
    batch["labels"][2, 1:] = -100
    traced = trace(thinker, *batch.values(), steps=5)
    thoughts = list(thinker.think(batch["input_ids"], batch["puzzles"], steps=5))
    for sample, one in enumerate(traced):
        assert one.answers_NL.shape == (5, LENGTH)
        for n, thought in enumerate(thoughts):
            said = thought.logits_BLV[sample].argmax(-1)
            counted = batch["labels"][sample] != -100
            hits = (said == batch["labels"][sample])[counted]
            assert one.answers_NL[n].tolist() == said.tolist()
            assert one.right[n] == bool(hits.all())
            assert one.cells[n] == pytest.approx(float(hits.float().mean()))
            assert one.halt[n] == pytest.approx(float(thought.halt_B[sample]))
        assert one.change[0] > 0


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    thinker, batch = model(puzzle_prefix=2).eval(), fresh(2)
    save_model(thinker, tmp_path / "model", weights=thinker.state_dict())
    again = load_model(tmp_path / "model")
    one, other = (
        list(m.think(batch["input_ids"], batch["puzzles"], steps=2))[-1].logits_BLV
        for m in (thinker, again)
    )
    assert bool((one == other).all())


class Loud(Extra):
    """An extra that uses every seam."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def inject(self, x_BSD: Tensor, state: State) -> Tensor:
        return x_BSD * (1 + self.weight)

    def revise(self, state: State, *, update: Callable[[Tensor], Tensor]) -> State:
        return State(state.y * self.weight, state.z)

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        return {"loud": self.weight * torch.ones(len(moment.labels_BL))}


def test_an_extra_joins_the_recursion_and_gets_gradient() -> None:
    plain, loud = model(), model(Loud())
    assert set(dict(loud.named_parameters())) - set(dict(plain.named_parameters())) == {
        "core.extras.0.weight"
    }
    totals = []
    for one in (plain, loud):
        carry = one.empty_carry(2).refilled(fresh(2), start=one.start(2))
        _, _, losses = one.step(carry, least_B=torch.zeros(2, dtype=torch.long))
        totals.append(losses.answer_B.sum())
        assert list(losses.extras) == (["loud"] if one is loud else [])
    totals[1].backward()
    assert float(totals[0].detach()) != float(totals[1].detach())
    extra = loud.core.extras[0]
    assert isinstance(extra, Loud)
    assert extra.weight.grad is not None
    assert float(extra.weight.grad.abs()) > 0


# weights -----------------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_leaves_the_weights_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    average = WeightAverage(layer, decay=0.9)
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1.0
    average.update(layer)
    torch.testing.assert_close(average.tensors["weight"], first + 0.1)
    with average.in_place_of(layer):
        torch.testing.assert_close(layer.weight.detach(), first + 0.1)
    torch.testing.assert_close(layer.weight.detach(), first + 1.0)


def test_rows_nobody_used_keep_their_values_and_evaluation_collects_nothing() -> None:
    embedding = PuzzleEmbedding(5, prefix=3, width=4)
    embedding.table_ND += 1.0
    out = embedding(torch.tensor([1, 3, 1]))
    assert out.shape == (3, 3, 4)
    assert float(out[:, 1:].abs().sum()) == 0
    (out[:, 0] * torch.tensor([1.0, 2.0, -5.0])[:, None]).sum().backward()
    SignDescent(embedding, lr=0.5, weight_decay=0.1).step(factor=0.5)
    assert embedding.table_ND[:, 0].tolist() == pytest.approx([1, 0.975 + 0.25, 1, 0.975 - 0.25, 1])
    embedding.eval()
    embedding(torch.tensor([1]))
    assert embedding.waiting == []


# scores ------------------------------------------------------------------------------------------


def test_scores_per_step_and_with_halting() -> None:
    verdicts = [
        StepVerdicts([False, True, True], [0.5, 1, 1], [-1, 1, 2], "easy"),
        StepVerdicts([False, True, False], [0, 1, 0.5], [-1, -2, -3], "hard"),
    ]
    found = summarise(verdicts)
    assert found["accuracy"] == 0.5
    assert found["accuracy_by_step"] == [0.0, 1.0, 0.5]
    assert found["cells_by_step"] == [0.25, 1.0, 0.75]
    assert found["overthinking"] == 0.5
    stopped = {
        "accuracy": 0.5, "mean_steps": 2.5, "histogram": {"1": 0, "2": 1, "3": 1},
    }  # fmt: skip
    assert found["published"] == stopped
    assert found["halting"]["mean_steps"] == 3.0  # not sure enough at the second step
    assert found["halting"]["sure"] == 0.5
    assert by_kind(verdicts)["hard"]["accuracy"] == 0.0
    assert metrics(found)["accuracy_step_2"] == 1.0


def test_a_careful_sample_stops_when_it_is_sure_or_settled() -> None:
    sure = StepVerdicts([True] * 3, [1.0] * 3, [1.0, 4.0, 4.0])
    settled = StepVerdicts([True] * 3, [1.0] * 3, [1.0, 1.0, 1.0], same=[False, True, True])
    unsure = StepVerdicts([True] * 3, [1.0] * 3, [-1.0] * 3, same=[False, True, True])
    steps = [careful_step(one, confidence=0.95) for one in (sure, settled, unsure)]
    assert steps == [2, 2, 3]
    assert careful_step(settled, confidence=0.5) == 1
    rows = tradeoff([sure, settled, unsure])
    assert [row["mean_steps"] for row in rows] == sorted(row["mean_steps"] for row in rows)
