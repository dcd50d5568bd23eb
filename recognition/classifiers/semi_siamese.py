"""Semi-Siamese Training (SST, arXiv 2007.08398) and its form with many agents (MASST, 2105.04113).

For shallow sets, with two images or a few of each person. A probe network is trained. A gallery
network follows it by a moving average. Of two images of one person, one goes through the probe
network; the other goes through the gallery network, and its feature is that person's class center.
A queue of the latest gallery features gives the other classes (_queue.py, _queue_loss.py).
data/pair_loader.py draws the people and their images.

The released codes are those of github.com/dituu/Semi-Siamese-Training and of FaceX-Zoo
(training_mode/semi-siamese_training). docs/differences.md says where they differ, what of MASST is
known, and what is computed here.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.loader import Loader
from data.options import Count, Positive, ShareBelowOne
from data.pair_loader import (
    USED_TWICE,
    pair_loader,
    single_image_identities,
    tell_single_images,
)
from data.types import FaceSet
from recognition.backbones import embedding_of
from recognition.classifiers import (
    ClassifierFacts,
    Memory,
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
from recognition.classifiers._queue import GalleryQueue
from recognition.classifiers._queue_loss import queue_loss
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.finite import Kept
from recognition.heads._margin import MarginHead

WHAT = {"twice": USED_TWICE, "left_out": "and are left out"}


class SemiSiameseClassifier(nn.Module):
    """(backbone, images, labels) -> loss of the global batch; its halves are the pairs' images.

    loss(probe, gallery) compares the backbone's embeddings of one half with the gallery features of
    the other half and of the queue. Without `swap` the loss is loss(first, second). With `swap` it
    is the mean of loss(first, second) and loss(second, first). The features of the second half
    enter the queue; which image of a pair that is, the loader draws at random.

    agents: gallery networks. The first one makes the features of a step and follows the backbone
    after it; then it becomes the last one. A skipped step changes none of them, but passes the turn
    on, just as it uses up its images.

    backbone: the plain module. The agents start as its copies. `forward` gets the same network as
    the run calls it: compiled, or wrapped for several ranks.
    """

    row_state = ()

    def __init__(
        self,
        backbone: nn.Module,
        queue: GalleryQueue,
        *,
        options: SoftmaxOptions,
        ranks: Ranks,
        agents: int,
        ema_decay: float,
        swap: bool,
    ) -> None:
        super().__init__()
        self.head, self.queue, self.options = options.head, queue, options
        self.rows = range(0)
        self.ranks, self.ema_decay, self.swap = ranks, ema_decay, swap
        self.agents = nn.ModuleList(gallery_network(backbone) for _ in range(agents))
        for module in self.agents.modules():
            # No dropout: only batch norms are in training mode, as in the released codes.
            module.training = module.training and isinstance(module, _BatchNorm)
        # In a tuple, where nn.Module does not find it: the run owns and saves the backbone.
        self._followed = (backbone,)
        self._forwards = 0
        self._kept = Kept([])
        self._changes: list[Changes] = []

    def before_step(self, lr: float) -> None:
        """Note what a skipped step has to leave as it is."""
        self._kept, self._changes = Kept(self.agents[0].buffers()), []

    def own_gradients(self) -> list[torch.Tensor]:
        """None: there are no centers to train."""
        return []

    @torch.no_grad()
    def after_step(self, taken: torch.Tensor) -> None:
        """The step's agent follows the backbone, and the next agent gets its turn."""
        self._kept.put_back_unless(taken)
        for changes in reversed(self._changes):
            self.queue.undo_unless(taken, changes)
        self._changes = []
        follow(self.agents[0], self._followed[0], taken, decay=self.ema_decay)
        if len(self.agents) > 1:
            self.agents.append(self.agents.pop(0))

    def forward(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """images (2b,3,H,W), labels (2b,): b pairs in two halves. The loss is equal on all ranks.

        With `swap`, both halves go through a network together, so that batch norm sees the whole
        batch.
        """
        half, parts = len(labels) // 2, 2 if self.swap else 1
        probes = backbone(images if self.swap else images[:half])
        with torch.no_grad():
            features = self.agents[0](images if self.swap else images[half:])

        with torch.autocast(images.device.type, enabled=False):
            probes = probes.to(torch.promote_types(probes.dtype, torch.float32))
            with torch.no_grad():
                features = usable(features.to(self.queue.features.dtype))
                # The halves change places: features[v, i] belongs to the pair of probes[v, i].
                features = features.view(parts, half, -1).flip(0).transpose(0, 1)
                features = self.ranks.all_gather(features).transpose(0, 1)
                gallery_labels = self.ranks.all_gather(labels[half:])
            local = queue_loss(
                probes.view(parts, half, -1),
                labels[:half],
                features,
                gallery_labels,
                self.queue,
                options=self.options,
                ranks=self.ranks,
                training=self.training,
            )
            if self.training:
                self._changes.append(self.queue.push(gallery_labels, features[0]))
            if self._forwards % CHECK_EVERY == 0 and self.ranks.world > 1:
                check_equal(self.queue, self.ranks)
            self._forwards += 1
            return sum_over_ranks(local, self.ranks)


def make_loader(faces: FaceSet, config: Config, *, batch_size: int, **loader: Any) -> Loader:
    """A Loader of pairs. An epoch shows as many images as the set has.

    loader: options of `Loader`. The log says how many identities have a single image.
    """
    left_out = config.classifier.options["single_images"] == "left_out"
    present = len(np.unique(faces.labels))
    usable_people = present - left_out * single_image_identities(faces.labels)
    pairs = batch_size // 2 * loader.get("world", 1)
    if pairs > usable_people:
        raise ValueError(
            f"optim.batch_size: found {batch_size}, but a step's {pairs} pairs are of different "
            f"people, and the set has only {usable_people}"
            f"{' with two images' if left_out else ''}; lower optim.batch_size"
        )
    if loader.get("rank", 0) == 0:
        tell_single_images(faces, WHAT[config.classifier.options["single_images"]])
    return pair_loader(faces, pairs=batch_size // 2, leave_out_single=left_out, **loader)


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    batch_size: int,
    seed: int,
    precision: str = "fp32",
    *,
    size: Positive = 0.25,
    agents: Count = 1,
    ema_decay: ShareBelowOne = 0.999,
    swap: bool = True,
    single_images: Literal["twice", "left_out"] = "twice",
    chunk: Chunk = "auto",
    matmul_dtype: MatmulName = "auto",
) -> SemiSiameseClassifier:
    """SST, for sets with two images or a few of each person; with several agents MASST.

    size: number of features in the gallery queue. A value up to 1 is a share of the identities.
    agents: gallery networks that take turns, step by step; 1 is SST, and more is MASST. Each needs
        the memory of the backbone's weights, and no time.
    ema_decay: share of its own weights that a gallery network keeps in a step; the rest comes from
        the backbone. Short runs need less than the published 0.999.
    swap: let both images of a pair be the probe, and the other one the gallery image. Otherwise
        only the first one is a probe, and half the images teach the backbone.
    single_images: what happens to people with one image. They are used `twice`, as both images of a
        pair, augmented differently, or are `left_out`.
    chunk: columns whose logits are computed at a time. auto: as many as suit the device.
    matmul_dtype: number type to which embeddings and the queue are rounded before their matrix
        products. auto: that of `run.precision` on CUDA, and float32 elsewhere. Features of the
        batch are not rounded.
    """
    columns = gallery_columns(size, classes, needed=ranks.world * batch_size // 2)
    return SemiSiameseClassifier(
        backbone,
        GalleryQueue(columns, embedding_of(backbone), seed=seed),
        options=softmax_options(
            head,
            backbone,
            chunk=chunk,
            matmul_dtype=matmul_dtype,
            precision=precision,
            images=batch_size if swap else batch_size // 2,
            ranks=ranks,
        ),
        ranks=ranks,
        agents=agents,
        ema_decay=ema_decay,
        swap=swap,
    )


def _check(config: Config) -> None:
    batch_size = config.optim.batch_size
    if batch_size % 2:
        raise ValueError(
            f"optim.batch_size: found {batch_size}, expected an even number, because "
            "semi-siamese training divides a batch into pairs"
        )
    check_shuffled(config)
    refuse_teacher_centers(config)


def _columns(config: Config, sizes: Sizes) -> int:
    needed = sizes.ranks * config.optim.batch_size // 2
    return gallery_columns(config.classifier.options["size"], sizes.classes, needed=needed)


def _memory(config: Config, sizes: Sizes) -> Memory:
    options, columns = config.classifier.options, _columns(config, sizes)
    kept = {
        "gallery networks": options["agents"] * sizes.backbone_bytes,
        "gallery queue": columns * (4 * sizes.embedding + 4),
    }
    # Each rank compares its own probes with the queue.
    images = _trained_images(config)
    return Memory(kept, chunk_memory(options, sizes, rows=columns, images=images))


def _work(config: Config, sizes: Sizes) -> Work:
    """Each rank compares its own probes with its own copy of the queue."""
    images = _trained_images(config)
    return Work(images, _columns(config, sizes), trained=False, gallery_images=images)


def _trained_images(config: Config) -> int:
    """Without `swap` half a batch goes through the gallery network alone, which keeps nothing."""
    return config.optim.batch_size // (1 if config.classifier.options["swap"] else 2)


FACTS = ClassifierFacts(
    memory=_memory,
    check=_check,
    trained_images=_trained_images,
    work=_work,
    make_loader=make_loader,
)
