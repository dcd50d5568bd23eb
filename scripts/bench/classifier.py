"""Measures time and memory of a classifier step (loss, gradients, SGD) beside the plain one.

    python -m scripts.bench.classifier --classes 617970 --batch 128
    python -m scripts.bench.classifier --classes 617970 --variants fused class_pool class_pool_bf16

Each variant runs in separate processes. Rounds alternate between the variants. Time is that of the
median step, and memory is the peak of the process. Ratios are to the first variant. The variant
`plain` is normalize, linear, margin, cross_entropy and torch.optim.SGD in float32.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch.nn import functional as F

from data.options import Count, CountOrZero
from recognition.classifiers import class_pool, full
from recognition.classifiers._pool import ClassPool
from recognition.distributed import Ranks
from recognition.heads import cosface
from recognition.memory import peak_bytes
from scripts._tables import show_table
from scripts.bench._measure import in_own_process, in_turn
from tools._cli import command

Variant = Literal[
    "plain",
    "chunked",
    "fused",
    "fused_bf16",
    "fused_bf16_momentum",
    "fused_bf16_both",
    "class_pool",
    "class_pool_bf16",
]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"fused": False},
    "fused": {"fused": True},
    "fused_bf16": {"fused": True, "matmul_dtype": "bfloat16"},
    "fused_bf16_momentum": {"fused": True, "momentum_dtype": "bfloat16"},
    "fused_bf16_both": {"fused": True, "matmul_dtype": "bfloat16", "momentum_dtype": "bfloat16"},
    "class_pool": {"size": 0.1},
    "class_pool_bf16": {"size": 0.1, "matmul_dtype": "bfloat16"},
}
SGD: dict[str, Any] = {"lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4}
Step = Callable[[torch.Tensor, torch.Tensor], float]


class Identity(torch.nn.Linear):
    """A backbone that returns its input, which is embeddings already."""

    def __init__(self, embedding: int) -> None:
        super().__init__(1, 1)
        self.embedding = embedding

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def plain_step(classes: int, embedding: int) -> Step:
    """A step of the textbook classifier (CosFace 0.4, s 64)."""
    weight = torch.nn.Parameter(torch.empty(classes, embedding).normal_(0, 0.01))
    optimizer = torch.optim.SGD([weight], **SGD)

    def step(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)
        margin = torch.zeros_like(logits).scatter_(1, labels[:, None], 0.4)
        loss = F.cross_entropy(64.0 * (logits - margin), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(variant: dict[str, Any], classes: int, embedding: int, batch: int, chunk: int) -> Step:
    """A step of the full classifier, or of a filled class pool if `variant` has a size."""
    backbone = Identity(embedding)
    shared: dict[str, Any] = {
        "backbone": backbone,
        "classes": classes,
        "head": cosface.build(),
        "ranks": Ranks(),
        "chunk": chunk or "auto",
        **variant,
    }
    classifier: class_pool.ClassPoolClassifier | full.FullClassifier
    if "size" in variant:
        classifier = class_pool.build(batch_size=batch, **shared)
        fill(classifier.pool)
    else:
        classifier = full.build(seed=0, **shared)
    chunked = variant.get("fused") is False
    optimizer = torch.optim.SGD(classifier.parameters(), **SGD) if chunked else None

    taken = torch.tensor(True)

    def step(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        classifier.before_step(SGD["lr"])
        loss = classifier(backbone, embeddings, labels)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        classifier.after_step(taken)
        return float(loss.item())

    return step


def fill(pool: ClassPool) -> None:
    """Put identities into every column of a class pool."""
    for labels in torch.randperm(len(pool.columns))[: pool.size].split(512):
        plan = pool.plan(labels)
        pool.commit(plan, F.normalize(torch.randn(len(labels), pool.features.shape[2])))


def measure(
    variant: str, classes: int, embedding: int, batch: int, chunk: int, steps: int
) -> tuple[list[float], int]:
    """Seconds of each timed step, and the peak memory of this process in bytes."""
    torch.manual_seed(0)
    if variant == "plain":
        step = plain_step(classes, embedding)
    else:
        step = our_step(VARIANTS[variant], classes, embedding, batch, chunk)
    times = []
    for _ in range(steps + 1):
        embeddings = torch.randn(batch, embedding).requires_grad_()
        labels = torch.randint(classes, (batch,))

        # A class pool's batches hold identities in pairs. The other classifiers do not care.
        half, pairs = batch // 2, batch // 3
        labels[half : half + pairs] = labels[:pairs]

        start = time.perf_counter()
        step(embeddings, labels)
        times.append(time.perf_counter() - start)
    return times[1:], peak_bytes()  # the first step allocates


def compare(runs: Mapping[str, Sequence[tuple[list[float], int]]]) -> Iterator[dict[str, Any]]:
    """One row per variant, compared with the first."""
    first: dict[str, float] = {}
    for variant, rounds in runs.items():
        figures = {
            "s/step": statistics.median(second for times, _ in rounds for second in times),
            "peak GB": max(peak for _, peak in rounds) / 1e9,
        }
        first = first or figures
        ratios = {f"{name} ratio": figures[name] / first[name] for name in figures}
        yield {"variant": variant, **figures, **ratios}


def run(
    *,
    classes: Count = 93431,
    embedding: Count = 512,
    batch: Count = 128,
    chunk: CountOrZero = 0,
    steps: Count = 5,
    rounds: Count = 2,
    variants: tuple[Variant, ...] = ("plain", "fused", "fused_bf16", "fused_bf16_momentum"),
) -> dict[str, Any]:
    """Compare the variants.

    classes: identities.
    embedding: numbers per embedding.
    batch: embeddings per step.
    chunk: classes per chunk; 0 chooses by the width of an embedding.
    steps: timed steps per round.
    rounds: rounds over all variants.
    variants: variants that are compared; ratios are to the first one.
    """

    def once(variant: str) -> tuple[list[float], int]:
        return in_own_process(measure, variant, classes, embedding, batch, chunk, steps)

    return {"rows": show_table(compare(in_turn(variants, rounds, once)))}


main = command(run)
