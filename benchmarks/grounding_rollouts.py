"""Measure how many grounding episodes per second are made, by TRL's generation and by ours.

In go a policy (the tiny base, taught in seconds to zoom or to answer; a trained folder; or random
weights at a published width), generated screens and a group size; out come, in one run and on the
same tasks, episodes and written tokens per second of TRL's plain generation (`GRPOTrainer` with our
`environment_factory`), of our plain path and of our shared one, and how far the log-probabilities
noted while sampling lie from a full forward pass over each episode alone. Of TRL only the call that
generates is timed: no scoring, no rewards, no loss. Rounds alternate between the three, and each
begins without remembered pictures. Left out: learning.

    python benchmarks/grounding_rollouts.py                              # CPU, tiny base
    python benchmarks/grounding_rollouts.py --model runs/grounding/model --device cuda
    python benchmarks/grounding_rollouts.py --geometry qwen3-vl-2b --device cuda
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from saccade.config.resolve import resolve
from saccade.config.schema import Config
from saccade.data.boxes import Box
from saccade.data.sources import open_source
from saccade.grounding.dialogue import NEVER, Dialogue
from saccade.grounding.episodes import Episode, Task, task_of
from saccade.grounding.rollouts import roll
from saccade.models.backbone import Backbone, load_backbone
from saccade.models.tools import tool_ready
from saccade.training.provenance import machine
from saccade.training.threads import choose_threads
from saccade.training.trl_grounding import TrlGrounding

ARMS = ("trl", "plain", "shared")
GEOMETRIES = ("qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b")


@dataclass(frozen=True)
class Round:
    """Episodes made in one go, and what that took: on the clock, and of the processors' time."""

    episodes: list[Episode]
    seconds: float
    busy: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny", help="tiny, or a folder that is trained already")
    parser.add_argument("--geometry", choices=list(GEOMETRIES), help="random weights, this size")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--attention", default="sdpa", help="sdpa or eager")
    parser.add_argument("--tasks", type=int, default=16, help="screenshots per batch")
    parser.add_argument("--group", type=int, default=8, help="episodes per screenshot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teach", type=int, default=200, help="steps of showing the tiny base how")
    parser.add_argument("--max-pixels", type=int, default=12_288, help="of the first look")
    parser.add_argument("--max-tokens", type=int, default=96, help="an episode may write")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes the idle ones")
    parser.add_argument("--out", type=Path, help="also write the measurements as JSON")
    return parser.parse_args()


def configuration(options: argparse.Namespace) -> Config:
    """The recipe's own, with what the command line says."""
    name = "tiny" if options.geometry else options.model
    return resolve(
        "grounding",
        overrides=[
            f"model.name={name}", f"model.device={options.device}", f"model.dtype={options.dtype}",
            f"model.attention={options.attention}", f"model.max_pixels={options.max_pixels}",
            f"grounding.zoom.pixels={2 * options.max_pixels}",
            f"grounding.grpo.group={options.group}",
            f"grounding.grpo.max_tokens={options.max_tokens}",
            f"data.train.screens={options.tasks}", f"training.batch_size={options.tasks}",
            f"run.seed={options.seed}",
        ],
    ).config  # fmt: skip


def policy(options: argparse.Namespace, config: Config, tasks: Sequence[Task]) -> Backbone:
    """A base that can call tools, and where it is the tiny one also does."""
    if options.geometry:
        from prefill import random_backbone

        from saccade.models.backbone import pick_device

        return tool_ready(random_backbone(options, pick_device(config.model)))
    backbone = tool_ready(load_backbone(config.model))
    if options.model == "tiny":
        teach(backbone, config, tasks, steps=options.teach, seed=options.seed)
    return backbone


