"""scores.npz: every pair's distance in the results of a folder, so that models can be compared."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.arrays import read_npz
from data.text import one_line
from eval.report.result import Result, Scores

FILE = "scores.npz"


def scores_npz(results: Sequence[Result]) -> bytes | None:
    """The file of all results that have scores; None if no result has any.

    Each list NAME has three arrays: NAME.distances float32 (P,), NAME.same bool (P,) and
    NAME.digest uint8 (16,).
    """
    arrays: dict[str, np.ndarray] = {}
    for result in results:
        for name, scores in result.scores.items():
            digest = np.frombuffer(bytes.fromhex(scores.digest), np.uint8)
            columns = {"distances": scores.distances, "same": scores.same, "digest": digest}
            arrays |= {f"{name}.{key}": column for key, column in columns.items()}
    if not arrays:
        return None
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def read_scores(folder: str | Path) -> dict[str, Scores]:
    """The scores in a folder of results, by list; OSError or ValueError says what is wrong."""
    path = Path(folder) / FILE
    if not path.exists():
        why = f"no {FILE} in it"
        if (path.parent / "results.json").exists():
            why += ", but results of an earlier version or without lists of pairs"
        raise FileNotFoundError(
            f"{folder}: {why}; write it with `python -m eval pairs … --out FOLDER`"
        )
    arrays = read_npz(path)
    names = [key.removesuffix(".digest") for key in arrays if key.endswith(".digest")]
    return {name: _scores(arrays, name, path) for name in names}


def _scores(arrays: dict[str, np.ndarray], name: str, path: Path) -> Scores:
    distances, same, digest = (
        arrays.get(f"{name}.{key}", np.empty(0)) for key in ("distances", "same", "digest")
    )
    kinds = [str(array.dtype) for array in (distances, same, digest)]
    shapes = [array.shape for array in (distances, same, digest)]
    if kinds != ["float32", "bool", "uint8"] or shapes != [(len(same),), (len(same),), (16,)]:
        raise ValueError(f"{path}: no scores of {one_line(name)}: arrays missing or of other types")
    if not np.isfinite(distances).all():
        raise ValueError(f"{path}: the scores of {one_line(name)} are not all finite")
    return Scores(distances, same, digest.tobytes().hex())
