"""Train a face-recognition model: python train.py --config configs/NAME.yaml [section.key=value …]

Exit code 0: trained and evaluated. 1: the training failed. 2: a mistake in an argument, the config
or the data. 130: stopped; --resume continues.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence

from data.loader import UnreadableImages
from recognition import experiment
from recognition.checkpoint import SaveFailed
from recognition.config import ConfigError
from recognition.distributed import ToldElsewhere, lost_others
from recognition.explain import explain, listing
from recognition.parse import load_config, to_yaml
from recognition.trainer import Stopped, TrainingError
from tools._cli import command_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says, and return the exit code."""
    parser = command_parser("train", __doc__)
    parser.prog, parser.epilog = "train.py", f"keys of a config:\n{listing()}"
    parser.add_argument("--config", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in run.output"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    parser.add_argument(
        "--explain",
        metavar="KEY",
        help="explain a key (head.margin) or all keys of a section (optim), and stop; with "
        "--config only those of the parts that it chooses",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="such as optim.lr=0.05 data.root=/faces",
    )
    options = parser.parse_intermixed_args(argv)
    if not (options.config or options.explain):
        parser.error("--config is missing: give a YAML file, such as configs/quickstart.yaml")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        return _act(options)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped)
        return 130
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        _tell(error, told)
        return 2 if isinstance(error, ConfigError) else 1


def _told(error: Exception) -> str | None:
    """What to tell of an error that files, the machine or other processes cause; None for a bug."""
    if isinstance(error, (ConfigError, TrainingError, SaveFailed, UnreadableImages)):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        first = str(error).partition("\n")[0]
        return f"this machine's memory does not suffice ({first}); lower optim.batch_size"
    if lost := lost_others(error):
        return f"another process ended, and its error or torchrun's Root Cause tells why ({lost})"
    return None


def _tell(error: Exception, told: str) -> None:
    """Print one line, once for an error that all processes of this machine meet."""
    rank, local = os.environ.get("RANK", "0"), os.environ.get("LOCAL_RANK", "0")
    shared = isinstance(error, (ConfigError, TrainingError, SaveFailed))
    if isinstance(error, ToldElsewhere) or (shared and local != "0"):
        return
    where = "" if os.environ.get("WORLD_SIZE", "1") == "1" or shared else f"rank {rank}: "
    print(f"error: {where}{' '.join(told.split())}", file=sys.stderr)


def _act(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides) if options.config else None
    if options.explain:
        print(explain(options.explain, config))
        return 0
    assert config is not None
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    folder = experiment.run(config, options.config, resume=options.resume)
    results = folder / "results.md"
    if results.exists():
        print(f"\n{results.read_text(errors='replace')}")
    print(f"run folder: {folder}")
    if options.json:
        print(json.dumps({"folder": str(folder)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
