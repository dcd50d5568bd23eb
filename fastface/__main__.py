"""When would a scheduler have changed the learning rate of a logged run?

python -m fastface replay LOSSES.csv
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch.optim import SGD, Optimizer

from fastface.plot import draw
from fastface.replay import read_losses, replay
from fastface.schedulers import FastFaceLR, LossScheduler, MovingHaarLR


def restarts(text: str) -> int | None:
    return None if text == "never" else int(text)


# The flags of each scheduler, named as its arguments. Where a flag is missing, the scheduler's own
# default holds.
Settings = dict[str, tuple[Callable[[str], Any], str]]
FASTFACE: Settings = {
    "total_steps": (int, "T, the steps of the run (default: the steps in the file)"),
    "threshold": (float, "λ: a step whose signal lies below it is stationary"),
    "patience_fraction": (float, "share of the run's steps that must be stationary in a row"),
    "factor": (float, "what a decay multiplies the learning rate by"),
    "max_decays": (int, "largest number of decays"),
    "warmup_steps": (int, "steps of linear warm-up"),
    "cooldown": (float, "share of the run at its end in which the learning rate falls to zero"),
}
PUBLISHED: Settings = {
    **FASTFACE,
    "alpha": (float, "weight of the newest loss in its average"),
    "beta": (float, "weight of the newest fall in its average"),
}
FOR_HORIZON: Settings = {
    **FASTFACE,
    "steps_per_epoch": (int, "with --horizon: steps of an epoch (default: no epochs)"),
}
MOVING_HAAR: Settings = {
    "window": (int, "m, the steps in a window (published run: 4000); must be given"),
    "threshold": FASTFACE["threshold"],
    "patience_steps": (int, "steps in a row that must be stationary (default: two windows)"),
    "factor": FASTFACE["factor"],
    "restart_after": (restarts, "decays in a row before the learning rate is raised, or 'never'"),
    "restart_factor": (float, "what a restart multiplies the learning rate by"),
    "warmup_steps": FASTFACE["warmup_steps"],
}
ALL = {**PUBLISHED, **FOR_HORIZON, **MOVING_HAAR}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument on one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m fastface", description="Learning-rate schedulers that watch the loss."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = "Shows when a scheduler would have changed the learning rate of a logged run."
    command = commands.add_parser("replay", help=about, description=about)
    add = command.add_argument
    add(
        "losses",
        metavar="LOSSES.csv",
        help="file with the columns step and loss, which may be gzipped; other columns are ignored",
    )
    add("--scheduler", choices=("fastface", "moving-haar"), default="fastface")
    add("--horizon", action="store_true", help="fastface: FastFaceLR.for_horizon, for short runs")
    add("--lr", type=float, default=0.02, help="base learning rate (default: the published 0.02)")
    add("--json", action="store_true", help='print only {"changes": [{"step", "factor", "lr"}]}')
    add("--plot", metavar="OUT.png", help="draw loss, signal and learning rate (needs matplotlib)")
    for name, (kind, text) in ALL.items():
        shared = name in FASTFACE and name in MOVING_HAAR
        owner = "" if shared else "moving-haar: " if name in MOVING_HAAR else "fastface: "
        add(flag(name), type=kind, default=argparse.SUPPRESS, metavar="N", help=owner + text)
    return parser.parse_args(arguments)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_scheduler(options: argparse.Namespace, optimizer: Optimizer, steps: int) -> LossScheduler:
    """The scheduler that the options ask for; ValueError for flags that do not belong to it."""
    moving_haar = options.scheduler == "moving-haar"
    if moving_haar and options.horizon:
        raise ValueError("--horizon belongs to --scheduler fastface")
    own = MOVING_HAAR if moving_haar else FOR_HORIZON if options.horizon else PUBLISHED
    given = ALL.keys() & vars(options).keys()
    strange = sorted(given - own.keys())
    if strange:
        asked = f"--scheduler {options.scheduler}" + (" --horizon" if options.horizon else "")
        flags, known = ", ".join(map(flag, strange)), ", ".join(map(flag, own))
        raise ValueError(f"{asked} has no {flags}; it has {known}")
    settings = {name: getattr(options, name) for name in given}
    if moving_haar:
        if "window" not in settings:
            raise ValueError(
                "--scheduler moving-haar needs --window N, such as the 4000 of the published run"
            )
        return MovingHaarLR(optimizer, **settings)
    settings.setdefault("total_steps", steps)
    return (FastFaceLR.for_horizon if options.horizon else FastFaceLR)(optimizer, **settings)


def run(options: argparse.Namespace) -> None:
    if not 0.0 < options.lr < math.inf:
        raise ValueError(f"--lr is {options.lr}: expected a number above 0")
    rows = read_losses(options.losses)
    first, last = rows[0][0], rows[-1][0]
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=options.lr)
    scheduler = make_scheduler(options, optimizer, last - first + 1)
    trace = replay(rows, scheduler)
    if options.plot:
        draw(trace, options.plot, title=f"{options.losses} through {type(scheduler).__name__}")
    if options.json:
        print(json.dumps({"changes": [asdict(change) for change in trace.changes]}))
        return

    for change in trace.changes:
        print(f"step {change.step}: learning rate × {change.factor:g} = {change.lr:.6g}")
    changes, lr = len(trace.changes), trace.lrs[-1]
    print(f"{changes} changes from step {first} to {last}, last learning rate {lr:.6g}")
    if left_out := len(rows) - len(trace.steps):
        print(f"{left_out} rows with a NaN or infinite loss were interpolated")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 if the log was replayed, 2 for a wrong argument or file."""
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
