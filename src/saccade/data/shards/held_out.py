"""Which samples are held out: a tenth of what is shown, so that nothing is on both sides.

A number per sample that stands for its content (the task without its variant, the whole document,
the picture) flows in, one mark per sample flows out. Samples of one content stay together: the
variants of a task and the pages of a document are all trained on, or all held out, in whichever
source they occur. Marks are known before anything is drawn and lie beside the manifest as one bit
per sample, so a training that follows a builder knows its share of shards that are not there yet.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.data.samples import DataError
from saccade.data.shards.manifest import HELD_OUT, Manifest

ONE_OF = 10
"""One content of so many is held out."""
Contents = NDArray[np.uint64]


def content_number(content: bytes) -> int:
    """A number that is equal for equal contents and, as good as surely, for no others."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def choose_held_out(contents: Contents) -> NDArray[np.bool_]:
    """Mark a tenth of the contents, by their numbers alone.

    Few contents may all fall on one side; then the one with the smallest number is held out, or,
    if there is only one, nothing.
    """
    marks = contents % np.uint64(ONE_OF) == ONE_OF - 1
    if marks.any() and not marks.all():
        return marks
    different = np.unique(contents)
    return contents == different[0] if len(different) > 1 else np.zeros(len(contents), dtype=bool)


def to_content(marks: NDArray[np.bool_]) -> bytes:
    """The file's content."""
    return np.packbits(marks).tobytes()


def read_held_out(folder: Path, manifest: Manifest) -> NDArray[np.bool_]:
    """A folder's marks by position; raises `DataError` when the file is missing or damaged."""
    path = folder / HELD_OUT
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != manifest.about["held_out"]:
        raise DataError(
            "what is held out cannot be told: the file is missing or damaged",
            where=str(path),
            fix="run `saccade data build shards` again, which writes it anew",
        )
    packed = np.frombuffer(content, dtype=np.uint8)
    return np.unpackbits(packed, count=manifest.samples).astype(bool)
