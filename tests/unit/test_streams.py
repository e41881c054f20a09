"""Text as streams of bytes: nothing lost, targets one ahead, documents ended."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.config.errors import InputError
from saccade.data.samples import DataError
from saccade.data.streams import (
    EOS,
    PAD,
    Document,
    TokenWindows,
    code_documents,
    decode,
    encode,
    text_documents,
)


@given(st.binary(max_size=200))
def test_bytes_come_back(content: bytes) -> None:
    tokens = encode(content, end=True)
    assert tokens[-1] == EOS and tokens.max() < 258
    assert decode(tokens) == content


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8), st.integers(1, 17))
def test_windows_cover_all_documents_in_order_with_targets_one_ahead(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], length: int
) -> None:
    file = tmp_path_factory.mktemp("stream") / "all.bin"
    file.write_bytes(b"".join(contents))
    starts = np.cumsum([0, *map(len, contents)])
    bounds = itertools.pairwise(starts)
    documents = [Document(file, int(start), int(end)) for start, end in bounds]
    stream = np.concatenate([encode(content, end=True) for content in contents])
    windows = TokenWindows(documents, length=length)
    rows = [windows[i] for i in range(len(windows))]
    inputs = np.concatenate([row[0] for row in rows])
    targets = np.concatenate([row[1] for row in rows])
    count = len(stream) - 1
    assert np.array_equal(inputs[:count], stream[:-1])
    assert np.array_equal(targets[:count], stream[1:])
    assert (inputs[count:] == PAD).all() and (targets[count:] == PAD).all()


def test_stories_are_split_and_trimmed(tmp_path: Path) -> None:
    file = tmp_path / "tales.txt"
    file.write_text("\n\nOne.\nTwo.\n<|endoftext|>\n  \n<|endoftext|>Three.\n")
    assert [d.text() for d in text_documents(file)] == ["One.\nTwo.", "Three."]
    (tmp_path / "empty.txt").write_text("")
    assert len(text_documents(tmp_path)) == 2


def test_code_leaves_hidden_and_empty_files_out(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "c.py").write_text("y = 2\n")
    assert [d.file.name for d in code_documents(tmp_path)] == ["a.py"]
    with pytest.raises(InputError, match="no file ends in"):
        text_documents(tmp_path)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt at byte 0: not UTF-8 \(byte 3\)"):
        text_documents(file)[0].text()
