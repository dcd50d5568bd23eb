"""The run doctor: names trouble in the figures of a run in plain words, with what to do.

`examine` and `examine_evaluations` are pure functions of the figures so far. Every check looks at
the last LINES log lines, so a single bad line is no trouble. `metrics.jsonl` holds the names of the
troubles of each line. A trouble is told when its name is in none of the last AWAY lines: once, and
again only after it went away. docs/guides/watching-a-run.md lists what is told.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from recognition.heads._margin import MarginHead

LINES = 8
"""Log lines in a row that show a trouble."""
AWAY = 4 * LINES
"""Log lines without a trouble, after which it is told again."""
SEARCH_STEPS = 100  # in which the loss scale of fp16 falls to where it stays
ALIKE = 0.5  # mean cosine of different people, near 0 in a healthy run
FALLEN_POINTS = 1.0  # of accuracy, in percent
FOLDS = 10  # of an accuracy that has a standard deviation


@dataclass(frozen=True)
class Window:
    """A log line: the figures of the steps since the line before. None: not measured.

    clipped: share of the steps whose gradient was clipped. skipped_steps: of the run so far.
    embedding_norm: median length of the embeddings. cosine_of_others: mean cosine between the
    embeddings of different people. trouble: names of what was found wrong.
    """

    step: int
    loss: float
    learning_rate: float
    data_wait: float = 0.0
    skipped_steps: int = 0
    clipped: float | None = None
    gradient_norm: float | None = None
    loss_scale: float | None = None
    embedding_norm: float | None = None
    cosine_of_others: float | None = None
    trouble: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """The accuracies of an evaluation by set, in percent, with the loss of the last log line.

    errors: the standard error of each accuracy, where it is known.
    """

    step: int
    loss: float
    accuracies: Mapping[str, float]
    errors: Mapping[str, float]
    trouble: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the checks know of a run besides its figures.

    chance_loss: `chance_loss` of its head. threads: decode threads. cores: of the machine.
    """

    total_steps: int
    chance_loss: float
    clip_norm: float | None
    threads: int
    cores: int


Found = Mapping[str, str]
"""What is wrong by name, each as a sentence or two."""


def examine(windows: Sequence[Window], facts: Facts) -> Found:
    """What is wrong at the last of a run's log lines. windows: all of them so far."""
    if len(windows) < LINES:
        return {}
    found = {name: check(windows, facts) for name, check in CHECKS.items()}
    return {name: text for name, text in found.items() if text is not None}


def examine_evaluations(evaluations: Sequence[Evaluation]) -> Found:
    """What is wrong at the last of a run's evaluations."""
    text = _accuracy_falls(evaluations)
    return {} if text is None else {"accuracy_falls": text}


def news(found: Found, before: Sequence[Window] | Sequence[Evaluation]) -> list[str]:
    """The texts of what was not wrong in any of the last AWAY lines `before`."""
    known = {name for line in before[-AWAY:] for name in line.trouble}
    return [text for name, text in found.items() if name not in known]


def window_of(line: Mapping[str, Any]) -> Window | None:
    """A line of metrics.jsonl as a Window; None for another kind of line."""
    if not all(_is_number(line.get(name)) for name in ("step", "loss", "learning_rate")):
        return None
    names = [field.name for field in fields(Window) if field.name != "trouble"]
    figures = {name: line[name] for name in names if _is_number(line.get(name))}
    return Window(**figures, trouble=_names(line))


def evaluation_of(line: Mapping[str, Any], loss: float) -> Evaluation | None:
    """A line of metrics.jsonl as an Evaluation; None for another kind. loss: of the line before."""
    if "loss" in line or not _is_number(line.get("step")):
        return None
    found = {
        name.removesuffix("/accuracy"): float(value)
        for name, value in line.items()
        if name.endswith("/accuracy") and _is_number(value)
    }
    errors = {
        name: line[f"{name}/accuracy_std"] / math.sqrt(FOLDS)
        for name in found
        if _is_number(line.get(f"{name}/accuracy_std"))
    }
    return Evaluation(line["step"], loss, found, errors, trouble=_names(line))


def _names(line: Mapping[str, Any]) -> tuple[str, ...]:
    found = line.get("trouble")
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@torch.no_grad()
def chance_loss(head: MarginHead, classes: int) -> float:
    """The smallest mean loss of a network that tells nobody apart; ln(classes) without a margin.

    Such a network has the same cosine c with every class, its own and the others. With a margin its
    loss is softplus(ln(classes - 1) + s (negative(c) - target(c))), plus the head's penalty. This
    is the smallest over c in [0, 1], and over embeddings of length 1 to 110, on which some heads
    depend. (A random network has cosines near 0, a collapsed one near 1. Near -1, margins without a
    guard are no longer margins.) A network that was never trained has a larger loss, because its
    cosines differ at random.
    """
    lengths = torch.logspace(0, math.log10(110), 12, dtype=torch.float64)
    cos = torch.linspace(0, 1, 201, dtype=torch.float64).repeat_interleave(len(lengths))
    norms = lengths.repeat(201)
    above = head.negatives(cos[:, None], cos[:, None])[:, 0] - head.target(cos, norms)
    losses = F.softplus(math.log(max(classes - 1, 1)) + head.scale * above)
    penalty = head.penalty(norms)
    return float((losses if penalty is None else losses + penalty).min())


