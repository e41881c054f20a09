"""Measure what dropping visual tokens saves before the first answer token, part by part.

In go a model (the tiny base, a folder, a hub name, or random weights at the published widths),
image sizes, batch sizes and budgets; out come, for reading every token, the selector at each
placement and resizing to as many tokens: tokens, operations and wall time of vision tower,
selector and language-model prefill, KV-cache bytes, and the measured speed-up beside the physical
ceiling of dropping after the encoder, which is the speed-up with no visual token in the language
model at all; `pixels`, `glance` and resizing are not bound by it. The selector is untrained: speed
does not depend on what it has learned, and no accuracy is measured here.

    python benchmarks/prefill.py                                   # CPU, tiny base
    python benchmarks/prefill.py --geometry qwen3-vl-2b --sizes 1024 --repeat 1 --warmup 0   # CPU
    python benchmarks/prefill.py --geometry qwen3-vl-2b --device cuda --batch 1 8
    python benchmarks/prefill.py --model Qwen/Qwen3-VL-2B-Instruct --device cuda

On a GPU: CUDA events, warm-up, median of --repeat, peak memory. Below some 2,000 tokens in all a
GPU waits for the CPU to launch kernels and savings do not show; raise --batch to see the crossover.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table

from saccade.config.schema import ModelConfig, SelectorConfig
from saccade.data.chat import ChatRenderer
from saccade.data.samples import Sample
from saccade.evaluation.plot import flops_text
from saccade.evaluation.timing import median_ms, prefill
from saccade.models import flops
from saccade.models.backbone import DTYPES, Backbone, load_backbone, pick_device
from saccade.models.processing import ImageTextProcessor, image_processor
from saccade.models.relevance.model import RelevanceModel
from saccade.models.tiny import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer
from saccade.training.provenance import machine
from saccade.training.threads import choose_threads

PLACEMENTS = ("features", "pixels", "glance")
GEOMETRIES = ("qwen3-vl-2b", "qwen3-vl-4b", "qwen3-vl-8b")
GPU_SIZES = (448, 1024, 1536, 2048)
WORDS = ("what", "is", "written", "on", "the", "small", "sign", "beside", "the", "old", "door")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny", help="tiny, a folder, or a hub name")
    parser.add_argument("--geometry", choices=list(GEOMETRIES), help="random weights, this size")
    parser.add_argument("--placements", nargs="+", choices=PLACEMENTS, default=list(PLACEMENTS))
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--attention", default="sdpa", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--sizes", type=int, nargs="+", help="image sides in pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--text-tokens", type=int, default=64, help="about this many")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes the idle ones")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    return parser.parse_args()


def random_backbone(options: argparse.Namespace, device: torch.device) -> Backbone:
    """Qwen3-VL at a published size with random weights; speed is that of the real one."""
    tokenizer = build_tokenizer([" ".join(WORDS)], vocab_size=400)
    config = flops.published_config(options.geometry.removeprefix("qwen3-vl-"))
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    config.image_token_id, config.video_token_id = ids["<|image_pad|>"], ids["<|video_pad|>"]
    config.vision_start_token_id = ids["<|vision_start|>"]
    config.vision_end_token_id = ids["<|vision_end|>"]
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    config._attn_implementation = options.attention
    torch.manual_seed(options.seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[dtype])
    try:
        with device:
            model = transformers.Qwen3VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    images = image_processor(
        patch_size=16, merge_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        size={"shortest_edge": 64**2, "longest_edge": 8192**2},
    )  # fmt: skip
    processor = ImageTextProcessor(
        image_processor=images, tokenizer=tokenizer, chat_template=CHAT_TEMPLATE
    )
    model = model.eval().requires_grad_(False)
    name = f"random weights, geometry of {options.geometry}"
    return Backbone(model=model, processor=processor, name=name, location=name)


def load(options: argparse.Namespace) -> tuple[dict[str, RelevanceModel], torch.device]:
    """One backbone, and in front of it a fresh selector for each placement."""
    settings = ModelConfig(
        name=options.model, device=options.device, dtype=options.dtype, attention=options.attention
    )
    device = pick_device(settings)
    backbone = random_backbone(options, device) if options.geometry else load_backbone(settings)
    models = {
        placement: RelevanceModel(
            backbone, SelectorConfig(placement=placement), seed=options.seed
        ).eval()
        for placement in dict.fromkeys(("features", *options.placements))
    }
    return models, device


def noise_batch(
    model: RelevanceModel, *, side_px: int, batch: int, text_tokens: int, seed: int
) -> dict[str, Any]:
    """Pictures of noise with a question of about `text_tokens` tokens, template included."""
    processor = model.backbone.processor
    renderer = ChatRenderer(processor, min_pixels=1, max_pixels=side_px**2)
    rng = np.random.default_rng(seed)
    question = [""]
    while len(renderer.tokenizer(" ".join(question))["input_ids"]) < text_tokens - 12:
        question.append(WORDS[len(question) % len(WORDS)])
    samples = []
    for number in range(batch):
        pixels = rng.integers(0, 256, size=(side_px, side_px, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels, "RGB")
        samples.append(Sample(str(number), " ".join(question), ("",), images=(picture,)))
    tensors = renderer.batch(samples, with_answer=False)
    return {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in tensors.items()}


class Measurement:
    """One image size and batch: everything is measured against reading every token."""

    def __init__(
        self,
        models: dict[str, RelevanceModel],
        tensors: dict[str, Any],
        *,
        device: torch.device,
        **timing: int,
    ) -> None:
        self.models, self.tensors, self.device, self.timing = models, tensors, device, timing
        self.model = models["features"]
        self.features = self.model.encode(tensors)
        self.cells = self.features.grid.counts
        self.encoder_ms = self.time(partial(self.model.encode, tensors))
        self.full = self.model.reduce(tensors, arm="full", keep=1.0, features=self.features)
        self.full_prefill_ms = self.prefill_ms(self.full)
        self.full_ms = self.encoder_ms + self.full_prefill_ms

    def time(self, function: Any) -> float:
        return median_ms(function, device=self.device, **self.timing)

    def prefill_ms(self, reduced: Any) -> float:
        return self.time(partial(prefill, self.model, reduced.inputs))

    def ceiling(self) -> dict[str, float]:
        """Speed-up with no visual token in the language model, in operations and measured."""
        inputs = self.features.inputs
        text_BL = (inputs.input_ids_BS != self.model.markers.image) & (inputs.attention_mask_BS > 0)
        shortest = int(text_BL.sum(1).min())
        bare = replace(
            inputs,
            input_ids_BS=torch.stack([r[k][-shortest:] for r, k in self._rows(text_BL)]),
            attention_mask_BS=inputs.attention_mask_BS[:, -shortest:].clone().fill_(1),
            positions_3BS=inputs.positions_3BS[..., -shortest:],
            images=None,
        )
        bare_ms = self.encoder_ms + self.time(partial(prefill, self.model, bare))
        text = text_BL.sum(1).tolist()
        return {
            "flops": flops.ceiling(self.model.config, cells=self.cells, text_tokens=text),
            "measured": self.full_ms / bare_ms,
        }

    def _rows(self, mask_BL: torch.Tensor) -> Any:
        return zip(self.features.inputs.input_ids_BS, mask_BL, strict=True)

    def row(self, arm: str, keep: float) -> dict[str, Any]:
        """Measure `full`, `resize`, or the selector at the placement named by `arm`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if arm == "full":
            return self._spent(arm, keep, self.full, (self.encoder_ms, 0.0, self.full_prefill_ms))
        if arm == "resize":
            resize = partial(
                self.model.reduce, self.tensors, arm=arm, keep=keep, features=self.features
            )
            reduced = resize()
            return self._spent(
                arm, keep, reduced, (self.time(resize), 0.0, self.prefill_ms(reduced))
            )
        model = self.models[arm]
        features = self.features if arm == "features" else model.encode(self.tensors)
        look_ms = (
            self.encoder_ms if arm == "features" else self.time(partial(model.encode, self.tensors))
        )
        kept = model.budgets(features.grid, keep)
        score = partial(model.score, features, kept=kept)
        _, operations = flops.count_flops(score)
        choose = partial(model.reduce, self.tensors, keep=keep, features=features)
        reduced = choose()
        score_ms, choose_ms = self.time(score), self.time(choose)
        # what is left of choosing is dropping, or encoding what was chosen
        parts = (look_ms + max(0.0, choose_ms - score_ms), score_ms, self.prefill_ms(reduced))
        return self._spent(arm, keep, reduced, parts, operations=operations)

    def _spent(
        self,
        arm: str,
        keep: float,
        reduced: Any,
        milliseconds: tuple[float, float, float],
        *,
        operations: float = 0.0,
    ) -> dict[str, Any]:
        encoder_ms, selector_ms, prefill_ms = milliseconds
        images = reduced.images
        encoded = [cells for image in images for cells in image.encoded]
        spent = flops.forward_flops(
            self.model.config,
            encoded_cells=encoded,
            tokens=reduced.sequence_lengths,
            selector=operations,
        )
        full = flops.forward_flops(
            self.model.config, encoded_cells=self.cells, tokens=self.full.sequence_lengths
        )
        value_bytes = torch.finfo(self.model.dtype).bits // 8
        per_token = flops.kv_bytes_per_token(self.model.config, bytes_per_value=value_bytes)
        cuda = self.device.type == "cuda"
        total_ms = sum(milliseconds)
        return {
            "arm": arm,
            "keep": keep,
            "visual_tokens": sum(image.kept for image in images) / len(images),
            "tokens_into_layer_0": sum(reduced.sequence_lengths) / len(images),
            "flops": spent.as_dict(),
            "flops_share": spent.total / full.total,
            "flops_speedup": full.total / spent.total,
            "selector_share": operations / full.total,
            "encoder_ms": encoder_ms,
            "selector_ms": selector_ms,
            "prefill_ms": prefill_ms,
            "total_ms": total_ms,
            "time_share": total_ms / self.full_ms,
            "measured_speedup": self.full_ms / total_ms,
            "kv_bytes": per_token * sum(reduced.sequence_lengths),
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }


