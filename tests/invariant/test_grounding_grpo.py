"""Group training with a real policy, real tools and the real loop: it learns, stops and goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_run import ForkedRun

from saccade.grounding.collapse import PolicyCollapsed
from saccade.grounding.environment import Answer
from saccade.grounding.episodes import Episode, check_row, verdict_of_row
from saccade.grounding.grpo import leanings
from saccade.grounding.rollouts import roll
from saccade.models.backbone import load_backbone
from saccade.training.events import read_events, step_series
from saccade.training.recipes.grounding_episodes import read_episodes
from saccade.training.recipes.grounding_grpo import GrpoPhase
from saccade.training.recipes.grounding_paid import FREE
from saccade.training.run import run_training
from saccade.training.rundir import RunDir

peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
from saccade.data.sources import open_source  # noqa: E402
from tests.free_port import free_port  # noqa: E402
from tests.grounding_policy import resolved, settings, some_tasks, taught  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4
AGAIN = (
    "grounding.grpo.reuse=2", "grounding.grpo.budget=0.5", "grounding.grpo.choice=5",
    "training.save_every=1", "training.keep_checkpoints=9",
)  # fmt: skip
DEAR = (
    "grounding.reward.call=0.6", "grounding.reward.point=0", "grounding.grpo.filter=none",
    "grounding.grpo.group=8", "training.steps=24", "training.save_every=24", "lora.dropout=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that answers at once, after one look or after two."""
    return saved(tmp_path_factory.mktemp("policy") / "model", taught())


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a policy that has learned to call and call again."""
    return saved(tmp_path_factory.mktemp("caller") / "model", taught(4, steps=100))


def saved(folder: Path, backbone: Any) -> Path:
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return [
        f"model.name={folder}", "grounding.phase=grpo", "grounding.grpo.group=4",
        "training.batch_size=2", f"training.steps={STEPS}", "training.save_every=2",
        "training.threads=1", "lora.dropout=0.1", *more,
    ]  # fmt: skip


def phase(folder: Path, *more: str) -> GrpoPhase:
    return GrpoPhase(settings(*words(folder, *more)))


def entered(made: GrpoPhase, *, step: int = 0) -> dict[str, Any]:
    source = made.train_source()
    made.now = lambda: step
    return made.enter(made.collate([source[0], source[1]]), micro=0)


def one_loss(made: GrpoPhase, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    written = (batch["labels"] != -100).sum()
    return made.loss(batch, step=0, denominator=written)


def moves_nothing(made: GrpoPhase, batch: dict[str, Any]) -> None:
    one_loss(made, batch)["loss"].backward()
    for parameter in made.model.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def stirred(made: GrpoPhase, *, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, one in made.model.named_parameters():
            if "lora_B.default" in name:
                one.add_(torch.randn(one.shape, generator=generator) * size)


def trained(folder: Path, root: Path, *more: str) -> RunDir:
    made = resolved(*words(folder, f"run.root={root}", *more))
    run_training(made, make_recipe=GrpoPhase, open_eval=open_source, console=Console(quiet=True))
    return RunDir.of(made.config)


# gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_everything_trainable_gets_a_gradient_and_moving_it_changes_the_loss(
    adapter: str, policy: Path
) -> None:
    made = phase(policy, f"grounding.grpo.adapter={adapter}", "grounding.grpo.filter=none")
    batch = entered(made)
    assert made.taught and float(batch["advantages_RL"].abs().max()) > 0
    stirred(made)
    made.model.eval()
    before = one_loss(made, batch)
    before["loss"].backward()
    learned = {n: p for n, p in made.model.named_parameters() if p.requires_grad}
    assert learned and not any("visual" in name for name in learned)
    for name, one in learned.items():
        assert one.grad is not None and float(one.grad.abs().sum()) > 0, name
    assert all(p.grad is None for p in made.base.model.visual.parameters())
    for name, one in learned.items():
        kept = one.detach().clone()
        with torch.no_grad():
            one.add_(0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
            assert float(one_loss(made, batch)["loss"]) != float(before["loss"]), name
            one.copy_(kept)


def test_the_first_pass_has_ratio_one_and_the_rollouts_log_probabilities(policy: Path) -> None:
    made = phase(policy)
    batch = entered(made)
    made.model.eval()
    found = one_loss(made, batch)
    assert float(found["ratio"]) == pytest.approx(1, abs=1e-6) and float(found["clipped"]) == 0
    assert float(found["rollout_gap"]) < 1e-4
    assert "old_RL" in made.buffer[0]
    stirred(made)
    again = one_loss(made, batch)
    assert abs(float(again["ratio"]) - 1) > 1e-4, "used again, the policy has moved"


def test_what_is_learned_is_the_distribution_that_was_sampled(policy: Path) -> None:
    made = phase(policy, "grounding.grpo.temperature=2", "grounding.grpo.beta=0.1")
    batch = entered(made)
    made.model.eval()
    found = one_loss(made, batch)
    with torch.no_grad():
        warm_RL, _ = made.dialogue.log_probs(batch, temperature=2)
        cold_RL, _ = made.dialogue.log_probs(batch)
    assert not torch.allclose(warm_RL, cold_RL, atol=1e-2)
    assert torch.allclose(made.buffer[0]["old_RL"], warm_RL, atol=1e-6)
    assert float(found["kl"]) == pytest.approx(0, abs=1e-7), "the reference is as warm"
    assert float(found["rollout_gap"]) < 1e-4, "episodes keep what is true at temperature 1"


def test_the_reference_of_the_kl_term_is_the_model_before(policy: Path) -> None:
    for adapter in ("lora", "none"):
        made = phase(policy, "grounding.grpo.beta=0.1", f"grounding.grpo.adapter={adapter}")
        made.model.eval()
        batch = entered(made)
        assert float(one_loss(made, batch)["kl"]) == pytest.approx(0, abs=1e-7)
        with torch.no_grad():
            for one in made.model.parameters():
                if one.requires_grad:
                    one.add_(0.02 * torch.randn(one.shape))
        assert float(one_loss(made, batch)["kl"]) > 1e-5


def test_a_step_whose_groups_are_left_out_has_no_gradient_and_cries_no_wolf(policy: Path) -> None:
    made = phase(policy, "grounding.reward.hit=0", "data.train.seed=99", "training.batch_size=1")
    batch = entered(made)
    moves_nothing(made, {**batch, "learned_RL": torch.zeros_like(batch["learned_RL"])})
    made.taught = False
    assert made.resting(0) == list(made.groups())
    made.taught = True
    assert made.resting(0) == []


def replayed(made: GrpoPhase, monkeypatch: pytest.MonkeyPatch, *groups: Sequence[bool]) -> None:
    """Let the groups' episodes be right or wrong as they are told."""
    really = made._rolled

    def told(episode: Episode, right: bool) -> Episode:
        assert episode.task.box is not None
        point = episode.task.box.center if right else (0.0, 0.0)
        answer = Answer(point=point, box=None, stated=None)
        return replace(episode, answer=answer, finish="answered")

    def rolled(tasks: Any, **more: Any) -> list[list[Episode]]:
        pairs = zip(really(tasks, **more), groups, strict=True)
        return [[told(e, r) for e, r in zip(one, hits, strict=True)] for one, hits in pairs]

    monkeypatch.setattr(made, "_rolled", rolled)


