"""Train a face-recognition model: python train.py --config configs/NAME.yaml [section.key=value
...]"""

from __future__ import annotations

import argparse
import logging
import sys

from recognition.config import ConfigError
from recognition.parse import load_config, to_yaml


def main() -> int:
    """Exit code 0: trained and evaluated; 2: a mistake in config, data or place; 1: training
    failed; 130: stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of run.output"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="e.g. optim.lr=0.05 data.root=/faces",
    )
    arguments = parser.parse_intermixed_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(to_yaml(config), end="")
            return 0
        from data.loader import UnreadableImages

        # imports the evaluators too; a mistake above is told without waiting for it
        from recognition import (
            experiment,
        )
        from recognition.trainer import Stopped, TrainingError

        try:
            folder = experiment.run(config, arguments.config, resume=arguments.resume)
        except Stopped as stopped:
            print(stopped)
            return 130
        except (TrainingError, UnreadableImages) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = folder / "results.md"
    if results.exists():
        print("\n" + results.read_text())
    print(f"run folder: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
