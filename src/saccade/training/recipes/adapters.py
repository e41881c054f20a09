"""Low-rank adapters on the language model of a base: put on, switched off, merged.

A base and the configuration flow in; PEFT's wrapper around the same base flows out, its adapters
the only weights that learn. The base object itself stays what everyone holds: its layers are
changed in place. Adapters start as the identity, drawn from the seed. Left out: which recipe trains
them, and adapters of the vision tower.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import LoraConfig

LANGUAGE_MODEL = "language_model"


def attach_lora(base: Any, config: LoraConfig, *, seed: int) -> Any:
    """Wrap the base's language-model layers; returns the `PeftModel`, in whose base they act.

    Raises InputError for a target module that the language model has not, OutsideError without
    PEFT.
    """
    try:
        import peft
    except ImportError as error:
        raise OutsideError(
            "adapters need PEFT, which is not installed\n  fix: pip install 'saccade[rl]'"
        ) from error
    check_targets(base, config.target_modules)
    names = "|".join(re.escape(name) for name in config.target_modules)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  PEFT divides it, any number serves
        lora_dropout=config.dropout,
        target_modules=rf".*\b{LANGUAGE_MODEL}\..*\.({names})",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # PEFT asks transformers for an attribute by its older name
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        torch.manual_seed(seed)
        return peft.get_peft_model(base, settings)


def check_targets(base: Any, wanted: list[str]) -> None:
    """Raise InputError for a name that no linear layer of the language model ends in."""
    linear = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and f"{LANGUAGE_MODEL}." in name
    ]
    ends = sorted({name.rpartition(".")[2] for name in linear})
    for name in wanted:
        if not any(one.endswith(f".{name}") for one in linear):
            near = (difflib.get_close_matches(name, ends, n=1) or ends)[0]
            raise InputError(
                f"lora.target_modules: the language model has no linear layer {name!r};"
                f" there are {', '.join(ends)}\n  fix: for example {near}"
            )


@contextmanager
def switched_off(adapter: Any) -> Iterator[None]:
    """The base as it was before the adapter, for the block."""
    with adapter.disable_adapter():
        yield
