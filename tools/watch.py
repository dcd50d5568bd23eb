"""Shows what a run is doing: alive or not, its last step, the time left, what is wrong with it.

    python -m tools.watch RUN

RUN is a run folder. On a terminal it shows the run until that ends; --once shows it once. Exit code
1: the run failed, or its process is gone.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from data.options import Count
from recognition.heartbeat import ENDED, is_alive, read_heartbeat
from tools._cli import Failed, command

REFRESH_SECONDS = 5.0
TAIL_BYTES = 1 << 16
SILENT_SECONDS = 120.0  # without a heartbeat while training; a step and its data take less


def look(folder: Path, lines: int) -> dict[str, Any]:
    """What there is to know about the run in `folder`. lines: how many of metrics.jsonl.

    `verdict` is one of running, silent, finished, stopped, failed, gone, unknown.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the folder of a run (its run.output)")
    beat = read_heartbeat(folder)
    saved = sorted(path.name for path in folder.glob("checkpoints/step_*") if path.suffix == "")
    shown: dict[str, Any] = {
        "folder": str(folder),
        "verdict": "unknown",
        "alive": None,
        "checkpoint": saved[-1] if saved else None,
        "last": last_lines(folder / "metrics.jsonl", lines),
    }
    if beat is None:
        return shown
    age = max(time.time() - beat["time"], 0.0)
    alive = is_alive(beat)
    return {**shown, **beat, "alive": alive, "age_seconds": age, "verdict": judge(beat, alive, age)}


def judge(beat: dict[str, Any], alive: bool | None, age: float) -> str:
    """What a heartbeat, the life of its process and its age in seconds mean together."""
    if beat["state"] in ENDED:
        return str(beat["state"])
    if alive is False:
        return "gone"
    # An evaluation sends no heartbeats, and a checkpoint may go to a slow drive.
    return "silent" if beat["state"] == "training" and age > SILENT_SECONDS else "running"


def last_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` lines of metrics.jsonl that are whole; no more of the file is read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            raw = file.read(TAIL_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in reversed(raw):
        try:
            content = json.loads(line)
        except ValueError:
            continue  # half a line, of a crash or at the begin of what was read
        if isinstance(content, dict):
            found.append(content)
        if len(found) == count:
            break
    return found[::-1]


def describe(shown: dict[str, Any]) -> list[str]:
    """The lines that `look` is shown as."""
    lines = [f"{shown['folder']}: {_headline(shown)}"]
    if "step" in shown:
        eta = shown["eta_seconds"]
        left = f", {_time(eta)} left" if eta is not None and shown["alive"] is not False else ""
        figures = [
            f"loss {shown['loss']:.4f}" if shown["loss"] is not None else "",
            f"{shown['images_per_second']:.0f} images/s" if shown["images_per_second"] else "",
        ]
        lines.append(
            ", ".join([f"step {shown['step']} of {shown['total']}", *filter(None, figures)]) + left
        )
    lines += [f"warning: {text}" for text in shown.get("trouble", [])]
    lines.append(f"newest checkpoint: {shown['checkpoint'] or 'none yet'}")
    lines += [f"  {_line(content)}" for content in shown["last"]]
    # What a file says must not move the cursor of a terminal.
    return ["".join(c if c.isprintable() else " " for c in line) for line in lines]


def _headline(shown: dict[str, Any]) -> str:
    verdict = shown["verdict"]
    if verdict == "unknown":
        return "no heartbeat: no run has begun to train here, or one of an older version"
    where = f"process {shown['pid']} on {shown['host']}"
    age = _time(shown["age_seconds"])
    seen = "" if shown["alive"] else ", which can't be looked at from here"
    texts = {
        "running": f"{shown['state']}, {where}{seen}, heartbeat {age} ago",
        "silent": f"{where}{seen} has not made a step for {age}; it may hang",
        "finished": f"finished {age} ago",
        "stopped": f"stopped {age} ago: {shown['reason']}",
        "failed": f"failed {age} ago: {shown['reason']}",
        "gone": f"{where} is gone without a word while {shown['state']}, {age} ago at the latest: "
        "it was killed (out of memory, kill -9) or the machine went down; --resume continues",
    }
    return texts[verdict]


def _line(content: dict[str, Any]) -> str:
    """One line of metrics.jsonl: the figures of a window, or of an evaluation."""
    names = ["loss", "learning_rate", "gradient_norm", "skipped_steps", "images_per_second"]
    names = [name for name in names if name in content] or [
        name for name in content if name.endswith("/accuracy")
    ]
    figures = [f"{name} {content[name]:.6g}" for name in names if _is_number(content[name])]
    return "  ".join([f"step {content.get('step', '?')}", *figures])


def _time(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03, or 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours or minutes else f"{rest} s"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def run(folder: Path, *, once: bool = False, lines: Count = 5) -> dict[str, Any]:
    """Show a run.

    folder: the folder of a run, its run.output.
    once: show it once, even on a terminal.
    lines: how many of the last lines of metrics.jsonl are shown.
    """
    follow = sys.stdout.isatty() and not once
    shown = look(folder, lines)
    while follow and shown["verdict"] in ("running", "silent"):
        print("\x1b[2J\x1b[H" + "\n".join(describe(shown)), flush=True)
        time.sleep(REFRESH_SECONDS)
        shown = look(folder, lines)
    print("\n".join(describe(shown)))
    if shown["verdict"] in ("failed", "gone"):
        raise Failed(f"the run in {folder} {'failed' if shown['reason'] else 'is gone'}", shown)
    return shown


main = command(run)
