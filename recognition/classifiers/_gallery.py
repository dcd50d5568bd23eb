"""What classifiers share whose centers are features of a gallery network: F²C and SST.

The gallery network follows the backbone by a moving average, and sees images without a gradient.
Its features lie in tensors on the training device that are equal on all ranks. A step writes into
them before anyone knows whether it will be skipped, so each write can be taken back.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from recognition.backbones import needs_landmarks
from recognition.config import Config
from recognition.distributed import Ranks

CHECK_EVERY = 1000  # forward passes between comparisons of the ranks' features (each one waits)
_BLOCK = 1 << 20  # entries per step of a checksum: three int64 copies of them exist

Index = tuple[torch.Tensor, ...]
Changes = list[tuple[torch.Tensor, Index, torch.Tensor]]
"""Writes: a tensor, the entries, and what stood there before."""


def gallery_network(backbone: nn.Module) -> nn.Module:
    """A copy of the backbone, as it is now, that gets no gradient.

    Its batch norms normalize by the images that they see, but these do not move their running
    statistics, which follow the backbone's.
    """
    if needs_landmarks(backbone):
        raise ValueError(
            "backbone.landmarks: found given, but the gallery network of this classifier gets no "
            "landmarks; choose template, or classifier full or partial"
        )
    gallery = copy.deepcopy(backbone).requires_grad_(False)
    for module in gallery.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    return gallery


@torch.no_grad()
def follow(gallery: nn.Module, backbone: nn.Module, taken: torch.Tensor, *, decay: float) -> None:
    """Move the gallery network towards the backbone by a moving average; copy its counts.

        gallery <- gallery + (1 - decay) (backbone - gallery)

    taken (bool, scalar): after a skipped step, where it is False, nothing is averaged.
    """
    mine, theirs = ([*net.parameters(), *net.buffers()] for net in (gallery, backbone))
    pairs = list(zip(mine, theirs, strict=True))
    averaged = [a for a, _ in pairs if a.is_floating_point()]
    towards = torch._foreach_sub([b for a, b in pairs if a.is_floating_point()], averaged)
    torch._foreach_mul_(towards, taken.float())
    torch._foreach_add_(averaged, towards, alpha=1 - decay)
    for a, b in pairs:
        if not a.is_floating_point():
            a.copy_(b)


def usable(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1.

    A feature that is not finite would stay among the centers. It becomes 0, which has no effect.
    """
    finite = features.isfinite().all(1, keepdim=True)
    return F.normalize(torch.where(finite, features, 0.0))


def put_back_unless(taken: torch.Tensor, changes: Changes) -> None:
    """Undo the writes where `taken` (bool, scalar) is False."""
    for tensor, place, before in changes:
        tensor[place] = torch.where(taken, tensor[place], before)


def of_all_ranks(own: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(B,n) of each rank -> (world·B,n) in rank order, differentiable in this rank's rows."""
    rows = list(ranks.all_gather(own).chunk(ranks.world))
    rows[ranks.rank] = own
    return torch.cat(rows)


def sum_over_ranks(local: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The sum over ranks.

    Its gradient is that of this rank's share times world; DistributedDataParallel's mean over ranks
    cancels the factor.
    """
    if ranks.world == 1:
        return local
    scaled = local * ranks.world
    return ranks.all_reduce_sum(local) + (scaled - scaled.detach())


def check_equal(features: nn.Module, ranks: Ranks) -> None:
    """RuntimeError unless the checksums of the module's buffers are equal on every rank.

    It waits for the device.
    """
    sums = [_checksum(buffer) for buffer in features.buffers()]
    everyone = ranks.all_gather(torch.stack(sums)[None])
    if not torch.equal(everyone, everyone[:1].expand_as(everyone)):
        raise RuntimeError(
            f"gallery features differ between ranks (checksums {everyone.tolist()}): the ranks did "
            "not see the same gallery batches; resume from an earlier checkpoint"
        )


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 (), modulo 2^64: it depends on every bit and on the place of that bit."""
    bits = tensor.reshape(-1)
    bits = bits.view(torch.int32) if bits.is_floating_point() else bits
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _BLOCK):
        block = bits[start : start + _BLOCK].long()

        # Entry i counts 2i + 1 times: an odd factor loses no bit.
        end = start + len(block)
        factors = torch.arange(2 * start + 1, 2 * end, 2, device=bits.device)
        total += (block * factors).sum()
    return total


def gallery_columns(size: float, classes: int, *, needed: int) -> int:
    """Features that stand for classes, from an option: a share of the classes, or a number.

    size: the option; up to 1 it is a share. needed: identities that one loss may bring. Raises
    ValueError if these are more, which names the smallest size that fits, or if `size` is not a
    number of columns.
    """
    needed = min(needed, classes)
    columns = (round(size * classes) if size <= 1 else int(size)) if 0 < size <= classes else 0
    if not columns or (size > 1 and size != columns):
        raise ValueError(
            f"classifier.size: found {size:g}, expected a share of the {classes} identities in "
            f"(0, 1], or a number of columns from {max(needed, 2)} to {classes}"
        )
    if columns < needed:
        raise ValueError(
            f"classifier.size: found {size:g}, which is {columns} columns for {classes} "
            f"identities, but half a global batch may bring {needed} of them; the smallest size "
            f"that fits is {needed} (or lower optim.batch_size)"
        )
    return columns


def check_shuffled(config: Config) -> None:
    """ValueError for an order of images that the classifier's own loader would not follow."""
    order = config.data.order
    if order != "shuffled":
        raise ValueError(
            f"data.order: found {order!r}, expected 'shuffled', because the "
            f"{config.classifier.name} classifier draws the images in its own way"
        )