def _loss_stuck(windows: Sequence[Window], facts: Facts) -> str | None:
    """At or above the loss of chance, and not falling, though the rate is not in its warm-up.

    It looks at twice LINES, because losses are noisy, and at a hundredth of a long run.
    """
    steps, first = facts.total_steps / 100, len(windows) - 2 * LINES
    while first > 0 and windows[-1].step - windows[first].step < steps:
        first -= 1
    seen = windows[max(first, 0) :]
    warms_up = seen[0].learning_rate < 0.9 * seen[-1].learning_rate
    if first < 0 or seen[-1].step - seen[0].step < steps or warms_up:
        return None
    half = len(seen) // 2
    older, newer = (np.array([w.loss for w in some]) for some in (seen[:half], seen[half:]))
    fall, now = older.mean() - newer.mean(), newer.mean()
    noise = math.hypot(older.std(), newer.std()) / math.sqrt(half)
    if not (now >= 0.97 * facts.chance_loss and fall <= max(0.005 * now, noise)):
        return None
    return (
        f"the loss stays at {now:.2f} since step {seen[0].step}; a network that tells nobody apart "
        f"has {facts.chance_loss:.2f} or more. Look at data.train (are the labels right?); raise "
        "optim.lr tenfold if it is small, lower it if the loss has jumped up before, or train the "
        "first epochs with a smaller head.margin"
    )


def _embeddings_collapse(windows: Sequence[Window], facts: Facts) -> str | None:
    """Different people are alike, in all lines, and do not become less so."""
    cosines = [w.cosine_of_others for w in windows[-LINES:]]
    known = [c for c in cosines if c is not None]
    if len(known) < LINES or min(known) < ALIKE or known[-1] < known[0] - 0.05:
        return None
    return (
        f"the embeddings collapse: those of different people have a mean cosine of {known[-1]:.2f} "
        "in a batch, and 0 is usual. Lower optim.lr, lengthen the warm-up "
        "(scheduler.warmup_steps), or start from weights (init.weights)"
    )


def _always_clipped(windows: Sequence[Window], facts: Facts) -> str | None:
    """The gradient was clipped in every step of a quarter of the run.

    Shorter stretches are usual at the begin of a run and where its loss is nearly flat.
    """
    since = windows[-1].step - facts.total_steps / 4
    seen = [w for w in windows if w.step > since]
    if facts.clip_norm is None or since < 0 or len(seen) < LINES:
        return None
    if not all(w.clipped == 1.0 for w in seen):
        return None
    norms = [w.gradient_norm for w in seen if w.gradient_norm is not None]
    usual = f" (its norm is about {median(norms):.3g})" if norms else ""
    return (
        f"the gradient was clipped in every step since step {seen[0].step}{usual}, so a step is as "
        f"long as optim.lr and optim.clip_norm={facts.clip_norm:g} make it, whatever the gradient "
        "says. If the loss does not fall well, raise optim.clip_norm above the norm, or lower "
        "optim.lr"
    )


def _scale_falls(windows: Sequence[Window], facts: Facts) -> str | None:
    """The loss scale of fp16 falls on, after it was found. A healthy one stays above 1."""
    seen = [w for w in windows[-LINES:] if w.loss_scale is not None and w.step > SEARCH_STEPS]
    scales = [w.loss_scale for w in seen if w.loss_scale is not None]
    if not scales or not (scales[-1] < 1 or scales[-1] <= max(scales) / 16):
        return None
    return (
        f"the loss scale of fp16 falls: it is {scales[-1]:.3g}, and was {max(scales):.3g} at step "
        f"{seen[scales.index(max(scales))].step}. Gradients overflow again and again; lower "
        "optim.lr, or use run.precision=bf16"
    )


def _steps_skipped(windows: Sequence[Window], facts: Facts) -> str | None:
    """A fifth of the steps had no finite loss or gradient."""
    first, last = windows[-LINES], windows[-1]
    skipped, steps = last.skipped_steps - first.skipped_steps, last.step - first.step
    if first.step < SEARCH_STEPS and last.loss_scale is not None:
        return None
    if skipped <= max(steps / 5, 2):
        return None
    return (
        f"{skipped} of the last {steps} steps were skipped, because their loss or gradient was not "
        "finite. Lower optim.lr; with run.precision=fp16 try bf16"
    )


def _waits_for_data(windows: Sequence[Window], facts: Facts) -> str | None:
    """A tenth of the time goes by waiting for images."""
    least = min(w.data_wait for w in windows[-LINES:])
    share = mean(w.data_wait for w in windows[-LINES:])
    return wait_advice(share, threads=facts.threads, cores=facts.cores) if least > 0.1 else None


