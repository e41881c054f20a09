"""Group training with a real policy, real tools and the real loop: it learns, stops and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from saccade.grounding.collapse import PolicyCollapsed
from saccade.grounding.episodes import check_row, verdict_of_row
from saccade.grounding.rollouts import roll
from saccade.models.backbone import load_backbone
from saccade.training.events import read_events, step_series
from saccade.training.recipes.grounding_episodes import read_episodes
from saccade.training.recipes.grounding_grpo import GrpoPhase
from saccade.training.run import run_training
from saccade.training.rundir import RunDir

peft = pytest.importorskip("peft", reason="the extra `rl` is not installed")
from saccade.data.sources import open_source  # noqa: E402
from tests.grounding_policy import resolved, settings, some_tasks, taught  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 4


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
    batch = {**batch, "learned_RL": torch.zeros_like(batch["learned_RL"])}
    one_loss(made, batch)["loss"].backward()
    for parameter in made.model.parameters():
        assert parameter.grad is None or not parameter.grad.any()
    made.taught = False
    assert made.resting(0) == list(made.groups())
    made.taught = True
    assert made.resting(0) == []


def test_a_step_is_the_same_however_it_is_cut(policy: Path) -> None:
    whole = phase(policy, "grounding.grpo.filter=none")
    halves = phase(policy, "grounding.grpo.filter=none", "training.batch_size=1",
                   "training.accumulation=2")  # fmt: skip
    source = whole.train_source()
    samples = [source[0], source[1]]
    batch = whole.enter(whole.collate(samples), micro=0)
    parts = [halves.enter(halves.collate([one]), micro=n) for n, one in enumerate(samples)]
    whole.model.eval()
    halves.model.eval()
    with torch.no_grad():
        total = one_loss(whole, batch)
        written = torch.stack([(part["labels"] != -100).sum() for part in parts]).sum()
        found = [halves.loss(part, step=0, denominator=written) for part in parts]
    assert float(sum(one["loss"] for one in found)) == pytest.approx(float(total["loss"]), abs=1e-6)
    shares = [float((part["labels"] != -100).sum() / written) for part in parts]
    for name in ("reward", "hit", "zoomed", "pixels", "groups_taught", "advantage_spread"):
        parted = sum(s * float(one[name]) for s, one in zip(shares, found, strict=True))
        assert parted == pytest.approx(float(total[name]), rel=1e-5, abs=1e-6), name


# runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return trained(policy, tmp_path_factory.mktemp("runs"), "grounding.grpo.reuse=2",
                   "training.save_every=1", "training.keep_checkpoints=9")  # fmt: skip


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
    trained(policy, tmp_path, "grounding.grpo.reuse=2", "training.save_every=1",
            "training.keep_checkpoints=9")  # fmt: skip
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
    for first in range(0, len(rows), 4):
        group = rows[first : first + 4]
        assert len({row["id"] for row in group}) == 1
        assert len({row["seed"] for row in group}) == 4
        mean = sum(row["total"] for row in group) / 4
        for row in group:
            assert row["advantage"] == pytest.approx(row["total"] - mean, abs=1e-6)
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
    assert rows and all(row["calls"] for row in rows)
    with pytest.raises(PolicyCollapsed):  # continuing it says so again
        trained(caller, tmp_path, *overrides)


def test_a_healthy_run_is_not_stopped(policy: Path, tmp_path: Path) -> None:
    run = trained(policy, tmp_path, "grounding.grpo.patience=2", "grounding.grpo.min_answers=0.5",
                  "grounding.grpo.min_entropy=1e-6", "grounding.grpo.filter=none")  # fmt: skip
    assert run.done_file.is_file()
    done = json.loads(run.done_file.read_text())
    assert {"accuracy", "zoom_rate", "pixels", "iou_50", "answered"} <= set(done["metrics"])


def test_what_pays_is_done_more_often(policy: Path, tmp_path: Path) -> None:
    """With a dear look and nothing else to tell them apart, the policy stops looking."""
    run = trained(
        policy, tmp_path, "grounding.reward.call=0.6", "grounding.reward.point=0",
        "grounding.grpo.filter=none", "grounding.grpo.group=8", "training.steps=16",
        "training.learning_rate=3e-3", "training.save_every=16", "lora.dropout=0",
    )  # fmt: skip
    calls = [one["metrics"]["calls"] for one in step_series(read_events(run.events_file))]
    assert sum(calls[:4]) / 4 > 0.4
    assert sum(calls[-4:]) / 4 < 0.5 * sum(calls[:4]) / 4
