"""One cell of the GPU benchmark: our training step beside the textbook's."""

import gc
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from data.faces import open_faces
from data.types import Batch, FaceSet
from recognition import experiment, trainer
from recognition.config import Config
from recognition.device import choose_device, prepare_device
from recognition.distributed import Ranks
from recognition.parse import parse_config
from recognition.parts import Parts
from scripts.bench._measure import in_turn
from scripts.bench._textbook import Textbook
from tools._cards import card_of
from tools._need import estimate, facts_of, sizes_of
from tools._time import load, measured_utilization

ROOT = Path(__file__).parents[2]
Built = TypeVar("Built")
OUT_OF_MEMORY = "out of memory"
NOT_MEASURED = ""
FIGURES = (
    "allocated GB",
    "reserved GB",
    "classifier share",
    "images/s with decoding",
    "data wait",
    "with 2 threads",
    "waits",
    "raised at",
)
BACKBONES: dict[str, dict[str, Any]] = {
    "R50": {"name": "iresnet", "depth": 50},
    "R100": {"name": "iresnet", "depth": 100},
    "ViT-B": {"name": "vit", "variant": "base"},
    "KP-RPE-B": {"name": "kprpe", "variant": "base", "landmarks": "template"},
}
TINY_BACKBONES: dict[str, dict[str, Any]] = {
    "R50": {"name": "iresnet", "depth": 18, "width": 4, "embedding": 16},
    "R100": {"name": "iresnet", "depth": 18, "width": 8, "embedding": 16},
    "ViT-B": {"name": "vit", "width": 32, "depth": 1, "embedding": 16, "patch": 8},
    "KP-RPE-B": {
        "name": "kprpe",
        "landmarks": "template",
        "width": 32,
        "heads": 4,
        "depth": 1,
        "embedding": 16,
    },
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "fused": {"name": "full", "fused": True},
    "partial": {"name": "partial", "sample_rate": 0.1},
    "class_pool": {"name": "class_pool", "size": 0.1},
}


@dataclass(frozen=True)
class Cell:
    """One row of the table. backbone, classifier: names of the tables above."""

    backbone: str
    classes: int
    precision: str
    compiled: bool = False
    classifier: str = "full"
    optimizer: str = "sgd"

    @property
    def name(self) -> str:
        how = "compiled" if self.compiled else "eager"
        last = "" if self.optimizer == "sgd" else f" {self.optimizer}"
        return f"{self.backbone} {self.classes:,} {self.precision} {how} {self.classifier}{last}"


@dataclass(frozen=True)
class Scale:
    """How large everything is: for a GPU, or tiny.

    divisor: of the cell's identities. steps: timed steps per round. warmup: steps before, which
    compile, choose kernels and allocate.
    """

    backbones: dict[str, dict[str, Any]]
    size: int
    batch: int
    divisor: int
    steps: int
    rounds: int
    warmup: int


FULL = Scale(BACKBONES, size=112, batch=128, divisor=1, steps=12, rounds=3, warmup=5)
TINY = Scale(TINY_BACKBONES, size=32, batch=12, divisor=1000, steps=2, rounds=1, warmup=1)


class Spread:
    """A face set of many identities, which has two images each and few pictures behind them.

    The picture behind image i is the stored one i mod their number, so that reading and decoding
    cost what they cost in a large set.
    """

    def __init__(self, stored: FaceSet, identities: int) -> None:
        self.stored, self.num_classes = stored, identities
        self.labels = np.arange(identities, dtype=np.int64).repeat(2)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return self.stored.read(index % len(self.stored))

    def describe(self, index: int) -> str:
        return self.stored.describe(index % len(self.stored))


def config_of(cell: Cell, scale: Scale) -> Config:
    """The config whose run the cell measures."""
    # A class pool divides a batch by six.
    batch = scale.batch // 6 * 6 if cell.classifier == "class_pool" else scale.batch
    tree = {
        "data": {"train": "not read", "size": scale.size},
        "backbone": scale.backbones[cell.backbone],
        "head": {"name": "arcface"},
        "classifier": CLASSIFIERS[cell.classifier],
        "optim": {"name": cell.optimizer, "lr": 0.02, "batch_size": batch, "epochs": 1},
        "scheduler": {"name": "constant"},
        "run": {
            "output": "not written",
            "precision": cell.precision,
            "compile": cell.compiled,
            "channels_last": True,
        },
    }
    return parse_config(tree, cell.name)


