"""The full classifier: one center (or a few) per identity, all of them in every step's softmax."""

import torch
from torch import nn

from data.options import Count, Share
from recognition.backbones import embedding_of
from recognition.classifiers import ClassifierFacts, Memory, Overrides, Sizes, Work
from recognition.classifiers._margin_softmax import (
    Chunk,
    SoftmaxOptions,
    chunk_memory,
    gather_batch,
    margin_loss,
    softmax_options,
)
from recognition.classifiers._matmul import DTYPES, FloatName, MatmulName
from recognition.classifiers._row_optimizers import FusedSGD, check_own_step
from recognition.classifiers._rows import initial_centers, shard
from recognition.config import Config
from recognition.distributed import Ranks
from recognition.heads._margin import MarginHead


class FullClassifier(nn.Module):
    """(backbone, images, labels) -> mean loss of the global batch.

    `weight` (C_local * K, D) holds this rank's centers, K sub-centers per class. Without `fused` it
    is a parameter that the run's optimizer trains. With `fused`, `weight` and `velocity` are
    buffers, and the backward pass updates both.
    """

    weight: torch.Tensor
    velocity: torch.Tensor
    row_state = ("weight", "velocity")

    def __init__(
        self,
        centers: torch.Tensor,
        *,
        rows: range,
        options: SoftmaxOptions,
        ranks: Ranks,
        fused: bool,
        momentum: float,
        weight_decay: float,
        momentum_dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.head, self.options, self.rows, self.ranks = options.head, options, rows, ranks
        self.fused, self.momentum, self.weight_decay, self.lr = fused, momentum, weight_decay, 0.0
        if fused:
            self.register_buffer("weight", centers)
            self.register_buffer("velocity", torch.zeros_like(centers, dtype=momentum_dtype))
        else:
            self.weight = nn.Parameter(centers)

    def before_step(self, lr: float) -> None:
        """Keep the learning rate of a fused update."""
        self.lr = lr

    def own_gradients(self) -> list[torch.Tensor]:
        """None: those of the centers are the optimizer's, or the backward pass has used them."""
        return []

    def after_step(self, taken: torch.Tensor) -> None:
        """Nothing to do: the optimizer or the backward pass has moved the centers."""

    def forward(
        self,
        backbone: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        embeddings = backbone(images)
        with torch.autocast(images.device.type, enabled=False):
            embeddings, labels = gather_batch(
                embeddings, labels, self.ranks, dtype=self.weight.dtype
            )
            held = (labels >= self.rows.start) & (labels < self.rows.stop)
            fused = None
            if self.fused and self.training:
                fused = FusedSGD(self.velocity, self.momentum, self.weight_decay, self.lr)
            return margin_loss(
                embeddings,
                self.weight,
                torch.where(held, labels - self.rows.start, -1),
                options=self.options,
                ranks=self.ranks,
                training=self.training,
                fused=fused,
            )


def build(
    backbone: nn.Module,
    classes: int,
    head: MarginHead,
    ranks: Ranks,
    seed: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    precision: str = "fp32",
    batch_size: int = 128,
    *,
    chunk: Chunk = "auto",
    matmul_dtype: MatmulName = "auto",
    sub_centers: Count = 1,
    filter_above: Share = 0.0,
    fused: bool = False,
    momentum_dtype: FloatName = "float32",
) -> FullClassifier:
    """One center per identity.

    chunk: classes whose logits are computed at a time. auto: as many as suit the device.
    matmul_dtype: number type to which embeddings and centers are rounded before their matrix
        products. auto: that of `run.precision` on CUDA, and float32 elsewhere.
    sub_centers: centers per identity, of which the nearest counts.
    filter_above: a cosine. An image that is more alike than this to the center of another class
        counts as mislabeled, and that logit becomes 0. 0: no filter.
    fused: update the centers in the backward pass, so that no gradient of their size is stored.
        This needs SGD without nesterov, no accumulation, and no fp16.
    momentum_dtype: number type in which the fused update stores the momentum of the centers.
    """
    rows = shard(classes, ranks)
    held = range(rows.start * sub_centers, rows.stop * sub_centers)
    return FullClassifier(
        initial_centers(held, embedding_of(backbone), seed=seed),
        rows=rows,
        options=softmax_options(
            head,
            backbone,
            chunk=chunk,
            matmul_dtype=matmul_dtype,
            precision=precision,
            images=batch_size * ranks.world,
            ranks=ranks,
            sub_centers=sub_centers,
            filter_above=filter_above,
        ),
        ranks=ranks,
        fused=fused,
        momentum=momentum,
        weight_decay=weight_decay,
        momentum_dtype=DTYPES[momentum_dtype],
    )


def _check(config: Config) -> None:
    """The fused update is plain SGD, and can neither wait for other micro-batches nor be undone."""
    if not config.classifier.options["fused"]:
        return
    check_own_step(config, adamw=False)
    if config.optim.accumulation > 1 or config.run.precision == "fp16":
        raise ValueError(
            f"classifier.fused: found true with optim.accumulation={config.optim.accumulation} and "
            f"run.precision={config.run.precision}, expected 1 and fp32 or bf16, because "
            "the backward pass updates the centers; or set classifier.fused=false"
        )


def _memory(config: Config, sizes: Sizes) -> Memory:
    options, optim = config.classifier.options, config.optim
    rows = -(-sizes.classes // sizes.ranks) * options["sub_centers"]
    numbers = rows * sizes.embedding
    chunk = chunk_memory(options, sizes, rows=rows, images=optim.batch_size * sizes.ranks)
    if options["fused"]:
        momentum = numbers * DTYPES[options["momentum_dtype"]].itemsize
        return Memory({"centers": 4 * numbers, "centers' momentum": momentum}, chunk)
    kept = {
        "centers": 4 * numbers,
        "centers' momentum": 4 * numbers * sizes.optimizer_states,
        "centers' gradient": 4 * numbers,
    }
    # On CUDA one kernel makes the whole step.
    copies = 0 if sizes.device == "cuda" else bool(optim.weight_decay) + optim.nesterov
    return Memory(kept, chunk, step=4 * numbers * copies)


def _work(config: Config, sizes: Sizes) -> Work:
    rows = -(-sizes.classes // sizes.ranks) * config.classifier.options["sub_centers"]
    return Work(config.optim.batch_size * sizes.ranks, rows)


def _lighter(config: Config) -> list[Overrides]:
    """The fused update, which fp16 forbids, and its momentum in bfloat16."""
    bf16 = ["run.precision=bf16"] if config.run.precision == "fp16" else []
    fused = [] if config.classifier.options["fused"] else [*bf16, "classifier.fused=true"]
    return [fused, [*fused, "classifier.momentum_dtype=bfloat16"]]


FACTS = ClassifierFacts(memory=_memory, check=_check, work=_work, lighter=_lighter)
