"""A demo of one model: bring a picture, ask about it, and see which visual tokens were read.

In goes the folder this file lies in (`model/`, `space.json`, and the part of saccade that runs the
model); out comes a Gradio page. `python app.py` serves it. Nothing is read from elsewhere and
nothing is kept. Left out: training, and everything that needs the run the model comes from.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import gradio as gr  # type: ignore[import-not-found]
import numpy as np
import torch
from PIL import Image

from saccade.config.errors import SaccadeError
from saccade.config.schema import ModelConfig, SelectorConfig
from saccade.data.chat import ChatRenderer
from saccade.data.images import load_image
from saccade.data.samples import DataError, Sample
from saccade.models.backbone import load_backbone
from saccade.models.relevance.model import RelevanceModel

HERE = Path(__file__).resolve().parent
LONGEST_QUESTION = 500
LARGEST_UPLOAD = "30mb"
DROPPED_RGBA = (16, 20, 26, 200)
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]


class Demo:
    """The model of this folder, one question at a time."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "space.json").read_text("utf-8"))
        self.selects = bool(self.facts["selects"])
        self.model = load_model(folder / "model", selects=self.selects)
        self.renderer = ChatRenderer(
            self.model.backbone.processor,
            min_pixels=self.facts["min_pixels"],
            max_pixels=self.facts["max_pixels"],
        )
        self.turn = threading.Lock()

    def answer(self, path: str | None, question: str, percent: float = 100.0) -> tuple[Any, ...]:
        """The answer, the picture with what was not read darkened, and a line of numbers."""
        question = (question or "").strip()
        if path is None:
            raise refusal("Choose a picture first")
        if not 0 < len(question) <= LONGEST_QUESTION:
            raise refusal(f"Write a question of at most {LONGEST_QUESTION} characters")
        try:
            image = load_image(Path(path), where="the picture")
            sample = Sample(id="demo", question=question, answers=(), images=(image,))
            with self.turn:
                text, selection = self.read(sample, share=float(percent) / 100)
        except DataError as error:
            raise refusal(f"The picture cannot be read: {error.problem}") from error
        except SaccadeError as error:
            raise refusal(str(error)) from error
        return text, shown(image, selection.keep_HW), counted(selection)

    @torch.inference_mode()
    def read(self, sample: Sample, *, share: float) -> tuple[str, Any]:
        """Answer greedily from a share of the visual tokens."""
        device = next(self.model.base.parameters()).device
        batch = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.renderer.batch([sample], with_answer=False).items()
        }
        arm, keep = ("trained", min(1.0, max(0.01, share))) if self.selects else ("full", 1.0)
        reduced = self.model.reduce(batch, arm=arm, keep=keep, seed=0)
        new_BT = self.model.generate_reduced(
            reduced, max_new_tokens=int(self.facts["max_new_tokens"])
        )
        return self.renderer.decode(new_BT)[0], reduced.images[0]


def load_model(folder: Path, *, selects: bool) -> Any:
    """The selector with the base inside, or the base alone with every token read."""
    if selects:
        return RelevanceModel.from_pretrained(folder, model=ModelConfig()).eval()
    backbone = load_backbone(ModelConfig(name=str(folder)))
    return RelevanceModel(backbone, SelectorConfig(keep=1.0)).eval()


def refusal(message: str) -> Exception:
    """What the visitor did not give: a message on the page, no traceback in the log."""
    return gr.Error(message, print_exception=False)


def shown(image: Image.Image, keep_HW: Any) -> Image.Image:
    """The picture, darkened where the selector dropped its cells."""
    picture = image.convert("RGBA")
    if keep_HW is not None:
        kept_HW = keep_HW.cpu().numpy().astype(bool)
        rgba_HW4 = np.zeros((*kept_HW.shape, 4), dtype=np.uint8)
        rgba_HW4[~kept_HW] = DROPPED_RGBA
        cells = Image.fromarray(rgba_HW4, "RGBA").resize(picture.size, Image.Resampling.NEAREST)
        picture = Image.alpha_composite(picture, cells)
    return picture.convert("RGB")


def counted(selection: Any) -> str:
    """How many visual tokens the language model read."""
    return f"{int(selection.kept)} of {int(selection.full)} visual tokens were read."


def build_page(demo: Demo) -> Any:
    """Two columns: what is asked, and what comes back."""
    facts = demo.facts
    with gr.Blocks(title=facts["title"], analytics_enabled=False) as page:
        gr.Markdown(f"# {facts['title']}\n\n{facts['sentence']}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label="Picture", type="filepath", sources=["upload"], elem_id="picture"
                )
                question = gr.Textbox(
                    label="Question", placeholder=facts["example"], elem_id="question"
                )
                budget = gr.Slider(
                    1, 100, value=facts["percent"], step=1, visible=demo.selects,
                    label="Visual tokens that may be read (%)", elem_id="budget",
                )  # fmt: skip
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column():
                answer = gr.Textbox(label="Answer", interactive=False, elem_id="answer")
                kept = gr.Image(
                    label="What was read", interactive=False, visible=demo.selects, elem_id="kept"
                )
                numbers = gr.Markdown(elem_id="numbers")
        given, back = [picture, question, budget], [answer, kept, numbers]
        ask.click(demo.answer, given, back, api_name="answer")
        question.submit(demo.answer, given, back, api_visibility="private")
    return page


def main() -> None:
    """Load the model, then serve; host and port come from Gradio's environment variables."""
    from gradio.themes import Default  # type: ignore[import-not-found]

    logging.basicConfig(level="WARNING")
    page = build_page(Demo(HERE))
    page.queue(max_size=16)
    theme = Default(font=FONTS, font_mono=["ui-monospace", "monospace"])
    page.launch(max_file_size=LARGEST_UPLOAD, ssr_mode=False, footer_links=[], theme=theme)


if __name__ == "__main__":
    main()
