"""A run directory with a random tiny model and an untrained selector, made in a second.

What it answers is nonsense; that the machinery around it is exact can be tested all the same.
"""

from __future__ import annotations

import time
from pathlib import Path

from saccade.config.resolve import resolve
from saccade.config.schema import ArchConfig, Config
from saccade.models.backbone import load_backbone
from saccade.models.relevance.model import RelevanceModel
from saccade.models.tiny import build_model, build_processor, build_tokenizer, tiny_config
from saccade.training.events import EventLog
from saccade.training.rundir import RunDir

OVERRIDES = (
    "eval.keep=[0.5,0.2]", "eval.samples=8", "eval.batch_size=4", "eval.seeds=2",
    "eval.max_new_tokens=3", "training.threads=1", "training.steps=4",
    "data.eval.scenes=3", "data.eval.min_cells=20", "data.eval.max_cells=36",
    "data.eval.min_objects=2", "data.eval.max_objects=3",
    "data.train.scenes=5", "data.train.min_cells=20", "data.train.max_cells=36",
    "data.train.min_objects=2", "data.train.max_objects=3",
)  # fmt: skip


def base_folder(folder: Path) -> Path:
    """Save a random tiny Qwen3-VL with its processor."""
    arch = ArchConfig(hidden_size=32, layers=2, vision_hidden_size=32, vision_layers=2)
    texts = ["what color is the star?", "which digit is on the heart?", "red green blue"]
    tokenizer = build_tokenizer(texts, vocab_size=320)
    build_model(tiny_config(arch, tokenizer), seed=0).save_pretrained(folder)
    build_processor(arch, tokenizer).save_pretrained(folder)
    return folder


def make_run(root: Path, *overrides: str) -> RunDir:
    """Create `root/runs/toy` as a finished relevance run."""
    base = base_folder(root / "base")
    settings = (*OVERRIDES, f"model.name={base}", f"run.root={root / 'runs'}", "run.name=toy")
    resolved = resolve("relevance", overrides=[*settings, *overrides])
    run = RunDir.create(resolved)
    save_selector(run, resolved.config)
    log = EventLog(run.events_file)
    log.append("run_start", recipe="relevance", steps=4, world_size=1, threads=1, device="cpu")
    for step in range(1, 5):
        log.append(
            "step", step=step, loss=2.0 / step, metrics={}, learning_rate=1e-3 / step,
            grad_norm=1.0, samples_per_s=1.0, tokens_per_s=1.0, sample_ids=[],
        )  # fmt: skip
    log.append("resume", step=2, checkpoint="step-2", changed={})
    log.append("warning", message="a <warning> & more")
    log.append("gradients", step=4, groups={"cells": {"norm": 1.0, "ratio": 0.1, "state": "ok"}})
    log.append("eval", step=4, metrics={"accuracy": 0.5, "accuracy_color": 0.4})
    log.append("done", step=4, metrics={})
    run.finish(step=4, metrics={"accuracy": 0.5})
    return run


def save_selector(run: RunDir, config: Config, *, seed: int = 0) -> None:
    model = RelevanceModel(load_backbone(config.model), config.selector, seed=seed)
    model.save_pretrained(run.path / "model")


def seconds(start: float) -> float:
    return time.perf_counter() - start