def teach(
    backbone: Backbone, config: Config, tasks: Sequence[Task], *, steps: int, seed: int
) -> None:
    """Show it one episode of each task per step, with a look or without by turns."""
    base = backbone.model.requires_grad_(True)
    base.model.visual.requires_grad_(False)
    dialogue = Dialogue(base, backbone.processor, config=config)
    shown = [
        dialogue.rows([[dialogue.demonstration(task, looks=looks)] for task, looks in pairs])
        for pairs in (
            [(task, [about(task)] if (i + turn) % 2 else []) for i, task in enumerate(tasks)]
            for turn in range(2)
        )
    ]
    learned = [one for one in base.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-3)
    torch.manual_seed(seed)
    for step in range(steps):
        batch = shown[step % 2]
        log_probs_RL, _ = dialogue.log_probs(batch)
        (-log_probs_RL.sum() / (batch["labels"] != -100).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    base.requires_grad_(False).eval()


def about(task: Task) -> Box:
    """A window of a quarter of each side that shows the target."""
    assert task.box is not None
    x, y = task.box.center
    left, top = min(0.75, max(0.0, x - 0.125)), min(0.75, max(0.0, y - 0.125))
    return Box(left, top, left + 0.25, top + 0.25)


# arms --------------------------------------------------------------------------------------------


def ours(
    backbone: Backbone, config: Config, tasks: Sequence[Task], *, shared: bool
) -> Callable[[int], Round]:
    def sample(round_: int) -> Round:
        dialogue = Dialogue(backbone.model, backbone.processor, config=config)
        group = config.grounding.grpo.group
        seeds = [
            [(round_ * len(tasks) + number) * group + index for index in range(group)]
            for number in range(len(tasks))
        ]
        start = now(backbone)
        made = roll(dialogue, tasks, group=group, seeds=seeds, shared=shared)
        return Round([one for episodes in made for one in episodes], *since(start, backbone))

    return sample


def trls(
    backbone: Backbone, config: Config, tasks: Sequence[Task], folder: Path
) -> Callable[[int], Round]:
    trainer = TrlGrounding(
        config, base=copy.deepcopy(backbone.model), processor=backbone.processor, folder=folder
    )
    spent: list[tuple[float, float]] = []
    generate = trainer.trainer._generate

    def timed(prompts: Any) -> Any:
        start = now(backbone)
        made = generate(prompts)
        spent.append(since(start, backbone))
        return made

    trainer.trainer._generate = timed

    def sample(round_: int) -> Round:
        made = trainer.episodes(tasks, seed=round_)
        return Round([one for episodes in made for one in episodes], *spent[-1])

    return sample


def now(backbone: Backbone) -> tuple[float, float]:
    if backbone.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], backbone: Backbone) -> tuple[float, float]:
    seconds, busy = now(backbone)
    return seconds - start[0], busy - start[1]


# measuring ---------------------------------------------------------------------------------------


@torch.no_grad()
def furthest(backbone: Backbone, config: Config, episodes: Sequence[Episode]) -> float:
    """Largest distance between a noted log-probability and that of a full forward pass."""
    talk = Dialogue(backbone.model, backbone.processor, config=config)
    base, device, worst = talk.base, talk.base.device, 0.0
    for episode in episodes:
        prompt = talk.prompt(episode.task)
        ids = torch.cat([prompt.ids, episode.ids])
        pictures = talk.pictures(episode)
        out = base(
            input_ids=ids[None].to(device),
            attention_mask=torch.ones_like(ids)[None].to(device),
            mm_token_type_ids=(ids == talk.markers.image).int()[None].to(device),
            pixel_values=torch.cat([one.pixels_ND for one in pictures]).to(device),
            image_grid_thw=torch.tensor([one.grid for one in pictures], device=device),
        )
        shut_V = torch.where(talk.shut < 0, NEVER, 0.0)
        said_LV = (out.logits[0].float().cpu() + shut_V).log_softmax(-1)
        at = torch.arange(len(prompt.ids), len(ids))[episode.written]
        gap = said_LV[at - 1, ids[at]] - episode.log_probs[episode.written]
        worst = max(worst, float(gap.abs().max()))
    return worst


def summary(arm: str, rounds: Sequence[Round], *, gap: float | None) -> dict[str, Any]:
    episodes = [one for made in rounds for one in made.episodes]
    written = [int(one.written.sum()) for one in episodes]
    tokens = [sum(int(one.written.sum()) for one in made.episodes) for made in rounds]
    return {
        "arm": arm,
        "episodes_per_second": [len(made.episodes) / made.seconds for made in rounds],
        "episodes_per_busy_second": [len(made.episodes) / made.busy for made in rounds],
        "tokens_per_second": [n / made.seconds for n, made in zip(tokens, rounds, strict=True)],
        "written_tokens": statistics.mean(written),
        "looked": sum(len(one.screen.views) > 1 for one in episodes) / len(episodes),
        "finish": dict(Counter(one.finish for one in episodes)),
        "largest_gap": gap,
    }