def table_of(rows: list[dict[str, Any]], *, title: str, ceiling: dict[str, float]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("arm", "keep", "visual", "layer 0", "vision", "selector", "language", "x FLOPs",
                 "% FLOPs", "encoder ms", "selector ms", "prefill ms", "total ms", "x measured",
                 "% time", "KV MB", "peak GB"):  # fmt: skip
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in rows:
        parts = row["flops"]
        table.add_row(
            row["arm"], f"{row['keep']:.0%}", f"{row['visual_tokens']:.0f}",
            f"{row['tokens_into_layer_0']:.0f}",
            *(flops_text(parts[part]) for part in ("vision", "selector", "language")),
            f"{row['flops_speedup']:.2f}", f"{row['flops_share']:.1%}",
            *(f"{row[f'{part}_ms']:.2f}" for part in ("encoder", "selector", "prefill", "total")),
            f"{row['measured_speedup']:.2f}", f"{row['time_share']:.1%}",
            f"{row['kv_bytes'] / 1e6:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "",
        )  # fmt: skip
    table.caption = (
        f"physical ceiling of dropping after the encoder: {ceiling['flops']:.2f}x in operations, "
        f"{ceiling['measured']:.2f}x measured; choosing before it is not bound by it. Per batch, "
        "not per image; vision, selector and language in operations (a multiply-add counts 2)."
    )
    table.caption_justify = "left"
    return table


@torch.inference_mode()
def main() -> None:
    options = arguments()
    torch.set_num_threads(choose_threads(options.threads, earlier=None))
    models, device = load(options)
    model = models["features"]
    console = Console(width=200)
    where = machine()
    chip = torch.cuda.get_device_name() if device.type == "cuda" else where["cpu"]
    setting = {
        "model": model.backbone.name,
        "parameters": sum(p.numel() for p in model.base.parameters()),
        "selector_parameters": sum(p.numel() for p in model.selector.parameters()),
        "device": f"{device.type}: {chip}",
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "seed": options.seed,
        "repeat": options.repeat,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }
    console.print("\n".join(f"{name:20} {value}" for name, value in setting.items()))
    measured = []
    usual = [14 * model.layout.cell_px, 28 * model.layout.cell_px]
    if options.geometry:
        usual = list(GPU_SIZES) if device.type == "cuda" else [1024]
    for side in options.sizes or usual:
        for batch in options.batch:
            tensors = noise_batch(
                model, side_px=side, batch=batch, text_tokens=options.text_tokens, seed=options.seed
            )
            timing = {"warmup": options.warmup, "repeats": options.repeat}
            bench = Measurement(models, tensors, device=device, **timing)
            rows = [bench.row("full", 1.0)]
            arms = [*options.placements, "resize"]
            rows += [bench.row(arm, keep) for keep in options.keep for arm in arms]
            ceiling = bench.ceiling()
            title = f"{side} x {side} px, {bench.cells[0]} visual tokens, batch {batch}"
            console.print(table_of(rows, title=title, ceiling=ceiling))
            measured.append({"side_px": side, "batch": batch, "ceiling": ceiling, "rows": rows})
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**setting, "measured": measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
