"""What every part of the configuration tree is made of: the base node and common value types.

Nothing flows in; `schema.py` and the files beside it that hold a part of the tree build on it.
Imports pydantic only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Budget = Annotated[int, Field(ge=1)] | Fraction
"""Visual tokens to keep per image: an int >= 1 is a count, a float in (0, 1] a share."""
RowField = Literal[
    "id", "image", "question", "answer", "kind", "history", "messages", "objects", "rejected"
]
"""What a column of a row may hold."""


class Node(BaseModel):
    """Base of every config node: frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
