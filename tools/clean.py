"""Finds what is wrong in a training set, and lists the images to train on; nothing is deleted."""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from data.detect import shrink
from data.options import Count, Positive, Range, Share
from data.read_image import read_pixels
from data.types import Pixels
from eval.cleaning.centers import Centers, robust_centers
from eval.cleaning.duplicates import NEIGHBORS, find_duplicates
from eval.cleaning.merge import find_merges
from eval.cleaning.noise import PRECISION, find_noise
from eval.cleaning.overlap import EXPECTED_FALSE, find_overlap, mean_centers
from eval.cleaning.prune import (
    AT_LEAST,
    prune_at_random,
    prune_by_difference,
    true_probabilities,
)
from eval.cleaning.split import find_splits
from eval.embed import embed_faces, normalized
from recognition.models.model import Model
from tools._clean_page import spread
from tools._clean_result import write_result
from tools._clean_set import Chosen, chosen, embed_set, open_checked, open_test
from tools._clean_show import (
    duplicates_result,
    merges_result,
    noise_result,
    overlap_result,
    prune_result,
    splits_result,
)
from tools._cli import Record, add_options, command_parser, run_command
from tools._model import ModelOptions
from tools._progress import progress_bar

IMAGES, PEOPLE = (partial(progress_bar, what=what) for what in ("images", "people"))
COPIES = 256  # images of which a copy is made, to see how near copies are
COPY_SIDE, COPY_QUALITY, COPY_SHARE = 0.75, 75, 0.05


@dataclass(frozen=True)
class SetOptions:
    """Which images of a set are cleaned, and where the results go."""

    out: Path
    """Folder for the vectors of the set, and for a folder of results per method. Another method
    with the same folder uses the vectors again."""
    subset: str | None = None
    """Index list (.npy) of the images to use, such as the subset.npy of another method."""
    format: str = "auto"
    """Format of SET, needed only if FACES could be read in several formats."""
    mirror: bool = True
    """Add the embedding of the mirror image to that of the image. It takes twice as long."""
    shown: Count = 100
    """Most suspects on the page; the table has all."""


@contextmanager
def opened(path: str, source: ModelOptions, options: SetOptions) -> Iterator[tuple[Chosen, Model]]:
    """The images to clean, with their vectors, and the model."""
    faces, model = open_checked(path, options.format), source.load()
    options.out.mkdir(parents=True, exist_ok=True)
    embedded = embed_set(faces, path, options.out / "vectors", model, options.mirror)
    with chosen(faces, embedded, options.subset, options.out) as work:
        yield work, model


def duplicates(
    faces: str,
    *,
    source: ModelOptions,
    options: SetOptions,
    near: Annotated[float, Range(at_least=-1, at_most=1)] | None = None,
    neighbors: Count = NEIGHBORS,
) -> Record:
    """The same picture more than once: equal bytes anywhere, or near-equal embeddings.

    faces: any face set.
    source: the model.
    options: the images, and the folder for the results.
    near: cosine from which two images are near-equal. Without it, the cosine that 95 % of 256
        images keep with a smaller and coarser copy of themselves.
    neighbors: nearest identities of each identity that are compared with it.
    """
    with opened(faces, source, options) as (work, model):
        copies, threshold = None, near
        if threshold is None:
            copies = copy_cosines(work, model, options.mirror)
            threshold = float(np.quantile(copies, COPY_SHARE))
        found = find_duplicates(
            *(work.vectors, work.labels, work.digests, centers_of(work), threshold),
            neighbors=neighbors,
            progress=IMAGES,
        )
        result = duplicates_result(work, found, threshold, copies, options.shown)
        return write_result(result, work, options.out / "duplicates")


def noise(
    faces: str, *, source: ModelOptions, options: SetOptions, precision: Share = PRECISION
) -> Record:
    """Images that are nearer to another identity than to their own, or far from their own.

    faces: any face set.
    source: the model.
    options: the images, and the folder for the results.
    precision: expected share of the images left out whose label is wrong.
    """
    with opened(faces, source, options) as (work, _):
        found = find_noise(work.vectors, work.labels, precision=precision, progress=IMAGES)
        result = noise_result(work, found, options.shown)
        return write_result(result, work, options.out / "noise")


def split(
    faces: str, *, source: ModelOptions, options: SetOptions, precision: Share = PRECISION
) -> Record:
    """Identities that are two people: the smaller group of images becomes a new identity.

    faces: any face set.
    source: the model.
    options: the images, and the folder for the results.
    precision: expected share of the divided identities that are two people.
    """
    with opened(faces, source, options) as (work, _):
        found = find_splits(work.vectors, work.labels, precision=precision, progress=IMAGES)
        result = splits_result(work, found, centers_of(work).own, options.shown)
        return write_result(result, work, options.out / "split")


