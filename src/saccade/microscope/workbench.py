"""The microscope's engine: pictures taken in safely, questions answered, everything timed.

In go a loaded run, pictures (examples of the run or encoded bytes that a person chose) and
questions; out come `Asked` values: readings of the trained selector, of every token and of a
baseline, the same picture under a second question, and texture channels. Sizes are checked from
the header before a pixel is decoded. One lock guards the model, whose features of the last few
questions are kept, so that moving the budget does not encode again. Left out: web pages.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from saccade.config.errors import InputError, SaccadeError
from saccade.data.images import image_size, load_image
from saccade.data.samples import DataError, Sample
from saccade.data.sources import SampleSource, open_source
from saccade.evaluation.load import Batch, LoadedRun, describe_arm
from saccade.evaluation.records import Prediction
from saccade.evaluation.summary import flops_of
from saccade.microscope.explain import View, views_of
from saccade.models.flops import Flops, count_flops
from saccade.training.rundir import RunDir

LARGEST_PIXELS = 40_000_000
"""Pictures above this area are refused by their header alone; cameras stay below it."""
WORKING_PIXELS = 4_000_000
"""Larger pictures are scaled down to this area when they are taken in."""
LONGEST_QUESTION = 500
SCENE_EXAMPLES, FIGURE_EXAMPLES = 8, 4
REMEMBERED = 4
"""Encoded (picture, question) pairs kept."""


@dataclass(frozen=True)
class Picture:
    """A picture to ask about; `known` are samples whose answers (and cells) are known."""

    key: str
    name: str
    image: Image.Image
    known: tuple[Sample, ...] = ()

    def sample(self, question: str) -> Sample:
        """The question as a sample: the known one when it is known, else without an answer."""
        for sample in self.known:
            if sample.question == question:
                return replace(sample, images=(self.image,), image_key=self.key)
        return Sample(
            id=self.key, question=question, answers=(), images=(self.image,), kind="look",
            image_key=self.key,
        )  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One selector's reading: its answer, what it kept, and what that cost (one run, wall time)."""

    arm: str
    title: str
    prediction: Prediction
    view: View
    look_ms: float  # vision tower and choosing
    answer_ms: float  # prefill and new tokens
    flops: Flops

    @property
    def known(self) -> bool:
        return bool(self.prediction.answers)


@dataclass(frozen=True)
class Asked:
    """Everything the page shows about one question."""

    picture: Picture
    question: str
    share: float
    everything: Reading
    ours: Reading
    baseline: Reading | None
    other: Reading | None  # another question, by our selector
    other_question: str
    other_came_first: bool


@dataclass(frozen=True)
class _Encoded:
    batch: Batch
    features: Any
    look_ms: float  # what every selector needs first
    whole_ms: float  # then encoding the whole picture, where the placement left it out

    def seen_ms(self, *, early: bool) -> float:
        """Milliseconds of seeing for a selector that may (`early`) choose before the tower."""
        return self.look_ms + (0.0 if early else self.whole_ms)


