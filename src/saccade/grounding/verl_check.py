"""Checks of an exported verl experiment before it trains: the model's processor, and the sampler.

In go an experiment's folder with a model, or the log of one verl step; out come what was checked,
or an InputError that says what would go wrong unseen: marks of tool calls that the tokenizer drops
from a finished text, pictures that the processor would resize once more, prompts that do not fit,
and a sampler (vLLM, SGLang) whose probabilities are not the trainer's.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.errors import InputError, OutsideError
from saccade.grounding.coordinates import seen_size
from saccade.grounding.verl_tool import Settings

MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
DIFFERENCE = "training/rollout_probs_diff_mean"
AGREEMENT = "training/rollout_actor_probs_pearson_corr"
MOST_DIFFERENCE = 0.02
"""Mean difference of a token's probability, sampler against trainer, beyond which they differ."""
LEAST_AGREEMENT = 0.99
"""Correlation of the two below which they differ."""
ROWS = 50
"""Rows whose prompts are measured."""


def check_model(processor: Any, *, folder: Path, most_tokens: int) -> dict[str, Any]:
    """Check a processor against the rows of an experiment; returns what was measured."""
    settings = Settings.read(folder)
    tokenizer = processor.tokenizer
    ids = tokenizer("".join(MARKS), add_special_tokens=False)["input_ids"]
    left = tokenizer.decode(ids, skip_special_tokens=True)
    lost = [mark for mark in MARKS if mark not in left]
    if lost:
        raise InputError(
            f"{lost[0]} is lost when verl decodes a finished text, so calls would be read as"
            " answers\n  fix: save the model's tokenizer with these as ordinary tokens"
        )
    images = processor.image_processor
    cell = images.patch_size * images.merge_size
    limits = images.size["shortest_edge"], images.size["longest_edge"]
    longest = 0
    for row in _rows(folder / "train.parquet"):
        size = Image.open(io.BytesIO(row["images"][0]["bytes"])).size
        seen = seen_size(size, cell=cell, limits=limits)
        if seen != size:
            raise InputError(
                f"a screenshot of {size} pixels would be shown at {seen}: the model's processor"
                f" has cells of {cell} pixels and areas of {limits[0]} to {limits[1]}"
                "\n  fix: export for this model (model.name=FOLDER)"
            )
        longest = max(longest, _tokens(row, processor, cells=size[0] * size[1] // cell**2,
                                       folder=folder))  # fmt: skip
    if longest > most_tokens:
        raise InputError(
            f"a prompt has {longest} tokens, and data.max_prompt_length={most_tokens}"
            f"\n  fix: bash run.sh data.max_prompt_length={longest + 64}"
        )
    crops = max(settings.crop[0], limits[0]), min(settings.crop[1], limits[1])
    if crops != settings.crop:
        raise InputError(
            f"crops may have {settings.crop} pixels, and the model's processor shows {limits}"
            "\n  fix: export for this model (model.name=FOLDER)"
        )
    return {"cell": cell, "longest prompt": longest}


def check_sampler(log: str) -> dict[str, float]:
    """Read from verl's log how far the sampler's probabilities are from the trainer's.

    Raises InputError where they differ, OutsideError where the log does not say.
    """
    found = {}
    for name in (DIFFERENCE, AGREEMENT):
        said = re.findall(re.escape(name) + r":([-+.\w]+)", log)
        if not said:
            raise OutsideError(
                f"the log has no {name}\n  fix: see why the step of `bash run.sh parity` failed"
            )
        found[name] = float(said[-1])
    # NaN compares as false: it must fail, too
    if not (found[DIFFERENCE] <= MOST_DIFFERENCE and found[AGREEMENT] >= LEAST_AGREEMENT):
        raise InputError(
            f"the sampler is not the model that is trained: probabilities differ by"
            f" {found[DIFFERENCE]:.4f} on average (at most {MOST_DIFFERENCE}), correlation"
            f" {found[AGREEMENT]:.4f} (at least {LEAST_AGREEMENT})"
            "\n  fix: another release of the engine, or ENGINE=sglang; a learning rate cannot mend"
            " this"
        )
    return found


def _rows(file: Path) -> list[Mapping[str, Any]]:
    import pyarrow.parquet

    if not file.is_file():
        raise InputError(f"{file}: no such file\n  fix: write it with `saccade export verl`")
    batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=ROWS)
    return next(batches).to_pylist()


def _tokens(row: Mapping[str, Any], processor: Any, *, cells: int, folder: Path) -> int:
    """Tokens of a row's prompt; the picture is one placeholder in the text, and `cells` tokens."""
    import yaml

    tools = yaml.safe_load((folder / "tools.yaml").read_text(encoding="utf-8"))["tools"]
    messages = [
        {"role": one["role"], "content": one["content"].replace("<image>", processor.image_token)}
        for one in row["prompt"]
    ]
    text = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=processor.chat_template or processor.tokenizer.chat_template,
        tools=[one["tool_schema"] for one in tools] or None,
        add_generation_prompt=True,
        tokenize=False,
    )
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"]) + cells + 2


def parity_file(folder: Path, *, engine: str, found: Mapping[str, float]) -> Path:
    """Keep that an engine was checked: `run.sh` trains with no other."""
    file = folder / f"parity-{engine}.json"
    file.write_text(json.dumps(dict(found), indent=1) + "\n", encoding="utf-8")
    return file
