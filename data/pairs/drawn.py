"""Balanced pairs drawn from any set of faces."""

from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.pairs.lists import Pairs
from data.types import FaceSet


def from_faces(path: str | Path, *, count: int = 6000, seed: int = 0, folds: int = 10) -> Pairs:
    """`count` balanced pairs drawn from any set of faces, the same for the same seed.

    No identity is in two folds, if there are two identities or more per fold. Otherwise all folds
    draw from all identities, and a note says so.
    """
    faces: FaceSet = open_faces(path)
    rng = np.random.default_rng(seed)
    order = np.argsort(faces.labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(faces.labels[order])) + 1)
    notes: tuple[str, ...] = ()
    if count % (2 * folds) or count <= 0:
        raise ValueError(
            f"count: {count} pairs cannot be balanced over {folds} folds; "
            f"give a multiple of {2 * folds}"
        )
    if len(members) < 2 * folds:
        groups = [members] * folds
        notes = (
            f"{len(members)} identities are too few for disjoint folds: the folds share people",
        )
    else:
        shuffled = [members[i] for i in rng.permutation(len(members))]
        groups = [shuffled[k::folds] for k in range(folds)]
    each = count // (2 * folds)
    pairs: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    for k, group in enumerate(groups):
        for genuine in (True, False):
            drawn = _draw(group, each, genuine, rng, known)
            if len(drawn) < each:
                kind = "genuine" if genuine else "impostor"
                raise ValueError(
                    f"{path}: fold {k} has only {len(drawn)} {kind} pairs, but count={count} "
                    f"needs {each} in each fold; lower count"
                )
            pairs += drawn
    first, second = np.array(pairs).T
    same = np.tile(np.repeat([True, False], each), folds)
    return Pairs(faces, first, second, same, notes)


def _draw(
    group: list[np.ndarray],
    count: int,
    genuine: bool,
    rng: np.random.Generator,
    known: set[tuple[int, int]],
) -> list[tuple[int, int]]:
    """Up to `count` new pairs of a group's images, which are added to `known`.

    First identities are drawn uniformly, then images of them. A small group may have fewer pairs.
    """
    able = [ids for ids in group if len(ids) > 1] if genuine else group
    drawn: list[tuple[int, int]] = []
    if len(able) < (1 if genuine else 2):
        return drawn
    for _ in range(50 * count):
        if len(drawn) == count:
            break
        if genuine:
            a, b = rng.choice(able[rng.integers(len(able))], 2, replace=False)
        else:
            i, j = rng.choice(len(able), 2, replace=False)
            a, b = rng.choice(able[i]), rng.choice(able[j])
        pair = (min(int(a), int(b)), max(int(a), int(b)))
        if pair not in known:
            known.add(pair)
            drawn.append(pair)
    return drawn
