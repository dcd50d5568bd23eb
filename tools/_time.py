"""The expected time of a training step: arithmetic at a share of the card's peak, then traffic.

    seconds = operations / (peak × utilization) + bytes / bandwidth + communication / link

The terms are added, as if nothing overlapped. Not counted are the decoding of images, and the time
that the CPU needs to queue the kernels of a small network. The constants count what the code does.
docs/benchmarks/memory-planner.md compares the result with published speeds.
"""

from dataclasses import dataclass

import torch

from recognition.classifiers import ClassifierFacts, Sizes
from recognition.classifiers._matmul import matmul_type
from recognition.config import Config, Part
from recognition.muon import step_need
from tools._backbone import Traced, blank_backbone, share_of_full_size, trace
from tools._cards import Card, Kind
from tools._cuda import COMPILED
from tools._teacher import teacher_need

UTILIZATION: dict[Kind, float] = {"fp32": 0.9, "tf32": 0.4, "bf16": 0.4, "fp16": 0.4}
"""Assumed share of the peak that products and convolutions reach, where no card was measured."""

# An activation is written and read in the forward pass. The backward pass reads it again, and
# writes and reads its gradient. Recomputation writes and reads it once more.
ACTIVATION_PASSES, RECOMPUTED_PASSES = 5, 2
# Logits (B,c) of a chunk in float32: product, scaling and log-sum-exp, twice, and the slopes.
LOGIT_PASSES = 25
# Centers (c,D): norms and product in the forward pass; two products and the scaling backwards.
CENTER_PASSES = 6
# A weight's step reads weight, gradient and momentum, and writes weight and momentum. AdamW has
# a second moment. What Muon's iterations move stays in the card's cache, or is small.
STEP_PASSES = {"sgd": 5, "adamw": 7, "muon": 5}
TEACHER_PRODUCTS = 3  # no gradient reaches a teacher's centers
PRODUCTS = 4  # of embeddings and centers, see recognition/classifiers/_margin_softmax.py


@dataclass(frozen=True)
class Load:
    """What one optimizer step asks of one rank.

    Operations count a multiply-add as two. Bytes are those that the card's memory moves; `sent`
    goes through the link to the other ranks. images: of all ranks.
    """

    images: int
    backbone: float
    backbone_kind: Kind
    classifier: float
    classifier_kind: Kind
    activations: float
    classifier_bytes: float
    step: float
    muon: float
    sent: float
    teacher: float
    teacher_kind: Kind
    teacher_bytes: float


def product_kinds(config: Config) -> tuple[Kind, Kind]:
    """How the backbone's and the classifier's products are computed."""
    precision, full = config.run.precision, _full(config)
    named = config.classifier.options.get("matmul_dtype", "float32")
    kinds: dict[torch.dtype, Kind] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
    return (
        full if precision == "fp32" else precision,
        kinds.get(matmul_type(named, precision, "cuda"), full),
    )


def _full(config: Config) -> Kind:
    """How products of float32 are computed; see `prepare_device`."""
    return "tf32" if config.run.tf32 or config.run.precision != "fp32" else "fp32"


