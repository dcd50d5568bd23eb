"""Measures training on a GPU beside the textbook loop and the planner, and checks what needs one.

    python -m scripts.bench.gpu              about fourteen cells and all checks, in ten minutes
    python -m scripts.bench.gpu --all        every combination, for hours
    bash scripts/gpu.sh                      the same on a machine that has nothing installed yet

Nothing is downloaded: pictures are drawn and written into a record file in memory (/dev/shm), or
else into a temporary folder. Every cell runs in its own process. Finished cells and checks are kept
in gpu.json, so that the same command goes on where it was stopped; gpu.md has the table.

A cell trains a backbone with a number of identities, in a precision, eager or compiled, with a
classifier. `images/s` is the speed of the run's own optimizer steps on batches that lie on the
device, and `textbook images/s` that of the textbook loop (scripts/bench/_textbook.py) on the same
batches, in turn, round by round; where both do not fit together, one after the other (`in turn`).
`classifier share` is the part of a step between the backbone's two passes. `images/s with decoding`
and `data wait` have the loader at work, with a thread per core, and `with 2 threads` with two.
`waits` counts how often a step makes the CPU wait for the GPU, and `raised at` is where
torch.cuda.set_sync_debug_mode("error") raised. `utilization` is what tools.plan takes.

Without a GPU the same code runs on the CPU in a tiny form, which measures nothing of worth.
"""

import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from data.faces import open_faces
from data.files import atomic_write
from data.options import Positive
from data.writers.records import write_records
from recognition.run_folder import revision
from scripts._tables import markdown_table
from scripts.bench._gpu_cell import BACKBONES, FULL, TINY, Cell, measure
from scripts.bench._gpu_checks import CHECKS
from scripts.bench._measure import in_own_process
from tools._cli import Failed, command

IDENTITIES = (93_431, 617_970, 2_059_906)
DEFAULT = (
    Cell("R100", 93_431, "fp16"),
    Cell("R100", 617_970, "fp16"),
    Cell("R100", 2_059_906, "fp16", classifier="partial"),
    Cell("R100", 617_970, "fp16", classifier="class_pool"),
    Cell("R50", 93_431, "fp16"),
    Cell("ViT-B", 93_431, "bf16"),
    Cell("R100", 93_431, "fp16", optimizer="muon"),
    Cell("R100", 93_431, "fp16", compiled=True),
    Cell("R50", 2_059_906, "bf16", classifier="fused"),
    Cell("KP-RPE-B", 93_431, "bf16"),
    Cell("R50", 2_059_906, "fp16"),
    Cell("R50", 93_431, "bf16", compiled=True),
    Cell("ViT-B", 617_970, "bf16", compiled=True),
    Cell("R100", 617_970, "bf16", compiled=True, classifier="fused"),
)
IN_TINY_FORM = (
    Cell("R50", 93_431, "fp16"),
    Cell("ViT-B", 93_431, "bf16", classifier="fused"),
    Cell("R50", 617_970, "bf16", classifier="partial"),
    Cell("R100", 617_970, "fp32", classifier="class_pool"),
    Cell("R50", 93_431, "bf16", optimizer="muon"),
    Cell("KP-RPE-B", 93_431, "bf16"),
)
TARGET_SPEED, TARGET_MEMORY = 1.15, 0.10
State = dict[str, Any]


def all_cells() -> Iterator[Cell]:
    """Every combination, but no fused update in fp16, and Muon with the full classifier alone."""
    for backbone, classes, precision, compiled, classifier in itertools.product(
        BACKBONES,
        IDENTITIES,
        ("fp16", "bf16"),
        (False, True),
        ("full", "fused", "partial", "class_pool"),
    ):
        if (classifier, precision) != ("fused", "fp16"):
            yield Cell(backbone, classes, precision, compiled, classifier)
        if classifier == "full":
            yield Cell(backbone, classes, precision, compiled, classifier, "muon")


