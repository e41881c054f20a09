"""Rows of parquet files and of hub data sets, memory-mapped through `datasets`.

A hub name, a local folder in hub layout, a `save_to_disk` folder and plain parquet files all
become an `ArrowTable`. Images stay encoded (bytes or paths) until a sample is asked for its
pixels. Errors are sorted by whose they are: a wrong name, subset, split or file is the user's
(`InputError`), an unreachable hub, a missing right or a full disk is outside (`OutsideError`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.config.errors import InputError, OutsideError
from saccade.config.schema import HubSource
from saccade.data.tables import Row, open_binary

if TYPE_CHECKING:
    import datasets

SAMPLED_ROWS = 64
"""Rows whose image bytes go into the fingerprint in full; of the others, the length."""


class ArrowTable:
    """A `datasets.Dataset` as rows; `names` gives the words behind class-label columns."""

    def __init__(self, data: datasets.Dataset, *, path: Path, label: str) -> None:
        import datasets

        self.path = path
        self.label = label
        self._names = {
            name: feature
            for name, feature in data.features.items()
            if isinstance(feature, datasets.ClassLabel)
        }
        stored = {name: _as_stored(feature) for name, feature in data.features.items()}
        self._data = data.cast(datasets.Features(stored)) if stored != data.features else data

    def columns(self) -> list[str] | int | None:
        return list(self._data.column_names)

    def select(self, columns: list[str]) -> None:
        """Read only these columns from now on (others may need decoders nobody installed)."""
        self._data = self._data.select_columns(columns)

    def __len__(self) -> int:
        return len(self._data)

    def number(self, index: int) -> int:
        return index + 1

    def where(self, index: int) -> str:
        return f"{self.label}, row {index + 1}"

    def row(self, index: int) -> Row:
        row = dict(self._data[index])
        for name, feature in self._names.items():
            if isinstance(row.get(name), int) and row[name] >= 0:
                row[name] = feature.int2str(row[name])
        return row

    def digest(self) -> str:
        """SHA-256 of all text and numbers, of image lengths, and of some images in full."""
        digest = hashlib.sha256(str(len(self)).encode())
        batches: Any = self._data.with_format("arrow").iter(batch_size=1000)
        for batch in batches:
            cells = [_light(column.combine_chunks()) for column in batch.columns]
            digest.update(json.dumps(cells, default=str).encode())
        for index in range(0, len(self), max(1, len(self) // SAMPLED_ROWS)):
            digest.update(json.dumps(self._data[index], default=_hashed).encode())
        return digest.hexdigest()


def open_parquet(path: Path) -> ArrowTable:
    """Open a parquet file, or all parquet files of a folder in the order of their names."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .parquet file in this folder")
    schemas, rows = {}, 0
    for file in files:
        open_binary(file).close()
        try:
            footer = pyarrow.parquet.read_metadata(file)
            schemas[file] = footer.schema.to_arrow_schema().remove_metadata()
            rows += footer.num_rows
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(
                f"{file}: not a readable parquet file ({error})\n"
                "  fix: copy or download the file again, or set the right source type"
            ) from None
        if schemas[file] != schemas[files[0]]:
            raise InputError(
                f"{file}: its columns differ from those of {files[0]}\n"
                "  fix: write all files with the same columns, or name one file"
            )
    if not rows:
        raise InputError(f"{path}: there are no rows\n  fix: one row per question")
    with _sorted_errors(str(path)):
        data = datasets.load_dataset(
            "parquet", data_files={"train": [str(file) for file in files]}, split="train"
        )
    return ArrowTable(data, path=path, label=str(path))


