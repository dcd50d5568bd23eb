"""Muon (Keller Jordan, 2024): steps of matrices in which all directions are equally long.

The momentum of a layer's gradient is a matrix with a row per output channel, G = U S Vᵀ. The step
is U Vᵀ, up to the accuracy of a few Newton–Schulz iterations. torch.optim.Muon refuses the weights
of convolutions, which are nearly all weights of a convolutional network.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

GROUP = "matrices"
"""What the names of the optimizer's groups that Muon steps begin with."""
# As in the author's CIFAR-10 script. More of them cost time and bring the lengths nearer to 1.
ITERATIONS = 3
# Coefficients of the author's iteration: singular values from 0 to 1 go near 1 fast, not exactly.
_A, _B, _C = 3.4445, -4.7750, 2.0315


@dataclass(frozen=True)
class StepNeed:
    """What Muon's part of one optimizer step needs: multiply-adds, and bytes besides the state."""

    multiply_adds: int
    bytes: int


def step_need(backbone: nn.Module, *, on_gpu: bool) -> StepNeed:
    """Counts the products and temporary matrices of `muon_hook`. Only shapes are read."""
    sizes = (backbone.get_parameter(name).flatten(1).shape for name in muon_weights(backbone))
    counts = Counter((min(shape), max(shape)) for shape in sizes)
    if on_gpu:  # per iteration X Xᵀ, its square, and the product of both with X
        products = {(m, n): ITERATIONS * (2 * m * m * n + m**3) for m, n in counts}
    else:  # X Xᵀ and the product with X once; per iteration but the first four products of squares
        products = {(m, n): 2 * m * m * n + (4 * ITERATIONS - 3) * m**3 for m, n in counts}
    numbers = {(m, n): count * m * n for (m, n), count in counts.items()}
    # All steps exist at once in float32. The weights of one shape are stacked in float32, iterated
    # in as much as three of them, and turned back into float32. On a CPU squares that are left
    # over take more where n < 3 m, which is not counted: the largest weights are wider.
    stacked = 4 + 3 * (2 if on_gpu else 4) + 4
    return StepNeed(
        sum(counts[shape] * products[shape] for shape in counts),
        4 * sum(numbers.values()) + stacked * max(numbers.values()),
    )


def muon_weights(backbone: nn.Module) -> frozenset[str]:
    """Names of the weights that Muon steps: those of convolutions and linear layers.

    The first one, which sees the image, and depthwise convolutions are left out. Raises ValueError
    where no other is there.
    """
    layers = [
        (f"{name}.weight", layer)
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    found = frozenset(name for name, layer in layers[1:] if layer.weight.shape[1] > 1)
    if not found:
        raise ValueError(
            "optim.name: found muon, but the backbone has no convolution or linear layer behind "
            "the first one that mixes channels; use sgd or adamw"
        )
    return found


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (K,m,n) -> U Vᵀ of each, up to the accuracy of the iterations: singular values ≈ 1.

    On CUDA the products are computed in bfloat16, as the author does. A zero matrix stays zero.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.bfloat16() if wide.is_cuda else wide
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = (iterated if wide.is_cuda else iterated_by_squares)(x).to(matrices.dtype)
    return x if wide is matrices else x.mT


def iterated(x: torch.Tensor) -> torch.Tensor:
    """The iterations as the author writes them, on wide matrices (K,m,n) of norm 1 at most."""
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=_B, alpha=_C), x, beta=_A)
    return x


def iterated_by_squares(x: torch.Tensor) -> torch.Tensor:
    """The same with two products of length n in all, not two per iteration; half as long on a CPU.

    An iteration is X <- P X with P = a + b S + c S², where S = X Xᵀ. It makes S into P S P, so all
    P follow from the first S, and X is multiplied once, by the product of all P. That product is
    off by up to some hundred times the rounding of S, which is too much in bfloat16.
    """
    square = x @ x.mT
    factors = _factors(square)
    product = factors
    for _ in range(ITERATIONS - 1):
        square = factors @ square @ factors
        factors = _factors(square)
        product = factors @ product
    return product @ x


def _factors(square: torch.Tensor) -> torch.Tensor:
    """a + b S + c S² of each S (K,m,m)."""
    factors = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
    factors.diagonal(dim1=1, dim2=2).add_(_A)
    return factors


def muon_hook(momentum: float) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    """A hook before each step of an optimizer: it makes gradients of the Muon groups into steps.

    The gradient of a group named GROUP becomes the orthogonalized Nesterov momentum, so that plain
    SGD without momentum makes Muon's step. Its length is that of one with a mean square of
    max(1, m/n)/n per output channel. A step that a fused optimizer skips leaves the momentum.
    """

    def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        skipped = getattr(optimizer, "found_inf", None)
        by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for group in optimizer.param_groups:
            for weight in group["params"] if group["name"].startswith(GROUP) else ():
                if weight.grad is not None:
                    step = _nesterov(optimizer.state[weight], weight.grad, momentum, skipped)
                    by_shape.setdefault(weight.shape, []).append((weight.grad, step))
        for shape, pairs in by_shape.items():
            rows, columns = shape[0], shape[1:].numel()
            matrices = torch.stack([step.reshape(rows, columns) for _, step in pairs])
            scale = max(1.0, rows / columns) ** 0.5
            for (gradient, _), step in zip(pairs, orthogonalized(matrices), strict=True):
                gradient.copy_(scale * step.reshape(shape))

    return torch.no_grad()(before_step)


def _nesterov(
    state: dict[str, Any], gradient: torch.Tensor, momentum: float, skipped: torch.Tensor | None
) -> torch.Tensor:
    """g + μ v, after v <- μ v + g in `state`; v stays where `skipped` (0-d) is not 0."""
    before = state.get("momentum_buffer")
    if before is None:
        before = torch.zeros_like(gradient)
    velocity = before * momentum + gradient
    if skipped is not None:
        velocity = torch.where(skipped > 0, before, velocity)
    state["momentum_buffer"] = velocity
    return gradient + momentum * velocity