WRONG, MIXED = (False,) * 4, (True, False, False, True)


def test_a_group_in_which_nobody_was_right_is_left_out_beside_one_that_teaches(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = phase(policy, "grounding.grpo.filter=wrong")
    replayed(made, monkeypatch, WRONG, MIXED)
    batch = entered(made)
    assert made.taught and made.resting(0) == []
    assert [row["group_kept"] for row in made.rows] == [False] * 4 + [True] * 4
    assert len(batch["labels"]) == 1, "the other group has no row"
    written_RL = batch["labels"] != -100
    assert torch.equal(batch["learned_RL"], written_RL)
    gains = [float(batch["advantages_RL"][(batch["episode_RL"] == n) & written_RL].unique())
             for n in range(4)]  # fmt: skip
    assert gains == pytest.approx([row["advantage"] for row in made.rows[4:]])
    assert gains[0] > 0 > gains[1]
    tokens = sum(row["tokens_written"] for row in made.rows[4:])
    assert int(written_RL.sum()) == tokens


def test_a_step_in_which_nobody_was_right_learns_nothing(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = phase(policy, "grounding.grpo.filter=wrong")
    replayed(made, monkeypatch, WRONG, WRONG)
    batch = entered(made)
    assert not made.taught and made.resting(0) == list(made.groups())
    assert not batch["learned_RL"].any()
    moves_nothing(made, batch)


def test_a_question_that_comes_twice_in_a_step_is_answered_by_other_seeds(policy: Path) -> None:
    whole, halves = phase(policy), phase(policy, "training.batch_size=1",
                                         "training.accumulation=2")  # fmt: skip
    twice = [whole.train_source()[0]] * 2
    whole.enter(whole.collate(twice), micro=0)
    for micro, one in enumerate(twice):
        halves.enter(halves.collate([one]), micro=micro)
    seeds = [row["seed"] for row in whole.rows]
    assert len(set(seeds)) == len(seeds) == 8
    assert [row["seed"] for row in halves.rows] == seeds


@pytest.mark.parametrize("more", ["entropy=0", "entropy=0.1", "budget=0.3", "choice=4"])
def test_a_step_is_the_same_however_it_is_cut(more: str, policy: Path) -> None:
    words = "grounding.grpo.filter=none", f"grounding.grpo.{more}"
    whole = phase(policy, *words)
    halves = phase(policy, *words, "training.batch_size=1", "training.accumulation=2")
    source = whole.train_source()
    samples = [source[0], source[1]]
    batch = whole.enter(whole.collate(samples), micro=0)
    batch["learned_RL"] &= batch["episode_RL"] != 1  # as if it had been cut off
    parts = [halves.enter(halves.collate([one]), micro=n) for n, one in enumerate(samples)]
    parts[0]["learned_RL"] &= parts[0]["episode_RL"] != 1
    halves.prepare_step(parts)
    whole.model.eval()
    halves.model.eval()
    with torch.no_grad():
        total = one_loss(whole, batch)
        written = torch.stack([(part["labels"] != -100).sum() for part in parts]).sum()
        found = [halves.loss(part, step=0, denominator=written) for part in parts]
    assert float(sum(one["loss"] for one in found)) == pytest.approx(float(total["loss"]), abs=1e-6)
    shares = [float((part["labels"] != -100).sum() / written) for part in parts]
    names = ["reward", "hit", "zoomed", "pixels", "groups_taught", "advantage_spread"]
    for name in names + (["price"] if "price" in total else []):
        parted = sum(s * float(one[name]) for s, one in zip(shares, found, strict=True))
        assert parted == pytest.approx(float(total[name]), rel=1e-5, abs=1e-6), name


# runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(policy, tmp_path_factory.mktemp("runs"), *AGAIN)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_run_is_the_unbroken_one(
    step: int, unbroken: RunDir, policy: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / unbroken.path.name)
    shutil.copytree(unbroken.path, run.path)
    run.done_file.unlink()
    for folder in run.checkpoints.iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    log = run.path / "episodes.jsonl"
    with log.open("ab") as file:
        file.write(b'{"step": 4, "torn')  # a kill in the middle of a line
    trained(policy, tmp_path, *AGAIN)
    assert log.read_bytes() == (unbroken.path / "episodes.jsonl").read_bytes()
    for name in ("model.safetensors", "optimizer.pt", "grpo.pt"):
        mine = (run.checkpoints / f"step-{STEPS}" / name).read_bytes()
        assert mine == (unbroken.checkpoints / f"step-{STEPS}" / name).read_bytes(), name
    losses = step_series(read_events(run.events_file))
    assert [one["loss"] for one in losses] == [
        one["loss"] for one in step_series(read_events(unbroken.events_file))
    ]


def test_every_episode_is_written_down_once_and_can_be_judged_again(unbroken: RunDir) -> None:
    rows = list(read_episodes(unbroken.path / "episodes.jsonl"))
    assert [row["step"] for row in rows] == [1] * 8 + [3] * 8, "steps 2 and 4 use them again"
    for row in rows:
        check_row(row)
        verdict = verdict_of_row(row)
        assert row["hit"] is (verdict is not None and verdict.hit)
        assert row["total"] == pytest.approx(sum(row["reward"].values()))
        assert row["run"] == unbroken.path.name and row["config"] and row["run_seed"] == 0
        assert row["hit_before"] is not None and row["effect"] != "unknown"
    for first in range(0, len(rows), 4):
        group = rows[first : first + 4]
        assert len({row["id"] for row in group}) == 1
        assert len({row["seed"] for row in group}) == 4
        mean = sum(row["total"] for row in group) / 4
        looked = [any(call["name"] not in FREE for call in row["calls"]) for row in group]
        for row, lean in zip(group, leanings(looked), strict=True):
            priced = row["total"] - mean - row["price"] * lean
            assert row["advantage"] == pytest.approx(priced, abs=1e-6)
    steps = step_series(read_events(unbroken.events_file))
    for number in (1, 3):
        mine = [row for row in rows if row["step"] == number]
        seen = steps[number - 1]["metrics"]
        assert seen["reward"] == pytest.approx(sum(row["total"] for row in mine) / 8, abs=1e-6)
        assert seen["hit"] == pytest.approx(sum(row["hit"] for row in mine) / 8)
        assert seen["zoomed"] == pytest.approx(sum(row["zooms"] > 0 for row in mine) / 8)


def test_the_merged_model_says_what_the_trained_one_says(policy: Path, tmp_path: Path) -> None:
    made = phase(policy, f"run.root={tmp_path}")
    stirred(made)
    made.base.eval()
    run = RunDir.of(made.config)
    run.path.mkdir(parents=True)
    made.finish(run)
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    again = phase(run.path / "model")
    assert isinstance(load_backbone(again.config.model).processor.chat_template, str)
    tasks = some_tasks(made.config)
    mine, theirs = (
        roll(one.dialogue, tasks, group=2, seeds=[[1, 2]] * len(tasks)) for one in (made, again)
    )
    for one, other in zip(mine, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.turns == b.turns and torch.allclose(a.log_probs, b.log_probs, atol=1e-4)


def test_a_policy_that_only_calls_is_stopped_and_its_checkpoint_stays(
    caller: Path, tmp_path: Path
) -> None:
    overrides = ("grounding.grpo.min_answers=0.9", "grounding.grpo.patience=2",
                 "training.steps=8", "training.save_every=1")  # fmt: skip
    with pytest.raises(PolicyCollapsed, match="answered") as caught:
        trained(caller, tmp_path, *overrides)
    assert "2 steps in a row" in str(caught.value) and "fix:" in str(caught.value)
    run = RunDir(tmp_path / "smoke-grounding")
    events = read_events(run.events_file)
    assert events[-1]["type"] == "failed" and "no longer answers" in events[-1]["message"]
    assert [one["step"] for one in step_series(events)] == [1, 2]
    assert (run.checkpoints / "step-2" / "COMPLETE").is_file() and not run.done_file.exists()
    rows = list(read_episodes(run.path / "episodes.jsonl"))
    silent = [(row["finish"], row["turns"]) for row in rows if not row["calls"]]
    assert rows and len(silent) < 0.2 * len(rows), silent
    with pytest.raises(PolicyCollapsed):  # continuing it says so again
        trained(caller, tmp_path, *overrides)


def test_a_healthy_run_is_not_stopped(policy: Path, tmp_path: Path) -> None:
    run = trained(policy, tmp_path, "grounding.grpo.patience=2", "grounding.grpo.min_answers=0.5",
                  "grounding.grpo.min_entropy=1e-6", "grounding.grpo.filter=none")  # fmt: skip
    assert run.done_file.is_file()
    done = json.loads(run.done_file.read_text())
    assert {"accuracy", "zoom_rate", "pixels", "answered"} <= set(done["metrics"])
    assert "iou_50" not in done["metrics"], "its answers are points"


def train_in(policy: Path, folder: Path, overrides: Sequence[str]) -> RunDir:
    return trained(policy, folder.parent, f"run.name={folder.name}", *overrides)


@pytest.mark.slow
def test_two_processes_make_the_step_of_one(policy: Path, tmp_path: Path) -> None:
    same = ("lora.dropout=0", "grounding.grpo.filter=none", "grounding.grpo.entropy=0.01",
            "grounding.grpo.budget=0.5", "grounding.grpo.choice=5", "training.steps=2",
            "training.learning_rate=3e-4",
            "training.eval_samples=2")  # fmt: skip

    def start(where: Path, *more: str, env: dict[str, str] | None = None) -> ForkedRun:
        log = tmp_path / f"{where.name}-{(env or {}).get('RANK', '0')}.log"
        return ForkedRun(where, [*same, *more], env=env, log=log, train=partial(train_in, policy))

    port = str(free_port())
    runs = [start(tmp_path / "one")] + [
        start(tmp_path / "two", "training.batch_size=1", env={
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }) for rank in ("0", "1")
    ]  # fmt: skip
    for run in runs:
        assert run.wait() == 0, run.output()
    one, two = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    rows = [list(read_episodes(made.path / "episodes.jsonl")) for made in (one, two)]
    for mine, theirs in zip(*rows, strict=True):
        for name in ("step", "id", "index", "seed", "turns"):
            assert mine[name] == theirs[name], name
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-4)
        assert mine["advantage"] == pytest.approx(theirs["advantage"], abs=1e-4)
    assert any(row["advantage"] for row in rows[0])
    series = [step_series(read_events(made.events_file)) for made in (one, two)]
    for mine, theirs in zip(*series, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3, abs=1e-6)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        for name in ("reward", "hit", "zoomed", "groups_taught", "price"):
            assert mine["metrics"][name] == pytest.approx(theirs["metrics"][name], rel=1e-3)


def test_what_pays_is_done_more_often(policy: Path, tmp_path: Path) -> None:
    """With a dear look and nothing else to tell them apart, the policy stops looking."""
    run = trained(policy, tmp_path, *DEAR, "training.learning_rate=3e-3")
    calls = [one["metrics"]["calls"] for one in step_series(read_events(run.events_file))]
    assert sum(calls[:4]) / 4 > 0.4
    assert sum(calls[-4:]) / 4 < 0.5 * sum(calls[:4]) / 4


def test_the_price_of_a_look_stands_on_what_was_written_up_to_the_choice(policy: Path) -> None:
    made = phase(policy, "grounding.grpo.filter=none", "grounding.grpo.group=8")
    batch = entered(made)
    call = made.dialogue.call
    for number in range(16):
        own = (batch["episode_RL"] == number) & (batch["labels"] != -100)
        ids, leans = batch["input_ids"][own].tolist(), batch["leanings_RL"][own].tolist()
        marked = ids.index(call) + 1 if call in ids else len(ids)
        assert len(set(leans[:marked])) == 1
        assert leans[0] == 0 or (leans[0] > 0) == (call in ids)
        assert not any(leans[marked:])
    assert (batch["leanings_RL"] > 0).any() and (batch["leanings_RL"] < 0).any()


def test_the_weight_of_the_choice_adds_the_gradient_of_having_looked_or_not(policy: Path) -> None:
    """Held against the whole distribution: log of the mark's probability, or of all the rest."""
    made = phase(policy, "grounding.grpo.filter=none", "grounding.grpo.group=8",
                 "grounding.grpo.temperature=0.8", "grounding.grpo.choice=3")  # fmt: skip
    batch, settings, call = entered(made), made.settings, made.dialogue.call
    stirred(made)  # new adapters have no effect yet, and half of them no gradient
    made.model.eval()
    learned = [one for one in made.model.parameters() if one.requires_grad]
    chances_RLV = made.dialogue.logits(made.dialogue.states(batch)) / settings.temperature
    chances_RLV = chances_RLV.softmax(-1)
    worth = torch.zeros(())
    for row, token in batch["deciding_RL"].nonzero().tolist():
        calls = chances_RLV[row, token - 1, call]
        called = int(batch["input_ids"][row, token]) == call
        worth = worth + batch["advantages_RL"][row, token] * (calls if called else 1 - calls).log()
    want = torch.autograd.grad(-3 * worth / (16 * settings.max_tokens), learned)
    losses = []
    for weight in (3.0, 0.0):
        made.settings = settings.model_copy(update={"choice": weight})
        losses.append(one_loss(made, batch)["loss"])
    got = torch.autograd.grad(losses[0] - losses[1], learned)
    assert any(bool(one.abs().max() > 1e-4) for one in want)
    for mine, theirs in zip(got, want, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-3)


def test_a_budget_keeps_looks_that_a_price_would_end(policy: Path, tmp_path: Path) -> None:
    """The same dear look, but the budget finds its own price; rows say it."""
    run = trained(
        policy, tmp_path, *DEAR, "training.learning_rate=5e-4", "training.schedule=constant",
        "grounding.grpo.budget=0.6",
    )  # fmt: skip
    steps = step_series(read_events(run.events_file))
    assert 0.35 < sum(one["metrics"]["zoomed"] for one in steps[-8:]) / 8 < 0.8
    rows = list(read_episodes(run.path / "episodes.jsonl"))
    assert len({row["price"] for row in rows}) > 1
    for step in (1, 24):
        own = [row for row in rows if row["step"] == step]
        for first in range(0, len(own), 8):
            group = own[first : first + 8]
            looked = [bool(row["calls"]) for row in group]
            fair = [row["total"] - row["price"] * one
                    for row, one in zip(group, looked, strict=True)]  # fmt: skip
            mean = sum(fair) / len(fair)
            for row, one in zip(group, fair, strict=True):
                assert row["advantage"] == pytest.approx(one - mean, abs=1e-5)
