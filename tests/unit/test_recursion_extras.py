"""Extras of recursive models: each gets gradient, changes the loss when it is on, and does its job.

For every extra and every part that can be switched: its parameters receive gradient, and with it
the loss is another one (with equal weights elsewhere). What has no parameters and acts only when
answering changes what answers cost; what only watches changes nothing. Then what is particular to
each: memory really writes, dead codes wake, Q-values learn when to stop, noise depends on the
puzzle alone, and so on.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.config.recursion import RecursionConfig
from saccade.config.recursion_extras import QHaltingConfig
from saccade.models.recursion.core import State
from saccade.models.recursion.extras.cheap import steps_ahead
from saccade.models.recursion.extras.codebook import Codebook
from saccade.models.recursion.extras.flow import verdict
from saccade.models.recursion.extras.memory import MemoryBank
from saccade.models.recursion.extras.q_halting import GO_ON, STOP, QHalting, Replay, turned_round
from saccade.models.recursion.model import Geometry, RecursiveModel
from saccade.models.recursion.trace import trace

LENGTH, VOCABULARY, SLOTS = 6, 5, 4
EXTRAS: dict[str, dict[str, Any]] = {
    "planning": {"paths": 3, "depth": 2},
    "memory": {"capacity": 4, "writes": 2},
    "codebook": {"codes": 8, "width": 4, "dead_after": 3},
    "mtp": {"depths": 2},
    "q_halting": {"hidden": 8, "capacity": 16},
    "cheap": {"random_depth": 3},
    "distill": {},
}


def model(*names: str, capsules: int = 0, **changes: Any) -> RecursiveModel:
    """A small model; its common weights are the same whatever is added."""
    chosen: dict[str, Any] = {
        "width": 16, "heads": 2, "mixer": "mlp", "positions": "none", "cycles": 2,
        "inner_cycles": 2, "ffn_multiple": 8, "max_steps": 4, "eval_steps": 3,
    }  # fmt: skip
    extras = {name: {"enabled": True, **EXTRAS[name]} for name in names}
    torch.manual_seed(0)
    plain = RecursiveModel(RecursionConfig(**chosen), Geometry(LENGTH, VOCABULARY, 3))
    torch.manual_seed(1)
    config = RecursionConfig(**{**chosen, **extras, **changes})
    made = RecursiveModel(config, Geometry(LENGTH, VOCABULARY, 3, capsules, 5 if capsules else 0))
    if not capsules:
        made.load_state_dict(plain.state_dict(), strict=False)
    return made


def batch(seed: int = 0, capsules: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (SLOTS, LENGTH), generator=generator)
    return {
        "input_ids": ids, "labels": ids.flip(1), "puzzles": torch.zeros(SLOTS).long(),
        "capsules": torch.randn(SLOTS, capsules, 5, generator=generator),
    }  # fmt: skip


def stepped(one: RecursiveModel, fresh: dict[str, Tensor], **more: Any) -> Any:
    carry = one.empty_carry(SLOTS).refilled(fresh, start=one.start(SLOTS))
    return one.step(carry, least_B=torch.zeros(SLOTS, dtype=torch.long), **more)


def total(losses: Any) -> Tensor:
    own = losses.answer_B.sum() + 0.5 * losses.halt_B.sum()
    return own + sum(term.sum() for term in losses.extras.values())


def prepared(name: str) -> RecursiveModel:
    """The model with one extra that has something to work with."""
    one = model(name)
    extra = one.core.extras[0] if len(one.core.extras) else None
    if isinstance(extra, MemoryBank):
        extra.answers_MD.normal_()
        extra.latents_MD.normal_()
        extra.filled.fill_(4)
    if isinstance(extra, QHalting):
        width = 16
        extra.replay.add({
            "state": torch.randn(8, width), "after": torch.randn(8, width),
            "action": torch.tensor([0, 1] * 4), "reward": torch.randn(8),
            "ended": torch.tensor([False, True] * 4),
        })  # fmt: skip
        extra.practise(seed=0, step=0, slots=SLOTS, first=0, count=SLOTS)
    return one


@pytest.mark.parametrize("name", EXTRAS)
def test_every_parameter_of_an_extra_gets_gradient(name: str) -> None:
    one = prepared(name)
    _, _, losses = stepped(one, batch())
    total(losses).backward()
    for parameter, tensor in one.named_parameters():
        assert tensor.grad is not None, parameter
        assert float(tensor.grad.abs().sum()) > 0, parameter


@pytest.mark.parametrize("name", EXTRAS)
def test_switching_an_extra_on_changes_the_loss(name: str) -> None:
    ahead = {"ahead": 1} if name == "cheap" else {}
    plain = total(stepped(model(), batch())[2]).detach()
    with_it = total(stepped(prepared(name), batch(), **ahead)[2]).detach()
    assert float((plain - with_it).abs()) > 1e-4


PARTS: dict[str, dict[str, Any]] = {
    "attention": {"mixer": "attention"},
    "rotation": {"mixer": "attention", "positions": "rope"},
    "learned positions": {"positions": "learned"},
    "causal": {"mixer": "attention", "causal": True},
    "puzzle embeddings": {"mixer": "attention", "puzzle_prefix": 2},
    "softmax": {"loss": "softmax"},
    "depth": {"layers": 3},
    "cycles": {"cycles": 3},
    "inner cycles": {"inner_cycles": 3},
}
SWITCHED_FROM: dict[str, dict[str, Any]] = dict.fromkeys(
    ("rotation", "causal", "puzzle embeddings"), PARTS["attention"]
)


@pytest.mark.parametrize("name", PARTS)
def test_every_parameter_of_a_part_gets_gradient_and_switching_it_changes_the_loss(
    name: str,
) -> None:
    one, before = model(**PARTS[name]), model(**SWITCHED_FROM.get(name, {}))
    before.load_state_dict(one.state_dict(), strict=False)
    losses = total(stepped(one, batch())[2])
    losses.backward()
    for parameter, tensor in one.named_parameters():
        assert tensor.grad is not None, parameter
        assert float(tensor.grad.abs().sum()) > 0, parameter
    if one.puzzle is not None:  # a table, not a parameter: its rows' gradients wait for their step
        ((_, gradient),) = one.puzzle.waiting
        assert float(gradient.abs().sum()) > 0
    assert float((total(stepped(before, batch())[2]) - losses).detach().abs()) > 1e-4


def test_the_halting_score_is_learned_and_its_weight_counts() -> None:
    one = model()
    _, _, losses = stepped(one, batch())
    losses.halt_B.sum().backward()
    for parameter in one.core.halt_head.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    assert float(losses.halt_B.detach().sum()) > 1e-4


def test_noise_has_nothing_to_learn_and_changes_what_answers_cost() -> None:
    plain, fresh = model(), batch()
    noisy = model(noise={"enabled": True, "rollouts": 3, "std": 2.0})
    plain.core.halt_head.weight.data.normal_()  # or no rollout is better than another
    noisy.load_state_dict(plain.state_dict())
    assert [n for n, _ in noisy.named_parameters()] == [n for n, _ in plain.named_parameters()]
    ids = {name: fresh[name] for name in ("input_ids", "labels", "puzzles")}
    said = [trace(one.eval(), *ids.values(), steps=3) for one in (plain, noisy)]
    halts = [torch.tensor([one.halt for one in answers]) for answers in said]
    cost = [torch.nn.functional.softplus(one).sum() for one in halts]
    assert float((cost[0] - cost[1]).abs()) > 1e-4
    training = [total(stepped(one.train(), fresh)[2]).detach() for one in (plain, noisy)]
    assert torch.equal(*training)  # it acts when answering alone


def test_watching_the_flow_has_nothing_to_learn_and_changes_nothing_but_what_is_told() -> None:
    plain, watched = model(), model(flow={"enabled": True})
    watched.load_state_dict(plain.state_dict())
    assert [n for n, _ in watched.named_parameters()] == [n for n, _ in plain.named_parameters()]
    losses = [total(stepped(one, batch())[2]) for one in (plain, watched)]
    for one in losses:
        one.backward()
    assert torch.equal(losses[0].detach(), losses[1].detach())
    for (name, a), (_, b) in zip(plain.named_parameters(), watched.named_parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name
    assert plain.core.flow is None
    assert watched.core.flow is not None
    assert list(watched.core.flow.read()) == ["think1", "think2", "answer"]


def test_extras_are_off_by_default() -> None:
    settings = RecursionConfig()
    for name in [*EXTRAS, "noise", "flow"]:
        assert not getattr(settings, name).enabled


def test_capsules_are_read_get_gradient_and_change_the_loss() -> None:
    one, fresh = model(capsules=3), batch(capsules=3)
    _, _, losses = stepped(one, fresh)
    total(losses).backward()
    assert one.capsules is not None
    for name, parameter in one.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0, name
    without = total(stepped(model(), batch())[2]).detach()
    assert float((without - total(losses).detach()).abs()) > 1e-4
    other = {**fresh, "capsules": fresh["capsules"].flip(0)}
    changed = total(stepped(one, other)[2]).detach()
    assert float((changed - total(losses).detach()).abs()) > 1e-4
    carry = one.empty_carry(SLOTS).refilled(fresh, start=one.start(SLOTS))
    assert torch.equal(carry.capsules, fresh["capsules"])
    said = trace(one.eval(), *fresh.values(), steps=2)
    assert said[0].answers_NL.shape == (2, LENGTH)


# memory ------------------------------------------------------------------------------------------


def alone(value: Any) -> list[Any]:
    return [value]


def learn(extra: MemoryBank, one: RecursiveModel, fresh: dict[str, Tensor]) -> State:
    labels = stepped(one.eval(), fresh)[1].logits_BLV.argmax(-1)
    one.train()
    _, thought, _ = stepped(one, {**fresh, "labels": labels})
    extra.learn(alone, step=0)
    return thought.state


def test_what_was_right_is_written_and_read_later() -> None:
    one, fresh = model("memory"), batch()
    (extra,) = one.core.extras
    assert isinstance(extra, MemoryBank)
    before = total(stepped(one, fresh)[2]).detach()
    extra.forget()
    state = learn(extra, one, fresh)
    assert int(extra.filled) == 2  # as many as may be written in a step
    torch.testing.assert_close(extra.answers_MD[:2], state.y.mean(1)[:2].detach())
    torch.testing.assert_close(extra.latents_MD[:2], state.z.mean(1)[:2].detach())
    after = total(stepped(one, fresh)[2]).detach()
    assert float((before - after).abs()) > 1e-6


def test_wrong_answers_are_not_written_and_the_least_read_row_makes_room() -> None:
    one, fresh = model("memory"), batch()
    (extra,) = one.core.extras
    assert isinstance(extra, MemoryBank)
    stepped(one, {**fresh, "labels": torch.full_like(fresh["labels"], 1)})
    extra.learn(alone, step=0)
    assert int(extra.filled) == 0
    for _ in range(2):
        learn(extra, one, fresh)
    assert int(extra.filled) == 4
    extra.read_M.copy_(torch.tensor([9.0, 9.0, 0.0, 9.0]))
    kept = extra.answers_MD.clone()
    learn(extra, one, batch(5))
    same = [torch.equal(a, b) for a, b in zip(kept, extra.answers_MD, strict=True)]
    assert same[2] is False
    assert sum(same) >= 2


# codebook ----------------------------------------------------------------------------------------


def test_codes_follow_the_states_that_chose_them_and_dead_ones_wake() -> None:
    one = model("codebook")
    (extra,) = one.core.extras
    assert isinstance(extra, Codebook)
    extra.codes_KC[0], extra.sums_KC[0] = 100.0, 100.0  # nobody chooses it
    for step in range(3):
        _, _, losses = stepped(one, batch(step))
        assert float(losses.extras["commitment"].detach().sum()) > 0
        extra.learn(alone, step=step)
        assert bool(extra.unused_K[0]) == (step < 2)
    assert float(extra.codes_KC[0].abs().max()) < 50
    h_NC = torch.randn(40, 4)
    chosen = extra.nearest(h_NC)
    wanted = (h_NC[:, None] - extra.codes_KC).square().sum(-1).argmin(-1)
    assert torch.equal(chosen, wanted)
    counts = extra.counts_K.clone()
    sums = extra.sums_KC.clone()
    extra._seen = [h_NC]
    extra.learn(alone, step=9)
    number = int(chosen[0])
    mine = h_NC[chosen == number]
    count = 0.99 * counts[number] + 0.01 * len(mine)
    torch.testing.assert_close(extra.counts_K[number], count)
    code = (0.99 * sums[number] + 0.01 * mine.sum(0)) / (count + 1e-5)
    torch.testing.assert_close(extra.codes_KC[number], code)


# halting by value --------------------------------------------------------------------------------


def test_the_target_is_double_dqns() -> None:
    one = prepared("q_halting")
    (extra,) = one.core.extras
    assert isinstance(extra, QHalting)
    with torch.no_grad():
        for parameter in extra.values.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert extra.places is not None
    took = extra.replay.take(extra.places)
    losses = stepped(one, batch())[2].extras["q"]
    for slot in range(SLOTS):
        state, after = took["state"][slot].float(), took["after"][slot].float()
        target = took["reward"][slot]
        if not took["ended"][slot]:
            target = target + extra.slow_values(after)[int(extra.values(after).argmax())]
        far = float(extra.values(state)[int(took["action"][slot])] - target)
        huber = 0.5 * far**2 if abs(far) < 1 else abs(far) - 0.5
        assert float(losses[slot].detach()) == pytest.approx(huber, abs=1e-5)


def test_values_learn_to_stop_where_more_thinking_does_not_pay() -> None:
    """Two kinds of state: done already, and right only after one more step."""
    torch.manual_seed(0)
    rule = QHaltingConfig(enabled=True, step_cost=0.1, target_rate=0.1)
    config = RecursionConfig(width=16, heads=2, q_halting=rule)
    extra = QHalting(config)
    done, later = torch.randn(2, 16)
    extra.replay.add({
        "state": torch.stack((done, done, later, later)),
        "after": torch.stack((done, done, later, done)),
        "action": torch.tensor([STOP, GO_ON, STOP, GO_ON]),
        "reward": torch.tensor([1.0, -0.1, 0.0, -0.1]),
        "ended": torch.tensor([True, False, True, False]),
    })  # fmt: skip
    optimizer = torch.optim.Adam(extra.values.parameters(), lr=3e-3)
    for step in range(300):
        extra.learn(alone, step=step)
        places = torch.randint(0, len(extra.replay), (16,))
        took = extra.replay.take(places)
        said = extra.values(took["state"].float()).gather(-1, took["action"][:, None])[:, 0]
        with torch.no_grad():
            best = extra.values(took["after"].float()).argmax(-1, keepdim=True)
            more = extra.slow_values(took["after"].float()).gather(-1, best)[:, 0]
            target = took["reward"] + more * ~took["ended"]
        optimizer.zero_grad()
        torch.nn.functional.smooth_l1_loss(said, target).backward()
        optimizer.step()
    seen = [one.expand(1, 1, 16) for one in (done, later)]
    advantage = [float(extra.advantage(State(one, one))[0]) for one in seen]
    assert advantage[0] > 0 > advantage[1]
    # stopping later is worth what is left of the reward after the cost
    assert float(extra.values(later)[GO_ON].detach()) == pytest.approx(0.9, abs=0.1)


def test_what_slots_did_is_kept_in_their_order() -> None:
    config = RecursionConfig(width=16, heads=2, q_halting=QHaltingConfig(enabled=True))
    extra = QHalting(config)
    before, after = (State(torch.randn(3, 2, 16), torch.randn(3, 2, 16)) for _ in range(2))
    extra.note(
        before, after, went_on_B=torch.tensor([True, False, True]),
        halted_B=torch.tensor([False, True, True]), right_B=torch.tensor([True, True, False]),
    )  # fmt: skip
    extra.learn(alone, step=0)
    kept = extra.replay.take(torch.arange(4))
    assert kept["action"].tolist() == [GO_ON, STOP, GO_ON, STOP]
    assert kept["reward"].tolist() == pytest.approx([-0.02, 1.0, -0.02, 0.0])
    assert kept["ended"].tolist() == [False, True, False, True]
    assert torch.equal(kept["state"][0], before.y[0, 0].half())
    assert torch.equal(kept["state"][1], after.y[1, 0].half())


def test_replay_is_a_ring_that_comes_back_from_a_checkpoint() -> None:
    ring = Replay(5, width=2)

    def steps(*values: int) -> dict[str, Tensor]:
        each = torch.tensor(values)
        pairs = each[:, None].expand(-1, 2).float()
        return {"state": pairs, "after": pairs, "action": each * 0, "reward": each.float(),
                "ended": each > 0}  # fmt: skip

    ring.add(steps(1, 2, 3))
    ring.add(steps(4, 5, 6))
    assert sorted(ring.take(torch.arange(len(ring)))["reward"].tolist()) == [2, 3, 4, 5, 6]
    again = Replay(5, width=2)
    again.restore(ring.saved())
    for one in (ring, again):
        one.add(steps(7))
    assert torch.equal(ring.parts["reward"], again.parts["reward"])


def test_values_decide_only_when_told_and_can_be_turned_round() -> None:
    one, fresh = model("q_halting"), batch()
    (extra,) = one.core.extras
    assert isinstance(extra, QHalting)
    with torch.no_grad():
        last = extra.values[2]
        assert isinstance(last, torch.nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 1.0]))
    no, yes = torch.zeros(SLOTS, dtype=torch.bool), torch.ones(SLOTS, dtype=torch.bool)
    assert not bool(stepped(one, fresh)[0].halted.any())  # the other head does not believe it yet
    assert bool(stepped(one, fresh, by_value=no)[0].halted.all())
    assert not bool(stepped(one, fresh, by_value=yes)[0].halted.any())
    share = torch.stack([
        turned_round(64, seed=1, step=n, start=0.4, end=0.1, over=100) for n in (0, 1000)
    ]).double().mean(1)  # fmt: skip
    assert share[0] > 0.2
    assert share[1] < 0.25


# the rest ----------------------------------------------------------------------------------------


def test_cheaper_training_draws_its_depth_and_counts_its_steps() -> None:
    drawn = [steps_ahead(seed=0, step=n, most=3) for n in range(60)]
    assert set(drawn) == {0, 1, 2}
    carry, _, _ = stepped(model("cheap"), batch(), ahead=2)
    assert carry.steps.tolist() == [3] * SLOTS
    plain = model()
    far, _, _ = stepped(plain, batch(), ahead=2)
    three = trace(plain.eval(), *batch().values(), steps=3)
    near = plain.core.read(far.state)[0].argmax(-1)
    assert near.tolist() == [one.answers_NL[2].tolist() for one in three]


def test_cheaper_training_has_less_history() -> None:
    norms = {}
    for name in ((), ("cheap",)):
        one = model(*name, flow={"enabled": True})
        total(stepped(one, batch())[2]).backward()
        assert one.core.flow is not None
        norms[name] = one.core.flow.read()
    assert list(norms[()]) == ["think1", "think2", "answer"]
    assert all(norm > 0 for norm in norms[()].values())
    assert list(norms[("cheap",)]) == ["think2", "answer"]


def test_a_flow_is_judged_against_the_largest() -> None:
    assert [verdict(one, largest=1.0) for one in (0.0, 1e-4, 0.5)] == ["dead", "vanishing", "ok"]


def test_noise_depends_on_the_puzzle_and_not_on_the_batch() -> None:
    one, fresh = model(noise={"enabled": True, "rollouts": 3, "std": 2.0}).eval(), batch()
    del fresh["capsules"]
    quiet_one = model().eval()
    one.core.halt_head.weight.data.normal_()  # or no rollout is better than another
    quiet_one.load_state_dict(one.state_dict())
    whole = trace(one, *fresh.values(), steps=3)
    turned = trace(one, *(tensor.flip(0) for tensor in fresh.values()), steps=3)
    for a, b in zip(whole, reversed(turned), strict=True):
        assert a.halt == pytest.approx(b.halt, abs=1e-5)
    quiet = trace(quiet_one, *fresh.values(), steps=3)
    assert all(a.halt[-1] >= b.halt[-1] - 1e-5 for a, b in zip(whole, quiet, strict=True))
    assert whole[0].change != quiet[0].change or whole[1].change != quiet[1].change


def test_a_teacher_that_thinks_as_long_as_oneself_teaches_nothing() -> None:
    one = model("distill")
    (extra,) = one.core.extras
    extra.cycles = one.config.cycles  # type: ignore[assignment]
    found = stepped(one, batch())[2].extras
    assert float(found["distill"].detach().abs().max()) < 1e-5
    assert float(found["distill_halt"].detach().abs().max()) < 1e-8
