"""Draw batches ahead of the encoder: in processes of their own, or in a thread.

Numbers of batches flow in; `Drawn` batches flow out in order: symbols, and per picture what the
cache knows of it or else its pixels as the encoder takes them. Python lets a thread that draws and
a small encoder run in turns only, so by default another process draws; it needs seconds to start.
What is drawn follows from a batch's number alone, whoever draws it. A `DataLoader` is not used: its
processes outlive a parent that is killed while they wait to hand over what is larger than a pipe.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from saccade.config.errors import OutsideError
from saccade.data.shards.cache import PictureCache
from saccade.data.shards.samples import Tokens
from saccade.data.shards.sources import Mixture

POLL_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch after drawing; `known` and `prepared` are by place in the batch."""

    batch: int
    positions: range
    """Of its samples, in the whole build."""
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
        positions = range(first, min(first + self.batch_size, len(self.mixture)))
        samples = [self.mixture[position] for position in positions]
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
            positions=positions,
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
    """Several that draw in turn."""

    def __init__(self, draw: Drawer, batches: range, *, count: int, depth: int) -> None:
        self._all = [_Process(draw, batches[i::count], depth=depth) for i in range(count)]
        self._turns = itertools.cycle(self._all)

    def take(self) -> Drawn:
        return next(self._turns).take()

    def close(self) -> None:
        for one in self._all:
            one.close()


class _Process:
    """A process that draws what it is asked for.

    Numbers of batches go down a pipe, `depth` of them ahead, and batches come up another. Whoever
    finds the other end closed stops, so nobody is left behind when either is killed.
    """

    def __init__(self, draw: Drawer, batches: range, *, depth: int) -> None:
        # a fork of a process that has used torch's threads waits for ever for them
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._left = iter(batches)
        self._process = context.Process(target=_serve, args=(theirs, draw), daemon=True)
        self._process.start()
        theirs.close()
        for _ in range(depth):
            self._ask()

    def take(self) -> Drawn:
        try:
            found = self._pipe.recv()
            self._ask()
        except (EOFError, OSError) as error:
            self._process.join()
            raise OutsideError(
                f"the process that draws pictures has died (exit code {self._process.exitcode})"
                "\n  fix: the same command goes on; when memory was short, fewer"
                " shards.queue_batches, or shards.drawers=0"
            ) from error
        drawn = _drawn(found)
        return replace(drawn, known=_tensors(drawn.known), prepared=_tensors(drawn.prepared))

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _ask(self) -> None:
        batch = next(self._left, None)
        if batch is not None:
            self._pipe.send(batch)


def _serve(pipe: Connection, draw: Drawer) -> None:
    """Draw until nobody asks."""
    # Ctrl+C reaches every process of a terminal; the builder ends this one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send(_sent(draw, pipe.recv()))


def _sent(draw: Drawer, batch: int) -> Drawn | Exception:
    """A batch as a pipe carries it: arrays, since tensors travel in shared memory, of which a
    container has 64 MB. What drawing it raised is raised by the one who asked."""
    try:
        drawn = draw(batch)
    except Exception as error:
        return error
    return replace(drawn, known=_arrays(drawn.known), prepared=_arrays(drawn.prepared))


def _drawn(found: Drawn | BaseException) -> Drawn:
    if isinstance(found, BaseException):
        raise found
    return found


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