class Workbench:
    """A loaded run that answers one question at a time."""

    def __init__(self, loaded: LoadedRun, *, run: RunDir | None = None) -> None:
        from saccade.models.relevance.baselines import ARMS, SET_STEP

        self.loaded = loaded
        self.run = run
        self.primary = "trained" if "trained" in loaded.arms else "saliency"
        names = [*ARMS, self.primary + SET_STEP]
        self._arms = {name: describe_arm(name, loaded.config) for name in names}
        # arms that learn exist only where they were trained; all others exist everywhere
        self.baselines = {
            name: info.title
            for name, info in self._arms.items()
            if name not in ("full", self.primary)
            and (not info.trained or name.removesuffix(SET_STEP) in loaded.arms)
        }
        self._lock = threading.Lock()
        self._encoded: OrderedDict[tuple[str, str], _Encoded] = OrderedDict()
        self._everything: dict[tuple[str, str], Reading] = {}
        self._selector_flops: dict[tuple[str, str, str], float] = {}

    @property
    def share(self) -> float:
        """The budget the run was configured with, as a share."""
        keep = self.loaded.config.selector.keep
        return keep if isinstance(keep, float) else 0.25

    def examples(self) -> list[Picture]:
        """Held-out pictures of the run's data, then figures of the run itself."""
        return [*self._held_out(), *self._figures()]

    def ask(
        self,
        picture: Picture,
        question: str,
        *,
        share: float,
        baseline: str | None = None,
        other_question: str = "",
        other_came_first: bool = False,
    ) -> Asked:
        """Answer a question with every token and with the kept ones; compare it with another.

        Raises InputError for an empty or overlong question, a budget outside (0, 1] or a baseline
        that is not there; DataError when the picture cannot be brought to the model's grid.
        """
        question, other_question = question.strip(), other_question.strip()
        check_question(question)
        if other_question:
            check_question(other_question, which="second question")
        if not 0.0 < share <= 1.0:
            raise InputError("the budget must lie between 1% and 100%")
        if baseline is not None and baseline not in self.baselines:
            raise InputError(f"there is no baseline {baseline[:40]!r} here")
        with self._lock:
            everything = self._read_everything(picture, question)
            ours = self._read(picture, question, arm=self.primary, share=share)
            rival = self._read(picture, question, arm=baseline, share=share) if baseline else None
            other = None
            if other_question and other_question != question:
                other = self._read(picture, other_question, arm=self.primary, share=share)
        return Asked(
            picture=picture, question=question, share=share, everything=everything, ours=ours,
            baseline=rival, other=other, other_question=other_question,
            other_came_first=other_came_first,
        )  # fmt: skip

    def _read_everything(self, picture: Picture, question: str) -> Reading:
        key = (picture.key, question)
        if key not in self._everything:
            if len(self._everything) >= 4 * REMEMBERED:
                self._everything.pop(next(iter(self._everything)))
            self._everything[key] = self._read(picture, question, arm="full", share=1.0)
        return self._everything[key]

    def _read(self, picture: Picture, question: str, *, arm: str, share: float) -> Reading:
        import torch

        model, device, info = self.loaded.model, self.loaded.device, self._arms[arm]
        known = self._encode(picture, question)
        batch, features = known.batch, known.features
        # counted first: what a selector catches while the tower runs is then no time of its own
        selector = self._selector_operations(picture, question, arm=arm, share=share)
        with torch.inference_mode():
            start = _clock(device)
            reduced = model.reduce(batch.tensors, arm=arm, keep=share, features=features)
        chosen = _clock(device)
        (prediction,) = self.loaded.answer_reduced(batch, reduced, arm=arm, keep=share)
        done = _clock(device)
        (view,) = views_of(batch.samples[0], reduced, span=slice(0, 1), features=features)
        # resizing encodes its own small picture instead of the large one
        seen_ms = 0.0 if info.how == "resize" else known.seen_ms(early=info.trained)
        return Reading(
            arm=arm,
            title=info.title,
            prediction=prediction,
            view=view,
            look_ms=seen_ms + 1000 * (chosen - start),
            answer_ms=1000 * (done - chosen),
            flops=flops_of(model.config, prediction, selector=selector),
        )

    def _selector_operations(
        self, picture: Picture, question: str, *, arm: str, share: float
    ) -> float:
        """Operations of choosing, counted once per question: the budget hardly changes them."""
        import torch

        info, model = self._arms[arm], self.loaded.model
        if info.how in ("keep_all", "resize", "inside"):  # counted with the models themselves
            return 0.0
        key = (picture.key, question, arm)
        if key not in self._selector_flops:
            if len(self._selector_flops) > 256:
                self._selector_flops.clear()
            known = self._encode(picture, question)
            select = functools.partial(
                model.reduce, known.batch.tensors, arm=arm, keep=share, features=known.features
            )
            scores_alone = info.trained and not info.set_step
            with torch.inference_mode():
                select()
                score = functools.partial(model.score, known.features) if scores_alone else select
                self._selector_flops[key] = count_flops(score)[1]
        return self._selector_flops[key]

    def _encode(self, picture: Picture, question: str) -> _Encoded:
        key = (picture.key, question)
        if key in self._encoded:
            self._encoded.move_to_end(key)
            return self._encoded[key]
        batch, _ = self.loaded.batch([picture.sample(question)])
        start = _clock(self.loaded.device)
        features = self.loaded.features(batch)
        seen = _clock(self.loaded.device)
        features.whole()  # a placement before the tower leaves it for those who read everything
        whole = _clock(self.loaded.device)
        self._encoded[key] = _Encoded(batch, features, 1000 * (seen - start), 1000 * (whole - seen))
        if len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _held_out(self) -> Iterator[Picture]:
        source = open_source(self.loaded.config.data.eval)
        groups = source.groups()
        wanted = min(SCENE_EXAMPLES, len(groups))
        for number in range(wanted):
            picture = _example(source, groups[number * len(groups) // wanted], number=number)
            if picture is not None:
                yield picture

    def _figures(self) -> Iterator[Picture]:
        if self.run is None or not self.run.figures.is_dir():
            return
        files = [path for path in sorted(self.run.figures.glob("*.png")) if not path.is_symlink()]
        for path in files[:FIGURE_EXAMPLES]:
            try:
                yield take_in(path.read_bytes(), name=path.stem)
            except (OSError, SaccadeError):  # a damaged figure is no example
                continue


def check_question(question: str, *, which: str = "question") -> None:
    """Raise InputError for an empty question or one too long to be one."""
    if not question:
        raise InputError(f"the {which} is empty\n  fix: ask something about the picture")
    if len(question) > LONGEST_QUESTION:
        raise InputError(
            f"the {which} has {len(question):,} characters; at most {LONGEST_QUESTION} are read"
            "\n  fix: shorten it"
        )


def take_in(content: bytes, *, name: str) -> Picture:
    """A picture from encoded bytes that nobody has vouched for.

    Raises DataError for anything that is not a picture, is damaged or is too large; the area comes
    from the header, so a small file that would unfold to gigabytes is refused before it does.
    """
    where = "the file"
    width, height = image_size(content, where=where)
    if width * height > LARGEST_PIXELS:
        raise DataError(
            f"it has {width * height / 1e6:.0f} megapixels ({width} x {height}); "
            f"at most {LARGEST_PIXELS // 1_000_000} are taken",
            where=where,
            fix="scale it down",
        )
    image = load_image(content, where=where)
    excess = image.width * image.height / WORKING_PIXELS
    if excess > 1:
        size = (max(1, int(image.width / excess**0.5)), max(1, int(image.height / excess**0.5)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return Picture(key=hashlib.sha256(content).hexdigest()[:24], name=name, image=image)


def _example(source: SampleSource, group: list[int], *, number: int) -> Picture | None:
    """The picture of one group with the questions known for it; None when it is of no use here."""
    known: list[Sample] = []
    for position in group:
        try:
            sample = source[position]
        except DataError:
            continue
        if len(sample.images) == 1 and not sample.turns:
            known.append(sample)
    if not known:
        return None
    try:
        image = load_image(known[0].images[0], where=f"example {number + 1}")
    except DataError:
        return None
    key = known[0].image_key or known[0].id
    return Picture(key=f"example-{key}", name=f"held-out {number + 1}", image=image,
                   known=tuple(known))  # fmt: skip


def _clock(device: Any) -> float:
    """Seconds, after the device has finished what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def read_upload(path: Path) -> bytes:
    """The bytes of a file that the page's upload stored."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError("the upload is gone\n  fix: choose the picture again") from error