def measure(cell: Cell, scale: Scale, records: str) -> dict[str, Any]:
    """A row of the table: the cell's figures, or what kept it from having them.

    records: a record file with pictures of the scale's size.
    """
    config = config_of(cell, scale)
    device = choose_device(config, cell.name)
    prepare_device(config.run, device)
    classes = max(cell.classes // scale.divisor, scale.batch)
    faces = Spread(open_faces(records), classes)
    # Partial FC is the least that the textbook can do in place of a class pool.
    rate = 1.0 if cell.classifier in ("full", "fused") else 0.1

    def textbook() -> Theirs | None:
        return attempt(lambda: Theirs(config, faces, device, scale, rate))

    ours = attempt(lambda: Ours(config, faces, device, scale))
    figures = ours.figures(scale.steps) if ours else {}
    theirs = textbook()
    speeds = speeds_of({"ours": ours, "textbook": theirs}, scale)
    figures |= ours.waits() if ours else {}
    alternating = ours is None or theirs is not None
    if not alternating:  # the textbook may fit alone
        ours = None
        free()
        speeds |= speeds_of({"textbook": textbook()}, scale)

    mine, other = speeds.get("ours"), speeds.get("textbook")
    return {
        "cell": cell.name,
        "images/s": mine or OUT_OF_MEMORY,
        "textbook images/s": other or OUT_OF_MEMORY,
        "times textbook": mine / other if mine and other else NOT_MEASURED,
        "in turn": alternating,
        **{name: figures.get(name, NOT_MEASURED) for name in FIGURES},
        "planned GB": planned(config, classes),
        "utilization": utilization(config, classes, device, mine) if mine else NOT_MEASURED,
    }


def speeds_of(ones: Mapping[str, "Ours | Theirs | None"], scale: Scale) -> dict[str, float]:
    """Median images per second of those that there are, measured in turn, round by round."""
    present = {name: one for name, one in ones.items() if one is not None}
    found = in_turn(present, scale.rounds, lambda name: speed(present[name], scale.steps))
    return {name: statistics.median(rates) for name, rates in found.items()}


def attempt(build: Callable[[], Built]) -> Built | None:
    """What `build` returns, or None where the device has too little memory."""
    try:
        return build()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold what was built
    free()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory, which libraries tell in several ways."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in text
        or ("ALLOC_FAILED" in text)
    )


