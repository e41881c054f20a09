"""Turn samples into tokens: the only place that renders chats, labels and image placeholders.

In go samples; out come batches a Qwen-VL model takes: ids from the model's real chat template,
one placeholder per merged cell (counted once, from the processor's own grid), labels on the
answer only, left padding. The reverse direction lives here too: which tokens are the user's own
words (`user_text_mask`), the only text a selector may look at. Left out: packing and video.

Shapes: B samples, L tokens, N patches of all images, I images.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from saccade.data.images import load_image
from saccade.data.samples import DataError, Sample

IGNORE_INDEX = -100
Query = Literal["last_turn", "all_turns"]
"""Which of the user's turns are meant."""


@dataclass(frozen=True)
class Encoded:
    """One tokenised sample; `labels_L` is -100 everywhere but on the answer and its end mark."""

    sample_id: str
    input_ids_L: Tensor
    labels_L: Tensor
    pixels_ND: Tensor | None
    grid_I3: Tensor | None


@dataclass(frozen=True)
class ChatMarkers:
    """Token ids that delimit turns and images, read from a tokenizer, never hard-coded."""

    user_start: tuple[int, ...]
    turn_end: int
    vision_start: int
    vision_end: int
    image: int
    pad: int

    @classmethod
    def of(cls, tokenizer: Any) -> ChatMarkers:
        def one(token: str) -> int:
            return int(tokenizer.convert_tokens_to_ids(token))

        start = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
        return cls(
            user_start=tuple(start),
            turn_end=one("<|im_end|>"),
            vision_start=one("<|vision_start|>"),
            vision_end=one("<|vision_end|>"),
            image=one("<|image_pad|>"),
            pad=int(tokenizer.pad_token_id),
        )


def user_text_mask(
    input_ids_BL: Tensor, *, markers: ChatMarkers, query: Query = "all_turns"
) -> Tensor:
    """Mark the user's own words: inside user turns, without template, image or padding tokens.

    Returns bool [B, L]: the words of every user turn, or of each row's `last_turn` alone. Answers,
    system prompts and role names are never marked, so a selector that reads only marked tokens
    cannot see what it is asked to predict.
    """
    opening = torch.tensor(markers.user_start, device=input_ids_BL.device)
    place_L = torch.arange(input_ids_BL.shape[1], device=input_ids_BL.device)
    if len(place_L) < len(opening):
        return torch.zeros_like(input_ids_BL, dtype=torch.bool)
    opens_BL = (input_ids_BL.unfold(1, len(opening), 1) == opening).all(-1)
    # a turn's words start right after its opening; the last marker before a token decides
    starts_BL = torch.nn.functional.pad(opens_BL, (len(opening), 0))[:, : len(place_L)]
    last_start_BL = torch.where(starts_BL, place_L, -1).cummax(1).values
    last_end_BL = torch.where(input_ids_BL == markers.turn_end, place_L, -1).cummax(1).values
    not_words = torch.tensor(
        (markers.vision_start, markers.vision_end, markers.image, markers.pad),
        device=input_ids_BL.device,
    )
    words_BL = (last_start_BL > last_end_BL) & ~torch.isin(input_ids_BL, not_words)
    if query == "last_turn":
        words_BL &= last_start_BL == last_start_BL[:, -1:]
    return words_BL


