"""The tables of the finished rows of scripts/experiments/cleaning.py."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.paired import accuracy_difference
from scripts._tables import TableRow
from scripts.experiments._judge import right_of

METHODS = (
    "noise",
    "noise_both",
    "merge",
    "split",
    "original",
    "mobilefacenet",
)  # figures that a record may have


def read_records(results: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Row -> seed -> record."""
    records: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(results.glob("*_[0-9].json")):
        record = json.loads(path.read_text())
        records.setdefault(record["row"], {})[record["seed"]] = record
    return records


def found_table(results: Path) -> list[TableRow]:
    """One line per seed and method: what was found of what was planted, in percent."""
    lines: list[TableRow] = []
    for row, seeds in read_records(results).items():
        for seed, record in sorted(seeds.items()):
            for method in METHODS:
                if method in record:
                    figures = record[method]
                    kept = ("planted", "found", "right", "precision", "recall")
                    line = {"method": method, "vectors of": row, "seed": seed}
                    more = {"best recall": figures.get("best_recall", "")}
                    more |= {"expected precision": figures.get("expected_precision", "")}
                    lines.append(line | {key: figures[key] for key in kept} | more)
    return sorted(lines, key=lambda line: (line["method"], line["vectors of"], line["seed"]))


def decisions(records: dict[int, dict[str, Any]], seeds: list[int]) -> np.ndarray:
    """Which pairs of LFW each seed's model judged correctly, bool (S,6000)."""
    return np.stack([right_of(records[seed]["lfw"]) for seed in seeds])


def accuracy_table(results: Path, rows: Sequence[str]) -> list[TableRow]:
    """One line per finished row, in this order: LFW, and the paired differences from two others."""
    records = read_records(results)
    lines: list[TableRow] = []
    for row in (row for row in rows if row in records):
        own = records[row]
        accuracies = [record["lfw"]["accuracy"] for record in own.values()]
        line: dict[str, object] = {"row": row, "seeds": len(own)}
        line["images"] = round(float(np.mean([one.get("images", 5998) for one in own.values()])))
        line["accuracy"] = f"{np.mean(accuracies):.2f}"
        for other in ("noisy", "original"):
            shared = sorted(set(own) & set(records.get(other, {})))
            line[f"above {other}"] = ""
            if shared and row != other:
                one, two = (decisions(records[name], shared) for name in (row, other))
                line[f"above {other}"] = str(accuracy_difference(one, two))
        seconds = [record["cpu_seconds"] for record in own.values()]
        line["CPU seconds"] = round(float(np.mean(seconds)))
        lines.append(line)
    return lines
