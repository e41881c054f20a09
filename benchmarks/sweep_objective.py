"""A small real objective for sweeps: a numpy network learns to read generated digits.

A JSON file of parameters and a seed flow in; after every epoch one line `{"step", "error"}` with
the error on held-out digits is appended to the reports, and the state is saved, so that a stopped
trial continues where it was. Digits are seven-segment glyphs on 8x8 pixels, shifted, dimmed and
buried in noise; nothing is downloaded. `--pause` makes epochs longer, for tests that interrupt.

    python benchmarks/sweep_objective.py PARAMETERS.json REPORTS.jsonl FOLDER --epochs 9 --seed 0
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np

SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
STROKES = {
    "a": (0, slice(1, 4)), "d": (6, slice(1, 4)), "g": (3, slice(1, 4)),
    "b": (slice(1, 3), 4), "c": (slice(4, 6), 4), "f": (slice(1, 3), 0), "e": (slice(4, 6), 0),
}  # fmt: skip
SIDE = 8
TRAIN, HELD_OUT = 1500, 1000
NOISE = 0.35


def digits(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` digits; returns flat pixels and classes."""
    classes = rng.integers(0, 10, count)
    images = rng.normal(0.0, NOISE, (count, SIDE, SIDE))
    for image, digit in zip(images, classes, strict=True):
        glyph = np.zeros((7, 5))
        for segment in SEGMENTS[digit]:
            glyph[STROKES[segment]] = 1.0
        y, x = rng.integers(0, SIDE - 6), rng.integers(0, SIDE - 4)
        image[y : y + 7, x : x + 5] += glyph * rng.uniform(0.6, 1.4)
    return images.reshape(count, -1), classes


def start(parameters: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights of a network with one hidden layer, and their momenta."""
    width, gain = int(parameters["width"]), float(parameters["gain"])
    weights = {
        "w1": rng.normal(0, gain / SIDE, (SIDE * SIDE, width)), "b1": np.zeros(width),
        "w2": rng.normal(0, gain / np.sqrt(width), (width, 10)), "b2": np.zeros(10),
    }  # fmt: skip
    return weights | {"m_" + name: np.zeros_like(value) for name, value in weights.items()}


def epoch(
    state: dict[str, np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    parameters: dict,
    *,
    rng: np.random.Generator,
) -> None:
    """One pass of SGD with momentum, weight decay and dropout."""
    size, drop = int(parameters["batch"]), float(parameters["dropout"])
    order = rng.permutation(len(x))
    for begin in range(0, len(x), size):
        rows = order[begin : begin + size]
        hidden = np.maximum(x[rows] @ state["w1"] + state["b1"], 0)
        mask = (rng.random(hidden.shape) >= drop) / (1 - drop)
        hidden = hidden * mask
        wrong = softmax(hidden @ state["w2"] + state["b2"])
        wrong[np.arange(len(rows)), y[rows]] -= 1
        wrong /= len(rows)
        back = (wrong @ state["w2"].T) * (hidden > 0) * mask
        slopes = {
            "w2": hidden.T @ wrong, "b2": wrong.sum(0), "w1": x[rows].T @ back, "b1": back.sum(0),
        }  # fmt: skip
        for name, slope in slopes.items():
            slope = slope + float(parameters["decay"]) * state[name]
            state["m_" + name] = float(parameters["momentum"]) * state["m_" + name] + slope
            state[name] = state[name] - float(parameters["rate"]) * state["m_" + name]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows that sum to 1."""
    raised = np.exp(np.clip(logits - logits.max(1, keepdims=True), -50, 0))
    return raised / raised.sum(1, keepdims=True)


def error(state: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray) -> float:
    """Share of held-out digits read wrongly."""
    hidden = np.maximum(x @ state["w1"] + state["b1"], 0)
    return float(((hidden @ state["w2"] + state["b2"]).argmax(1) != y).mean())


def main() -> int:
    """Train, report, save; 143 when asked to stop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("parameters", "reports", "folder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pause", type=float, default=0.0)
    options = parser.parse_args()
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    np.seterr(all="ignore")
    parameters = json.loads(options.parameters.read_text("utf-8"))
    x, y = digits(TRAIN, np.random.default_rng([options.seed, 1]))
    seen_x, seen_y = digits(HELD_OUT, np.random.default_rng([options.seed, 2]))
    saved = options.folder / "state.npz"
    state = start(parameters, np.random.default_rng([options.seed, 3])) | {"done": np.zeros(())}
    if saved.exists():
        with np.load(saved) as file:
            state = dict(file)
    for number in range(int(state["done"]) + 1, options.epochs + 1):
        epoch(state, x, y, parameters, rng=np.random.default_rng([options.seed, 4, number]))
        time.sleep(options.pause)
        with options.reports.open("a", encoding="utf-8") as file:
            line = {"step": number, "error": error(state, seen_x, seen_y)}
            file.write(json.dumps(line) + "\n")
        state["done"] = np.array(number)
        aside = options.folder / "state.tmp.npz"
        np.savez(aside, **state)  # type: ignore[arg-type]
        aside.replace(saved)
        if asked and number < options.epochs:
            return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