def machine() -> State:
    """What the figures belong to: the machine and the code.

    It takes some of the GPU's memory in the process that asks.
    """
    code = {"revision": revision(), "torch": torch.__version__}
    if not torch.cuda.is_available():
        return {"card": "none (CPU, tiny form)", **code}
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return {
        "card": torch.cuda.get_device_name(),
        "memory": f"{memory:.1f} GB",
        **code,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def read_state(path: Path, here: State) -> State:
    """What an earlier call left. ValueError if it had other code or another machine.

    here: what `machine` says now.
    """
    state: State = {"machine": here, "cells": {}, "checks": {}}
    if not path.exists():
        return state
    try:
        found: State = json.loads(path.read_text(encoding="utf-8"))
        same = found["machine"] == here
        known = isinstance(found["cells"], dict) and isinstance(found["checks"], dict)
    except (ValueError, KeyError, TypeError):
        known = same = False
    if not known:
        raise ValueError(f"{path}: not a file of this benchmark; choose another --out")
    if not same:
        raise ValueError(
            f"{path}: found figures of {found['machine']}, here is {here}; choose another --out"
        )
    return found


@contextmanager
def record_file(size: int) -> Iterator[str]:
    """A record file with drawn pictures, in memory where the system allows it."""
    shared = Path("/dev/shm")
    usable = os.access(shared, os.W_OK)
    with tempfile.TemporaryDirectory(dir=shared if usable else None) as folder:
        identities = 100 if size > 64 else 8
        faces = open_faces(f"synthetic:identities={identities},images=10,size={size}")
        path = str(Path(folder, "train.rec"))
        write_records(faces, path, size=(size, size), progress=lambda _: None)
        yield path


def table(state: State) -> Iterator[str]:
    """The page's tables, as Markdown lines."""
    yield ", ".join(f"{name} {value}" for name, value in state["machine"].items())
    yield ""
    yield from markdown_table(row for row in state["cells"].values() if "error" not in row)
    for name, found in state["cells"].items():
        if "error" in found:
            yield f"- {name}: {found['error']}"
    yield ""
    for name, found in state["checks"].items():
        figures = {key: value for key, value in found.items() if key != "passed"}
        yield f"- {name}: {'passed' if found['passed'] else 'FAILED'}: {figures}"
    for name, text in bars(state).items():
        yield f"- {name}: {text}"


def bars(state: State) -> dict[str, str]:
    """The targets of R100 with 93,431 identities in fp16, and what was found."""
    row = state["cells"].get(DEFAULT[0].name, {})
    times, reserved = row.get("times textbook"), row.get("reserved GB")
    found = {}
    if isinstance(times, float):
        found[f"{row['cell']}: times textbook"] = f"{times:.2f} (target {TARGET_SPEED})"
    if isinstance(reserved, float):
        apart = row["planned GB"] / reserved - 1
        found[f"{row['cell']}: planned memory"] = (
            f"{100 * apart:+.1f} % (target within {100 * TARGET_MEMORY:.0f} %)"
        )
    return found


def failures(state: State) -> list[str]:
    """Cells that ended with an error, and checks that did not pass."""
    cells = [f"{name}: {row['error']}" for name, row in state["cells"].items() if "error" in row]
    checks = [name for name, found in state["checks"].items() if not found["passed"]]
    return [*cells, *checks]


def save(state: State, folder: Path) -> None:
    """Write gpu.json and gpu.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "gpu.json", "w") as file:
        json.dump(state, file, indent=1)
    with atomic_write(folder / "gpu.md", "w") as file:
        file.writelines(f"{line}\n" for line in table(state))


def run(
    *,
    out: str = "runs/bench_gpu",
    all: bool = False,
    minutes: Positive = 10.0,
    checks: tuple[Literal["lag", "cuda_tests", "resume"], ...] = ("lag", "cuda_tests", "resume"),
) -> State:
    """Measure the cells and run the checks that `out` does not have yet, or that failed.

    out: folder of gpu.json and gpu.md.
    all: every combination, without a limit of time.
    minutes: start nothing new after this time; what is left is told.
    checks: checks that are run too.
    """
    began, folder, on_gpu = time.perf_counter(), Path(out), torch.cuda.is_available()
    own = in_own_process if on_gpu else _here
    state = read_state(folder / "gpu.json", own(machine))
    scale = FULL if on_gpu else TINY
    cells = (tuple(all_cells()) if all else DEFAULT) if on_gpu else IN_TINY_FORM
    left = []
    with record_file(scale.size) as records:
        jobs = [("cells", cell.name, partial(own, measure, cell, scale, records)) for cell in cells]
        tests = [("checks", name, partial(own, CHECKS[name])) for name in checks]
        for kind, name, work in [*jobs[:1], *tests, *jobs[1:]]:
            if state[kind].get(name, {"passed": False}).get("passed", True):
                continue
            if not all and time.perf_counter() - began > 60 * minutes:
                left.append(name)
                continue
            print(f"{name} …", flush=True)
            state[kind][name] = _result(work)
            save(state, folder)
    print(*table(state), sep="\n")
    if left:
        print(f"not started after {minutes:g} minutes: {', '.join(left)}; run the command again")
    if failed := failures(state):
        raise Failed(f"{len(failed)} failed: {'; '.join(failed)}", state)
    return state


def _here(work: Callable[..., State], *arguments: Any) -> State:
    return work(*arguments)


def _result(work: Callable[[], State]) -> State:
    """What the work returns; where it raises, a record of the error, so that the rest goes on."""
    try:
        return work()
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return {"error": told[:500], "passed": False}


main = command(run)
