"""F²C (arXiv 2105.10375): a classifier whose size does not grow with the identities.

The centers are features of the identities seen last, computed by a second network that follows the
trained one, in a pool of a few columns (recognition/classifiers/_pool.py,
recognition/classifiers/_pool_loss.py). Its batches come from `make_loader`, which a run takes in
place of Loader: images of identities drawn uniformly beside images drawn uniformly
(data/f2c_loader.py).
"""

from __future__ import annotations

import copy
import logging
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from data.f2c_loader import dual_loader, single_image_identities
from data.loader import Loader
from data.types import FaceSet
from recognition.backbones import embedding_of
from recognition.classifiers._margin_softmax import Options, make_options
from recognition.classifiers._pool import ClassPool
from recognition.classifiers._pool_loss import pool_loss
from recognition.classifiers._rows import check_choice
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead

log = logging.getLogger(__name__)
BATCH_PARTS = 6  # a batch divides into three thirds of two halves
CHECK_EVERY = (
    1000  # forward passes between comparisons of the ranks' pools, which wait for the device
)


class ClassPoolClassifier(nn.Module):
    """(backbone, images, labels) -> loss of the global batch, whose first half x and second half y
    face each other.

    Pass(probe, gallery): the backbone's embeddings of `probe` against the pool after the gallery
    network's features of `gallery` went in. Loss = Pass(x, y), taken back, + Pass(y, x), kept; with
    it both halves go through a network together, so batch norm sees the whole batch (the released
    code: a half at a time). Without `swap` Pass(x, y), kept.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: ClassPool,
        *,
        options: Options,
        hardest: int,
        ranks: Ranks,
        ema_decay: float,
        swap: bool,
    ) -> None:
        super().__init__()
        self.head = options.head
        self.pool = pool
        self.gallery = copy.deepcopy(backbone).requires_grad_(False).train()
        for module in self.gallery.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = (
                    0.0  # its statistics are the probe's averaged, not what it sees itself
                )
        self.options, self.hardest, self.ranks, self.ema_decay, self.swap = (
            options,
            hardest,
            ranks,
            ema_decay,
            swap,
        )
        self._probe = (backbone,)  # in a tuple, so that it is no submodule: the run owns it
        self._forwards = 0

    @torch.no_grad()
    def prepare(self, lr: float) -> None:
        """Before the forward pass of each optimizer step: the gallery network follows the
        backbone."""
        mine, theirs = (
            [*net.parameters(), *net.buffers()] for net in (self.gallery, self._probe[0])
        )
        pairs = list(zip(mine, theirs, strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([a for a, _ in averaged], [b for _, b in averaged], 1 - self.ema_decay)
        for a, b in pairs:
            if not a.is_floating_point():
                a.copy_(b)

    def update(self) -> None:
        """After a successful optimizer step. Nothing to do: there are no centers to train."""

    def forward(
        self, backbone: nn.Module, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """images (2h,3,H,W), labels (2h,). The backbone is the run's wrapped one; the loss is equal
        on all ranks."""
        half = len(labels) // 2
        probes = backbone(images if self.swap else images[:half])
        with torch.no_grad():
            features = self.gallery(images if self.swap else images[half:])
        with torch.autocast(images.device.type, enabled=False):
            probes = probes.to(torch.promote_types(probes.dtype, torch.float32))
            with torch.no_grad():
                features = _usable(features.to(self.pool.features.dtype))
            if self.swap:
                kept = self._pass(
                    probes[:half], labels[:half], features[half:], labels[half:], commit=False
                )
                local = kept + self._pass(
                    probes[half:], labels[half:], features[:half], labels[:half], commit=True
                )
            else:
                local = self._pass(probes, labels[:half], features, labels[half:], commit=True)
            if self._forwards % CHECK_EVERY == 0 and self.ranks.world > 1:
                self.pool.check_equal(self.ranks)
            self._forwards += 1
            return _sum_of_parts(local, self.ranks)

    def _pass(
        self,
        probes: torch.Tensor,
        probe_labels: torch.Tensor,
        features: torch.Tensor,
        labels: torch.Tensor,
        *,
        commit: bool,
    ) -> torch.Tensor:
        with torch.no_grad():
            features, labels = self.ranks.all_gather(features), self.ranks.all_gather(labels)
            plan = self.pool.plan(labels)
        loss = pool_loss(
            probes,
            probe_labels,
            self.pool,
            plan,
            features,
            options=self.options,
            hardest=self.hardest,
            ranks=self.ranks,
            training=self.training,
        )
        if commit and self.training:
            self.pool.commit(plan, features)
        return loss


def _usable(features: torch.Tensor) -> torch.Tensor:
    """Features at length 1; one that is not finite becomes 0, which pulls and pushes nothing, for
    it would stay."""
    finite = features.isfinite().all(1, keepdim=True)
    return F.normalize(torch.where(finite, features, 0.0))


def _sum_of_parts(local: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The sum over ranks; its gradient is the own part's times world, which
    DistributedDataParallel's mean undoes."""
    if ranks.world == 1:
        return local
    scaled = local * ranks.world
    return ranks.all_reduce_sum(local) + (scaled - scaled.detach())


