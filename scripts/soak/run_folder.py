"""Damages the folder of a run in thousands of ways, and resumes the run each time.

    python -m scripts.soak.run_folder --count 2000

A small run is trained to its end, and once more until it is killed after its sixth of eight steps,
with three checkpoints. Each case damages a copy of that folder one to three times: bytes of a file
are flipped, set to zero, cut off, cut out, appended or all removed, a file or a checkpoint is
removed, or two of them change places. Then the model is loaded as the tools load it, and the run is
resumed. training.png is drawn in one case of twenty, because that takes most of the time.

Allowed are a run that ends with the bits of the run that was not killed, and an error of one line.
A model that loads must have the weights of some checkpoint of this run. Everything else is a
failure: a traceback, other bits, a start from step 0 that is not told, a refusal although a
checkpoint is whole, or a crash. Exit code 1: there was a failure.
"""

import hashlib
import io
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import recognition
import train
from data.options import Count, CountOrZero
from recognition import checkpoint, experiment
from recognition.best_checkpoint import MARK
from recognition.logs import plot_training
from tools._cli import Failed, command

CONFIG = "configs/quickstart.yaml"
OVERRIDES = (
    *("data.train=synthetic:identities=4,images=4", "data.size=16", "data.threads=1"),
    *("backbone.width=4", "backbone.embedding=16", "scheduler.warmup_steps=2"),
    *("optim.batch_size=8", "optim.epochs=4", "run.device=cpu", "run.compile=false"),
    *("run.precision=fp32", "run.checkpoint_steps=1", "run.log_steps=1"),
    # The set is skipped, so that there is a best checkpoint, but no time goes to evaluations.
    "evaluate.sets=[{name: lfw, bin: nowhere.bin, optional: true}]",
    "run.keep_best=lfw/accuracy",
)
KILLED_AT, BEST, KEEP = 6, 3, 2
OUTCOMES = ("resumed", "resumed from an older checkpoint", "started again, as told", "refused")


@dataclass(frozen=True)
class Expected:
    """What is right: hashes of all weights at the end, and of each checkpoint's model by step."""

    end: str
    models: dict[int, str]


