"""F²C (arXiv 2105.10375): a classifier whose size does not grow with the identities.

Its centers are features of the latest identities, in a pool of a few columns (_pool.py,
_pool_loss.py). A gallery network, which follows the trained one, computes them. A third of each
batch is drawn uniformly by image, two thirds uniformly by identity (data/f2c_loader.py).
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from data.f2c_loader import dual_loader
from data.loader import Loader
from data.options import Positive, Share, ShareBelowOne
from data.pair_loader import USED_TWICE, tell_single_images
from data.types import FaceSet
from recognition.backbones import embedding_of
from recognition.classifiers import (
    ClassifierFacts,
    Memory,
    Overrides,
    Sizes,
    Work,
    refuse_teacher_centers,
)
from recognition.classifiers._gallery import (
    CHECK_EVERY,
    Changes,
    check_equal,
    check_shuffled,
    follow,
    gallery_columns,
    gallery_network,
    sum_over_ranks,
    usable,
)
from recognition.classifiers._margin_softmax import (
    Chunk,
    SoftmaxOptions,
    chunk_memory,
    softmax_options,
)
from recognition.classifiers._matmul import MatmulName
from recognition.classifiers._pool import ClassPool
from recognition.classifiers._pool_loss import pool_loss
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.finite import Kept
from recognition.heads._margin import MarginHead

BATCH_MULTIPLE = 6  # a batch divides into three thirds of two halves


class ClassPoolClassifier(nn.Module):
    """(backbone, images, labels) -> loss of the global batch; its halves x and y share identities.

    loss(probe, gallery) compares the backbone's embeddings of `probe` with the pool after the
    gallery network's features of `gallery` went in. Without `swap` the loss is loss(x, y). With
    `swap` it is loss(x, y) + loss(y, x), and the pool keeps only the change of the second term.
    Both halves then go through a network together, so that batch norm sees the whole batch. (The
    released code computes one half at a time.)

    backbone: the plain module. The gallery network starts as its copy and follows its weights.
    `forward` gets the same network as the run calls it: compiled, or wrapped for several ranks.
    """

    row_state = ()

    def __init__(
        self,
        backbone: nn.Module,
        pool: ClassPool,
        *,
        options: SoftmaxOptions,
        hardest: int,
        ranks: Ranks,
        ema_decay: float,
        swap: bool,
    ) -> None:
        super().__init__()
        self.head, self.pool, self.options, self.hardest = options.head, pool, options, hardest
        self.rows = range(0)
        self.ranks, self.ema_decay, self.swap = ranks, ema_decay, swap
        self.gallery = gallery_network(backbone)
        # In a tuple, where nn.Module does not find it: the run owns and saves the backbone.
        self._followed = (backbone,)
        self._forwards = 0
        self._kept = Kept([])
        self._changes: list[Changes] = []

    def before_step(self, lr: float) -> None:
        """Note what a skipped step has to leave as it is."""
        self._kept, self._changes = Kept(self.gallery.buffers()), []

    def own_gradients(self) -> list[torch.Tensor]:
        """None: there are no centers to train."""
        return []

    @torch.no_grad()
    def after_step(self, taken: torch.Tensor) -> None:
        """Move the gallery network towards the backbone by a moving average; copy its counts.

        A skipped step is taken back: the gallery's buffers and the pool become what they were.
        """
        self._kept.put_back_unless(taken)
        for changes in reversed(self._changes):
            self.pool.undo_unless(taken, changes)
        self._changes = []

        follow(self.gallery, self._followed[0], taken, decay=self.ema_decay)

    def forward(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """images (2h,3,H,W), labels (2h,): halves x and y. The loss is equal on all ranks."""
        half = len(labels) // 2
        probes = backbone(images if self.swap else images[:half])
        with torch.no_grad():
            features = self.gallery(images if self.swap else images[half:])

        with torch.autocast(images.device.type, enabled=False):
            probes = probes.to(torch.promote_types(probes.dtype, torch.float32))
            with torch.no_grad():
                features = usable(features.to(self.pool.features.dtype))

            x, y = labels[:half], labels[half:]
            if self.swap:
                local = self._loss(probes[:half], x, features[half:], y, commit=False)
                local = local + self._loss(probes[half:], y, features[:half], x, commit=True)
            else:
                local = self._loss(probes, x, features, y, commit=True)

            if self._forwards % CHECK_EVERY == 0 and self.ranks.world > 1:
                check_equal(self.pool, self.ranks)
            self._forwards += 1
            return sum_over_ranks(local, self.ranks)

    def _loss(
        self,
        probes: torch.Tensor,
        probe_labels: torch.Tensor,
        features: torch.Tensor,
        labels: torch.Tensor,
        *,
        commit: bool,
    ) -> torch.Tensor:
        """This rank's share of loss(probe, gallery). features, labels: this rank's gallery."""
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
            self._changes.append(self.pool.commit(plan, features))
        return loss


def make_loader(faces: FaceSet, config: Config, *, batch_size: int, **loader: Any) -> Loader:
    """A Loader that draws a third of a batch by image, and two thirds by identity in pairs.

    loader: options of `Loader`. An epoch draws every image once by image, so it has three times as
    many images as the set. The backbone sees all of them, or half without `swap`. An identity with
    a single image gives it twice, augmented differently; the log says how many there are.
    """
    present = len(np.unique(faces.labels))
    if batch_size // 3 > present:
        most = 3 * present // BATCH_MULTIPLE * BATCH_MULTIPLE
        raise ValueError(
            f"optim.batch_size: found {batch_size}, expected {most} or less: a class pool draws a "
            f"third as many different identities per step, and the set has only {present}"
        )
    if loader.get("rank", 0) == 0:
        tell_single_images(faces, USED_TWICE)
    return dual_loader(
        faces,
        identities=batch_size // 3,
        image_weight=config.classifier.options["image_weight"],
        **loader,
    )


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    batch_size: int,
    precision: str = "fp32",
    *,
    size: Positive = 0.1,
    ema_decay: ShareBelowOne = 0.99,
    swap: bool = True,
    image_weight: Share = 0.0,
    outside: Literal["hardest", "all"] = "hardest",
    chunk: Chunk = "auto",
    matmul_dtype: MatmulName = "auto",
) -> ClassPoolClassifier:
    """F²C's class pool: a few columns that the identities share.

    size: number of columns. A value up to 1 is a share of the identities.
    ema_decay: share of its own weights that the gallery network keeps in a step; the rest comes
        from the backbone.
    swap: add a second loss, in which the two halves of the batch exchange their roles.
    image_weight: how much an identity's number of images counts when identities are drawn, from 0
        (all are drawn equally often, as published) to 1 (in proportion to their images).
    outside: the columns that push away a probe whose identity is not in the pool: the `hardest`
        (0.02 % of the pool, 3 to 10, as in the released code) or `all` (as in the paper's text).
    chunk: columns whose logits are computed at a time. auto: as many as suit the device.
    matmul_dtype: number type to which embeddings and columns are rounded before their matrix
        products. auto: that of `run.precision` on CUDA, and float32 elsewhere. Columns that the
        batch changes are not rounded.
    """
    if next(backbone.parameters()).device.type == "mps":
        raise ValueError(
            "classifier.name: found class_pool on mps, where sorting int64 numbers has given wrong "
            "orders; use full or partial, or run.device=cpu"
        )
    columns = gallery_columns(size, classes, needed=ranks.world * batch_size // 2)
    return ClassPoolClassifier(
        backbone,
        ClassPool(columns, classes, embedding_of(backbone)),
        options=softmax_options(
            head,
            backbone,
            chunk=chunk,
            matmul_dtype=matmul_dtype,
            precision=precision,
            images=batch_size // 2,
            ranks=ranks,
        ),
        hardest=min(max(int(0.0002 * columns), 3), 10) if outside == "hardest" else 0,
        ranks=ranks,
        ema_decay=ema_decay,
        swap=swap,
    )


def _check(config: Config) -> None:
    batch_size = config.optim.batch_size
    if batch_size % BATCH_MULTIPLE:
        raise ValueError(
            f"optim.batch_size: found {batch_size}, expected a multiple of {BATCH_MULTIPLE}, such "
            f"as {_near(batch_size)}, because a class pool divides a batch into six equal parts"
        )
    check_shuffled(config)
    refuse_teacher_centers(config)


def _near(batch_size: int) -> int:
    """The largest batch up to `batch_size` that a class pool can divide, or else the smallest."""
    return batch_size // BATCH_MULTIPLE * BATCH_MULTIPLE or BATCH_MULTIPLE


def _memory(config: Config, sizes: Sizes) -> Memory:
    options, batch_size = config.classifier.options, config.optim.batch_size
    needed = sizes.ranks * batch_size // 2
    columns = gallery_columns(options["size"], sizes.classes, needed=needed)
    kept = {
        "gallery network": sizes.backbone_bytes,
        "class pool": 2 * 4 * columns * sizes.embedding + 16 * sizes.classes,
    }
    # Each rank compares its own probes with the pool, half a batch at a time.
    return Memory(kept, chunk_memory(options, sizes, rows=columns, images=batch_size // 2))


def _work(config: Config, sizes: Sizes) -> Work:
    """With `swap` two losses compare half a batch each, and the gallery network sees both halves.

    Each rank compares its own probes with its own copy of the pool.
    """
    images = _trained_images(config)
    needed = sizes.ranks * config.optim.batch_size // 2
    columns = gallery_columns(config.classifier.options["size"], sizes.classes, needed=needed)
    return Work(images, columns, trained=False, gallery_images=images)


def _trained_images(config: Config) -> int:
    """Without `swap` half a batch goes through the gallery network alone, which keeps nothing."""
    return config.optim.batch_size // (1 if config.classifier.options["swap"] else 2)


def _instead(config: Config) -> list[Overrides]:
    """This classifier in two sizes, with a batch that it can divide."""
    if config.classifier.name == "class_pool":
        return []
    near = _near(config.optim.batch_size)
    batch = [f"optim.batch_size={near}"] if near != config.optim.batch_size else []
    return [[f"classifier={{name: class_pool, size: {size}}}", *batch] for size in (0.1, 0.01)]


FACTS = ClassifierFacts(
    memory=_memory,
    check=_check,
    trained_images=_trained_images,
    work=_work,
    # One for each of the pool's two slots; with `swap`, for both orders of the halves.
    losses=lambda config: 4 if config.classifier.options["swap"] else 2,
    images_per_epoch=lambda images: 3 * images,
    instead=_instead,
    make_loader=make_loader,
)
