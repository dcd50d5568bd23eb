"""Partial FC's sample of classes, drawn ahead of use by the threads of the loader.

A draw depends on the seed, the place in the data and the planned labels of all ranks. Every rank
therefore draws the same sample and keeps the classes that it holds. Nothing about it is saved.
"""

from dataclasses import dataclass

import numpy as np

from data.types import Int64

_STREAM = 1  # keeps these draws apart from the other draws of a run, which have the same seed


@dataclass(frozen=True)
class ClassSampler:
    """(labels, epoch, place) -> the sampled classes of `rows`, sorted, int64 (n,).

    labels: those of all images of the optimizer step, on all ranks. place: how many images of the
    epoch came before. rows: the classes whose centers this rank holds.
    """

    classes: int
    sample_rate: float
    seed: int
    rows: range

    def __call__(self, labels: Int64, epoch: int, place: int) -> Int64:
        draw = np.random.default_rng([self.seed, _STREAM, epoch, place])
        sampled = sample_classes(self.classes, self.sample_rate, labels, draw)
        first, end = np.searchsorted(sampled, (self.rows.start, self.rows.stop))
        return sampled[first:end]


def sample_classes(
    classes: int, sample_rate: float, labels: Int64, draw: np.random.Generator
) -> Int64:
    """Sorted class numbers: all of `labels`, and random others up to sample_rate * classes."""
    positives = np.unique(labels)
    # At least 2: a single class would have no negatives.
    count = max(round(sample_rate * classes), len(positives), 2)
    if count >= classes:
        return np.arange(classes)

    # The others are numbered without gaps, drawn, and marked. Inserting the positives at their
    # places then makes entry i of the marks stand for class i.
    others = classes - len(positives)
    marks = np.zeros(others, bool)
    marks[draw.choice(others, count - len(positives), replace=False, shuffle=False)] = True
    marks = np.insert(marks, positives - np.arange(len(positives)), True)
    return np.flatnonzero(marks)