def open_hub(source: HubSource) -> ArrowTable:
    """Open a hub data set by name, or a local folder in hub layout or from `save_to_disk`."""
    import datasets

    folder = Path(source.name).expanduser()
    label = f"{source.name} [{source.split}]"
    if folder.is_dir() and _is_saved(folder):
        return ArrowTable(_load_saved(folder, source), path=folder, label=label)
    if not folder.is_dir() and (folder.is_absolute() or source.name.startswith((".", "~"))):
        raise InputError(f"{source.name}: no such folder\n  fix: correct data set name or path")
    with _sorted_errors(source.name):
        data = datasets.load_dataset(
            str(folder) if folder.is_dir() else source.name,
            source.subset,
            split=source.split,
            revision=source.revision,
        )
    return ArrowTable(data, path=Path(source.name), label=label)


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _load_saved(folder: Path, source: HubSource) -> datasets.Dataset:
    """One split, slices included, of a folder written by `save_to_disk`."""
    import datasets

    with _sorted_errors(source.name):
        loaded = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.DatasetDict):
            splits = dict(loaded)
        else:
            splits = {source.split.split("[")[0]: loaded}  # a single data set answers to any name
        lengths = {name: len(data) for name, data in splits.items()}
        parts = datasets.ReadInstruction.from_spec(source.split).to_absolute(lengths)
        chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
        return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


@contextmanager
def _sorted_errors(name: str) -> Iterator[None]:
    """Turn the hub client's errors into ours: wrong input, or something missing outside."""
    import datasets.exceptions as known
    import httpx
    import huggingface_hub.errors as hub
    import pyarrow

    try:
        yield
    except (known.DatasetNotFoundError, hub.GatedRepoError, hub.RepositoryNotFoundError) as error:
        if "gated" in str(error).lower():
            raise OutsideError(
                f"{name}: the data set is gated\n"
                "  fix: accept its terms on the hub and set HF_TOKEN"
            ) from error
        raise InputError(
            f"{name}: no such data set on the hub or folder here ({_brief(error)})\n"
            "  fix: correct data set name or revision; for a private one set HF_TOKEN"
        ) from error
    except (ConnectionError, httpx.TransportError, hub.LocalEntryNotFoundError) as error:
        raise OutsideError(
            f"{name}: the hub cannot be reached and the data set is not cached ({_brief(error)})\n"
            "  fix: go online (unset HF_HUB_OFFLINE), or use a local copy of the data set"
        ) from error
    except hub.HfHubHTTPError as error:
        raise OutsideError(
            f"{name}: the hub answered with an error ({_brief(error)})\n  fix: try again later"
        ) from error
    except (known.DatasetsError, FileNotFoundError, pyarrow.ArrowInvalid) as error:
        cause = error.__cause__ or error
        raise InputError(
            f"{name}: the data cannot be read ({_brief(cause)})\n"
            "  fix: correct the file named above, or convert the data to parquet"
        ) from error
    except OSError as error:
        raise OutsideError(
            f"{name}: the data set's cache cannot be written ({_brief(error)})\n"
            "  fix: free disk space, or point HF_HOME to a folder that can be written"
        ) from error
    except (ValueError, KeyError, RuntimeError) as error:  # unknown subset, split; scripts
        raise InputError(f"{name}: {_brief(error)}\n  fix: correct subset or split") from error


def _brief(error: BaseException) -> str:
    """First two lines of a message, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _as_stored(feature: Any) -> Any:
    """The same feature with images, audio and video left encoded."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(mode=feature.mode, decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_as_stored(feature.feature))
    if isinstance(feature, dict):
        return {name: _as_stored(inner) for name, inner in feature.items()}
    return feature


def _light(cells: Any) -> Any:
    """An Arrow array as JSON-able values, bytes by their length (not read from disk)."""
    import pyarrow
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made at run time
    kind = cells.type
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return compute.binary_length(cells).to_pylist()
    if pyarrow.types.is_struct(kind):
        return [_light(part) for part in cells.flatten()]
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [compute.list_value_length(cells).to_pylist(), _light(cells.flatten())]
    return cells.to_pylist()


def _hashed(cell: Any) -> str:
    return hashlib.sha256(cell).hexdigest() if isinstance(cell, bytes) else str(cell)
