"""Images with a wrong label: nearer to another identity's center than to their own, or far from it.

The thresholds come from the set itself. What an image's scores would be under a wrong label is
known: those of the same image with the label of another image. `eval.cleaning.cut` compares their
distribution with that of the set's own labels.
"""

from dataclasses import dataclass, replace

import numpy as np

from eval.cleaning.centers import BLOCK, robust_centers
from eval.cleaning.cut import Cut, find_cut
from eval.embed import Progress, not_shown
from eval.search import give_back, top_matches

PRECISION = 0.9


@dataclass(frozen=True)
class Noise:
    """What `find_noise` found in N images.

    rows: int64 (M,), the images whose labels are probably wrong, the worst first.
    own: float64 (N,), cosine with the own center; the image itself does not count in it.
    other: float64 (N,), the largest cosine with another center, and other_identity int64 (N,) its
        identity.
    margin: float64 (N,), own - other.
    wrong_margin, wrong_own: float64 (N',), the same under wrong labels.
    margin_cut, own_cut: the thresholds. An image is flagged if it is at or below one of them.
    """

    rows: np.ndarray
    own: np.ndarray
    other: np.ndarray
    other_identity: np.ndarray
    wrong_margin: np.ndarray
    wrong_own: np.ndarray
    margin_cut: Cut
    own_cut: Cut

    @property
    def margin(self) -> np.ndarray:
        difference: np.ndarray = self.own - self.other
        return difference


def find_noise(
    vectors: np.ndarray,
    labels: np.ndarray,
    *,
    precision: float = PRECISION,
    seed: int = 0,
    progress: Progress = not_shown,
) -> Noise:
    """Find wrong labels from vectors (N,D) of length 1 and labels int64 (N,), 0 or more.

    precision: expected share of the flagged images whose label is wrong, 0…1. seed: of the wrong
    labels that are drawn. progress: shows how many of the N images are done.

    The only image of an identity is compared with nothing, so it is not flagged. One pass computes
    the N·C·D products with the centers. The vectors may be memory-mapped: in memory are the
    centers, a few numbers per image, and a few blocks. ValueError if all images have one label.
    """
    present, identity = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise ValueError(f"found {len(present)} identities, expected at least 2")
    centers = robust_centers(vectors, identity, len(present))
    every = np.arange(len(present))
    found = top_matches(
        vectors, centers.vectors, 1, other_than=(identity, every), progress=progress
    )
    other, nearest = found.scores[:, 0], found.rows[:, 0]
    own, alone = centers.own, np.bincount(identity)[identity] == 1
    margin = own - other
    drawn = np.random.default_rng(seed).permutation(identity)
    wrong_own = _cosines(vectors, centers.vectors, drawn)
    # Under the drawn label, the nearest other center is the true one or the one found above.
    usable = (drawn != identity) & (drawn != nearest) & ~alone
    wrong_own = wrong_own[usable]
    wrong_margin = wrong_own - np.maximum(own, other)[usable]
    margin_cut = find_cut(margin[~alone], wrong_margin, precision)
    near_other = margin <= margin_cut.threshold
    # The cosine alone is a weaker sign, and is needed for strangers only, who are near to nobody.
    # It is trusted up to what three quarters of all wrong labels have.
    own_cut = find_cut(own[~alone], wrong_own, precision)
    if len(wrong_own):
        lowest = min(own_cut.threshold, float(np.quantile(wrong_own, 0.75)))
        own_cut = replace(own_cut, threshold=lowest, recall=min(own_cut.recall, 0.75))
    flagged = (near_other | (own <= own_cut.threshold)) & ~alone
    rows = np.flatnonzero(flagged)
    return Noise(
        rows[np.argsort(margin[rows], kind="stable")],
        own,
        other,
        present[nearest],
        wrong_margin,
        wrong_own,
        margin_cut,
        own_cut,
    )


def _cosines(vectors: np.ndarray, centers: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Cosine of each vector (N,D) with the center of that identity (N,), float64 (N,)."""
    found = np.empty(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        here = slice(start, start + BLOCK)
        found[here] = np.vecdot(np.asarray(vectors[here], np.float32), centers[identity[here]])
        give_back(vectors)
    return found
