"""A run as a value: frozen dataclasses, one per section of a YAML file.

Beside each field stands its type with the range, and below it what it means. `recognition/parse.py`
checks a file against them; `python train.py --help`, docs/configuration.md and configs/schema.json
repeat them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pydantic.dataclasses

from data.augment import Augment
from data.options import (
    Count,
    CountOrZero,
    NonNegative,
    PartOf,
    PathText,
    Positive,
    Range,
    ShareBelowOne,
)
from data.order import BALANCED_IMAGES

Side = Annotated[int, Range(at_least=16)]
ShareOfSteps = Annotated[float, Range(above=0, below=1)]


class ConfigError(ValueError):
    """A mistake in a config or its overrides, as one line for the person who wrote it."""


@pydantic.dataclasses.dataclass(frozen=True)
class Part:
    """A part by file name, with the options of its `build`: `{name: arcface, margin: 0.5}`."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @pydantic.model_serializer
    def as_written(self) -> dict[str, Any]:
        """One mapping, as a config holds it."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class DataConfig:
    """Where the training faces are, and how they are loaded."""

    train: PathText
    """Training set: a record file, a folder, or another form that `data/formats` knows.
    `concat:PATH;PATH` joins several sets."""
    root: PathText | None = None
    """Folder from which relative paths of `data` and `evaluate` start. null: the working
    directory."""
    format: Annotated[str, PartOf("data.formats", others=("auto",))] = "auto"
    """Format of the training set. auto: the format that recognizes the files."""
    subset: PathText | None = None
    """Index list of the images to train on: a .npy file of row numbers (M,), or of row numbers and
    new labels (M, 2), as whole numbers. null: all images."""
    renumber: bool = False
    """Number the identities that have images 0, 1, …, so that no class center is without images.
    Checkpoints then hold the label that each class has in the set."""
    size: Side = 112
    """Side of the square input, in pixels."""
    size_schedule: Mapping[Side, ShareOfSteps] | None = None
    """Smaller sizes at the beginning of the run, each with the share of the run's steps that have
    it, as in `{56: 0.5, 80: 0.2}`. The smallest comes first, and the rest of the run has
    `data.size`. Such steps cost less, so the same compute shows more images. null: one size."""
    threads: Count | None = None
    """Threads that decode images, per process. null: one per core, divided by the processes of this
    machine."""
    order: Literal["shuffled", "block", "balanced"] = "shuffled"
    """Order of the images in an epoch. shuffled: at random. block: runs of neighboring images stay
    together, for spinning disks, network drives and Parquet files. balanced: four images per
    identity in a batch, and all identities equally often. A class pool needs shuffled, because it
    draws its images in its own way."""
    augment: Augment = Augment()
    """Random changes of the training images, computed on the device."""

    def __post_init__(self) -> None:
        smaller = self.size_schedule or {}
        if sum(smaller.values()) >= 1 or any(size >= self.size for size in smaller):
            raise ValueError(
                f"size_schedule: found {dict(smaller)}, expected sizes below data.size={self.size} "
                "with shares of less than 1 in all, so that the run ends with the full size (for "
                "one size: data.size_schedule=null)"
            )


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer of the backbone and of the class centers."""

    lr: Positive
    """Base learning rate. The schedule multiplies it by a factor in each step."""
    batch_size: Annotated[int, Range(at_least=2)]
    """Images per process and micro-batch. Batch norm needs at least two."""
    epochs: Count
    """Passes over the training set."""
    name: Literal["sgd", "adamw", "muon"] = "sgd"
    """Optimizer of the backbone and of the class centers. muon: Muon for convolutions and linear
    layers, except the first one and depthwise ones, and SGD for all else, also for LoRA."""
    muon_lr: Positive = 0.02
    """Base learning rate of Muon's steps. The schedule multiplies it like `lr`, which is that of
    all else."""
    muon_weight_decay: NonNegative = 0.5
    """Weight decay of the weights that Muon steps; `weight_decay` is that of all else. A step makes
    them shorter by the share learning rate × this."""
    momentum: ShareBelowOne = 0.9
    """Momentum of SGD and Muon. AdamW does not use it."""
    nesterov: bool = False
    """Nesterov's form of the momentum, for SGD."""
    weight_decay: NonNegative = 5e-4
    """Weight decay. SGD adds it to the gradient; AdamW applies it apart from the gradient."""
    no_decay_1d: bool = False
    """Leave biases, PReLU and batch norm without weight decay."""
    accumulation: Count = 1
    """Micro-batches per optimizer step; their gradients are averaged."""
    step_images: Count | None = None
    """Images per optimizer step, on all processes together, for which schedule and epochs are
    planned. null: batch_size × accumulation × processes at the first start of a run; a resume keeps
    this number."""
    changed_batch: Literal["fit", "keep_rate", "scale_rate"] = "fit"
    """What a run does if batch_size × accumulation × processes is not step_images. fit: it chooses
    another accumulation, and a smaller batch_size where it must, which give step_images. keep_rate:
    its steps have the other size, and the learning rate at each image stays as it was planned.
    scale_rate: the same, and the learning rate is multiplied by the size of the step divided by
    step_images."""
    clip_norm: Positive | None = 5.0
    """Largest norm of the backbone's gradient. A gradient with a larger norm is scaled down to it.
    null: no limit. Take null with Muon: its decay makes weights short, and a gradient grows as the
    weights become shorter."""
    lr_factors: Mapping[str, Positive] | None = None
    """Factors on the learning rate of some parameters, as in `{centers: 10, "*.bias": 2}`.
    `centers` are the class centers. The other keys are names of the backbone's parameters, in which
    `*` stands for any text. Where several match, their factors are multiplied. null: one learning
    rate for all."""
    ema: Positive | None = None
    """Half-life of a moving average of the backbone's weights, in epochs, such as 0.2. The average
    is evaluated beside the weights, and saved as the model `average` in the run folder. null: no
    average."""

    def __post_init__(self) -> None:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: found True, expected false where optim.momentum is 0")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (arXiv 2106.09685): some linear layers learn a change of low rank."""

    rank: CountOrZero = 0
    """Rank of the change. 0: no LoRA."""
    targets: Sequence[str] = ()
    """Names of the weights of linear layers that stay as they are and get a change, such as
    `*.qkv.weight`; `*` stands for any text. All other weights are trained as usual, unless
    `init.freeze` names them."""
    alpha: Positive | None = None
    """The change is multiplied by alpha / rank. null: by 1."""

    def __post_init__(self) -> None:
        if self.targets and not self.rank:
            raise ValueError(f"targets: found {list(self.targets)} with init.lora.rank 0")


