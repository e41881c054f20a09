"""Multi-token prediction: every cell's state also learns the symbols of the cells after it.

The state after a step of thinking and the labels flow in, a loss flows out (after arXiv 2412.19437,
for grids read row by row):

    h_0 = y,   h_d[i] = h' + SwiGLU(h'),   h' = RMS([h_{d-1}[i]; embedding(label[i + d - 1])] W_d)
    loss = weight * mean over d and i of CE(head(h_d[i]), label[i + d])

Token table and head are the model's own. Only training pays for it; answers do not read it.
Blocks look at one cell each, so no label leaks to another cell.

Shapes: B slots, L cells, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saccade.config.recursion import RecursionConfig
from saccade.models.recursion.blocks import Linear, SwiGLU, rms_norm
from saccade.models.recursion.core import Extra, Moment
from saccade.models.recursion.losses import IGNORE_INDEX, cell_losses


class NextCells(Extra):
    """Predicts the labels one, two, ... cells ahead."""

    def __init__(self, config: RecursionConfig) -> None:
        super().__init__()
        width, self.weight, self.kind = config.width, config.mtp.weight, config.loss
        depths = range(config.mtp.depths)
        self.joins = nn.ModuleList(Linear(2 * width, width) for _ in depths)
        size = {"expansion": config.expansion, "multiple": config.ffn_multiple}
        self.feeds = nn.ModuleList(SwiGLU(width, **size) for _ in depths)

    def losses(self, moment: Moment) -> dict[str, Tensor]:
        """Mean over depths of the mean over cells."""
        core, labels_BL = moment.core, moment.labels_BL
        h_BLD = moment.after.y[:, core.prefix :]
        terms = []
        for depth, (join, feed) in enumerate(zip(self.joins, self.feeds, strict=True), start=1):
            if depth >= labels_BL.shape[1]:
                break
            told_BL = labels_BL[:, depth - 1 : -1].clamp(min=0)
            told_BLD = rms_norm(moment.tokens(told_BL))
            h_BLD = rms_norm(join(torch.cat((h_BLD[:, :-1], told_BLD), -1)))
            h_BLD = h_BLD + feed(h_BLD)
            wanted_BL = labels_BL[:, depth:]
            each_BL = cell_losses(core.answer_head(h_BLD), wanted_BL, kind=self.kind)
            terms.append(each_BL.sum(-1) / (wanted_BL != IGNORE_INDEX).sum(-1).clamp(min=1))
        if not terms:
            return {}
        return {"mtp": self.weight * torch.stack(terms).mean(0)}
