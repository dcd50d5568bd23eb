"""`run.keep_best`: which checkpoint has the best figure of the evaluations.

The best checkpoint holds a file `best.json` with the figure. Its folder has a model.pt and a
config.yaml as well, so `--model` takes it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.files import atomic_write
from data.parts import find_part, hint
from data.text import one_line
from recognition.checkpoint import checkpoints, newest
from recognition.config import Config
from recognition.distributed import Ranks

MARK = "best.json"


def check_keep_best(config: Config) -> None:
    """Raise ValueError unless `run.keep_best` names a figure of a set in `evaluate.sets`."""
    if config.run.keep_best is None:
        return
    figures = [
        f"{item['name']}/{metric}"
        for item in config.evaluate.sets
        for metric in _protocol(item).columns
    ]
    if config.run.keep_best not in figures:
        known = hint(config.run.keep_best, figures) if figures else "evaluate.sets is empty"
        raise ValueError(
            f"run.keep_best: found {config.run.keep_best!r}, expected a figure such as "
            f"lfw/accuracy; {known}"
        )


def best_checkpoint(config: Config, folder: Path) -> Path | None:
    """The checkpoint that `run.keep_best` keeps in the run folder; None if there is none."""
    found = _best(config, folder)
    return found[0] if found else None


def mark_best(config: Config, folder: Path, values: Mapping[str, float], ranks: Ranks) -> None:
    """Mark the newest checkpoint in the run folder, which was evaluated, if its figure is the best.

    values: what the evaluation measured, in the notation of `run.keep_best`. Only rank 0 writes.
    """
    metric, saved = config.run.keep_best, newest(folder / "checkpoints")
    if metric is None or saved is None or ranks.rank > 0:
        return
    value = values.get(metric, math.nan)
    if not math.isfinite(value):
        print(one_line(f"run.keep_best: this evaluation has no figure {metric}"), flush=True)
        return
    before = _best(config, folder)
    if before and not _better(config, value, before[1]):
        return
    # A crash between the two lines leaves two marks, and the better one counts.
    with atomic_write(saved / MARK, "w") as file:
        json.dump({"metric": metric, "value": value}, file)
    if before and before[0] != saved:
        (before[0] / MARK).unlink()
    print(one_line(f"best {metric} so far: {value:.3f}, kept in {saved}"), flush=True)


def _best(config: Config, folder: Path) -> tuple[Path, float] | None:
    """The checkpoint with the best figure among those that are marked, and the figure."""
    best: tuple[Path, float] | None = None
    for path in checkpoints(folder / "checkpoints"):
        value = _marked(path / MARK, config.run.keep_best)
        if value is not None and (best is None or _better(config, value, best[1])):
            best = path, value
    return best


def _marked(mark: Path, metric: str | None) -> float | None:
    """The figure in a mark, None if there is none or one of another metric."""
    if metric is None or not mark.is_file():
        return None
    try:
        written = json.loads(mark.read_bytes())
        return float(written["value"]) if written["metric"] == metric else None
    except (ValueError, TypeError, KeyError, OverflowError):
        print(f"{mark}: not readable; this checkpoint no longer counts as the best", flush=True)
        mark.unlink()
        return None


def _better(config: Config, value: float, than: float) -> bool:
    name, _, metric = str(config.run.keep_best).partition("/")
    items = {item["name"]: item for item in config.evaluate.sets}
    return value < than if metric in _protocol(items[name]).less_is_better else value > than


def _protocol(item: Mapping[str, Any]) -> Any:
    return find_part("eval.benchmarks", item.get("protocol", "pairs")).PROTOCOL
