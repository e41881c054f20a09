"""Text and code as streams of tokens: bytes, cut into documents, windowed for prediction.

Files flow in, windows [L] of input and target tokens flow out, the target one token ahead. Tokens:
0 PAD, 1 EOS (after each document), 2..257 the bytes, so nothing is unknown and text comes back
exactly. Documents are separated by `<|endoftext|>` in a text file; a source file is one document.
Only offsets are kept in memory; text is read when it is asked for.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.config.errors import InputError
from saccade.data.samples import DataError

PAD, EOS, FIRST_BYTE = 0, 1, 2
VOCABULARY = FIRST_BYTE + 256
SEPARATOR = b"<|endoftext|>"
TEXT_ENDINGS = (".txt", ".md", ".rst", ".text")
CODE_ENDINGS = (
    ".py", ".js", ".ts", ".c", ".h", ".cc", ".cpp", ".rs", ".go", ".java", ".sh", ".sql", ".yaml",
    ".toml", ".json",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """Bytes `start : end` of a file."""

    file: Path
    start: int
    end: int

    @property
    def where(self) -> str:
        """File and place, for messages."""
        return f"{self.file} at byte {self.start}"

    def read(self, *, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of the document, or a part counted from its start."""
        stop = self.end if end is None else min(self.end, self.start + end)
        with self.file.open("rb") as file:
            file.seek(self.start + start)
            return file.read(max(0, stop - self.start - start))

    def text(self) -> str:
        """The document as UTF-8; raises `DataError` where it is not."""
        content = self.read()
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"not UTF-8 (byte {error.start})", where=self.where, fix="convert the file"
            ) from error


def encode(content: bytes, *, end: bool = False) -> NDArray[np.int16]:
    """Bytes -> tokens, with EOS after them if `end`."""
    tokens = np.frombuffer(content, dtype=np.uint8).astype(np.int16) + FIRST_BYTE
    return np.append(tokens, np.int16(EOS)) if end else tokens


def decode(tokens: NDArray[np.integer]) -> bytes:
    """Tokens -> bytes; PAD and EOS vanish."""
    kept = np.asarray(tokens)
    return (kept[kept >= FIRST_BYTE] - FIRST_BYTE).astype(np.uint8).tobytes()


def find_files(path: Path, *, endings: Sequence[str]) -> list[Path]:
    """A file itself, or all files below a folder with these endings, sorted, hidden ones left."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such file or folder")
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in endings
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise InputError(f"{path}: no file ends in {', '.join(endings)}\n  fix: check the path")
    return found


def split_documents(file: Path) -> Iterator[Document]:
    """Documents of one file between separators, white space around them left out."""
    size = file.stat().st_size
    if not size:
        return
    with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 0
        while start < size:
            end = content.find(SEPARATOR, start)
            end = size if end < 0 else end
            trimmed = _trimmed(content, start, end)
            if trimmed is not None:
                yield Document(file, *trimmed)
            start = end + len(SEPARATOR)


def _trimmed(content: mmap.mmap, start: int, end: int) -> tuple[int, int] | None:
    blank = b" \t\r\n"
    while start < end and content[start] in blank:
        start += 1
    while end > start and content[end - 1] in blank:
        end -= 1
    return (start, end) if end > start else None


class TokenWindows:
    """Windows over documents laid end to end: item i is (inputs [L], targets [L])."""

    def __init__(self, documents: Sequence[Document], *, length: int) -> None:
        self.documents = list(documents)
        self.length = length
        # one more than its bytes: the EOS
        sizes = [one.end - one.start + 1 for one in self.documents]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        if not sizes:
            raise InputError("there is no text in this source\n  fix: check the path")

    def __len__(self) -> int:
        # the last target has no successor
        return max(0, -(-(int(self._ends[-1]) - 1) // self.length))

    def __getitem__(self, index: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        tokens = self.tokens(index * self.length, self.length + 1)
        inputs, targets = np.full((2, self.length), PAD, dtype=np.int16)
        inputs[: len(tokens) - 1] = tokens[:-1]
        targets[: len(tokens) - 1] = tokens[1:]
        return inputs, targets

    def tokens(self, start: int, count: int) -> NDArray[np.int16]:
        """Tokens `start : start + count` of the stream, fewer at its end."""
        parts, wanted = [], count
        number = int(np.searchsorted(self._ends, start, side="right"))
        while wanted > 0 and number < len(self.documents):
            begin = int(self._ends[number - 1]) if number else 0
            offset = start - begin
            size = int(self._ends[number]) - begin
            part = encode(self.documents[number].read(start=offset, end=offset + wanted))
            if offset + wanted >= size:
                part = np.append(part, np.int16(EOS))
            parts.append(part)
            start += len(part)
            wanted -= len(part)
            number += 1
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int16)


def text_documents(path: Path) -> list[Document]:
    """Documents of a text file or of all text files of a folder."""
    files = find_files(path, endings=TEXT_ENDINGS)
    return [document for file in files for document in split_documents(file)]


def code_documents(path: Path) -> list[Document]:
    """Every source file of a folder (or one file) as a document; empty ones are left out."""
    files = find_files(path, endings=CODE_ENDINGS)
    sizes = [(file, file.stat().st_size) for file in files]
    return [Document(file, 0, size) for file, size in sizes if size]
