"""Runs train.py for an experiment, in one thread, and measures what it takes."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools._cli import Failed


def run_training(config: str, options: Sequence[str], folder: Path) -> float:
    """Run train.py, or continue it, with run.output=`folder`. Returns this call's CPU seconds.

    Its output is appended to `folder`.log. The folder `compiled` beside the run keeps the compiled
    code, so that each run of a network but the first only loads it. Failed if train.py fails.
    """
    log = folder.parent / f"{folder.name}.log"
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "train.py", "--config", config, "--resume"),
        *(*options, f"run.output={folder}"),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str((folder.parent / "compiled").resolve()),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "a") as output:
        done = subprocess.run(command, check=False, stdout=output, stderr=output, env=environment)
    if done.returncode:
        raise Failed(f"{folder.name}: train.py ended with code {done.returncode}; see {log}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