def merge(
    faces: str, *, source: ModelOptions, options: SetOptions, precision: Share = PRECISION
) -> Record:
    """Identities that are one person: they become one identity.

    faces: any face set.
    source: the model.
    options: the images, and the folder for the results.
    precision: expected share of the merged identities that are one person.
    """
    with opened(faces, source, options) as (work, _):
        found = find_merges(work.vectors, work.labels, precision=precision, progress=PEOPLE)
        result = merges_result(work, found, centers_of(work).own, options.shown)
        return write_result(result, work, options.out / "merge")


def overlap(
    faces: str,
    *,
    test: str,
    source: ModelOptions,
    options: SetOptions,
    images: str | None = None,
    expected_false: Positive = EXPECTED_FALSE,
) -> Record:
    """People who are in a test set too; the threshold follows from the scores of strangers.

    faces: any face set.
    test: the test set: any face set, a verification .bin, or with --images a list of pairs.
    source: the model.
    options: the images, and the folder for the results.
    images: folder or uncompressed zip with the images of the list.
    expected_false: pairs of strangers that are expected above the threshold.
    """
    test_faces = open_test(test, images)
    with opened(faces, source, options) as (work, model):
        folder = options.out / f"vectors_of_{safe_name(test)}"
        embedded = embed_set(test_faces, test, folder, model, options.mirror)
        with chosen(test_faces, embedded, None, options.out) as tested:
            (centers, own), (others, their) = (
                mean_centers(one.vectors, one.labels) for one in (work, tested)
            )
            found = find_overlap(centers, others, expected_false=expected_false, progress=PEOPLE)
            promise = (test, expected_false)
            result = overlap_result(work, own, tested, their, found, promise, options.shown)
            return write_result(result, work, options.out / "overlap")


def prune(
    faces: str,
    *,
    source: ModelOptions,
    options: SetOptions,
    keep: Share = 0.75,
    at_least: Count = AT_LEAST,
    by: Literal["difference", "random"] = "difference",
    seed: int = 0,
) -> Record:
    """Fewer images of each identity, at hardly less accuracy.

    faces: any face set.
    source: the model.
    options: the images, and the folder for the results.
    keep: share of the images to keep.
    at_least: images that each identity keeps.
    by: which images are left out: difference (those whose p(true) is nearly that of another one) or
        random.
    seed: of the random choice.
    """
    with opened(faces, source, options) as (work, _):
        probabilities = None
        if by == "random":
            stay = prune_at_random(work.labels, keep, seed=seed, at_least=at_least)
        else:
            probabilities = true_probabilities(work.vectors, work.labels, progress=IMAGES)
            stay = prune_by_difference(probabilities, work.labels, keep, at_least=at_least)
        result = prune_result(work, stay, probabilities, options.shown)
        return write_result(result, work, options.out / "prune")


def copy_cosines(work: Chosen, model: Model, mirror: bool) -> np.ndarray:
    """Cosines of some images with copies of them, float64: smaller by a quarter, and coarser."""

    def copied(number: int, size: int) -> Pixels:
        pixels = read_pixels(work.faces, number)
        small = shrink(pixels, COPY_SIDE)
        coarse = [cv2.IMWRITE_JPEG_QUALITY, COPY_QUALITY]
        encoded = cv2.imencode(".jpg", small[:, :, ::-1], coarse)[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        assert decoded is not None
        return np.asarray(cv2.resize(decoded, (size, size)), np.uint8)

    places = spread(len(work), COPIES)
    vectors = embed_faces(
        model, work.faces, model.size, indices=work.rows[places], mirror=mirror, crop=copied
    )
    found: np.ndarray = np.vecdot(normalized(vectors), work.vectors[places].astype(np.float64))
    return found


def centers_of(work: Chosen) -> Centers:
    """A center per identity."""
    return robust_centers(work.vectors, work.labels, len(work.identities))


def safe_name(path: str) -> str:
    """The name of a file or folder, as a part of a folder's name."""
    return re.sub(r"[^\w.-]", "_", Path(path).name)


METHODS: tuple[Callable[..., Record], ...] = (duplicates, noise, split, merge, overlap, prune)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    argv = sys.argv[1:] if argv is None else argv
    methods = {one.__name__: one for one in METHODS}
    firsts = {name: str(inspect.getdoc(one)).splitlines()[0] for name, one in methods.items()}
    listed = "\n".join(f"  {name:12}{line}" for name, line in firsts.items())
    parser = command_parser("tools.clean", f"{__doc__}\n\n{listed}")
    parser.add_argument("method", metavar="METHOD", choices=methods, help="one of the above")
    method = parser.parse_args(argv[:1] or ["--help"]).method
    parser = command_parser(f"tools.clean {method}", firsts[method])
    values_for = add_options(parser, methods[method], positionals=True)

    def action(options: argparse.Namespace) -> Mapping[str, Any]:
        return methods[method](**values_for(options)) or {}

    return run_command(action, parser.parse_intermixed_args(argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
