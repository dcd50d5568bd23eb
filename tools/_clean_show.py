"""What each method of `tools.clean` found: in words, as a table, and as pictures."""

import math
from collections.abc import Sequence

import numpy as np

from data.types import Int64
from eval.cleaning.cut import Cut
from eval.cleaning.duplicates import Duplicates
from eval.cleaning.merge import Merges
from eval.cleaning.noise import Noise
from eval.cleaning.overlap import Overlap
from eval.cleaning.split import Splits
from tools._clean_page import Group, Scores, Suspect, spread
from tools._clean_result import Result, kept, relabeled
from tools._clean_set import Chosen
from tools._faces import counted

PICTURES = 5  # of an identity beside a suspect


def noise_result(work: Chosen, found: Noise, most: int) -> Result:
    """The images with a wrong label. most: suspects on the page."""
    flagged = np.zeros(len(work), bool)
    flagged[found.rows] = True

    def suspect(row: int) -> Suspect:
        own, other = int(work.labels[row]), int(found.other_identity[row])
        groups = [
            _group(work, "this image", [row]),
            _group(work, f"its identity: {work.name(own)}", _best(work, found.own, own, flagged)),
            _group(
                work, f"nearest other: {work.name(other)}", _best(work, found.own, other, flagged)
            ),
        ]
        numbers = f"cosine {found.own[row]:.3f} with its own, {found.other[row]:.3f} with the other"
        return Suspect(f"{_where(work, row)}: {numbers}", groups)

    margin, own = found.margin_cut, found.own_cut
    return Result(
        "Images with a wrong label",
        [
            f"{len(found.rows):,} of {counted(len(work), 'image')} probably have a wrong label: "
            f"the cosine with their own center minus that with another is at most "
            f"{margin.threshold:.3f}, or the cosine with their own is at most {own.threshold:.3f}.",
            _estimate(margin, "images", "have a wrong label"),
            _shown(len(found.rows), most, "from the worst to the threshold"),
        ],
        ("row", "image", "identity", "own", "nearest_identity", "other", "margin"),
        (
            (
                *_row(work, row),
                round(float(found.own[row]), 5),
                work.name(int(found.other_identity[row])),
                round(float(found.other[row]), 5),
                round(float(found.margin[row]), 5),
            )
            for row in found.rows.tolist()
        ),
        Scores(
            "cosine with the own center minus the largest with another",
            {"this set": found.margin, "wrong labels, made from it": found.wrong_margin},
            {"threshold": margin.threshold},
        ),
        [suspect(int(found.rows[at])) for at in spread(len(found.rows), most)],
        kept(work, found.rows),
        {
            "suspects": len(found.rows),
            "margin_threshold": _number(margin.threshold),
            "own_threshold": _number(own.threshold),
            **_cut_facts(margin),
        },
    )


def duplicates_result(
    work: Chosen, found: Duplicates, threshold: float, copies: np.ndarray | None, most: int
) -> Result:
    """The repeated images. copies: cosines of images with copies of them, if they were computed."""
    across = work.labels[found.rows] != work.labels[found.kept]

    def suspect(at: int) -> Suspect:
        row, other = int(found.rows[at]), int(found.kept[at])
        what = "equal bytes" if found.equal[at] else f"cosine {found.cosines[at]:.4f}"
        whose = "two identities" if across[at] else "one identity"
        groups = [
            _group(work, f"left out: {work.name(int(work.labels[row]))}", [row]),
            _group(work, f"kept: {work.name(int(work.labels[other]))}", [other]),
        ]
        return Suspect(f"{_where(work, row)}: {what}, {whose}", groups)

    equal = int(found.equal.sum())
    scores = {"nearest image of the identity": found.nearest}
    if copies is not None:
        scores["copies, made from the set"] = copies
    return Result(
        "Repeated images",
        [
            f"{len(found.rows):,} of {counted(len(work), 'image')} repeat another one: {equal:,} "
            f"with equal bytes, {len(found.rows) - equal:,} with a cosine of {threshold:.4f} or "
            f"more. {int(across.sum()):,} of them repeat an image of another identity.",
            _shown(len(found.rows), most, "from equal ones to the threshold"),
        ],
        ("row", "image", "identity", "repeats_row", "repeats", "of_identity", "cosine", "why"),
        (
            (
                *_row(work, int(found.rows[at])),
                *_row(work, int(found.kept[at])),
                round(float(found.cosines[at]), 5),
                "equal bytes" if found.equal[at] else "near-equal",
            )
            for at in range(len(found.rows))
        ),
        Scores("cosine", scores, {"threshold": threshold}),
        [suspect(at) for at in spread(len(found.rows), most)],
        kept(work, found.rows),
        {
            "suspects": len(found.rows),
            "equal": equal,
            "across": int(across.sum()),
            "threshold": threshold,
        },
    )