def free() -> None:
    """Give memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Ours:
    """The run's own parts and step, on batches that lie on the device, warmed up.

    peaks: memory that the warm-up needed.
    """

    def __init__(self, config: Config, faces: FaceSet, device: torch.device, scale: Scale) -> None:
        self.config, self.device = config, device
        self.parts: Parts = experiment.build_parts(config, faces, device, Ranks())
        self.progress = trainer.Progress()
        self.stream = chain.from_iterable(repeat(self.parts.loader))
        self.resident = cycle(list(islice(self.stream, 2)))
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for _ in range(scale.warmup):
            self.step()
        self.peaks = peaks(device)

    def step(self) -> int:
        """Train on a batch on the device; returns its number of images."""
        return self.train(self.parts, next(self.resident))

    def train(self, parts: Parts, batch: Batch) -> int:
        trainer.optimizer_step(self.config, parts, [batch], self.progress)
        return len(batch.labels)

    def figures(self, steps: int) -> dict[str, Any]:
        """Memory, share of the classifier, and speed and waits with decoding."""
        share = self.classifier_share(steps)
        return {**self.peaks, "classifier share": share, **self.decoding(steps)}

    def classifier_share(self, steps: int) -> float:
        """Share of a step between the backbone's forward and its backward pass.

        The update of the centers belongs to it only where the backward pass makes it.
        """
        marks: list[Mark] = []

        def forward(images: torch.Tensor) -> torch.Tensor:
            embeddings = self.parts.forward(images)
            marks.append(Mark(self.device))
            if embeddings.requires_grad:
                embeddings.register_hook(lambda _: marks.append(Mark(self.device)))
            return embeddings

        watched = replace(self.parts, forward=forward)
        inside, whole = [], []
        for _ in range(steps):
            marks.clear()
            begin = Mark(self.device)
            self.train(watched, next(self.resident))
            end = Mark(self.device)
            synchronize(self.device)
            inside.append(marks[0].seconds_until(marks[-1]))
            whole.append(begin.seconds_until(end))
        return statistics.median(a / b for a, b in zip(inside, whole, strict=True))

    def decoding(self, steps: int) -> dict[str, float]:
        """Images per second with the loader at work, and the share of the time spent waiting.

        Once with two decoding threads: every thread takes turns with the one that queues kernels.
        """
        loader = self.parts.loader
        waited = loader.wait_seconds
        rate, took = self._with_loader(self.stream, steps)
        waited = loader.wait_seconds - waited
        loader.threads = 2
        few = chain.from_iterable(repeat(loader))
        next(few)  # starts the threads
        return {
            "images/s with decoding": rate,
            "data wait": waited / took,
            "with 2 threads": self._with_loader(few, steps)[0],
        }

    def _with_loader(self, stream: Iterator[Batch], steps: int) -> tuple[float, float]:
        """Images per second, and seconds, of so many steps on batches of a stream."""
        synchronize(self.device)
        start = time.perf_counter()
        images = sum(self.train(self.parts, batch) for batch in islice(stream, steps))
        synchronize(self.device)
        took = time.perf_counter() - start
        return images / took, took

    def waits(self) -> dict[str, Any]:
        """How often one step made the CPU wait for the GPU, and the first place where it did.

        Call it last: the step that is not allowed to wait ends in the middle.
        """
        if self.device.type != "cuda":
            return {"waits": NOT_MEASURED, "raised at": NOT_MEASURED}
        batch = next(self.resident)
        with sync_debug("warn"), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.train(self.parts, batch)
        found = [one for one in caught if "synchronizing" in str(one.message)]
        raised = ""
        with sync_debug("error"):
            try:
                self.train(self.parts, batch)
            except RuntimeError as error:
                if "synchronizing" not in str(error):
                    raise
                raised = place(error)
        return {"waits": len(found), "raised at": raised}


class Theirs:
    """The textbook's model, on the same batches, warmed up."""

    def __init__(
        self, config: Config, faces: FaceSet, device: torch.device, scale: Scale, rate: float
    ) -> None:
        loader = facts_of(config.classifier.name).make_loader(
            faces,
            config,
            batch_size=config.optim.batch_size,
            size=config.data.size,
            seed=0,
            threads=1,
            rank=0,
            world=1,
            device=device,
        )
        self.resident = cycle(list(islice(loader, 2)))
        self.textbook = Textbook(config, faces.num_classes, device, sample_rate=rate)
        self.device = device
        for _ in range(scale.warmup):
            self.step()

    def step(self) -> int:
        """Train on a batch on the device; returns its number of images."""
        batch = next(self.resident)
        self.textbook.step(batch)
        return len(batch.labels)


def speed(one: Ours | Theirs, steps: int) -> float:
    """Images per second of so many steps."""
    synchronize(one.device)
    start = time.perf_counter()
    images = sum(one.step() for _ in range(steps))
    synchronize(one.device)
    return images / (time.perf_counter() - start)


class Mark:
    """A moment: of the GPU's queue on CUDA, and of the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()
        self.clock = time.perf_counter()

    def seconds_until(self, later: "Mark") -> float:
        """Call it after the device has reached both."""
        if self.event is not None and later.event is not None:
            return float(self.event.elapsed_time(later.event)) / 1e3
        return later.clock - self.clock


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(device: torch.device) -> dict[str, Any]:
    """The largest memory so far, in GB: of tensors, and of what torch took from the device."""
    if device.type != "cuda":
        return {"allocated GB": NOT_MEASURED, "reserved GB": NOT_MEASURED}
    return {
        "allocated GB": torch.cuda.max_memory_allocated(device) / 1e9,
        "reserved GB": torch.cuda.max_memory_reserved(device) / 1e9,
    }


@contextmanager
def sync_debug(mode: str) -> Iterator[None]:
    """torch's mode for operations that wait for the GPU, while the context lasts."""
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def place(error: BaseException) -> str:
    """The last line of ours in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT)]
    last = [one for one in ours if ".venv" not in one.filename][-1]
    return f"{Path(last.filename).relative_to(ROOT)}:{last.lineno}"


def planned(config: Config, classes: int) -> float:
    """What the planner says of the memory that torch takes from the device, in GB."""
    return estimate(config, classes, ranks=1, base=0)["peak"] / 1e9


def utilization(config: Config, classes: int, device: torch.device, rate: float) -> Any:
    """The share of the card's peak at which the planner would give this speed."""
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card is None:
        return NOT_MEASURED
    asked = load(config, facts_of(config.classifier.name), sizes_of(config, classes, 1))
    return measured_utilization(asked, card, asked.images / rate) or NOT_MEASURED
