"""The configuration of text and code as streams of tokens, read by the recipe `recursion`.

Part of `schema_data.py`. Imports pydantic only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from saccade.config.nodes import Node


class StreamSource(Node):
    """Text or code as bytes, each to be predicted from those before it (`recursion.causal`)."""

    type: Literal["stream"]
    """Kind of source."""
    path: Path
    """A file, or a folder whose text or source files are read."""
    content: Literal["text", "code"] = "text"
    """`text` = documents between `<|endoftext|>`; `code` = each source file is a document."""
    split: Literal["all", "train", "test"] = "all"
    """`test` = an eighth of the documents, by their content; `train` = the others."""
    length: PositiveInt = Field(default=128, ge=2)
    """Bytes of a window; each window is read without those before it."""
    documents: PositiveInt | None = None
    """Use only the first documents."""
