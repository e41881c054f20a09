"""Perplexity: against its definition, masked positions, bytes, and a model that sees no future."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saccade.config.errors import InputError
from saccade.config.recursion import RecursionConfig
from saccade.config.resolve import resolve
from saccade.config.streams import StreamSource
from saccade.data.generate.puzzles import IGNORED, INPUT, TARGET
from saccade.data.reading import StreamWindows
from saccade.data.streams import FIRST_BYTE, VOCABULARY
from saccade.evaluation.reading import reading_table
from saccade.evaluation.run import evaluate_run, rejudge
from saccade.models.recursion.model import Geometry, RecursiveModel
from saccade.scoring.perplexity import (
    Surprise,
    added,
    surprise,
    unigram_nats,
    unigram_surprise,
)
from saccade.training.recipes.recursion import RecursionRecipe
from saccade.training.run import train
from saccade.training.rundir import RunDir

TINY: dict[str, Any] = {"width": 16, "heads": 2, "layers": 1, "ffn_multiple": 8, "cycles": 1,
                        "inner_cycles": 2}  # fmt: skip


# readings ----------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    read = Surprise(10 * math.log(256), 10, 10).readings()
    assert read["perplexity"] == pytest.approx(256)
    assert read["bits_per_token"] == read["bits_per_byte"] == pytest.approx(8)


def test_masked_positions_count_in_nothing_and_end_marks_hold_no_byte() -> None:
    targets = np.array([FIRST_BYTE + 65, 1, IGNORED, FIRST_BYTE])
    found = surprise(np.array([1.0, 2.0, 99.0, 3.0]), targets, first_byte=FIRST_BYTE)
    assert found == Surprise(6.0, 3, 2)
    read = found.readings()
    assert read["nats_per_token"] == pytest.approx(2.0)
    assert read["bits_per_byte"] == pytest.approx(3.0 / math.log(2))


def test_parts_add_up_and_what_was_impossible_is_infinite() -> None:
    both = added([Surprise(1.0, 1, 1), Surprise(3.0, 3, 2)])
    assert both == Surprise(4.0, 4, 3)
    assert Surprise(math.inf, 1, 1).readings()["perplexity"] == math.inf
    assert math.isnan(Surprise(0.0, 0, 0).readings()["nats_per_token"])


def test_the_unigram_baseline_is_the_smoothed_share() -> None:
    nats = unigram_nats([3, 0, 0])
    assert nats == pytest.approx([-math.log(4 / 6), -math.log(1 / 6), -math.log(1 / 6)])
    cost = unigram_surprise(nats, np.array([0, 2, IGNORED]), first_byte=1)
    assert cost == Surprise(pytest.approx(math.log(6 / 4) + math.log(6)), 2, 1)  # type: ignore[arg-type]


# the source --------------------------------------------------------------------------------------


@pytest.fixture
def tales(tmp_path: Path) -> Path:
    file = tmp_path / "tales.txt"
    names = [f"{a}{b}" for a in "BDKLM" for b in ("am", "en", "ip", "ot", "un", "ar", "el", "im")]
    text = "<|endoftext|>".join(f"{name} had a red ball. {name} was happy." for name in names)
    file.write_text(text)
    return file


def stream(path: Path, **wanted: Any) -> StreamWindows:
    return StreamWindows(StreamSource(type="stream", path=path, **{"length": 16, **wanted}))


def test_windows_ask_for_the_next_byte_and_for_nothing_past_the_end(tales: Path) -> None:
    source = stream(tales)
    first, last = source[0], source[len(source) - 1]
    assert np.array_equal(first.facts[INPUT][1:], first.facts[TARGET][:-1])
    assert first.question.startswith("Bam had a red")
    assert (last.facts[TARGET] == IGNORED).any()
    asked = sum(int((source[i].facts[TARGET] != IGNORED).sum()) for i in range(len(source)))
    assert asked == source.counts().sum() - 1
    assert source.counts()[1] == 40


def test_splits_share_no_document(tales: Path) -> None:
    parts = [stream(tales, split=split).documents for split in ("train", "test")]
    assert len(parts[0]) + len(parts[1]) == 40
    assert parts[1]
    assert not set(parts[0]) & set(parts[1])
    with pytest.raises(InputError, match="none of 1 documents is in the split"):
        for split in ("train", "test"):
            stream(tales, documents=1, split=split)


def test_code_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    source = stream(tmp_path, content="code")
    assert source[0].question == "x = 1\n"
    assert source.kind == "code"
    assert source.fingerprint() != stream(tmp_path, content="code", length=8).fingerprint()


# the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra", [{}, {"memory": {"enabled": True}}, {"codebook": {"enabled": True}},
              {"mtp": {"enabled": True}}, {"puzzle_prefix": 2}],
)  # fmt: skip
def test_what_a_position_says_does_not_depend_on_those_after_it(extra: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = RecursiveModel(RecursionConfig(**TINY, causal=True, **extra), Geometry(12, VOCABULARY))
    one = torch.randint(2, VOCABULARY, (1, 12))
    other = one.clone()
    other[0, 7:] = torch.randint(2, VOCABULARY, (5,))
    puzzle = torch.zeros(1, dtype=torch.long)
    said = [list(model.think(ids, puzzle, steps=3))[-1].logits_BLV for ids in (one, other)]
    assert torch.allclose(said[0][:, :7], said[1][:, :7], atol=1e-6)
    assert not torch.allclose(said[0][:, 7:], said[1][:, 7:], atol=1e-3)


def test_what_looks_at_all_positions_is_not_causal() -> None:
    for wrong in ({"mixer": "mlp", "positions": "none"}, {"planning": {"enabled": True}}):
        with pytest.raises(ValueError, match="causal=true needs"):
            RecursionConfig.model_validate({**TINY, "causal": True, **wrong})


def settings(tales: Path, *more: str) -> list[str]:
    return [
        "arch=text", f"data.train.path={tales}", f"data.eval.path={tales}", "data.eval.length=32",
        "data.train.length=32", "model.device=cpu", "training.threads=1",
        "run.heartbeat_seconds=0", *more,
    ]  # fmt: skip


def test_text_wants_a_causal_model(tales: Path) -> None:
    config = resolve("recursion", overrides=settings(tales, "recursion.causal=false")).config
    with pytest.raises(InputError, match=r"would see the bytes that it is asked for"):
        RecursionRecipe(config)


def test_a_model_trained_on_text_beats_the_unigram_baseline(tales: Path, tmp_path: Path) -> None:
    overrides = settings(
        tales, f"run.root={tmp_path}", "recursion.width=32", "recursion.max_steps=2",
        "recursion.eval_steps=2", "training.steps=120", "training.batch_size=8",
        "training.learning_rate=1e-3", "training.save_every=120", "recursion.ema_decay=0.9",
    )  # fmt: skip
    train(resolve("recursion", overrides=overrides))
    run = RunDir.open(tmp_path / "recursion")
    found = evaluate_run(run)
    baselines = found["baselines"]
    assert found["perplexity"] < baselines["unigram"]["perplexity"]
    assert baselines["unigram"]["perplexity"] < baselines["chance"]["perplexity"]
    assert found["perplexity"] == found["by_step"][-1]["perplexity"]
    assert baselines["chance"]["perplexity"] == pytest.approx(VOCABULARY)
    rows = [json.loads(line) for line in run.predictions_file.read_text().splitlines()]
    assert sum(row["tokens"] for row in rows) == found["tokens"]
    assert rejudge(run) == found
    assert reading_table(found).row_count == 4
