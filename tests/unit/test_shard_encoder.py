"""The encoder of shards is a trained tower; random weights are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from saccade.config.errors import InputError
from saccade.config.schema import ArchConfig, ModelConfig, ScenesSource
from saccade.data.generate.scenes import draw_scene, make_scene, vocabulary_texts
from saccade.data.shards.encode import Pooling
from saccade.data.shards.render import make_square
from saccade.models.backbone import load_backbone
from saccade.models.shard_encoder import TowerEncoder, refuse_untrained
from saccade.models.tiny import build_model, build_processor, build_tokenizer, tiny_config

TINY = ModelConfig(device="cpu")


def pictures(count: int, *, side: int) -> list[Image.Image]:
    source = ScenesSource(scenes=count)
    return [make_square(draw_scene(make_scene(source, index=i)), side=side) for i in range(count)]


def save_random(folder: Path) -> None:
    arch = ArchConfig(vocab_size=400)
    tokenizer = build_tokenizer(vocabulary_texts(), vocab_size=400)
    build_model(tiny_config(arch, tokenizer), seed=0).save_pretrained(folder)
    build_processor(arch, tokenizer).save_pretrained(folder)


def test_features_are_those_of_the_tower_and_do_not_depend_on_neighbours() -> None:
    encoder = TowerEncoder(TINY, side=96)
    assert (encoder.grid, encoder.width, encoder.alone) == ((6, 6), 96, True)
    shown = pictures(3, side=96)
    together = encoder.encode(encoder.prepare(shown))
    assert together.shape == (3, 36, 96)
    alone = torch.cat([encoder.encode(encoder.prepare([one])) for one in shown])
    assert torch.equal(together, alone)
    backbone = load_backbone(TINY)
    taken = backbone.processor.image_processor(images=shown, return_tensors="pt")
    with torch.no_grad():
        found = backbone.model.model.get_image_features(
            taken["pixel_values"], taken["image_grid_thw"], return_dict=True
        )
    assert torch.allclose(together, torch.stack(list(found.pooler_output)), atol=1e-4)


def test_capsules_of_different_pictures_differ() -> None:
    encoder = TowerEncoder(TINY, side=96)
    sketches = Pooling(encoder.grid, capsules=12, children=0)(
        encoder.encode(encoder.prepare(pictures(4, side=96)))
    )["sketches"].float()
    apart = torch.cdist(sketches.flatten(1), sketches.flatten(1))
    assert apart[~torch.eye(4, dtype=torch.bool)].min() > 1.0


def test_random_weights_are_refused_unless_told(tmp_path: Path) -> None:
    save_random(tmp_path)
    settings = ModelConfig(name=str(tmp_path), device="cpu")
    with pytest.raises(InputError, match=r"never learned.*\n  fix: .*untrained_encoder=true"):
        TowerEncoder(settings, side=96)
    assert TowerEncoder(settings, side=96, allow_untrained=True).width == 96


def test_one_random_block_in_a_trained_tower_is_found() -> None:
    tower = load_backbone(TINY).model.model.visual
    refuse_untrained(tower, name="tiny")
    with torch.no_grad():
        for name, value in tower.blocks[1].named_parameters():
            if name.endswith("bias"):
                value.zero_()
            elif value.ndim == 1:
                value.fill_(1.0)
    with pytest.raises(InputError, match=r"part 'blocks\.1' never learned"):
        refuse_untrained(tower, name="tiny")


def test_a_side_that_does_not_fit_the_cells_is_refused() -> None:
    with pytest.raises(InputError, match=r"cells of 16 pixels\n  fix: .*shards\.side=96"):
        TowerEncoder(TINY, side=100)