@dataclass(frozen=True)
class InitConfig:
    """What the run starts from, and which of it stays as it is."""

    weights: PathText | None = None
    """Trained model from which the backbone starts: a run folder, a model folder, or a published
    file of weights, as `--model` takes them. `backbone` must be its architecture. A resume does not
    read it. null: random weights."""
    color: Literal["rgb", "bgr"] | None = None
    """Order of the color channels that `weights` were trained on, where the file does not tell."""
    skip: Sequence[str] = ()
    """Names of what is not loaded from `weights`, such as `fc.*`, because it is new here or of
    another shape; `*` stands for any text. All other names and shapes must be equal."""
    freeze: Sequence[str] = ()
    """Names of the backbone's parameters that stay as they are, such as `layer1.*`; `*` stands for
    any text. A batch norm whose parameters are all frozen also keeps its running statistics."""
    lora: LoraConfig = LoraConfig()
    """LoRA (arXiv 2106.09685): some linear layers learn a change of low rank."""
    centers: Literal["random", "means"] = "random"
    """How the class centers start. means: at the mean embedding of each person's images, which the
    loaded model computes before the first step."""

    def __post_init__(self) -> None:
        needing = {"color": self.color, "skip": self.skip, "centers": self.centers == "means"}
        for key in [key for key, given in needing.items() if given and self.weights is None]:
            found = getattr(self, key)
            raise ValueError(f"{key}: found {found!r} without init.weights, which it needs")


