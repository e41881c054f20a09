"""Gradient checkpointing of a frozen base: compute its layers again instead of keeping them.

A base model goes in; within the block each of its decoder layers keeps only its input for the
backward pass. The base stays in evaluation mode throughout (no dropout), and the recomputed layer
sees exactly what the first pass saw, so losses and gradients are the same. Only for passes that
are differentiated: without a gradient there is nothing to save.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed_layers(base: Any, *, on: bool = True) -> Iterator[None]:
    """Let the language model's layers recompute themselves in the backward pass."""
    if not on:
        yield
        return
    # not reentrant: the gate's gradient flows through the attention mask, a keyword argument
    function = functools.partial(checkpoint, use_reentrant=False)
    layers = list(base.model.language_model.layers)
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, function
        # of the layer alone, not of its parts: it looks here whether to recompute at all
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.gradient_checkpointing, layer.training = False, mode