def wait_advice(share: float, *, threads: int, cores: int) -> str | None:
    """What to change if a run waits for data during more than a tenth of its time, else None.

    share: the share of the time spent waiting, 0 to 1. threads: decode threads.
    """
    if share <= 0.10:
        return None
    waited = f"{share:.0%} of the time was spent waiting for data: "
    if threads < cores:
        return waited + f"raise data.threads from {threads} towards this machine's {cores} cores"
    return waited + (
        "all cores decode already. If the images are larger than data.size, store them at that "
        "size (python -m tools.convert). If the cores are idle, move the set to a faster disk or "
        "use data.order=block"
    )


def _norm_blows_up(windows: Sequence[Window], facts: Facts) -> str | None:
    """The embeddings are ten times as long as in the first lines."""
    known = [w.embedding_norm for w in windows[:LINES] if w.embedding_norm is not None]
    norms = [w.embedding_norm for w in windows[-LINES:] if w.embedding_norm is not None]
    if len(known) < LINES or len(norms) < LINES or min(norms) < 10 * median(known):
        return None
    return (
        f"the embeddings grow without bound: their length is {norms[-1]:.3g}, and was "
        f"{median(known):.3g} at the begin. The loss does not need their length, and numbers so "
        "large lose precision; raise optim.weight_decay, lower optim.lr, or set optim.clip_norm"
    )


def _rate_zero(windows: Sequence[Window], facts: Facts) -> str | None:
    """The rate is a hundred-thousandth of the highest, long before the end."""
    seen, left = windows[-LINES:], facts.total_steps - windows[-1].step
    most = 1e-5 * max(w.learning_rate for w in windows)
    if left < facts.total_steps / 10 or any(w.learning_rate > most for w in seen):
        return None
    return (
        f"the learning rate is {seen[-1].learning_rate:.2g}, as good as zero, and {left} steps are "
        "left, which will change nothing. End the run here (run.max_steps) and look at the options "
        "of the scheduler: it lowers the rate too often or too early"
    )


def _accuracy_falls(evaluations: Sequence[Evaluation]) -> str | None:
    """Two evaluations in a row lie clearly below the best one, while the loss is lower than then.

    Clearly: by more than a point and by more than two standard errors of the difference.
    """
    for name in evaluations[-1].accuracies if evaluations else ():
        known = [one for one in evaluations if name in one.accuracies]
        if len(known) < 3:
            continue
        best = max(known[:-2], key=lambda one: one.accuracies[name])
        error = math.hypot(best.errors.get(name, 0.0), known[-1].errors.get(name, 0.0))
        fallen = max(FALLEN_POINTS, 2 * error)
        last, top = known[-1], best.accuracies[name]
        falls = all(top - one.accuracies[name] > fallen for one in known[-2:])
        if falls and last.loss < best.loss:
            return (
                f"the accuracy on {name} fell from {top:.2f} (step {best.step}) to "
                f"{last.accuracies[name]:.2f}, while the loss fell from {best.loss:.2f} to "
                f"{last.loss:.2f}: the network learns its training images by heart. Keep the best "
                f"checkpoint (run.keep_best={name}/accuracy), end the run earlier, or use more "
                "data.augment, more people, or a smaller backbone"
            )
    return None


CHECKS: Mapping[str, Callable[[Sequence[Window], Facts], str | None]] = {
    "loss_stuck": _loss_stuck,
    "embeddings_collapse": _embeddings_collapse,
    "always_clipped": _always_clipped,
    "scale_falls": _scale_falls,
    "steps_skipped": _steps_skipped,
    "waits_for_data": _waits_for_data,
    "norm_blows_up": _norm_blows_up,
    "rate_zero": _rate_zero,
}


class Doctor:
    """Examines a run as it goes on. lines: metrics.jsonl of its earlier starts."""

    def __init__(self, facts: Facts, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        self._facts = facts
        self._windows: list[Window] = []
        self._evaluations: list[Evaluation] = []
        self._in_windows: Found = {}
        self._in_evaluations: Found = {}
        for line in lines:
            self._note(line, _names(line))

    @property
    def found(self) -> Found:
        """What is wrong now."""
        return {**self._in_windows, **self._in_evaluations}

    def look(self, line: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Examine a new line of metrics.jsonl: names of what is wrong, and the news as texts."""
        self._note(line, ())
        if "loss" in line:
            windows = self._windows
            self._in_windows = found = examine(windows, self._facts)
            told = news(found, windows[:-1])
            if windows:
                windows[-1] = replace(windows[-1], trouble=tuple(found))
        else:
            evaluations = self._evaluations
            self._in_evaluations = found = examine_evaluations(evaluations)
            told = news(found, evaluations[:-1])
            if evaluations:
                evaluations[-1] = replace(evaluations[-1], trouble=tuple(found))
        return list(found), told

    def _note(self, line: Mapping[str, Any], trouble: tuple[str, ...]) -> None:
        if window := window_of(line):
            self._windows.append(replace(window, trouble=trouble))
        elif self._windows:
            evaluation = evaluation_of(line, self._windows[-1].loss)
            self._evaluations += [replace(evaluation, trouble=trouble)] if evaluation else []
