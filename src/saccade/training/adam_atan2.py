"""AdamAtan2: Adam whose step is an arctangent, so that it needs no epsilon.

Gradients flow in, updated parameters stay in place. From "Scaling Exponents Across
Parameterizations and Optimizers" (arXiv 2407.05872):

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   with the usual bias corrections
    p = p (1 - lr decay) - lr a atan2(m_hat, b sqrt(v_hat)),   a = 1.27 (about 4/pi), b = 1

No step is longer than 2 lr, and scaling all gradients changes nothing. Left out: cautious masks,
regenerative decay and fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

A, B = 1.27, 1.0


class AdamAtan2(torch.optim.Optimizer):
    """Adam with a bounded, scale-free step; decay is decoupled."""

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        lr, (beta1, beta2), state = group["lr"], group["betas"], self._state_of(p)
        state["step"] += 1
        count = int(state["step"])
        mean = state["exp_avg"].lerp_(grad, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (square / (1 - beta2**count)).sqrt_().mul_(B)
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        p.sub_(torch.atan2(mean / (1 - beta1**count), root), alpha=lr * A)

    def _state_of(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return state
