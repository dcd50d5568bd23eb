"""The worst mistakes of a benchmark as one picture, for trackers that show pictures."""

from collections.abc import Sequence

import cv2
import numpy as np

from data.decode import DecodeError, decode_any
from eval.report.result import WorstPair

SIDE = 96  # pixels of a face
CAPTION = 22
ACROSS = 4  # pairs side by side


def worst_sheet(pairs: Sequence[WorstPair]) -> bytes:
    """A PNG of the pairs: first two people taken for one, then one person taken for two.

    Below each pair stand its cosine similarity and what it shows.
    """
    ordered = sorted(pairs, key=lambda pair: pair.same)
    cells = [_cell(pair) for pair in ordered]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % ACROSS)
    rows = [np.hstack(cells[at : at + ACROSS]) for at in range(0, len(cells), ACROSS)]
    bgr = np.ascontiguousarray(np.vstack(rows)[:, :, ::-1])
    return cv2.imencode(".png", bgr)[1].tobytes()


def _cell(pair: WorstPair) -> np.ndarray:
    """RGB uint8 (SIDE + CAPTION, 2 SIDE + 8, 3)."""
    cell = np.full((SIDE + CAPTION, 2 * SIDE + 8, 3), 255, np.uint8)
    for place, encoded in enumerate(pair.images):
        cell[:SIDE, place * SIDE : (place + 1) * SIDE] = _face(encoded)
    text = f"{pair.score:.3f} {'one person' if pair.same else 'two people'}"
    at, font = (2, SIDE + CAPTION - 7), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(cell, text, at, font, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _face(encoded: bytes) -> np.ndarray:
    try:
        decoded = decode_any(encoded)
    except DecodeError:
        return np.full((SIDE, SIDE, 3), 128, np.uint8)
    return cv2.resize(decoded, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
