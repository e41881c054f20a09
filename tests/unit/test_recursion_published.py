"""The recursion equals the published algorithm, written here a second time in straight lines.

Source: arXiv 2510.04871, its code at e7b6871, arXiv 2407.05872 (AdamAtan2), arXiv 2501.04697
(stablemax). Everything in float64 and compared to 1e-5 or better: forward pass, losses, halting
targets, one optimizer step, and four steps of a persistent batch with refilled slots.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import hidden_width, rotations, truncated_normal_
from saccade.models.recursion.carry import Carry
from saccade.models.recursion.losses import log_stablemax, step_losses
from saccade.models.recursion.model import Geometry, RecursiveModel
from saccade.models.recursion.puzzle_embedding import SignDescent
from saccade.training.adam_atan2 import AdamAtan2

WIDTH, HEADS, LENGTH, VOCABULARY, PREFIX, PUZZLES, SLOTS = 16, 2, 6, 5, 3, 4, 5
VARIANTS = [
    {"mixer": "attention", "positions": "rope"},
    {"mixer": "attention", "positions": "learned"},
    {"mixer": "mlp", "positions": "none"},
    {"mixer": "mlp", "positions": "none", "loss": "softmax"},
    {"mixer": "mlp", "positions": "none", "puzzle_prefix": 0},
]


def settings(**changes: Any) -> RecursionConfig:
    chosen: dict[str, Any] = {
        "width": WIDTH, "heads": HEADS, "layers": 2, "cycles": 3, "inner_cycles": 2,
        "max_steps": 3, "ffn_multiple": 8, "puzzle_prefix": PREFIX, "eval_steps": 3,
    }  # fmt: skip
    return RecursionConfig(**{**chosen, **changes})


def made(**changes: Any) -> RecursiveModel:
    torch.manual_seed(3)
    config = settings(**changes)
    model = RecursiveModel(config, Geometry(LENGTH, VOCABULARY, PUZZLES)).double()
    model.core.halt_head.weight.data.normal_()  # as published it starts at zero, which hides errors
    model.core.halt_head.bias.data.fill_(0.1)
    if model.puzzle is not None:
        model.puzzle.table_ND.normal_()
    for mix in (block.get_submodule("mix") for block in model.core.blocks):
        if getattr(mix, "rotates", False):  # kept in float32, so that they are drawn anew here
            size = LENGTH + config.puzzle_prefix
            mix.cos_SK, mix.sin_SK = rotations(size, head_width=WIDTH // HEADS, theta=1e4)
    return model


def batch(seed: int, size: int = SLOTS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, VOCABULARY, (size, LENGTH), generator=generator)
    labels[0, :2] = -100
    return {
        "input_ids": torch.randint(0, VOCABULARY, (size, LENGTH), generator=generator),
        "labels": labels,
        "puzzles": torch.randint(0, PUZZLES, (size,), generator=generator),
    }


# the algorithm again, from the paper -------------------------------------------------------------


def norm(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)


def swiglu(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    both = x @ weights[f"{name}.gate_up.weight"].T
    half = both.shape[-1] // 2
    gate, up = both[..., :half], both[..., half:]
    return (gate * torch.sigmoid(gate) * up) @ weights[f"{name}.down.weight"].T


def attention(x: Tensor, weights: dict[str, Tensor], name: str, *, rope: bool) -> Tensor:
    positions = x.shape[1]
    each = WIDTH // HEADS
    q, k, v = (x @ weights[f"{name}.qkv.weight"].T).split(WIDTH, dim=-1)
    out = torch.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * each, (head + 1) * each)
        qh, kh, vh = q[..., part].clone(), k[..., part].clone(), v[..., part]
        if rope:
            for tensor in (qh, kh):
                old = tensor.clone()
                for i in range(each // 2):
                    for s in range(positions):
                        angle = s * 10000.0 ** (-2 * i / each)
                        cos, sin = math.cos(angle), math.sin(angle)
                        a, b = old[:, s, i], old[:, s, i + each // 2]
                        tensor[:, s, i] = a * cos - b * sin
                        tensor[:, s, i + each // 2] = b * cos + a * sin
        scores = torch.softmax(qh @ kh.transpose(1, 2) / math.sqrt(each), dim=-1)
        out[..., part] = scores @ vh
    return out @ weights[f"{name}.out.weight"].T


def network(h: Tensor, weights: dict[str, Tensor], config: RecursionConfig) -> Tensor:
    for layer in range(2):
        name = f"core.blocks.{layer}"
        if config.mixer == "mlp":
            t = h.transpose(1, 2)
            h = norm(t + swiglu(t, weights, f"{name}.mix")).transpose(1, 2)
        else:
            rope = config.positions == "rope"
            h = norm(h + attention(h, weights, f"{name}.mix", rope=rope))
        h = norm(h + swiglu(h, weights, f"{name}.feed"))
    return h


def embedded(
    ids: Tensor, puzzles: Tensor, weights: dict[str, Tensor], config: RecursionConfig
) -> Tensor:
    x = weights["tokens.weight"][ids]
    if config.puzzle_prefix:
        front = torch.zeros(len(ids), PREFIX, WIDTH, dtype=torch.float64)
        front[:, 0] = weights["rows"]
        x = torch.cat([front, x], 1)
    if config.positions == "learned":
        x = 0.7071067811865476 * (x + weights["positions"])
    return math.sqrt(WIDTH) * x


def think(
    x: Tensor, y: Tensor, z: Tensor, weights: dict[str, Tensor], config: RecursionConfig
) -> Any:
    with torch.no_grad():
        for _ in range(2):  # T - 1
            for _ in range(2):  # n
                z = network(x + y + z, weights, config)
            y = network(y + z, weights, config)
    for _ in range(2):
        z = network(x + y + z, weights, config)
    y = network(y + z, weights, config)
    logits = y[:, config.puzzle_prefix :] @ weights["core.answer_head.weight"].T
    q = y[:, 0] @ weights["core.halt_head.weight"][0] + weights["core.halt_head.bias"][0]
    return logits, q, y.detach(), z.detach()


def published_loss(
    logits: Tensor, q: Tensor, labels: Tensor, kind: str
) -> tuple[Tensor, list[bool]]:
    total, targets = torch.zeros((), dtype=torch.float64), []
    for b in range(len(labels)):
        cells, right = [], True
        for cell in range(LENGTH):
            label = int(labels[b, cell])
            if label == -100:
                continue
            scores = []
            for value in logits[b, cell]:
                if kind == "softmax":
                    scores.append(torch.exp(value))
                else:
                    scores.append(value + 1 if value >= 0 else 1 / (1 - value))
            cells.append(-torch.log(scores[label] / torch.stack(scores).sum()))
            right = right and int(logits[b, cell].argmax()) == label
        answer = torch.stack(cells).mean()
        p = torch.sigmoid(q[b])
        halting = -torch.log(p) if right else -torch.log(1 - p)
        total = total + answer + 0.5 * halting
        targets.append(right)
    return total / len(labels), targets


def copied(model: RecursiveModel, puzzles: Tensor) -> dict[str, Tensor]:
    weights = {name: one.detach().clone() for name, one in model.state_dict().items()}
    for name, _ in model.named_parameters():
        weights[name].requires_grad_()
    if model.puzzle is not None:
        weights["rows"] = weights["puzzle.table_ND"][puzzles].clone().requires_grad_()
    return weights


def slots_with(model: RecursiveModel, fresh: dict[str, Tensor]) -> Carry:
    size = len(fresh["labels"])
    start = model.start(size)
    return model.empty_carry(size).refilled(fresh, start=start)


def total_loss(losses: Any) -> Tensor:
    return (losses.answer_B + 0.5 * losses.halt_B).mean()


NEVER = torch.zeros(SLOTS, dtype=torch.long)


# comparisons -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: "-".join(map(str, one.values())))
def test_one_training_step_is_the_published_one(variant: dict[str, Any]) -> None:
    model = made(**variant)
    config, fresh = model.config, batch(1)
    # two slots are made to be right, so that both halting targets occur
    right = model.step(slots_with(model, fresh), least_B=NEVER)[1].logits_BLV.argmax(-1)
    fresh["labels"][1], fresh["labels"][3] = right[1], right[3]
    weights = copied(model, fresh["puzzles"])
    start = {name: weights[f"core.{name}_init"].expand(SLOTS, -1) for name in ("y", "z")}
    positions = LENGTH + config.puzzle_prefix
    y, z = (start[n][:, None].expand(-1, positions, -1) for n in ("y", "z"))

    carry, thought, losses = model.step(slots_with(model, fresh), least_B=NEVER)
    x = embedded(fresh["input_ids"], fresh["puzzles"], weights, config)
    logits, q, y, z = think(x, y, z, weights, config)
    loss, targets = published_loss(logits, q, fresh["labels"], config.loss)
    torch.testing.assert_close(thought.logits_BLV, logits, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(thought.halt_B, q, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(total_loss(losses), loss, atol=1e-10, rtol=1e-8)
    assert losses.right_B.tolist() == targets
    assert targets[1]
    assert targets[3]
    assert not all(targets)
    torch.testing.assert_close(carry.y, y, atol=1e-10, rtol=1e-8)
    torch.testing.assert_close(carry.z, z, atol=1e-10, rtol=1e-8)

    optimizer = AdamAtan2(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.3)
    total_loss(losses).backward()
    optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, [weights[name] for name in names], retain_graph=True)
    for name, gradient in zip(names, gradients, strict=True):
        # first step: the bias corrections cancel, m_hat = g and v_hat = g^2
        step = 1e-2 * 1.27 * torch.atan2(gradient, gradient.abs())
        wanted = weights[name] * (1 - 1e-2 * 0.3) - step
        torch.testing.assert_close(model.get_parameter(name), wanted, atol=1e-8, rtol=1e-6)
    if model.puzzle is not None:
        (gradient,) = torch.autograd.grad(loss, [weights["rows"]])
        SignDescent(model.puzzle, lr=0.01, weight_decay=0.1).step()
        for puzzle in range(PUZZLES):
            users = (fresh["puzzles"] == puzzle).nonzero()[:, 0]
            row = weights["puzzle.table_ND"][puzzle]
            if len(users):
                row = row * (1 - 0.01 * 0.1) - 0.01 * gradient[users].sum(0).sign()
            torch.testing.assert_close(model.puzzle.table_ND[puzzle], row, atol=1e-12, rtol=0.0)


def test_slots_are_refilled_and_halted_as_published() -> None:
    model = made(**VARIANTS[2])
    config = model.config
    weights = copied(model, NEVER)
    y_init, z_init = weights["core.y_init"], weights["core.z_init"]
    positions = LENGTH + PREFIX
    table = weights["puzzle.table_ND"]
    least = [
        torch.tensor(one) for one in ([0, 3, 0, 2, 0], [0, 3, 0, 0, 0], [0] * 5, [0, 0, 2, 0, 0])
    ]

    carry = model.empty_carry(SLOTS)
    ys = torch.full((SLOTS, positions, WIDTH), float("nan"), dtype=torch.float64)
    zs, steps, done = ys.clone(), [0] * SLOTS, [True] * SLOTS
    held: list[Any] = [None] * SLOTS
    seen_early = False
    for number in range(4):
        size = sum(done)
        fresh = batch(10 + number, max(size, 1))
        fresh = {name: one[:size] for name, one in fresh.items()}
        carry = carry.refilled(fresh, start=model.start(SLOTS))
        carry, thought, losses = model.step(carry, least_B=least[number])

        taken = 0
        for slot in range(SLOTS):
            if done[slot]:
                held[slot] = {name: one[taken] for name, one in fresh.items()}
                taken += 1
                steps[slot] = 0
                ys[slot], zs[slot] = y_init, z_init
        stacked = {name: torch.stack([one[name] for one in held]) for name in fresh}
        weights["rows"] = table[stacked["puzzles"]]
        x = embedded(stacked["input_ids"], stacked["puzzles"], weights, config)
        logits, q, ys, zs = think(x, ys, zs, weights, config)
        loss, targets = published_loss(logits, q, stacked["labels"], "stablemax")
        for slot in range(SLOTS):
            steps[slot] += 1
            done[slot] = steps[slot] >= 3 or float(q[slot].detach()) > 0
            done[slot] = done[slot] and steps[slot] >= int(least[number][slot])
        seen_early = seen_early or any(d and s < 3 for d, s in zip(done, steps, strict=True))
        torch.testing.assert_close(thought.logits_BLV, logits, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(total_loss(losses), loss, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(carry.y, ys, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(carry.z, zs, atol=1e-8, rtol=1e-6)
        assert carry.steps.tolist() == steps
        assert carry.halted.tolist() == done
        assert losses.right_B.tolist() == targets
    assert seen_early, "nothing halted before the last step, so the rule was not tested"
    assert not all(done), "everything always halted, so the carry was not tested"


def test_adam_atan2_follows_its_formula_for_several_steps() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(7, dtype=torch.float64))
    optimizer = AdamAtan2([p], lr=0.05, betas=(0.9, 0.99), weight_decay=0.2)
    value, m, v = p.detach().clone(), torch.zeros(7).double(), torch.zeros(7).double()
    for t in range(1, 6):
        gradient = torch.randn(7, dtype=torch.float64)
        p.grad = gradient.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.99 * v + 0.01 * gradient**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.99**t)
        value = value - 0.05 * 0.2 * value - 0.05 * 1.27 * torch.atan2(m_hat, v_hat.sqrt())
        torch.testing.assert_close(p.detach(), value, atol=1e-12, rtol=1e-10)


def test_adam_atan2_does_not_see_the_scale_of_gradients_and_bounds_its_step() -> None:
    ends = []
    for scale in (1.0, 1e-12, 1e9):
        p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = AdamAtan2([p], lr=0.1)
        for gradient in ([1.0, -2.0, 3.0], [0.5, 5.0, -4.0]):
            before = p.detach().clone()
            p.grad = scale * torch.tensor(gradient, dtype=torch.float64)
            optimizer.step()
            assert bool(((p.detach() - before).abs() <= 2 * 0.1).all())
        ends.append(p.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2])


def test_stablemax_is_its_definition() -> None:
    x = torch.tensor([[2.0, 0.0, -3.0]], dtype=torch.float64)
    wanted = torch.tensor([[3.0, 1.0, 0.25]], dtype=torch.float64) / 4.25
    torch.testing.assert_close(log_stablemax(x).exp(), wanted)
    assert log_stablemax(x.float()).dtype == torch.float64


def test_an_unsupervised_cell_costs_nothing_and_cannot_be_wrong() -> None:
    logits = torch.randn(2, LENGTH, VOCABULARY, dtype=torch.float64)
    labels = logits.argmax(-1)
    labels[0, 2] = -100
    changed = logits.clone()
    changed[0, 2] = torch.randn(VOCABULARY, dtype=torch.float64)
    halt = torch.zeros(2, dtype=torch.float64)
    first, second = (step_losses(one, halt, labels) for one in (logits, changed))
    assert first.right_B.tolist() == second.right_B.tolist() == [True, True]
    torch.testing.assert_close(first.answer_B, second.answer_B)


def test_weights_start_as_published() -> None:
    model = RecursiveModel(
        settings(width=256, heads=8, ffn_multiple=256), Geometry(81, 11, PUZZLES)
    )
    drawn = truncated_normal_(torch.empty(200_000), std=0.5)
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.01)
    assert float(drawn.abs().max()) <= 2 * 0.5 / 0.87962 + 1e-6
    assert float(model.tokens.weight.detach().std()) == pytest.approx(1 / 16, rel=0.1)
    down = model.get_parameter("core.blocks.0.feed.down.weight")
    assert float(down.detach().std()) == pytest.approx(down.shape[1] ** -0.5, rel=0.02)
    assert float(model.core.y_init.std()) == pytest.approx(1.0, rel=0.2)
    assert not model.core.y_init.requires_grad
    assert float(model.core.halt_head.weight.detach().abs().sum()) == 0
    assert float(model.core.halt_head.bias.detach()) == -5
    assert model.puzzle is not None
    assert float(model.puzzle.table_ND.abs().sum()) == 0
    assert hidden_width(512, expansion=4, multiple=256) == 1536


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda one: "-".join(map(str, one.values())))
def test_every_tensor_gets_gradient_and_the_no_grad_cycles_give_none(
    variant: dict[str, Any],
) -> None:
    model = made(**variant)
    _, _, losses = model.step(slots_with(model, batch(2)), least_B=NEVER)
    total_loss(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name
    if model.puzzle is not None:
        ((_, rows),) = model.puzzle.waiting  # one read of the table, however many cycles
        assert float(rows.abs().sum()) > 0
