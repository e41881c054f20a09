"""Recipe `pretrain` over two processes that share the frozen base out: the same run and model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_real_recipes import finish, steps, two_ranks

from tests.tiny_models import random_backbone


@pytest.mark.slow
def test_a_shared_out_base_trains_and_exports_like_one_process(tmp_path: Path) -> None:
    base = tmp_path / "base"
    random_backbone().model.save_pretrained(base)
    random_backbone().processor.save_pretrained(base)
    slow = ("training.learning_rate=3e-4", "training.batch_size=4")
    alone = finish("smoke/pretrain", base, tmp_path / "one", *slow, "training.batch_size=8")
    fsdp = two_ranks("smoke/pretrain", base, tmp_path / "two", *slow, "training.parallel=fsdp")
    for one, two in zip(steps(alone), steps(fsdp), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    first, second = (load_file(f / "model" / "model.safetensors") for f in (alone, fsdp))
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-4, rtol=1e-3)
