"""python -m fastface replay LOSSES.csv: when a scheduler would have changed the rate of a logged
run."""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from fastface.plot import draw
from fastface.replay import read_losses, replay
from fastface.schedulers import FastFaceLR, LossScheduler, MovingHaarLR


def restarts(text: str) -> int | None:
    return None if text == "never" else int(text)


# The settings of each scheduler, by the names of its arguments. Without a flag its own default
# holds.
Settings = dict[str, tuple[Callable[[str], Any], str]]
FOR_HORIZON: Settings = {
    "total_steps": (int, "T of the run (default: the steps in the file)"),
    "threshold": (float, "λ: below it the signal is stationary"),
    "factor": (float, "what a decay multiplies the rate by"),
    "max_decays": (int, "no more decays than this"),
    "warmup_steps": (int, "steps of linear warm-up"),
}
FASTFACE: Settings = {
    **FOR_HORIZON,
    "alpha": (float, "rate of the average of the loss"),
    "beta": (float, "rate of the average of its fall"),
    "patience_fraction": (float, "part of the run that must be stationary"),
}
MOVING_HAAR: Settings = {
    "window": (int, "m, steps (published run: 4000); always needed"),
    "threshold": (float, "λ: below it the signal is stationary"),
    "patience_steps": (int, "steps that must be stationary (default: two windows)"),
    "factor": (float, "what a decay multiplies the rate by"),
    "restart_after": (restarts, "decays in a row before the rate is raised, or 'never'"),
    "restart_factor": (float, "what a restart multiplies the rate by"),
    "warmup_steps": (int, "steps of linear warm-up"),
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastface", description="Learning-rate schedulers that read the loss."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "replay", help="when would a scheduler have changed the rate of a logged run?"
    )
    command.add_argument(
        "losses", metavar="LOSSES.csv", help="columns step and loss, others are ignored; .gz too"
    )
    command.add_argument("--scheduler", choices=("fastface", "moving-haar"), default="fastface")
    command.add_argument(
        "--horizon", action="store_true", help="fastface: FastFaceLR.for_horizon, for short runs"
    )
    command.add_argument(
        "--lr", type=float, default=0.02, help="base rate (default: the published 0.02)"
    )
    command.add_argument(
        "--json", action="store_true", help='print {"changes": [{"step", "factor", "rate"}]} only'
    )
    command.add_argument(
        "--plot", metavar="OUT.png", help="draw loss, signal, threshold and rate (needs matplotlib)"
    )
    for name in {**FASTFACE, **MOVING_HAAR}:
        owners = [
            label
            for label, settings in (("fastface", FASTFACE), ("moving-haar", MOVING_HAAR))
            if name in settings
        ]
        kind, text = FASTFACE.get(name) or MOVING_HAAR[name]
        help_text = text if len(owners) == 2 else f"{owners[0]}: {text}"
        command.add_argument(
            flag(name), type=kind, default=argparse.SUPPRESS, metavar="N", help=help_text
        )
    return parser.parse_args(arguments)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def make_scheduler(options: argparse.Namespace, optimizer: Optimizer, steps: int) -> LossScheduler:
    """Raises ValueError for flags that do not belong to the scheduler asked for."""
    asked = f"--scheduler {options.scheduler}" + (" --horizon" if options.horizon else "")
    own = {
        "--scheduler fastface": FASTFACE,
        "--scheduler fastface --horizon": FOR_HORIZON,
        "--scheduler moving-haar": MOVING_HAAR,
    }.get(asked)
    if own is None:
        raise ValueError("--horizon belongs to --scheduler fastface")
    settings = {
        name: value for name, value in vars(options).items() if name in {**FASTFACE, **MOVING_HAAR}
    }
    strange = [flag(name) for name in settings if name not in own]
    if strange:
        raise ValueError(
            f"{asked} does not take {', '.join(strange)}; it takes {', '.join(map(flag, own))}"
        )
    if options.scheduler == "moving-haar":
        if "window" not in settings:
            raise ValueError(
                "--scheduler moving-haar needs --window N, such as the 4000 of the published run"
            )
        return MovingHaarLR(optimizer, **settings)
    settings.setdefault("total_steps", steps)
    return (
        FastFaceLR.for_horizon(optimizer, **settings)
        if options.horizon
        else FastFaceLR(optimizer, **settings)
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        if not 0.0 < options.lr < math.inf:
            raise ValueError(f"--lr is {options.lr}: expected a number above 0")
        rows = read_losses(options.losses)
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=options.lr)
        scheduler = make_scheduler(options, optimizer, rows[-1][0] - rows[0][0] + 1)
        trace = replay(rows, scheduler)
        if options.plot:
            draw(trace, options.plot, title=f"{options.losses} through {type(scheduler).__name__}")
    except (ValueError, OSError) as error:
        print(f"python -m fastface: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"changes": [asdict(change) for change in trace.changes]}))
        return 0
    for change in trace.changes:
        print(f"step {change.step}: rate × {change.factor:g} = {change.rate:.6g}")
    left_out = len(rows) - len(trace.steps)
    print(
        f"{len(trace.changes)} changes from step {rows[0][0]} to {rows[-1][0]}, last rate {trace.rates[-1]:.6g}"
    )
    if left_out:
        print(f"{left_out} rows with a NaN or infinite loss were interpolated over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
