"""train.py which also notes the images that each process trains on; scripts/soak/resume.py runs it.

    SEEN=FOLDER python -m scripts.soak._seen --config …

FOLDER/RANK.jsonl gets a line per batch: the place of the run before it (data/steps.py), and its
indices in the set.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import train
from data.loader import Loader
from data.types import Batch


def main() -> int:
    """Train as the command line says, and return the exit code of train.py."""
    rank = os.environ.get("RANK", "0")
    finish = Loader._finish
    with Path(os.environ["SEEN"], f"{rank}.jsonl").open("a") as notes:

        def noted(loader: Loader, pending: Any) -> Batch:
            line = {"place": loader.place, "images": pending.indices.tolist()}
            notes.write(json.dumps(line) + "\n")
            notes.flush()
            return finish(loader, pending)

        with mock.patch.object(Loader, "_finish", noted):
            return train.main()


if __name__ == "__main__":
    sys.exit(main())