def make_loader(faces: FaceSet, *, batch_size: int, image_weight: float, **options: Any) -> Loader:
    """A Loader for this classifier: of `batch_size` images a third are drawn by image, two thirds
    by identity in pairs.

    An epoch draws every image once by image, so it has three times as many, all of which the
    backbone sees (half of them without `swap`). Says how many identities have a single image, which
    makes their pair (each of the two is augmented for itself).
    """
    near = batch_size - batch_size % BATCH_PARTS
    if batch_size != near or not near:
        raise ValueError(
            f"optim.batch_size {batch_size}: a class pool takes three equal parts, each of two halves: a multiple of"
            f" {BATCH_PARTS}, such as {near or BATCH_PARTS} or {near + BATCH_PARTS}"
        )
    present = len(np.unique(faces.labels))
    if batch_size // 3 > present:
        most = 3 * present // BATCH_PARTS * BATCH_PARTS
        raise ValueError(
            f"optim.batch_size {batch_size}: a class pool draws a third as many different identities, but the set has"
            f" {present}; take {most} or less"
        )
    if (single := single_image_identities(faces.labels)) and options.get("rank", 0) == 0:
        log.info("%d of %d identities have one image: it is given twice", single, faces.num_classes)
    return dual_loader(faces, identities=batch_size // 3, image_weight=image_weight, **options)


def pool_columns(size: float, classes: int, *, needed: int) -> int:
    """Columns of a pool of `size` (a share up to 1, else a number) to which a pass may bring
    `needed` identities.

    Raises ValueError with the smallest size that fits, where it is too small or no number of
    columns.
    """
    needed = min(needed, classes)
    columns = (round(size * classes) if size <= 1 else int(size)) if 0 < size <= classes else 0
    if not columns or (size > 1 and size != columns):
        raise ValueError(
            f"classifier.size {size:g}: expected a share of the {classes} identities in (0, 1], or a number of columns"
            f" from {max(needed, 2)} to {classes}"
        )
    if columns < needed:
        raise ValueError(
            f"classifier.size {size:g}: a pool of {columns} columns for {classes} identities, but half a global batch"
            f" may bring {needed} of them; the smallest size that fits is {needed} (or lower optim.batch_size)"
        )
    return columns


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    batch_size: int,
    *,
    size: float = 0.1,
    ema_decay: float = 0.99,
    swap: bool = True,
    image_weight: float = 0.0,
    outside: str = "hardest",
    chunk: int | Literal["auto"] = "auto",
    matmul: str = "float32",
) -> ClassPoolClassifier:
    """A class pool for `classes` identities.

    batch_size: images a rank and micro-batch, three parts (one of images, two of identities). size:
    columns as a share of the identities (up to 1) or as a number. ema_decay: share of itself that
    the gallery network keeps in a step. swap: a second pass with the halves' roles exchanged.
    image_weight: how much the images of an identity count when identities are drawn, from 0 (all
    equally often; published) to 1 (in proportion to their images). outside: what pushes a probe
    that is not in the pool: its hardest columns (0.02 % of the pool, 3 to 10; the released code) or
    all (the paper's text). chunk: columns computed at a time. matmul: float32 or bfloat16 products
    with the columns left alone.
    """
    check_choice("classifier.outside", outside, ("hardest", "all"))
    if not 0 <= ema_decay < 1:
        raise ValueError(f"classifier.ema_decay {ema_decay}: expected 0 ≤ ema_decay < 1")
    if not 0 <= image_weight <= 1:
        raise ValueError(f"classifier.image_weight {image_weight}: expected 0 to 1")
    columns = pool_columns(size, classes, needed=ranks.world * batch_size // 2)
    options = make_options(
        head, backbone, chunk=chunk, matmul=matmul, sub_centers=1, filter_above=0.0
    )
    hardest = min(max(int(0.0002 * columns), 3), 10) if outside == "hardest" else 0
    pool = ClassPool(columns, classes, embedding_of(backbone))
    return ClassPoolClassifier(
        backbone,
        pool,
        options=options,
        hardest=hardest,
        ranks=ranks,
        ema_decay=ema_decay,
        swap=swap,
    )
