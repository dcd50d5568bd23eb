"""Steps and states that are not finite: how they are found, and how a step becomes none.

A step whose loss or gradients are not finite is skipped: weights, centers, momentum and running
statistics stay as they were. All ranks skip it together. Nothing here waits for a GPU except
`all_finite`, which is called before a state is saved.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from recognition.distributed import Ranks


class Verdict(NamedTuple):
    """What a step's check found: two scalars (bool) on the device, equal on all ranks."""

    loss_finite: torch.Tensor
    taken: torch.Tensor
    """Whether loss and gradients are finite, so that the step is taken."""


def check_step(loss: torch.Tensor, norms: list[torch.Tensor], ranks: Ranks) -> Verdict:
    """The verdict on a step. loss and norms: scalars of this rank; norms of its gradients.

    The norm of a gradient is also infinite where the sum of its squares is, above 1.8e19 in
    float32.
    """
    total = torch.stack([loss, *(norm.to(loss.dtype) for norm in norms)]).sum()
    bad = torch.stack([loss, total]).isfinite().logical_not_()
    if ranks.world > 1:
        bad = ranks.all_reduce_max(bad.float()) > 0
    loss_bad, step_bad = bad.unbind()
    return Verdict(~loss_bad, ~step_bad)


def all_finite(state: Any, ranks: Ranks) -> bool:
    """Whether all tensors of numbers below `state`, on all ranks, are finite. It waits."""
    tensors = [tensor for tensor in _numbers(state) if tensor.numel()]
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    bad = 0.0
    for some in by_device.values():
        # A largest absolute value is not finite if any number is not, and it can't overflow.
        largest = [norm.float() for norm in torch._foreach_norm(some, float("inf"))]
        bad = max(bad, float(~torch.stack(largest).isfinite().all()))
    if ranks.world > 1:
        device = max(by_device, key=lambda device: device.type != "cpu")
        bad = float(ranks.all_reduce_max(torch.tensor(bad, device=device)))
    return bad == 0


def _numbers(node: Any) -> Iterator[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        if node.is_floating_point():
            yield node
    elif isinstance(node, (dict, list, tuple)):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _numbers(child)


class Kept:
    """Copies of small tensors, such as running statistics, which a skipped step gets back.

    The tensors of one type are copied as one, which takes few kernels.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        self._copies = [(group, _joined(group)) for group in by_dtype.values()]

    @torch.no_grad()
    def put_back_unless(self, taken: torch.Tensor) -> None:
        """Give the tensors the values of the copies where `taken` (bool, scalar) is False."""
        for tensors, before in self._copies:
            joined = torch.where(taken, _joined(tensors), before)
            parts = joined.split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(
                tensors, [part.view_as(own) for part, own in zip(parts, tensors, strict=True)]
            )


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
