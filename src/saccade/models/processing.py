"""A Qwen3-VL processor that needs no torchvision: image processor, tokenizer, chat template.

The stock `Qwen3VLProcessor` lists a video processor in its constructor, and that one insists on
torchvision, which has no matching CPU build. This subclass has the same image and text behaviour,
saves and loads from the same files, and leaves videos out.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.utils.import_utils import is_torchvision_available


class ImageTextProcessor(Qwen3VLProcessor):
    """`Qwen3VLProcessor` without videos; `processor(text=..., images=...)` works as in stock."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        **kwargs: Any,
    ) -> None:
        # the parent reads its parts from the constructor's signature, hence no video_processor here
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template, **kwargs)


def image_processor(**settings: Any) -> Any:
    """Qwen's image processor: the torchvision one when present, else its Pillow twin."""
    if is_torchvision_available():
        from transformers import Qwen2VLImageProcessor

        return Qwen2VLImageProcessor(**settings)
    return Qwen2VLImageProcessorPil(**settings)


def load_processor(name: str, **hub: Any) -> Any:
    """Load image processor and tokenizer of a folder or hub name as one processor."""
    from transformers import AutoImageProcessor

    images = AutoImageProcessor.from_pretrained(name, **hub)
    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    template = getattr(tokenizer, "chat_template", None)
    return ImageTextProcessor(image_processor=images, tokenizer=tokenizer, chat_template=template)