def table_of(rows: Sequence[dict[str, Any]], *, title: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for name in ("generation", "episodes/s", "range", "x TRL", "per CPU s", "x TRL", "tokens/s",
                 "tokens", "looked", "answered", "largest log-prob gap"):  # fmt: skip
        table.add_column(name, justify="left" if name == "generation" else "right")
    theirs = {row["arm"]: row for row in rows}.get("trl")
    for row in rows:
        speeds, count = row["episodes_per_second"], sum(row["finish"].values())
        clock, busy = (
            (statistics.median(row[name]), theirs and statistics.median(theirs[name]))
            for name in ("episodes_per_second", "episodes_per_busy_second")
        )
        table.add_row(
            row["arm"], f"{clock[0]:.1f}", f"{min(speeds):.1f}-{max(speeds):.1f}",
            f"{clock[0] / clock[1]:.2f}" if clock[1] else "",
            f"{busy[0]:.1f}", f"{busy[0] / busy[1]:.2f}" if busy[1] else "",
            f"{statistics.median(row['tokens_per_second']):.0f}", f"{row['written_tokens']:.1f}",
            f"{row['looked']:.0%}", f"{row['finish'].get('answered', 0) / count:.0%}",
            "keeps none" if row["largest_gap"] is None else f"{row['largest_gap']:.1e}",
        )  # fmt: skip
    table.caption = (
        "Medians over the rounds; per CPU s = per second of processor time, which other programs "
        "do not lengthen; tokens written per episode; looked = episodes that zoomed. The gap is "
        "to a full forward pass of each episode alone (last round)."
    )
    return table


def main() -> None:
    options = arguments()
    torch.set_num_threads(choose_threads(options.threads, earlier=None))
    config = configuration(options)
    source = open_source(config.data.train)
    tasks = first_of_each(source, count=options.tasks)
    backbone = policy(options, config, tasks)
    device = backbone.model.device
    chip = torch.cuda.get_device_name() if device.type == "cuda" else machine()["cpu"]
    setting = {
        "model": backbone.name,
        "parameters": sum(p.numel() for p in backbone.model.parameters()),
        "device": f"{device.type}: {chip}",
        "threads": torch.get_num_threads(),
        "dtype": str(backbone.model.dtype).removeprefix("torch."),
        "tasks x group": f"{len(tasks)} x {options.group}",
        "first look, crop": f"{options.max_pixels} px, {2 * options.max_pixels} px",
        "most written tokens": options.max_tokens,
        "seed, rounds": f"{options.seed}, {options.rounds}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }
    console = Console(width=140)
    console.print("\n".join(f"{name:20} {value}" for name, value in setting.items()))
    with tempfile.TemporaryDirectory() as folder:
        arms: dict[str, Callable[[int], Round]] = {
            arm: trls(backbone, config, tasks, Path(folder))
            if arm == "trl"
            else ours(backbone, config, tasks, shared=arm == "shared")
            for arm in options.arms
        }
        made: dict[str, list[Round]] = {arm: [] for arm in arms}
        for sample in arms.values():  # warm up
            sample(options.seed)
        for round_ in range(options.rounds):
            for arm, sample in arms.items():
                made[arm].append(sample(options.seed + 1 + round_))
    gaps = {
        arm: None if arm == "trl" else furthest(backbone, config, rounds[-1].episodes)
        for arm, rounds in made.items()
    }
    rows = [summary(arm, rounds, gap=gaps[arm]) for arm, rounds in made.items()]
    console.print(table_of(rows, title=f"{len(tasks)} screenshots, groups of {options.group}"))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "measured": rows}, indent=1) + "\n")


def first_of_each(source: Any, *, count: int) -> list[Task]:
    """One task of each of `count` screenshots."""
    tasks: dict[str, Task] = {}
    for number in range(len(source)):
        sample = source[number]
        tasks.setdefault(sample.image_key or sample.id, task_of(sample))
        if len(tasks) == count:
            break
    return list(tasks.values())


if __name__ == "__main__":
    main()
