"""Decodes images and trains for a long time, to see whether anything grows.

    python -m scripts.soak.growth --count 100000 --steps 10000

    decode  `decode_into` of whole and broken images of every kind, larger and smaller than its
            output
    sets    every image of a set in each file format, through a Loader, opened anew for each pass
    train   `python train.py` on images that are larger than the trained size; every epoch ends with
            an evaluation and a checkpoint

Resident memory, open descriptors and threads are read from /proc (Linux) after equal shares of the
work. The second and the last quarter are compared. Exit code 1: memory grew by more than the
greater of 8 MB and 64 bytes per decode or step, or descriptors or threads became more.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.decode import DecodeError, decode_into
from data.faces import open_faces
from data.formats.synthetic import open_set
from data.loader import Loader
from data.options import Count
from data.writers.folder import write_folder
from scripts.soak.data_fuzz import FILES, make, path_of
from tools._cli import Failed, command

SHARES = 40  # samples of a run
NOISE, PER_ITEM = 8 << 20, 64  # bytes
SIDE = 32
FACES = "synthetic:identities=8,images=8,size=48"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Sample:
    """What a process holds after `done` decodes or steps."""

    done: int
    resident: int  # bytes
    descriptors: int
    threads: int


def sample(done: int, pid: int | str = "self") -> Sample:
    """What a process holds now. The system lists a thread for some ms after its end."""
    counts = []
    for _ in range(5):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        counts.append(int(status["Threads"]))
        time.sleep(0.002)
    resident = int(status["VmRSS"].split()[0]) * 1024
    return Sample(done, resident, len(os.listdir(f"/proc/{pid}/fd")), min(counts))


def encoded_images() -> list[bytes]:
    """Images of every kind, larger, as large and smaller than SIDE: whole, cut and changed."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    suffixes = (".jpg", ".png", ".webp", ".bmp", ".gif", ".tiff", ".ppm")
    kinds = [(".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]), *((suffix, []) for suffix in suffixes)]
    images: list[bytes] = []
    for side in (SIDE // 2, SIDE, 2 * SIDE, 3 * SIDE):
        picture = cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
        for suffix, settings in kinds:
            whole = cv2.imencode(suffix, picture, settings)[1].tobytes()
            middle = len(whole) // 2
            changed = whole[:middle] + b"\xff\x00\xff" + whole[middle + 3 :]
            images += [*[whole] * 4, changed, whole[:middle], whole[:40]]
    return images


def decode_all(count: int) -> list[Sample]:
    """Samples of `count` decodes in this process."""
    images, out, samples = encoded_images(), np.empty((SIDE, SIDE, 3), np.uint8), []
    with without_stderr():
        for done in range(1, count + 1):
            with suppress(DecodeError):
                decode_into(images[done % len(images)], out)
            if done % max(1, count // SHARES) == 0:
                samples.append(sample(done))
    return samples


def read_sets(count: int) -> list[Sample]:
    """Samples of `count` images of sets of all formats, opened again and again."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        make(open_set(FACES), Path(folder))
        write_folder(open_set(FACES), f"{folder}/folder", progress=lambda done: None)
        paths = [f"{folder}/folder", *(path_of(kind, Path(folder)) for kind in FILES)]
        done = 0
        while done < count:
            for path in paths:
                loader = Loader(open_faces(path), batch_size=16, size=SIDE, seed=0, threads=2)
                done += sum(len(batch.labels) for batch in loader)
            if done >= (len(samples) + 1) * count // SHARES:
                samples.append(sample(done))
    return samples


def train(steps: int) -> list[Sample]:
    """Samples of a run of `train.py` of about `steps` steps."""
    per_epoch = max(1, min(200, steps // 8))  # the first evaluation is in the first quarter
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "data.train": f"synthetic:identities=16,images={per_epoch},size=48",
            "data.size": SIDE,
            "backbone.width": 4,
            "backbone.embedding": 16,
            "optim.batch_size": 16,
            "optim.epochs": max(1, steps // per_epoch),
            "optim.lr": 0.01,
            "scheduler.warmup_steps": 1,
            "run.precision": "fp32",
            "run.compile": "false",
            "run.log_steps": max(1, steps // SHARES),
            "run.output": folder + "/run",
            "evaluate.every_epochs": 1,
            "evaluate.sets": '[{name: held out, protocol: pairs, count: 40, faces: "synthetic:'
            'identities=40,images=4,first=1000,size=48"}]',
        }
        words = [f"{key}={value}" for key, value in settings.items()]
        arguments = ["train.py", "--config", "configs/quickstart.yaml", *words]
        with open(f"{folder}/output", "w+") as output:
            # A model this small is much faster with one thread.
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            samples = list(_follow(process, Path(folder, "run/metrics.jsonl")))
            if process.returncode:
                output.seek(0)
                raise Failed(f"train.py ended with {process.returncode}: {output.read()[-500:]}")
    # At the last step the process draws training.png and ends.
    return [one for one in samples if one.done < samples[-1].done]


def _follow(process: "subprocess.Popen[bytes]", metrics: Path) -> Iterator[Sample]:
    """Samples of a running process, from its first logged step on."""
    while process.poll() is None:
        lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
        if lines:
            try:
                yield sample(json.loads(lines[-1])["step"], process.pid)
            except (OSError, KeyError):  # it has just ended
                return
        else:
            time.sleep(0.01)


def growth(samples: list[Sample]) -> tuple[dict[str, float], list[str]]:
    """Figures of a run, and a sentence for everything that grew.

    Memory is compared by the least of each quarter, because a checkpoint needs some for a moment.
    Decode threads come and go, so the fewest of the last quarter are compared with the most of the
    second.
    """
    total = samples[-1].done
    early = [one for one in samples if total / 4 < one.done <= total / 2]
    late = [one for one in samples if one.done > 3 * total / 4]
    done = late[0].done - early[0].done
    held = min(one.resident for one in late)
    resident = held - min(one.resident for one in early)
    descriptors, threads = min(one.descriptors for one in late), min(one.threads for one in late)
    figures: dict[str, float] = {
        "done": total,
        "resident_mb": round(held / 1e6, 1),
        "grown_mb": round(resident / 1e6, 2),
        "bytes_each": round(resident / done, 1),
        "descriptors": descriptors,
        "threads": threads,
    }
    more = {
        "descriptors": descriptors - max(one.descriptors for one in early),
        "threads": threads - max(one.threads for one in early),
    }
    found = [f"{count} more {name}" for name, count in more.items() if count > 0]
    if resident > max(NOISE, PER_ITEM * done):
        found.append(f"memory grew by {resident / 1e6:.1f} MB, {resident / done:.0f} bytes each")
    return figures, found


@contextmanager
def without_stderr() -> Iterator[None]:
    """Sends the lines that OpenCV's decoders print about broken images to nowhere."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def run(*, count: Count = 100_000, steps: Count = 10_000) -> dict[str, float]:
    """Do all three jobs.

    count: decodes, and images that are read from sets.
    steps: training steps.
    """
    record: dict[str, float] = {}
    failures = []
    jobs: dict[str, Callable[[], list[Sample]]] = {
        "decode": lambda: decode_all(count),
        "sets": lambda: read_sets(count),
        "train": lambda: train(steps),
    }
    for name, job in jobs.items():
        figures, grown = growth(job())
        print(f"{name:7}", figures, *grown, flush=True)
        record |= {f"{name}_{key}": value for key, value in figures.items()}
        failures += [f"{name}: {text}" for text in grown]
    if failures:
        raise Failed("; ".join(failures), record)
    return record


main = command(run)
