"""Base models load by hub name, folder or `tiny`, through one path, with clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import ModelConfig
from saccade.data.chat import ChatRenderer
from saccade.models.backbone import load_backbone, locate, pick_device
from tests.tiny_models import random_backbone, sample


def save_as_folder(folder: Path) -> Path:
    backbone = random_backbone()
    backbone.model.save_pretrained(folder)
    backbone.processor.save_pretrained(folder)
    return folder


def test_a_saved_folder_loads_frozen_and_equal(tmp_path: Path) -> None:
    loaded = load_backbone(ModelConfig(name=str(save_as_folder(tmp_path / "base"))))
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert not loaded.model.training
    before, after = random_backbone().model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    a = ChatRenderer(random_backbone().processor).encode(sample(0, (64, 96)), with_answer=True)
    b = ChatRenderer(loaded.processor).encode(sample(0, (64, 96)), with_answer=True)
    assert torch.equal(a.input_ids_L, b.input_ids_L)
    assert a.pixels_ND is not None and b.pixels_ND is not None
    assert torch.equal(a.pixels_ND, b.pixels_ND)


def test_a_hub_name_loads_from_a_folder_in_hub_layout(tmp_path: Path) -> None:
    """`Qwen/Qwen3-VL-2B-Instruct` by its real name and the real hub code, from a local cache."""
    repository = tmp_path / "models--Qwen--Qwen3-VL-2B-Instruct"
    commit = "0" * 40
    save_as_folder(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from saccade.config.schema import ModelConfig\n"
        "from saccade.models.backbone import load_backbone\n"
        "b = load_backbone(ModelConfig(name='Qwen/Qwen3-VL-2B-Instruct'))\n"
        "print(b.model.config.model_type, type(b.processor.tokenizer).__name__)\n"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("qwen3_vl ")


def test_a_hub_name_that_cannot_be_reached_is_missing_outside() -> None:
    with pytest.raises(OutsideError, match="cannot be loaded"):
        load_backbone(ModelConfig(name="nobody/nothing-here"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./neither", "just-a-word"])
def test_a_missing_folder_is_the_users_mistake(name: str) -> None:
    with pytest.raises(InputError, match="no such model folder"):
        locate(name)


def test_a_folder_without_a_model_and_a_model_of_another_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        locate(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="'bert' is not supported"):
        load_backbone(ModelConfig(name=str(tmp_path)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_cuda_where_there_is_none_is_an_error_not_a_fallback() -> None:
    with pytest.raises(OutsideError, match="no CUDA device"):
        pick_device(ModelConfig(device="cuda"))
    assert pick_device(ModelConfig(device="auto")).type == "cpu"
