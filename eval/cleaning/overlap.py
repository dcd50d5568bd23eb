"""People of a training set who are in a test set.

A person of the test set is compared with an identity of the training set by the cosine of their
centers, from which the mean of the test set's centers is subtracted. A center is a mean over all
pictures of a person, so one picture that happens to look like somebody accuses nobody, unless it is
the only one.

Cosines near 1 lie close together, and the better a center is known, the larger are its cosines with
strangers. Therefore Fisher's transformation s = artanh(cosine) makes the scores of strangers nearly
normal, and the score of person p and identity c is normalized on both sides, as scores of voices
are (symmetric normalization, Kenny, Odyssey 2010, section 5.2):

    z = ½·((s - μ_p)/σ_p + (s - μ_c)/σ_c).

μ_p and σ_p are mean and standard deviation of s over p and many identities, μ_c and σ_c those over
c and many people of the test set.

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

from eval.cleaning.centers import identity_sums, own_cosines
from eval.embed import Progress, normalized, not_shown
from eval.search import top_matches

COHORT = 4096  # strangers that give mean and deviation: these are known to 1 %
LARGEST = 0.9999  # cosine; Fisher's transformation of 1 is infinite
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
    scores: float64 (K,), z. cosines: float64 (K,), of the centers without the mean.
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
    middle = people.mean(0)
    identities, people = normalized(identities - middle), normalized(people - middle)
    found = top_matches(people, identities, CANDIDATES, progress=progress)
    person_mean, person_deviation = _moments(people, identities)
    identity_mean, identity_deviation = _moments(identities, people)
    there, values = found.rows, _fisher(found.scores)
    by_person = (values - person_mean[:, None]) / person_deviation[:, None]
    by_identity = (values - identity_mean[there]) / identity_deviation[there]
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


def mean_centers(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centers float32 (C,D) of length 1, and the cosine of each image with its own, float64 (N,).

    vectors: (N,D) of length 1, perhaps memory-mapped. labels: int64 (N,), 0…C-1 without gaps. All
    images count alike. In a center that leaves out what does not fit, as `robust_centers` does, a
    few pictures of an unclear identity would decide.
    """
    weights = np.ones(len(labels), np.float32)
    sums = identity_sums(vectors, labels, weights, int(labels.max()) + 1)
    return normalized(sums), own_cosines(vectors, labels, weights, sums)


def _fisher(cosines: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.arctanh(np.clip(cosines, -LARGEST, LARGEST))
    return found


def _moments(rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (R,), (R,) of the transformed cosines of each row with others.

    Of more than COHORT others, COHORT are used, spread evenly.
    """
    cohort = others[np.linspace(0, len(others) - 1, min(len(others), COHORT)).astype(int)]
    mean, deviation = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), COHORT):
        here = slice(start, start + COHORT)
        values = _fisher(rows[here] @ cohort.T)
        mean[here], deviation[here] = values.mean(1), values.std(1)
    if not (deviation > 1e-6).all():
        raise ValueError("a person matches all others alike; has the model diverged?")
    return mean, deviation


def _strangers(second: np.ndarray, identities: int) -> tuple[float, float]:
    """Mean and deviation of the normal scores of strangers, from each person's second match (P,).

    ValueError if the scores are all alike.
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