class ChatRenderer:
    """Encodes samples with a model's processor; keeps the last few images' pixels at hand."""

    def __init__(
        self,
        processor: Any,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cached_images: int = 64,
    ) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.markers = ChatMarkers.of(self.tokenizer)
        size = processor.image_processor.size
        self.size = {
            "shortest_edge": min_pixels or size["shortest_edge"],
            "longest_edge": max_pixels or size["longest_edge"],
        }
        self._cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._cached_images = cached_images

    def encode(self, sample: Sample, *, with_answer: bool, where: str = "") -> Encoded:
        """Tokenise one sample; without its answer the text ends where the model should speak."""
        where = where or str(sample.facts.get("where") or f"sample {sample.id}")
        if not sample.question.strip():
            raise DataError("the question is empty", where=where, fix="fill it in or drop the row")
        pixels_ND, grid_I3 = self._pixels(sample, where=where)
        prompt = self._render(sample, answer=None)
        full = self._render(sample, answer=sample.answer) if with_answer else prompt
        if not full.startswith(prompt):
            raise DataError(
                "the chat template rewrites the prompt when an answer follows", where=where
            )
        prompt_ids = self._tokenise(self._expand(prompt, grid_I3, where=where))
        answer_ids = self._tokenise(full[len(prompt) :]) if with_answer else []
        labels = [IGNORE_INDEX] * len(prompt_ids) + self._supervised(answer_ids)
        return Encoded(
            sample_id=sample.id,
            input_ids_L=torch.tensor(prompt_ids + answer_ids, dtype=torch.long),
            labels_L=torch.tensor(labels, dtype=torch.long),
            pixels_ND=pixels_ND,
            grid_I3=grid_I3,
        )

    def collate(self, encoded: list[Encoded]) -> dict[str, Any]:
        """Left-pad a batch. `labels` is there even without answers (all -100)."""
        longest = max(len(item.input_ids_L) for item in encoded)

        def pad(row_L: Tensor, value: int) -> Tensor:
            return torch.nn.functional.pad(row_L, (longest - len(row_L), 0), value=value)

        ids_BL = torch.stack([pad(item.input_ids_L, self.markers.pad) for item in encoded])
        mask = [pad(torch.ones_like(item.input_ids_L), 0) for item in encoded]
        batch: dict[str, Any] = {
            "input_ids": ids_BL,
            "attention_mask": torch.stack(mask),
            "mm_token_type_ids": (ids_BL == self.markers.image).to(torch.int),
            "labels": torch.stack([pad(item.labels_L, IGNORE_INDEX) for item in encoded]),
            "sample_ids": [item.sample_id for item in encoded],
        }
        pixels = [item.pixels_ND for item in encoded if item.pixels_ND is not None]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
            batch["image_grid_thw"] = torch.cat(
                [i.grid_I3 for i in encoded if i.grid_I3 is not None]
            )
        return batch

    def batch(self, samples: list[Sample], *, with_answer: bool) -> dict[str, Any]:
        return self.collate([self.encode(sample, with_answer=with_answer) for sample in samples])

    def decode(self, new_ids_BT: Tensor) -> list[str]:
        """Text of generated tokens, special tokens removed."""
        texts = self.tokenizer.batch_decode(new_ids_BT, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def cells(self, grid_I3: Tensor) -> list[int]:
        """Merged cells (visual tokens) of each image."""
        merge = self.processor.image_processor.merge_size**2
        return (grid_I3.prod(-1) // merge).tolist()

    def _pixels(self, sample: Sample, *, where: str) -> tuple[Tensor | None, Tensor | None]:
        if not sample.images:
            return None, None
        if sample.image_key is not None and sample.image_key in self._cache:
            self._cache.move_to_end(sample.image_key)
            return self._cache[sample.image_key]
        images = [load_image(image, where=where) for image in sample.images]
        try:
            out = self.processor.image_processor(images=images, size=self.size, return_tensors="pt")
        except ValueError as error:
            raise DataError(f"the image cannot be resized: {error}", where=where) from error
        pair = (out["pixel_values"], out["image_grid_thw"])
        if sample.image_key is not None:
            self._cache[sample.image_key] = pair
            if len(self._cache) > self._cached_images:
                self._cache.popitem(last=False)
        return pair

    def _render(self, sample: Sample, *, answer: str | None) -> str:
        messages: list[dict[str, Any]] = []
        shown_in = sample.image_turns or (0,) * len(sample.images)
        for turn, (question, reply) in enumerate((*sample.turns, (sample.question, answer))):
            images = [{"type": "image"}] * shown_in.count(turn)  # before their turn's words
            content = [*images, {"type": "text", "text": question}]
            messages.append({"role": "user", "content": content})
            if reply is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
        return self.tokenizer.apply_chat_template(
            messages,
            chat_template=self.processor.chat_template or self.tokenizer.chat_template,
            tokenize=False,
            add_generation_prompt=answer is None,
        )

    def _expand(self, text: str, grid_I3: Tensor | None, *, where: str) -> str:
        image = self.processor.image_token
        pieces = text.split(image)
        counts = [] if grid_I3 is None else self.cells(grid_I3)
        if len(pieces) - 1 != len(counts):
            raise DataError(
                f"{len(pieces) - 1} image placeholders in the text but {len(counts)} images",
                where=where,
                fix=f"remove the literal {image} from the question",
            )
        filled = [image * count + rest for count, rest in zip(counts, pieces[1:], strict=True)]
        return pieces[0] + "".join(filled)

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _supervised(self, answer_ids: list[int]) -> list[int]:
        """The answer and its end-of-turn mark are learned, the newline after it is not."""
        if self.markers.turn_end not in answer_ids:
            return answer_ids
        end = answer_ids.index(self.markers.turn_end) + 1
        return answer_ids[:end] + [IGNORE_INDEX] * (len(answer_ids) - end)
