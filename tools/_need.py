"""The bytes that a run needs, term by term."""

import torch

from data.parts import find_part
from recognition.classifiers import ClassifierFacts, Sizes
from recognition.classifiers._matmul import matmul_type
from recognition.config import Config
from recognition.memory import resident_bytes
from recognition.muon import step_need
from tools import _cuda
from tools._backbone import Traced, blank_backbone, trace
from tools._teacher import teacher_need

CLASSIFIERS = "recognition.classifiers"
# Bytes that the first training step adds on a CPU, even for a tiny model (measured).
CPU_RUNTIME = 200_000_000


def facts_of(classifier: str) -> ClassifierFacts:
    """What a classifier's module says about itself."""
    facts: ClassifierFacts = find_part(CLASSIFIERS, classifier).FACTS
    return facts


def traced_backbone(config: Config) -> Traced:
    """The backbone's forward pass of one micro-batch."""
    images = facts_of(config.classifier.name).trained_images(config)
    return trace(config.backbone, images, config.data.size, config.run.precision)


def sizes_of(config: Config, classes: int, ranks: int) -> Sizes:
    """What the classifier's needs depend on, besides the config."""
    net, optim = traced_backbone(config), config.optim
    return Sizes(
        classes,
        ranks,
        embedding=net.embedding,
        backbone_bytes=sum(net.parameters),
        optimizer_states=2 if optim.name == "adamw" else int(optim.momentum > 0),
        device="cuda" if on_gpu(config) else "cpu",
    )


def estimate(config: Config, classes: int, ranks: int, base: int) -> dict[str, int]:
    """Bytes of one rank's memory by what needs them, and their `peak`.

    base: bytes that the process needs without the run. Raises ValueError for sizes that a run
    refuses.
    """
    net, sizes = traced_backbone(config), sizes_of(config, classes, ranks)
    classifier = facts_of(config.classifier.name).memory(config, sizes)
    images = facts_of(config.classifier.name).trained_images(config)
    teacher = teacher_need(config, sizes, images)
    weights, largest = sum(net.parameters), max(net.activations)
    activations, reduced = sum(net.activations), config.run.precision != "fp32"
    if on_gpu(config) and config.run.compile and reduced:
        activations = round(_cuda.COMPILED * activations)
    always = {
        "process": base,
        "backbone weights": weights,
        "backbone optimizer state": weights * sizes.optimizer_states,
        # uint8, float32, and augmented float32
        "batch": config.optim.batch_size * 3 * config.data.size**2 * (1 + 4 + 4),
        **classifier.kept,
        **teacher.kept,
    }
    averaged = weights if config.optim.ema else 0
    if averaged:
        always["average of the weights"] = averaged
    backward = {
        "activations": activations + 2 * largest,
        "logits (one chunk)": classifier.chunk,
    }
    if reduced:
        backward["weights in low precision"] = net.weight_copies
    step = {"backbone gradients": weights}
    if config.optim.name == "muon":
        needed = step_need(blank_backbone(config), on_gpu=on_gpu(config))
        step["Muon's matrices"] = needed.bytes
    if on_gpu(config):
        always |= {
            "cuBLAS workspaces": _cuda.WORKSPACE,
            "allocator rounding": _rounding(net, sizes.optimizer_states),
        }
        if ranks > 1:
            always["NCCL buffers"] = _cuda.NCCL
        backward["cuDNN workspace"] = _cuda.convolution_workspace(largest, config.run.channels_last)
        named = config.classifier.options.get("matmul_dtype", "float32")
        if matmul_type(named, config.run.precision, "cuda") != torch.float32:
            # A chunk has four (B,c) and two (c,D) matrices in four bytes; these are one of each in
            # two bytes, at most a quarter.
            backward["chunk in low precision"] = classifier.chunk // 4
    at_step = sum(step.values()) + averaged + classifier.step
    moments = sum(backward.values()), at_step, teacher.forward
    return {**always, **backward, **step, "peak": sum(always.values()) + max(moments)}


def _rounding(net: Traced, optimizer_states: int) -> int:
    """What torch's allocator adds to the many tensors of a backbone."""
    tensors = [*net.parameters * (1 + optimizer_states), *net.activations]
    return _cuda.reserved(tensors) - sum(tensors)


def process_bytes(config: Config) -> int:
    """Bytes of a process without its run: on a CPU its resident size, on a GPU the context's."""
    if on_gpu(config):
        return _cuda.CONTEXT
    import recognition.experiment  # noqa: F401 - what a run imports counts

    return resident_bytes() + CPU_RUNTIME


def on_gpu(config: Config) -> bool:
    """Whether the run will be on a GPU."""
    auto = config.run.device == "auto"
    return torch.cuda.is_available() if auto else config.run.device == "cuda"
