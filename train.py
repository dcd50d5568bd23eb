"""Train a face-recognition model: python train.py --config configs/NAME.yaml [section.key=value …]

Exit code 0: trained and evaluated. 1: the training failed. 2: a mistake in an argument, the config
or the data. 130: stopped; --resume continues.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence

import torch

from data.loader import UnreadableImages
from data.names import NOTES
from data.text import one_line
from recognition import experiment
from recognition.checkpoint import SaveFailed
from recognition.config import ConfigError
from recognition.distributed import ToldElsewhere, lost_others, read_launch
from recognition.explain import explain, listing
from recognition.parse import load_config, to_yaml
from recognition.stop import EXIT_CODE, Stopped
from recognition.trainer import TrainingError
from tools._cli import command_parser
from tools.plan import out_of_memory


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
    level = logging.INFO if _first_rank() else logging.WARNING
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(_on_one_line)
    handler.addFilter(_notes_once())
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])
    if not _first_rank():
        logging.getLogger(NOTES).setLevel(logging.ERROR)
    try:
        return _act(options)
    except torch.OutOfMemoryError as error:
        _tell(error, out_of_memory(options.config, options.overrides, read_launch().world))
        return 1
    except Stopped as stopped:
        if _first_rank():
            again = [word for word in argv or sys.argv[1:] if word != "--resume"]
            print(
                f"{stopped}; go on with: {shlex.join(['python', 'train.py', *again, '--resume'])}"
            )
        return EXIT_CODE
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        _tell(error, told)
        return 2 if isinstance(error, ConfigError) else 1


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _told(error: Exception) -> str | None:
    """What to tell of an error that files, the machine or other processes cause; None for a bug."""
    if isinstance(error, (ConfigError, TrainingError, SaveFailed, UnreadableImages)):
        return str(error)
    if isinstance(error, OSError):
        named = f"{error.filename}: {error.strerror}"
        return named if error.filename else " ".join(str(error).split())
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
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    where = "" if alone or shared else f"rank {rank}: "
    print(one_line(f"error: {where}{told}"), file=sys.stderr)


def _on_one_line(record: logging.LogRecord) -> bool:
    """Replaces a log message by `one_line`: it may hold the name of a file."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def _notes_once() -> Callable[[logging.LogRecord], bool]:
    """A filter that shows each note about a set once, though every evaluation looks at it again."""
    shown: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = record.name != NOTES or text not in shown
        shown.add(text if record.name == NOTES else "")
        return new

    return is_new


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
    if not _first_rank():
        return 0
    results = folder / "results.md"
    if results.exists():
        print(f"\n{results.read_text(errors='replace')}")
    print(f"run folder: {folder}")
    if options.json:
        print(json.dumps({"folder": str(folder)}))
    return 0


def _leave(code: int) -> None:
    """End the process with an exit code.

    One of several ends without tearing Python down: a thread of gloo may still hold the tensors of
    the last collective, and to free them meanwhile aborts the process now and then.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    _leave(main())
