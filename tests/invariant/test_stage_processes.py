"""Fine-tuning with adapters on two processes: DDP and FSDP2 compute the losses of one.

Under FSDP2 the frozen weights of every layer are shared out while its adapters stay whole, and
the finished model is written all the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_fsdp import HOLD, SLOW, assert_same_losses, finished, start_two, stop_after_step_3
from test_real_recipes import start
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from saccade.config.schema import LoraConfig
from saccade.training.sharding import shard_frozen
from tests.tiny_models import random_backbone
from tests.trainer_data import own_backbone

pytest.importorskip("peft", reason="the extra `rl` is not installed")
from saccade.training.recipes.adapters import attach_lora

EXACT = (*SLOW, "lora.dropout=0")
ALONE = ("training.batch_size=8",)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    random_backbone().model.save_pretrained(folder)
    random_backbone().processor.save_pretrained(folder)
    return folder


def run_alone(recipe: str, model: Path, folder: Path) -> Path:
    return finished(folder, [start(recipe, model, folder, *EXACT, *ALONE)])


@pytest.mark.parametrize("recipe", ["smoke/sft", pytest.param("smoke/dpo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_compute_the_losses_of_one_and_export_the_same_model(
    recipe: str, parallel: str, model: Path, tmp_path: Path
) -> None:
    alone = run_alone(recipe, model, tmp_path / "alone")
    folder = tmp_path / "two"
    more = (f"training.parallel={parallel}",)
    finished(folder, start_two(recipe, model, folder, *EXACT, *more))
    assert_same_losses(alone, folder)
    one, two = (
        safetensors.torch.load_file(run / "model" / "model.safetensors") for run in (alone, folder)
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.05, atol=2e-3)


def test_a_sharded_fine_tuning_that_was_stopped_continues_in_one_process(
    model: Path, tmp_path: Path
) -> None:
    alone = run_alone("smoke/sft", model, tmp_path / "alone")
    folder = tmp_path / "run"
    fsdp = "training.parallel=fsdp"
    stop_after_step_3(folder, start_two("smoke/sft", model, folder, *EXACT, fsdp, hold=HOLD))
    finished(folder, [start("smoke/sft", model, folder, *EXACT, *ALONE, "training.parallel=ddp")])
    assert_same_losses(alone, folder)


def test_layers_with_adapters_are_sharded_around_them(tmp_path: Path) -> None:
    base = own_backbone().model
    attach_lora(base, LoraConfig(rank=2), seed=0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        shard_frozen(base, device=torch.device("cpu"))
        for name, parameter in base.named_parameters():
            assert isinstance(parameter, DTensor) != ("lora_" in name), name
        layer = base.model.language_model.layers[0]
        assert type(layer).__name__.startswith("FSDP"), "each layer is gathered by itself"
    finally:
        dist.destroy_process_group()
