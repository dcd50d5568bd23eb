"""Optimizer steps on some rows of the centers, for classifiers that update their centers.

Each is the step of torch.optim.SGD or torch.optim.AdamW, on the given rows alone. The run's
optimizer would need a gradient of all centers, and would also move those without one.
"""

from dataclasses import dataclass

import torch

from recognition.classifiers._matmul import matmul
from recognition.config import Config

ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # torch.optim.AdamW's defaults


def check_own_step(config: Config, *, adamw: bool) -> None:
    """ValueError unless the classifier can update its centers as `optim` asks.

    Every such classifier knows SGD without Nesterov momentum. adamw: whether it knows AdamW too.
    """
    optim = config.optim
    if optim.nesterov or (optim.name == "adamw" and not adamw):
        raise ValueError(
            f"optim.name: found {optim.name!r}{' with nesterov' if optim.nesterov else ''}, "
            f"expected {'adamw, or ' if adamw else ''}sgd without nesterov, because "
            f"the {config.classifier.name} classifier updates its own centers"
        )


@dataclass(frozen=True)
class FusedSGD:
    """SGD of the centers in the backward pass, chunk by chunk: no gradient of their size exists.

        v <- momentum v + gradient + weight_decay w        w <- w - lr v

    velocity: v, as large as the weight, float32 or bfloat16.
    """

    velocity: torch.Tensor
    momentum: float
    weight_decay: float
    lr: float


def fused_sgd_step(
    centers: torch.Tensor,
    sgd: FusedSGD,
    taken: torch.Tensor,
    rows: slice,
    slope: torch.Tensor,
    units: torch.Tensor,
    along: torch.Tensor,
    matmul_dtype: torch.dtype,
) -> None:
    """One chunk's step in place. centers (c,D): the chunk, rows `rows` of the weight.

    The gradient is slopeᵀ units + along w, with slope (B,c), units (B,D) and along (c,). It is
    never formed: besides the product, the step costs three passes over the chunk.

    taken (bool, scalar): where it is False, nothing changes, if slope and along are 0. Factors say
    so to the device, because a branch would wait for it.
    """
    velocity = sgd.velocity[rows]
    step = velocity if velocity.dtype == centers.dtype else velocity.to(centers.dtype)

    # v <- momentum v + slopeᵀ units
    step.mul_(torch.where(taken, sgd.momentum, 1.0))
    if matmul_dtype == torch.float32:
        step.addmm_(slope.T, units)
    else:
        step.add_(matmul(slope.T, units, matmul_dtype))

    # v <- v + (along + weight_decay) w: both multiples of w in one pass
    step.addcmul_(centers, (along + torch.where(taken, sgd.weight_decay, 0.0))[:, None])

    centers.addcmul_(step, torch.where(taken, -sgd.lr, 0.0))
    if step is not velocity:
        velocity.copy_(step)


def sgd_step(
    weight: torch.Tensor,
    velocity: torch.Tensor,
    rows: torch.Tensor,
    gradient: torch.Tensor,
    taken: torch.Tensor,
    lr: float,
    weight_decay: float,
    *,
    momentum: float,
) -> None:
    """SGD on the rows (n,) of weight and velocity (C,D) in place. gradient (n,D).

    taken (bool, scalar): where it is False, nothing changes.
    """
    centers = weight[rows]
    step = velocity[rows].to(centers.dtype).mul_(momentum).add_(gradient)
    step.add_(centers, alpha=weight_decay)
    _write(velocity, rows, step.to(velocity.dtype), taken)
    _write(weight, rows, centers.add_(step, alpha=-lr), taken)


def adamw_step(
    weight: torch.Tensor,
    velocity: torch.Tensor,
    square: torch.Tensor,
    times: torch.Tensor,
    rows: torch.Tensor,
    gradient: torch.Tensor,
    taken: torch.Tensor,
    lr: float,
    weight_decay: float,
) -> None:
    """AdamW on the rows (n,) of the weight and its moments (C,D) in place. gradient (n,D).

    velocity: first moments. square: second moments. times (C,): the number of steps that each row
    has had, for the bias correction of its moments. taken (bool, scalar): where it is False,
    nothing changes.
    """
    centers = weight[rows].mul_(1 - lr * weight_decay)
    row_times = times[rows] + 1

    # m <- beta_1 m + (1 - beta_1) g    and    s <- beta_2 s + (1 - beta_2) g²
    mean = velocity[rows].to(centers.dtype).lerp_(gradient, 1 - ADAM_BETAS[0])
    row_square = square[rows].lerp_(gradient.square(), 1 - ADAM_BETAS[1])
    _write(velocity, rows, mean.to(velocity.dtype), taken)
    _write(square, rows, row_square, taken)
    _write(times, rows, row_times, taken)

    # w <- w - lr m' / (√s' + eps), where m' = m / (1 - beta_1^t) and s' = s / (1 - beta_2^t)
    first, second = ((1 - beta ** row_times.to(centers.dtype)).unsqueeze(1) for beta in ADAM_BETAS)
    step = lr * (mean / first) / ((row_square / second).sqrt_() + ADAM_EPS)
    _write(weight, rows, centers.sub_(step), taken)


def _write(
    tensor: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, taken: torch.Tensor
) -> None:
    """tensor[rows] = values where `taken`; reading the rows again costs one pass over them."""
    tensor[rows] = torch.where(taken, values, tensor[rows])