def splits_result(work: Chosen, found: Splits, own: np.ndarray, most: int) -> Result:
    """The identities that are two people. own: cosine of each image with its center (M,)."""
    apart = dict(zip(found.labels.tolist(), found.apart.tolist(), strict=True))
    threshold = -found.cut.threshold
    new = work.identities[work.labels].copy()
    free = int(work.identities.max()) + 1
    moved, order = np.flatnonzero(found.second), np.argsort(found.identities)
    place = np.searchsorted(found.identities, work.labels[moved], sorter=order)
    new[moved] = free + order[place]
    subset = relabeled(work, new)

    def sides(identity: int) -> tuple[Int64, Int64]:
        images = work.images_of(identity)
        return images[~found.second[images]], images[found.second[images]]

    def suspect(identity: int) -> Suspect:
        groups = [
            _group(work, f"{counted(len(side), 'image')}: {what}", _first(side, own))
            for side, what in zip(
                sides(identity), ("keep the identity", "become a new one"), strict=True
            )
        ]
        title = f"{work.name(identity)}: {apart[identity]:.3f} apart"
        return Suspect(title, groups)

    return Result(
        "Identities that are two people",
        [
            f"{len(found.identities):,} of {len(work.identities):,} identities probably are two "
            f"people: their two groups of images are at least {threshold:.3f} apart. "
            f"{counted(len(moved), 'image')} get a new identity.",
            _estimate(found.cut, "identities", "are two people"),
            _shown(len(found.identities), most, "from the surest to the threshold"),
        ],
        ("row", "image", "identity", "apart", "new_label"),
        (
            (*_row(work, row), round(apart[identity], 5), int(subset[row, 1]))
            for identity in found.identities.tolist()
            for row in sides(identity)[1].tolist()
        ),
        Scores(
            "how far apart the two groups of an identity are",
            {"this set": found.apart, "two people, made from it": found.joined},
            {"threshold": threshold},
        ),
        [suspect(int(found.identities[at])) for at in spread(len(found.identities), most)],
        subset,
        {
            "suspects": len(found.identities),
            "images": len(moved),
            "threshold": _number(threshold),
            **_cut_facts(found.cut),
        },
    )


def merges_result(work: Chosen, found: Merges, own: np.ndarray, most: int) -> Result:
    """The identities that are one person. own: cosine of each image with its center (M,)."""
    pairs = list(zip(found.pairs.tolist(), found.similarities.tolist(), strict=True))
    counts = np.bincount(work.labels)
    target = np.arange(len(work.identities))
    for label, lowest in found.target.items():
        target[label] = lowest
    subset = relabeled(work, work.identities[target[work.labels]])
    new = dict(zip(work.labels.tolist(), subset[:, 1].tolist(), strict=True))

    def suspect(pair: list[int], similarity: float) -> Suspect:
        groups = [
            _group(work, f"{work.name(one)}: {counted(int(counts[one]), 'image')}", best)
            for one, best in ((one, _best(work, own, one)) for one in pair)
        ]
        names = " and ".join(work.name(one) for one in pair)
        return Suspect(f"{names}: similarity {similarity:.3f}", groups)

    threshold = -found.cut.threshold
    merged = len(found.target) - len(set(found.target.values()))
    return Result(
        "Identities that are one person",
        [
            f"{counted(len(pairs), 'pair')} of {len(work.identities):,} identities probably are "
            f"one person: their similarity is at least {threshold:.3f}. {merged:,} identities "
            "become part of another one.",
            _estimate(found.cut, "identities", "are a person with another label too"),
            _shown(len(pairs), most, "from the surest to the threshold"),
        ],
        ("identity", "images", "other", "other_images", "similarity", "new_label"),
        (
            (
                *(work.name(one), int(counts[one]), work.name(other), int(counts[other])),
                *(round(similarity, 5), new[one]),
            )
            for (one, other), similarity in pairs
        ),
        Scores(
            "similarity of an identity and the one most similar to it",
            {"this set": found.nearest, "one person, made from it": found.halves},
            {"threshold": threshold},
        ),
        [suspect(*pairs[at]) for at in spread(len(pairs), most)],
        subset,
        {
            "suspects": len(pairs),
            "merged": merged,
            "threshold": _number(threshold),
            **_cut_facts(found.cut),
        },
    )


