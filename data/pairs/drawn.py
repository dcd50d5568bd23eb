"""Balanced pairs drawn from any set of faces."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from data.faces import open_faces
from data.fingerprint import keys_and_sizes
from data.pairs.lists import Pairs, pairs_digest
from data.types import FaceSet


def from_faces(path: str | Path, *, count: int = 6000, seed: int = 0, folds: int = 10) -> Pairs:
    """`count` balanced pairs drawn from any set of faces, the same for the same seed.

    No identity is in two folds, if there are two identities or more per fold. Otherwise all folds
    draw from all identities, and a note says so. ValueError names the largest count possible.
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
    largest = _largest_count(members, groups)
    if count > largest:
        raise ValueError(
            f"{path}: {len(members)} people with {len(faces)} images give at most {largest} pairs "
            f"in {folds} folds, but count is {count}"
            + ("; give a smaller count" if largest else "; add images or people")
        )
    each = count // (2 * folds)
    pairs: list[tuple[int, int]] = []
    known: set[tuple[int, int]] = set()
    for group in groups:
        for genuine in (True, False):
            pairs += _draw(group, each, genuine, rng, known)
    first, second = np.array(pairs).T
    same = np.tile(np.repeat([True, False], each), folds)
    numbers = range(len(faces))
    keys = [" ".join(map(str, one)) for one in zip(numbers, *keys_and_sizes(faces), strict=True)]
    return Pairs(faces, first, second, same, notes, pairs_digest(keys, first, second, same))


def _largest_count(members: list[np.ndarray], groups: list[list[np.ndarray]]) -> int:
    """The most pairs that these groups of people, one per fold, can give in balanced folds.

    members: the images of each person. Each fold gets as many pairs as the poorest one has.
    """
    if len(groups[0]) == len(members):  # the folds share all people, and no pair is used twice
        return 2 * len(groups) * (min(_count_pairs(members)) // len(groups))
    return 2 * len(groups) * min(min(_count_pairs(group)) for group in groups)


def _count_pairs(group: list[np.ndarray]) -> tuple[int, int]:
    """How many pairs of images show one person, and how many show two."""
    sizes = [len(images) for images in group]
    total, genuine = sum(sizes), sum(size * (size - 1) // 2 for size in sizes)
    return genuine, total * (total - 1) // 2 - genuine


def _draw(
    group: list[np.ndarray],
    count: int,
    genuine: bool,
    rng: np.random.Generator,
    known: set[tuple[int, int]],
) -> list[tuple[int, int]]:
    """`count` new pairs of a group's images, which are added to `known`. The group has so many.

    First identities are drawn uniformly, then images of them. If that finds no new pairs for long,
    the rest is drawn from a list of all pairs.
    """
    able = [ids for ids in group if len(ids) > 1] if genuine else group
    drawn: list[tuple[int, int]] = []
    for _ in range(50 * count):
        if len(drawn) == count:
            return drawn
        if genuine:
            a, b = rng.choice(able[rng.integers(len(able))], 2, replace=False)
        else:
            i, j = rng.choice(len(able), 2, replace=False)
            a, b = rng.choice(able[i]), rng.choice(able[j])
        pair = (min(int(a), int(b)), max(int(a), int(b)))
        if pair not in known:
            known.add(pair)
            drawn.append(pair)
    left = [pair for pair in _all_pairs(able, genuine) if pair not in known]
    rest = [left[i] for i in rng.choice(len(left), count - len(drawn), replace=False)]
    known.update(rest)
    return drawn + rest


def _all_pairs(group: list[np.ndarray], genuine: bool) -> Iterator[tuple[int, int]]:
    """All pairs of images of one person, or of two, the smaller number first."""
    people = [sorted(images.tolist()) for images in group]
    for images in people if genuine else ():
        yield from combinations(images, 2)
    for one, other in () if genuine else combinations(people, 2):
        yield from ((min(a, b), max(a, b)) for a in one for b in other)