@dataclass(frozen=True)
class TeacherConfig:
    """A trained model from whose embeddings the backbone learns, besides the classifier's loss."""

    model: PathText | None = None
    """The teacher: a run folder, a model folder, a published file of weights or an ONNX file, as
    `--model` takes them. null: no teacher, or the stored `vectors` alone."""
    color: Literal["rgb", "bgr"] | None = None
    """Order of the color channels that `model` was trained on, where the file does not tell."""
    vectors: PathText | None = None
    """File of the teacher's embeddings of the training set: .npy (N, D), one row per image. With
    `model` the run writes it, unless it is there. null: a file that is named by the model and the
    set, in the folder `teacher_vectors` beside run.output."""
    augmented: bool = False
    """Give the augmented images of every batch to the teacher, which needs memory and time in each
    step, and no file. They have data.size, and are resized to the teacher's size. false: the
    teacher's embeddings of the images as the set has them are computed once, at the teacher's
    size, each as the sum of those of the image and of its mirror image."""
    cosine: NonNegative = 10.0
    """Weight of the mean of 1 − cosine between the embedding and that of the teacher. Where they
    have different lengths, a trained linear map of the embedding is compared. It is not exported.
    """
    centers: NonNegative = 0.0
    """Weight of the loss of `head` with the teacher's class centers, which are moving averages of
    its embeddings (AdaDistill, arXiv 2407.01332)."""
    classifier: bool = True
    """Learn from the classifier's own loss as well. false: its class centers are not trained, as in
    AdaDistill."""
    schedule: Literal["constant", "fade"] = "constant"
    """Course of the weights `cosine` and `centers`. fade: in the last third of the run they fall
    linearly to 0."""

    @property
    def given(self) -> bool:
        """Whether there is a teacher."""
        return self.model is not None or self.vectors is not None

    def __post_init__(self) -> None:
        if not self.given:
            return
        if self.augmented and (self.vectors or not self.model):
            raise ValueError(
                "augmented: found True, expected teacher.model without teacher.vectors, because "
                "the teacher embeds every batch"
            )
        if not (self.cosine or self.centers):
            raise ValueError("cosine: found 0 with teacher.centers=0, so the teacher has no effect")
        if not self.classifier and self.schedule == "fade":
            raise ValueError(
                "classifier: found False with teacher.schedule=fade, which leaves no loss at the "
                "end of the run"
            )


@dataclass(frozen=True)
class EvaluationSet:
    """The keys of every set in `evaluate.sets`, whatever its protocol."""

    name: str
    """Name of the set in logs and results."""
    protocol: Annotated[str, PartOf("eval.benchmarks")] = "pairs"
    """Protocol of the benchmark: a file of `eval/benchmarks`."""
    optional: bool = False
    """If files of the set are missing, skip the set and note that in the results."""


@dataclass(frozen=True)
class EvaluateConfig:
    """When the model is evaluated, and on what."""

    every_epochs: CountOrZero = 1
    """Epochs between two evaluations. 0: evaluate only at the end."""
    published: str | None = None
    """Row of `eval/report/published.yaml` whose figures the report prints beside ours."""
    sets: Annotated[tuple[Mapping[str, Any], ...], PartOf("eval.benchmarks")] = ()
    """Sets to evaluate on, each with a `name`, a `protocol` and the options of that protocol."""

    def __post_init__(self) -> None:
        names = [one["name"] for one in self.sets]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(f"sets: found {names}, expected a different name for every set")