def overlap_result(
    work: Chosen,
    own: np.ndarray,
    tested: Chosen,
    their: np.ndarray,
    found: Overlap,
    promise: tuple[str, float],
    most: int,
) -> Result:
    """The identities that are in a test set too.

    own, their: cosine of each image of both sets with its own center. promise: the test set, and
    the number of pairs that are expected to be accused wrongly.
    """
    test, expected_false = promise
    pairs = list(
        zip(
            found.people.tolist(),
            found.identities.tolist(),
            found.scores.tolist(),
            found.cosines.tolist(),
            strict=True,
        )
    )

    def suspect(person: int, identity: int, score: float, cosine: float) -> Suspect:
        groups = [
            _group(work, f"training: {work.name(identity)}", _best(work, own, identity)),
            _group(tested, f"test: {tested.name(person)}", _best(tested, their, person)),
        ]
        return Suspect(f"score {score:.2f}, cosine {cosine:.3f}", groups)

    def row(person: int, identity: int, score: float, cosine: float) -> tuple[object, ...]:
        mine, theirs = work.images_of(identity), tested.images_of(person)
        return (
            *(work.name(identity), len(mine), _where(work, int(mine[0]))),
            *(tested.name(person), len(theirs), _where(tested, int(theirs[0]))),
            *(round(score, 4), round(cosine, 5)),
        )

    accused = np.unique(found.identities)
    left_out = np.flatnonzero(np.isin(work.labels, accused))
    strangers = len(work.identities) * len(tested.identities)
    return Result(
        "People of the training set who are in the test set",
        [
            f"{len(accused):,} of {len(work.identities):,} identities are among the "
            f"{len(tested.identities):,} people of {test}. Their "
            f"{counted(len(left_out), 'image')} are left out.",
            f"A pair is accused if its score is above {found.threshold:.2f}. The scores of "
            f"strangers have mean {found.mean:.2f} and deviation {found.deviation:.2f}, so that of "
            f"{strangers:,} pairs {expected_false:g} are expected to be accused wrongly.",
            _shown(len(pairs), most, "from the highest score to the threshold"),
        ],
        ("identity", "images", "first", "person", "test_images", "test_first", "score", "cosine"),
        (row(*pair) for pair in pairs),
        Scores(
            "score: standard deviations above strangers",
            {"best match of a person": found.first, "second match": found.second},
            {"threshold": found.threshold},
        ),
        [suspect(*pairs[at]) for at in spread(len(pairs), most)],
        kept(work, left_out),
        {
            "suspects": len(pairs),
            "identities": len(accused),
            "threshold": found.threshold,
            "strangers_mean": found.mean,
            "strangers_deviation": found.deviation,
        },
    )


def prune_result(
    work: Chosen, stay: np.ndarray, probabilities: np.ndarray | None, most: int
) -> Result:
    """The images that are not needed. stay: int64 (K,). probabilities: p(true), unless random."""
    flagged = np.ones(len(work), bool)
    flagged[stay] = False
    left_out = np.flatnonzero(flagged)
    shown = probabilities if probabilities is not None else np.zeros(len(work))

    def suspect(row: int) -> Suspect:
        own = int(work.labels[row])
        images = work.images_of(own)
        images = images[~flagged[images]]
        near = images[np.argsort(np.abs(shown[images] - shown[row]), kind="stable")]
        groups = [
            _group(work, "left out", [row]),
            _group(work, f"kept, the nearest p(true): {work.name(own)}", near[:PICTURES].tolist()),
        ]
        return Suspect(f"{_where(work, row)}: p(true) {shown[row]:.3f}", groups)

    how = "at random" if probabilities is None else "because another one has nearly their p(true)"
    return Result(
        "Images that are not needed",
        [
            f"{len(left_out):,} of {counted(len(work), 'image')} are left out {how}; "
            f"{100 * len(stay) / len(work):.1f} % are kept.",
            _shown(len(left_out), most, "over the set"),
        ],
        ("row", "image", "identity", "p_true"),
        ((*_row(work, row), round(float(shown[row]), 5)) for row in left_out.tolist()),
        Scores(
            "p(true)",
            {} if probabilities is None else {"kept": shown[stay], "left out": shown[left_out]},
            {},
        ),
        [suspect(int(left_out[at])) for at in spread(len(left_out), most)],
        kept(work, left_out),
        {"suspects": len(left_out)},
    )


def _best(
    work: Chosen, fit: np.ndarray, identity: int, flagged: np.ndarray | None = None
) -> list[int]:
    """Some images of an identity: those that fit it best, and no suspects."""
    images = work.images_of(identity)
    return _first(images if flagged is None else images[~flagged[images]], fit)


def _first(images: Int64, fit: np.ndarray) -> list[int]:
    found: list[int] = images[np.argsort(-fit[images], kind="stable")][:PICTURES].tolist()
    return found


def _group(work: Chosen, caption: str, images: Sequence[int]) -> Group:
    return Group(caption, work.faces, work.rows[list(images)].tolist())


def _where(work: Chosen, image: int) -> str:
    return work.faces.describe(int(work.rows[image]))


def _row(work: Chosen, image: int) -> tuple[object, ...]:
    """Row in the set, file and key, and identity of an image, for a table."""
    return int(work.rows[image]), _where(work, image), work.name(int(work.labels[image]))


def _estimate(cut: Cut, what: str, wrong: str) -> str:
    """What a threshold promises, in words."""
    if not math.isfinite(cut.threshold):
        return "No threshold has the precision that is wanted, so nothing is found."
    return (
        f"By the distributions, {100 * cut.share:.1f} % of the {what} {wrong}. Of those beyond the "
        f"threshold {100 * cut.precision:.0f} % are, and {100 * cut.recall:.0f} % of all that are "
        "lie beyond it."
    )


def _number(value: float) -> float | None:
    """The value as JSON has it, which knows no infinity."""
    return value if math.isfinite(value) else None


def _cut_facts(cut: Cut) -> dict[str, float]:
    return {"share": cut.share, "precision": cut.precision, "recall": cut.recall}


def _shown(count: int, most: int, order: str) -> str:
    if count <= most:
        return "The page shows all of them."
    return f"The page shows {most:,} of them, spread {order}; the table has all."