def load(config: Config, facts: ClassifierFacts, sizes: Sizes) -> Load:
    """What one optimizer step of a config asks of one rank; the mean over `data.size_schedule`."""
    optim, options = config.optim, config.backbone.options
    images = facts.trained_images(config)
    recomputed = options.get("checkpoint") is True
    traced = _without_recomputation(config, images)
    work = facts.work(config, sizes)

    smaller = share_of_full_size(config)

    # The backward pass costs two forward passes.
    passes = 4 if recomputed else 3
    backbone = passes + work.gallery_images / images
    moved = ACTIVATION_PASSES + RECOMPUTED_PASSES * recomputed + 2 * work.gallery_images / images
    kept = COMPILED if config.run.compile and config.run.precision != "fp32" else 1.0

    taught = teacher_need(config, sizes, images)
    taught_logits = taught.rows * work.samples
    weights = sum(traced.parameters)
    centers = 4 * work.rows * sizes.embedding
    logits = 4 * work.samples * work.rows
    trained = weights + centers * work.trained
    ring = 2 * (sizes.ranks - 1) / sizes.ranks  # a ring's all-reduce sends this share per rank
    embeddings = 4 * work.samples * sizes.embedding
    backbone_kind, classifier_kind = product_kinds(config)
    return Load(
        images=optim.batch_size * optim.accumulation * sizes.ranks,
        backbone=2 * smaller * backbone * traced.multiply_adds * optim.accumulation,
        backbone_kind=backbone_kind,
        classifier=2 * PRODUCTS * work.samples * work.rows * sizes.embedding * optim.accumulation,
        classifier_kind=classifier_kind,
        activations=smaller * moved * kept * sum(traced.activations) * optim.accumulation,
        classifier_bytes=(LOGIT_PASSES * logits + CENTER_PASSES * centers) * optim.accumulation,
        step=STEP_PASSES[optim.name] * trained,
        muon=2 * step_need(blank_backbone(config), on_gpu=True).multiply_adds
        if optim.name == "muon"
        else 0,
        sent=ring * (weights + 2 * embeddings * optim.accumulation),
        teacher=2
        * (taught.multiply_adds + TEACHER_PRODUCTS * taught_logits * taught.width)
        * optim.accumulation,
        teacher_kind=_full(config) if taught.precision == "fp32" else taught.precision,
        teacher_bytes=(taught.moved + LOGIT_PASSES * 4 * taught_logits) * optim.accumulation,
    )


def _without_recomputation(config: Config, images: int) -> Traced:
    """The backbone's forward pass, with all activations."""
    options = dict(config.backbone.options)
    if "checkpoint" in options:
        options["checkpoint"] = False
    part = Part(config.backbone.name, options)
    return trace(part, images, config.data.size, config.run.precision)


def share_of_peak(card: Card, kind: Kind) -> float:
    """The share of the peak that products of this kind reach, as measured or assumed."""
    measured = card.reached if kind in ("bf16", "fp16") else None
    return measured or UTILIZATION[kind]


def seconds(load: Load, card: Card, utilization: float | None = None) -> dict[str, float]:
    """Seconds of an optimizer step by what needs them, and their sum as `step`.

    utilization: share of the peak; None: that of `share_of_peak`. ValueError where the card lacks
    the type.
    """

    def arithmetic(operations: float, kind: Kind) -> float:
        kind = card.supported(kind)
        return operations / (card.peak(kind) * (utilization or share_of_peak(card, kind)))

    bandwidth = 1e9 * card.bandwidth
    parts = {
        "backbone's products": arithmetic(load.backbone, load.backbone_kind),
        "backbone's traffic": load.activations / bandwidth,
        "classifier's products": arithmetic(load.classifier, load.classifier_kind),
        "classifier's traffic": load.classifier_bytes / bandwidth,
        "optimizer's traffic": load.step / bandwidth,
        "communication": load.sent / (1e9 * card.link),
    }
    if load.muon:
        parts["Muon's products"] = arithmetic(load.muon, "bf16")
    if load.teacher:
        parts |= {
            "teacher's products": arithmetic(load.teacher, load.teacher_kind),
            "teacher's traffic": load.teacher_bytes / bandwidth,
        }
    return {**parts, "step": sum(parts.values())}


def measured_utilization(load: Load, card: Card, step: float) -> float | None:
    """The utilization with which `seconds` gives a measured step; None if traffic alone is longer.

    It is what `python -m tools.plan --utilization` takes.
    """
    at_peak = seconds(load, card, 1.0)
    products = sum(count for name, count in at_peak.items() if name.endswith("products"))
    left = step - (at_peak["step"] - products)
    return products / left if left > 0 else None
