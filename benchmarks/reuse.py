"""Measure what it saves to compute a frozen tower's features once per image, and to keep them.

In go a recipe, a number of questions per image and some steps; the same run is trained several
times: every question encoding its image anew, features reused within a batch, and reused with a
cache on disk (a first pass that fills it, a second that finds everything there). Out come a table
of samples per second for both kinds of step (imitation, answers), and the largest difference of
any loss, which must be rounding. All runs see the same samples in the same order, and each sees
each image in one step only, so that nothing but reuse and the cache can help. Left out of the time:
loading the model, checkpoints, evaluation.

    python benchmarks/reuse.py
    python benchmarks/reuse.py --questions 4 8 12 --steps 10

What it gains depends on the questions per image, on what the tower costs beside the language
model (more for large images, less for large language models: `--bound` prints the arithmetic of
published sizes), and on how long drawing or decoding the image takes, which reuse never saves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from saccade.config.resolve import resolve
from saccade.config.schema import Config
from saccade.data.samples import Sample
from saccade.models.flops import language_flops, published_config, vision_flops
from saccade.models.relevance.feature_cache import FeatureCache, TensorStore
from saccade.training.batches import SampleOrder
from saccade.training.optimizers import make_optimizer
from saccade.training.provenance import machine, versions
from saccade.training.recipes.relevance import RelevanceRecipe
from saccade.training.threads import choose_threads

TOLERANCE = 1e-4
ARMS = ("not reused", "reused in a batch", "cache: filling", "cache: filled")


@dataclass(frozen=True)
class Measured:
    """One arm: seconds in each kind of step, and what was learned from."""

    arm: str
    seconds: dict[str, float]
    cpu_seconds: float
    samples: dict[str, int]
    losses: list[float]

    def rate(self, kind: str | None = None) -> float:
        """Samples per second of a kind of step, or of all."""
        kinds = [kind] if kind else list(self.seconds)
        return sum(self.samples[k] for k in kinds) / max(1e-9, sum(self.seconds[k] for k in kinds))

    def cpu_rate(self) -> float:
        """Samples per second of processor time, which other work on the machine hardly moves."""
        return sum(self.samples.values()) / max(1e-9, self.cpu_seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, nargs="+", default=[4, 8, 12], help="per image")
    parser.add_argument("--images", type=int, default=2, help="per step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--imitation", type=float, default=0.725, help="share of the steps")
    parser.add_argument("--repeat", type=int, default=1, help="of everything; the best counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes the idle ones")
    parser.add_argument("--bound", action="store_true", help="also print published sizes' bounds")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("overrides", nargs="*", help="key=value")
    return parser.parse_args()


def configuration(options: argparse.Namespace, *, questions: int, reuse: bool) -> Config:
    """The recipe as shipped, with this many questions about each image."""
    return resolve(
        "relevance",
        overrides=[
            f"run.seed={options.seed}",
            f"data.train.questions={questions}",
            f"data.train.scenes={options.images * options.steps}",
            f"training.batch_size={questions * options.images}",
            f"training.steps={options.steps}",
            f"selector.distill_steps={round(options.imitation * options.steps)}",
            f"selector.reuse_features={str(reuse).lower()}",
            *options.overrides,
        ],
    ).config


def train(recipe: RelevanceRecipe, batches: list[list[Sample]], *, arm: str) -> Measured:
    """Optimizer steps as the training loop takes them, timed from samples to updated weights."""
    config = recipe.config
    optimizer = make_optimizer(recipe.model, training=config.training)
    seconds = {"imitation": 0.0, "answers": 0.0}
    samples = {"imitation": 0, "answers": 0}
    losses, cpu_seconds = [], 0.0
    recipe.model.train()
    for step, chosen in enumerate(batches):
        kind = "imitation" if step < config.selector.distill_steps else "answers"
        started, cpu_started = time.perf_counter(), time.process_time()
        batch = recipe.collate(chosen)
        batch = {
            k: v.to(recipe.model.device) if isinstance(v, torch.Tensor) else v
            for k, v in batch.items()
        }
        supervised = (batch["labels"] != -100).sum()
        loss = recipe.loss(batch, step=step, denominator=supervised)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recipe.model.selector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds[kind] += time.perf_counter() - started
        cpu_seconds += time.process_time() - cpu_started
        samples[kind] += len(chosen)
    return Measured(
        arm=arm, seconds=seconds, cpu_seconds=cpu_seconds, samples=samples, losses=losses
    )


def measure(options: argparse.Namespace, *, questions: int, arm: str, folder: Path) -> Measured:
    """One run of one arm, from fresh weights."""
    config = configuration(options, questions=questions, reuse=arm != ARMS[0])
    recipe = RelevanceRecipe(config)
    if arm in ARMS[2:]:
        store = TensorStore(folder, max_bytes=10**10)
        recipe.model.feature_cache = FeatureCache(
            store, base=recipe.model.base, layout=recipe.model.layout
        )
    source = recipe.train_source()
    order = SampleOrder(source.groups(), seed=options.seed, keep_order=False)
    size = config.training.batch_size
    batches = [[source[i] for i in order.take(n * size, size)] for n in range(options.steps)]
    # one unmeasured step on an image that no measured step shows
    spare = RelevanceRecipe(config).train_source()
    warm = recipe.collate([spare[0]])
    recipe.loss(warm, step=0, denominator=torch.tensor(1.0))["loss"].backward()
    recipe.model.zero_grad(set_to_none=True)
    return train(recipe, batches, arm=arm)


def compare(options: argparse.Namespace, *, questions: int) -> list[Measured]:
    """All arms; with repeats the fastest run of each, after checking every loss of every one."""
    best: dict[str, Measured] = {}
    reference: list[float] | None = None
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="reuse-") as folder:
            for arm in ARMS:
                found = measure(options, questions=questions, arm=arm, folder=Path(folder))
                reference = reference or found.losses
                assert difference(found.losses, reference) <= TOLERANCE, arm
                if arm not in best or found.rate() > best[arm].rate():
                    best[arm] = found
    return list(best.values())


def difference(losses: list[float], others: list[float]) -> float:
    """The largest relative difference of two lists of losses."""
    pairs = zip(losses, others, strict=True)
    return max(abs(a - b) / max(1e-9, abs(b)) for a, b in pairs)


def show(console: Console, rows: list[Measured], *, questions: int) -> None:
    table = Table(title=f"{questions} questions per image: samples per second")
    names = ("features", "imitation", "answers", "whole run", "times", "times (CPU)", "loss gap")
    for name in names:
        table.add_column(name, justify="left" if name == "features" else "right")
    plain = rows[0]
    for row in rows:
        table.add_row(
            row.arm, f"{row.rate('imitation'):.1f}", f"{row.rate('answers'):.1f}",
            f"{row.rate():.1f}", f"{row.rate() / plain.rate():.2f}",
            f"{row.cpu_rate() / plain.cpu_rate():.2f}",
            f"{difference(row.losses, plain.losses):.1e}",
        )  # fmt: skip
    console.print(table)


def show_bounds(console: Console) -> None:
    """What reuse can gain at most in the answer phase, from the arithmetic of published sizes.

    A question costs its image's tower pass and the language model forward and back (the weights
    stand still, so back costs as much as forward); infinitely many questions share the tower.
    """
    table = Table(title="bound at published sizes (answer phase, any number of questions)")
    for name in ("model", "image", "visual tokens", "tower / language", "at most"):
        table.add_column(name, justify="right")
    for size in ("2b", "4b", "8b"):
        config = published_config(size)
        for side in (512, 1024, 2048):
            cells = (side // 32) ** 2
            tower = vision_flops(config, cells=[cells])
            language = 2 * language_flops(config, tokens=[cells + 64])
            table.add_row(
                size, f"{side} px", str(cells), f"{tower / language:.2f}",
                f"{1 + tower / language:.2f}",
            )  # fmt: skip
    console.print(table)


def main() -> None:
    options = arguments()
    console = Console()
    torch.set_num_threads(choose_threads(options.threads, earlier=None))
    about = machine()
    console.print(
        f"{about['cpu']}, {torch.get_num_threads()} thread(s), torch {versions()['torch']},"
        f" seed {options.seed}, {options.steps} steps of {options.images} images"
    )
    found: list[dict[str, Any]] = []
    for questions in options.questions:
        rows = compare(options, questions=questions)
        show(console, rows, questions=questions)
        found += [{"questions": questions, **asdict(row), "rate": row.rate()} for row in rows]
    if options.bound:
        show_bounds(console)
    if options.out is not None:
        content = {"machine": about, "seed": options.seed, "measured": found}
        options.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
