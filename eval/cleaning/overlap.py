"""People of a training set who are in a test set.

A person of the test set is compared with an identity of the training set by the cosine of their
centers. A center is a mean over all pictures of a person, so one picture that happens to look like
somebody accuses nobody, unless it is the only one.

Centers of few pictures, and of people who look like many others, have larger cosines with
strangers. Therefore a cosine s of person p and identity c is normalized on both sides, as scores of
voices are (symmetric normalization, Kenny, Odyssey 2010, section 5.2):

    z = ½·((s - μ_p)/σ_p + (s - μ_c)/σ_c).

μ_p and σ_p are mean and standard deviation of the cosines of p with all identities, μ_c and σ_c
those of c with all people of the test set. They follow exactly from the mean and the second moment
of the centers: μ = ⟨p, m⟩ and σ² = pᵀMp - μ².

The threshold comes from the strangers among the scores themselves. Whoever the first match of a
person is, the second is a stranger (if that person is not in the training set under two labels).
With an average of λ strangers above z per person, two or more are there with the probability

    1 - e^-λ·(1 + λ).

The shares of people whose second match lies above z therefore give λ(z). Scores of strangers are
nearly normal, so that λ(z)/C, with C identities, is a line on normal probability paper. The line
through its upper half is followed to where P·λ, the expected number of strangers among all pairs of
P people, is as small as wanted.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from eval.embed import Progress, not_shown
from eval.search import top_matches

CANDIDATES = 10  # identities per person whose scores are computed
EXPECTED_FALSE = 0.1
HIGHEST, LOWEST = 0.01, 0.5  # shares of people between which the line is fitted
LEAST_PEOPLE, LEAST_IDENTITIES = 20, 20
POINTS = 30  # on the line
NORMAL = NormalDist()


@dataclass(frozen=True)
class Overlap:
    """Who is in both sets.

    people, identities: int64 (K,), the person of the test set and the identity of the training set
        of each accused pair, the highest score first.
    scores: float64 (K,), z. cosines: float64 (K,), of the centers.
    threshold: pairs with a score above it are accused.
    first, second: float64 (P,), scores of each person's best and second-best match.
    mean, deviation: of the normal distribution of the strangers' scores.
    """

    people: np.ndarray
    identities: np.ndarray
    scores: np.ndarray
    cosines: np.ndarray
    threshold: float
    first: np.ndarray
    second: np.ndarray
    mean: float
    deviation: float


def find_overlap(
    identities: np.ndarray,
    people: np.ndarray,
    *,
    expected_false: float = EXPECTED_FALSE,
    progress: Progress = not_shown,
) -> Overlap:
    """Compare the centers (C,D) of a training set with those of a test set (P,D), all of length 1.

    expected_false: how many pairs of strangers are expected above the threshold. progress: shows
    how many of the P people are done.

    The search is exact. For the `CANDIDATES` identities with the largest cosines of each person the
    scores are computed. ValueError for less than 20 people or identities: they give no
    distribution.
    """
    if len(people) < LEAST_PEOPLE or len(identities) < LEAST_IDENTITIES:
        raise ValueError(
            f"{len(people)} people in the test set and {len(identities)} in the training set; "
            f"expected {LEAST_PEOPLE} and {LEAST_IDENTITIES} or more, whose cosines show how alike "
            "strangers are"
        )
    found = top_matches(people, identities, CANDIDATES, progress=progress)
    person_mean, person_deviation = _moments(people, identities)
    identity_mean, identity_deviation = _moments(identities, people)
    there = found.rows
    by_person = (found.scores - person_mean[:, None]) / person_deviation[:, None]
    by_identity = (found.scores - identity_mean[there]) / identity_deviation[there]
    scores = (by_person + by_identity) / 2
    ordered = np.sort(scores, axis=1)[:, ::-1]
    mean, deviation = _strangers(ordered[:, 1], len(identities))
    per_pair = expected_false / (len(people) * len(identities))
    threshold = mean - deviation * NORMAL.inv_cdf(per_pair)
    person, place = np.nonzero(scores > threshold)
    order = np.argsort(-scores[person, place], kind="stable")
    person, place = person[order], place[order]
    return Overlap(
        person,
        there[person, place],
        scores[person, place],
        found.scores[person, place],
        threshold,
        ordered[:, 0],
        ordered[:, 1],
        mean,
        deviation,
    )


def _moments(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each row's products with all others, float64 (R,), (R,)."""
    exact = others.astype(np.float64)
    middle = exact.mean(0)
    exact -= middle
    spread = exact.T @ exact / len(exact)
    rows = rows.astype(np.float64)
    return rows @ middle, np.sqrt(np.vecdot(rows @ spread, rows))


def _strangers(second: np.ndarray, identities: int) -> tuple[float, float]:
    """Mean and deviation of the normal scores of strangers, from each person's second match (P,).

    ValueError if the matches are all alike.
    """
    falling = np.sort(second)[::-1]
    counts = np.geomspace(max(2, HIGHEST * len(falling)), LOWEST * len(falling), POINTS)
    counts = np.unique(counts.astype(int))
    scores = falling[counts - 1]
    shares = [_strangers_above(count / len(falling)) / identities for count in counts.tolist()]
    quantiles = [-NORMAL.inv_cdf(min(share, 0.5)) for share in shares]
    if np.ptp(scores) < 1e-6:
        raise ValueError("the people of the test set all match alike; has the model diverged?")
    slope, start = np.polyfit(scores, quantiles, 1)
    if not slope > 0:
        raise ValueError("the scores of strangers have no distribution; has the model diverged?")
    return float(-start / slope), float(1 / slope)


def _strangers_above(share: float) -> float:
    """λ with 1 - e^-λ·(1 + λ) = share, 0 < share < 1, by bisection."""
    low, high = 0.0, 64.0
    for _ in range(64):
        middle = (low + high) / 2
        if 1 - np.exp(-middle) * (1 + middle) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
