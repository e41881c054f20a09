"""Draw batches ahead of the encoder: in processes of their own, or in a thread.

Numbers of batches flow in; `Drawn` batches flow out in order: symbols, and per picture what the
cache knows of it or else its pixels as the encoder takes them. Python lets a thread that draws and
a small encoder run in turns only, so by default another process draws (PyTorch's `DataLoader`); it
needs seconds to start. What is drawn follows from a batch's number alone, whoever draws it.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from saccade.config.errors import OutsideError
from saccade.data.shards.cache import PictureCache
from saccade.data.shards.samples import Tokens
from saccade.data.shards.sources import Mixture

POLL_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch after drawing; `known` and `prepared` are by place in the batch."""

    batch: int
    ids: list[str]
    inputs: list[Tokens]
    targets: list[Tokens]
    keys: list[str]
    known: dict[int, dict[str, Any]]
    prepared: dict[int, Any]


@dataclass(frozen=True, eq=False)
class Drawer:
    """Draws the batch of a number; everything in it can be sent to another process."""

    mixture: Mixture
    cache: PictureCache
    prepare: Callable[[Sequence[Image.Image]], Sequence[Any]]
    batch_size: int
    alone: bool
    """Whether features are the same, to the last bit, whatever the neighbours are."""

    def __call__(self, batch: int) -> Drawn:
        first = batch * self.batch_size
        places = range(first, min(first + self.batch_size, len(self.mixture)))
        samples = [self.mixture[place] for place in places]
        pictures = [sample.draw() for sample in samples]
        keys = [self.cache.key(picture) for picture in pictures]
        found = {i: self.cache.get(key) for i, key in enumerate(keys)}
        known = {i: tensors for i, tensors in found.items() if tensors is not None}
        if not self.alone and len(known) < len(keys):
            known = {}  # features may depend on neighbours in their last bits: all or none
        missing = [i for i in range(len(keys)) if i not in known]
        prepared = self.prepare([pictures[i] for i in missing]) if missing else []
        return Drawn(
            batch=batch,
            ids=[sample.id for sample in samples],
            inputs=[sample.inputs for sample in samples],
            targets=[sample.targets for sample in samples],
            keys=keys,
            known=known,
            prepared=dict(zip(missing, prepared, strict=True)),
        )


class Ahead(Protocol):
    """Batches in the order of their numbers."""

    def take(self) -> Drawn:
        """The next batch; raises what drawing it raised."""
        ...

    def close(self) -> None:
        """Stop drawing."""
        ...


def draw_ahead(draw: Drawer, batches: range, *, processes: int, depth: int) -> Ahead:
    """Begin to draw at most `depth` batches ahead (per process)."""
    if processes:
        return _Processes(draw, batches, count=processes, depth=depth)
    return _Thread(draw, batches, depth=depth)


class _Thread:
    """A thread and a short queue."""

    def __init__(self, draw: Drawer, batches: range, *, depth: int) -> None:
        self._draw = draw
        self._queue: queue.Queue[Drawn | BaseException] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batches,), daemon=True)
        self._thread.start()

    def take(self) -> Drawn:
        return _drawn(self._queue.get())

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _work(self, batches: range) -> None:
        try:
            for batch in batches:
                if not self._put(self._draw(batch)):
                    return
        except BaseException as error:  # raised again by the thread that asked
            self._put(error)

    def _put(self, item: Drawn | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


class _Processes:
    """Processes of a `DataLoader`, which keeps order and ends them when their parent is gone."""

    def __init__(self, draw: Drawer, batches: range, *, count: int, depth: int) -> None:
        loader: DataLoader[Drawn | Exception] = DataLoader(
            _Sent(draw),
            sampler=batches,
            batch_size=None,
            num_workers=count,
            prefetch_factor=depth,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals,
            # a fork of a process that has used torch's threads waits for ever for them
            multiprocessing_context="spawn",
        )
        self._batches: Iterator[Drawn | Exception] | None = iter(loader)

    def take(self) -> Drawn:
        assert self._batches is not None
        try:
            found = next(self._batches)
        except RuntimeError as error:
            raise OutsideError(
                f"a process that draws pictures has died: {error}"
                "\n  fix: the same command goes on; when memory was short, fewer"
                " shards.queue_batches, or shards.drawers=0"
            ) from error
        drawn = _drawn(found)
        return replace(drawn, known=_tensors(drawn.known), prepared=_tensors(drawn.prepared))

    def close(self) -> None:
        self._batches = None  # its processes end with it


class _Sent(Dataset[Any]):
    """Batches by number, in a form that a pipe carries.

    As arrays, since tensors travel in shared memory, of which a container has 64 MB; errors as
    they are, since a `DataLoader` would make a report of them.
    """

    def __init__(self, draw: Drawer) -> None:
        self._draw = draw

    def __getitem__(self, batch: int) -> Drawn | Exception:
        try:
            drawn = self._draw(batch)
        except Exception as error:
            return error
        return replace(drawn, known=_arrays(drawn.known), prepared=_arrays(drawn.prepared))


def _drawn(found: Drawn | BaseException) -> Drawn:
    if isinstance(found, BaseException):
        raise found
    return found


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals(worker: int) -> None:
    """Ctrl+C reaches every process of a terminal; the builder stops this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _arrays(one) for name, one in value.items()}
    return _Array(value.numpy()) if isinstance(value, Tensor) else value


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tensors(one) for name, one in value.items()}
    return torch.from_numpy(value.values) if isinstance(value, _Array) else value


@dataclass(frozen=True, eq=False)
class _Array:
    """What was a tensor."""

    values: Any