def resume(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of train.py in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        place = f"run.output={folder}"
        code = train.main(["--config", CONFIG, *OVERRIDES, place, *arguments])
    return code, output.getvalue(), errors.getvalue()


def make(folder: Path) -> Expected:
    """Train the run under `folder`, as `whole`, and leave it `killed` after some steps."""
    whole, killed = folder / "whole", folder / "killed"
    code, _, told = resume(whole, "run.keep=8")
    if code:
        raise RuntimeError(f"train.py: exit code {code}: {told}")
    models = {
        int(path.name.removeprefix("step_")): digest(checkpoint.load(path)[0]["backbone"])
        for path in checkpoint.checkpoints(whole / "checkpoints")
    }
    shutil.copytree(whole, killed)
    for path in checkpoint.checkpoints(killed / "checkpoints"):
        step = int(path.name.removeprefix("step_"))
        if step == BEST:
            (path / MARK).write_text('{"metric": "lfw/accuracy", "value": 90.0}')
        elif not KILLED_AT - KEEP < step <= KILLED_AT:
            shutil.rmtree(path)
        if step == KILLED_AT:
            shutil.copy(path / "model.pt", killed / "model.pt")
    return Expected(end(whole), models)


def end(folder: Path) -> str:
    """The hash of all weights in the newest checkpoint, after a check that model.pt has them."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    shared, locals_ = checkpoint.load(newest)
    same = digest(checkpoint.load_tensors(folder / "model.pt")) == digest(shared["backbone"])
    state = [shared[name] for name in ("backbone", "optimizer", "scheduler", "loader")]
    return digest([state, locals_]) if same else "model.pt differs from the newest checkpoint"


def digest(tree: Any) -> str:
    """sha256 of the tensors and values in a tree."""
    whole = hashlib.sha256()
    for piece in _pieces(tree):
        whole.update(piece)
    return whole.hexdigest()


def _pieces(tree: Any) -> Iterator[bytes]:
    if torch.is_tensor(tree):
        yield f"{tree.dtype} {tuple(tree.shape)}".encode()
        yield tree.contiguous().numpy().tobytes()
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield repr(name).encode()
            yield from _pieces(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _pieces(value)
    else:
        yield repr(tree).encode()


def damage(folder: Path, rng: random.Random) -> None:
    """One change of a file or a checkpoint in the folder of a run."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    folders = sorted(path for path in folder.rglob("*") if path.is_dir())
    kind = rng.choice(("bytes", "bytes", "bytes", "remove", "swap", "remove all", "swap all"))
    if kind == "bytes" or len(files) < 2 or len(folders) < 2:
        file = rng.choice(files)
        file.write_bytes(changed(file.read_bytes(), rng))
    elif kind == "remove":
        rng.choice(files).unlink()
    elif kind == "remove all":
        shutil.rmtree(rng.choice(folders))
    else:
        one, other = rng.sample(files if kind == "swap" else folders, 2)
        if one not in other.parents and other not in one.parents:
            aside = folder / "aside"
            one.rename(aside)
            other.rename(one)
            aside.rename(other)


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes of a file, changed in one of seven ways."""
    out = bytearray(data) or bytearray(1)
    at, length = rng.randrange(len(out)), rng.choice((1, 8, 512, 4096))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[at : at + length] = bytes(len(out[at : at + length]))
    elif kind == 2:
        del out[at:]
    elif kind == 3:
        del out[at : at + length]
    elif kind == 4:
        out += rng.randbytes(length)
    elif kind == 5:
        out.clear()
    else:
        out[at:at] = out[at : at + length]
    return bytes(out)


def outcome(killed: Path, work: Path, expected: Expected, name: str) -> str:
    """Damage, load and resume a copy of a run: one of OUTCOMES, or a sentence about the failure."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(killed, work)
    rng = random.Random(name)
    for _ in range(rng.randint(1, 3)):
        damage(work, rng)
    whole = is_whole(killed, work)
    draws = rng.random() < 0.05
    vars(experiment)["plot_training"] = plot_training if draws else lambda folder: None
    try:
        return wrong_model(work, expected) or _outcome(work, expected, whole)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"


def is_whole(killed: Path, work: Path) -> bool:
    """Whether some checkpoint has the bytes that it had, under the name that it had."""
    return any(
        all(
            (work / file.relative_to(killed)).is_file()
            and (work / file.relative_to(killed)).read_bytes() == file.read_bytes()
            for file in path.iterdir()
        )
        for path in checkpoint.checkpoints(killed / "checkpoints")
    )


def wrong_model(work: Path, expected: Expected) -> str | None:
    """A sentence if the model loads, but with weights that no checkpoint of the run had."""
    try:
        model = recognition.load(work, device="cpu")
    except (ValueError, OSError):
        return None
    right = digest(dict(model.network.state_dict())) in expected.models.values()
    return None if right else "model.pt loads with other weights"


def _outcome(work: Path, expected: Expected, whole: bool) -> str:
    code, output, errors = resume(work, f"run.keep={KEEP}", "--resume")
    if code:
        one_line = errors.startswith("error: ") and errors.count("\n") == 1
        if not one_line:
            return f"exit code {code} with {errors!r}"
        return f"refused, though a checkpoint is whole: {errors}" if whole else "refused"
    if errors:
        return f"said {errors!r}"
    if end(work) != expected.end:
        return f"ended with other bits: {end(work)}"
    found = re.search(r"step (\d+)/\d+ ", output)
    first = int(found[1]) if found else 0
    if first == 1:
        told = "starts from step 0" in output
        return "started again, as told" if told else "started again, and told nothing"
    if f"step_{first - 1:08d}" not in output:
        return f"went on at step {first}, and told nothing: {output}"
    return OUTCOMES[0] if first == KILLED_AT + 1 else OUTCOMES[1]


def break_and_resume(folder: Path, numbers: range, seed: int, processes: int) -> Counter[str]:
    """How often each outcome occurred. It prints the failures."""
    expected = make(folder)
    counts: Counter[str] = Counter()
    one_thread = partial(torch.set_num_threads, 1)
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=one_thread) as pool:
        cases = {
            number: pool.submit(
                outcome,
                folder / "killed",
                folder / f"case_{number}",
                expected,
                f"{seed}/{number}",
            )
            for number in numbers
        }
        for number, case in cases.items():
            result = case.result()
            if result not in OUTCOMES:
                print(f"case {number}: {result}", flush=True)
            counts[result if result in OUTCOMES else "FAILED"] += 1
            shutil.rmtree(folder / f"case_{number}")
    return counts


def run(
    *, count: Count = 2000, seed: CountOrZero = 0, first: CountOrZero = 0, processes: Count = 1
) -> dict[str, int]:
    """Damage and resume runs.

    count: number of cases.
    seed: another seed damages in other ways.
    first: number of the first case, to repeat one that failed.
    processes: number of processes that resume runs at the same time.
    """
    with tempfile.TemporaryDirectory() as folder:
        counts = break_and_resume(Path(folder), range(first, first + count), seed, processes)
    for result in (*OUTCOMES, "FAILED"):
        print(f"{counts[result]:6}  {result}")
    failures = counts["FAILED"]
    print(f"{count} damaged runs, {failures} failures")
    record = {"cases": count, "failures": failures, **{name: counts[name] for name in OUTCOMES}}
    if failures:
        raise Failed(f"{failures} of {count} damaged runs failed", record)
    return record


main = command(run)