@dataclass(frozen=True)
class RunConfig:
    """Where and how the run computes, and what it writes."""

    output: PathText
    """Folder that the run writes. A relative path starts from the working directory."""
    seed: CountOrZero = 0
    """Seed of all random numbers."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Device of the run. auto: cuda if there is one, else mps, else cpu."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number type of the backbone's matrix products. With fp16 the loss is scaled, so that small
    gradients do not become 0."""
    tf32: bool = False
    """Round the inputs of float32 products and convolutions to TF32 on CUDA. In bf16 and fp16 runs
    this is always so, as their other products are rounded more."""
    deterministic: bool = False
    """Use only CUDA kernels that give the same bits in every run, which costs time. On a CPU they
    all do."""
    compile: bool = False
    """Compile the backbone with torch.compile. Where this machine can't compile, as without a C++
    compiler, the run says so and goes on uncompiled."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"] = "default"
    """Mode of torch.compile. reduce-overhead: CUDA graphs, for small batches; one process without
    optim.accumulation. max-autotune-no-cudagraphs: kernels chosen by timing them, which takes
    minutes at the start."""
    channels_last: bool = False
    """Store images and weights of convolutions in the channels-last memory layout."""
    log_steps: Count = 20
    """Optimizer steps between two log lines, or fewer: a run logs at least 20 lines if it has 20
    steps."""
    max_steps: Count | None = None
    """Optimizer steps after which the run ends, for a trial. It ends as a whole run does, with a
    checkpoint and an evaluation; the schedule is that of the whole run. `--resume` goes on if this
    is raised or null. null: the whole run."""
    checkpoint_steps: CountOrZero = 0
    """Optimizer steps between two checkpoints, in addition to one at the end of every epoch. 0: no
    additional ones."""
    keep: Count = 2
    """Number of checkpoints that are kept: the newest ones."""
    trackers: Sequence[Annotated[str, PartOf("recognition.trackers")]] = ("tensorboard",)
    """What shows the figures while the run goes on, besides metrics.jsonl. mlflow: the server or
    store that MLFLOW_TRACKING_URI names, or mlflow.db beside the run folder. It also gets pictures
    of the pairs of faces that an evaluation judged worst."""
    keep_best: str | None = None
    """Figure of a set in `evaluate.sets`, such as lfw/accuracy. The checkpoint with its best value
    is kept as well. null: only the newest ones are kept."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One whole run."""

    data: DataConfig
    """Where the training faces are, and how they are loaded."""
    backbone: Annotated[Part, PartOf("recognition.backbones")]
    """Network from an image to an embedding."""
    head: Annotated[Part, PartOf("recognition.heads")]
    """Margin loss: how the cosine between an embedding and a class center is changed."""
    classifier: Annotated[Part, PartOf("recognition.classifiers")] = Part("full")
    """What embeddings are compared with: all class centers, a sample of them, or a class pool."""
    init: InitConfig = InitConfig()
    """What the run starts from, and which of it stays as it is."""
    teacher: TeacherConfig = TeacherConfig()
    """A trained model from whose embeddings the backbone learns."""
    optim: OptimConfig
    """Optimizer of the backbone and of the class centers."""
    scheduler: Annotated[Part, PartOf("recognition.schedulers")]
    """Schedule of the learning rate."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """When the model is evaluated, and on what."""
    run: RunConfig
    """Where and how the run computes, and what it writes."""

    def __post_init__(self) -> None:
        if self.data.order == "balanced" and self.optim.batch_size % BALANCED_IMAGES:
            raise ValueError(
                f"optim.batch_size: found {self.optim.batch_size}, expected a multiple of "
                f"{BALANCED_IMAGES}, the images per identity where data.order is balanced"
            )
        tuned = self.run.compile and self.run.compile_mode == "max-autotune-no-cudagraphs"
        if tuned and self.run.deterministic:
            raise ValueError(
                "run.compile_mode: found max-autotune-no-cudagraphs with run.deterministic; it "
                "chooses kernels by their time, so two runs may have other bits; use default"
            )
        graphs = self.run.compile and self.run.compile_mode == "reduce-overhead"
        if graphs and self.optim.accumulation > 1:
            raise ValueError(
                "run.compile_mode: found reduce-overhead with optim.accumulation above 1; the next "
                "backward pass of a CUDA graph would overwrite the gradients; use default"
            )
