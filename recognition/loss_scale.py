"""The loss scale of fp16 (arXiv 1710.03740, section 3.2), which is doubled and halved by itself.

torch.amp.GradScaler does the same, but waits for the GPU to tell whether a step was taken, knows
one rank only, and has no floor. A scale is a power of two, so scaling rounds nothing.
"""

from typing import Any

import torch

FIRST = 2.0**16
# With arcface_torch's growth interval, runs of a few thousand steps find their scale.
GROWTH_INTERVAL = 100
LOWEST = 2.0**-10
"""Gradients that overflow here overflow at every scale. DeepSpeed gives up at 1, fairseq at 2^-13;
a healthy run stays above 1, and ten halvings leave room for a few bad steps in a row."""


class LossScale:
    """The factor of the loss, a scalar on the device. Without `enabled` it is 1 and stays so."""

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self.enabled = enabled
        self._scale = torch.full((), FIRST if enabled else 1.0, device=device)
        self._taken_in_a_row = torch.zeros((), dtype=torch.int32, device=device)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss whose backward pass makes scaled gradients."""
        return loss * self._scale if self.enabled else loss

    def unscale_(self, gradients: list[torch.Tensor]) -> None:
        """Divide gradients by the scale, in place."""
        if self.enabled and gradients:
            torch._foreach_mul_(gradients, self._scale.reciprocal())

    def update(self, taken: torch.Tensor) -> None:
        """Halve the scale after a skipped step, and double it after 100 steps taken in a row.

        taken (bool, scalar): whether the step was taken.
        """
        if not self.enabled:
            return
        in_a_row = (self._taken_in_a_row + 1) * taken
        grows = in_a_row == GROWTH_INTERVAL
        factor = torch.where(taken, torch.where(grows, 2.0, 1.0), 0.5)
        self._scale = (self._scale * factor).clamp(LOWEST, 2.0**100)
        self._taken_in_a_row = in_a_row * ~grows

    def value(self) -> float:
        """The scale. It waits for the device."""
        return self._scale.item()

    def state_dict(self) -> dict[str, Any]:
        """The state under the names that GradScaler gave it; empty if not enabled."""
        if not self.enabled:
            return {}
        return {"scale": self.value(), "_growth_tracker": int(self._taken_in_a_row)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`, also from that of a GradScaler."""
        if self.enabled:
            self._scale.fill_(state["scale"])
            self._taken_in_a_row.fill_(state["_growth_tracker"])
