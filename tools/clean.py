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
from typing import Annotated, Any

import cv2
import numpy as np

from data.options import Count, Positive, Range, Share
from data.read_image import read_pixels
from data.types import Pixels
from eval.cleaning.centers import Centers, robust_centers
from eval.cleaning.duplicates import NEIGHBORS, find_duplicates
from eval.cleaning.noise import PRECISION, find_noise
from eval.cleaning.overlap import EXPECTED_FALSE, find_overlap
from eval.embed import embed_faces, normalized
from recognition.models.model import Model
from tools._clean_page import Group, Scores, Suspect, spread
from tools._clean_result import Result, kept, write_result
from tools._clean_set import Chosen, chosen, embed_set, open_checked, open_test
from tools._cli import Record, add_options, command_parser, run_command
from tools._faces import counted
from tools._model import ModelOptions
from tools._progress import progress_bar

PICTURES = 4  # of an identity beside a suspect
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
        found = find_noise(work.vectors, work.labels, precision=precision, progress=_bar("images"))
        flagged = np.zeros(len(work), bool)
        flagged[found.rows] = True

        def suspect(row: int) -> Suspect:
            own, other = int(work.labels[row]), int(found.other_identity[row])
            numbers = f"own {found.own[row]:.3f}, other {found.other[row]:.3f}"
            groups = [
                _group(work, "this image", [row]),
                _group(work, f"identity {work.name(own)}", _best(work, found.own, own, flagged)),
                _group(
                    work, f"nearest: {work.name(other)}", _best(work, found.own, other, flagged)
                ),
            ]
            return Suspect(f"{_where(work, row)}: {numbers}", groups)

        margin, own = found.margin_cut, found.own_cut
        lines = [
            f"{len(found.rows):,} of {counted(len(work), 'image')} probably have a wrong label: "
            f"own cosine minus the other one at most {margin.threshold:.3f}, or own cosine at most "
            f"{own.threshold:.3f}.",
            f"Estimated share of wrong labels: {100 * margin.share:.1f} %; expected of those "
            f"found: {100 * margin.precision:.0f} %, and "
            f"{100 * margin.recall:.0f} % of the wrong ones are found.",
            _shown(len(found.rows), options.shown, "from the worst to the threshold"),
        ]
        result = Result(
            "Images with a wrong label",
            lines,
            ("row", "image", "identity", "own", "nearest_identity", "other", "margin"),
            (
                (
                    *_row(work, row),
                    found.own[row].round(5),
                    work.name(int(found.other_identity[row])),
                    found.other[row].round(5),
                    found.margin[row].round(5),
                )
                for row in found.rows.tolist()
            ),
            Scores(
                "cosine with the own center minus the largest with another",
                {"the set": found.margin, "wrong labels (made)": found.wrong_margin},
                {"threshold": margin.threshold},
            ),
            [suspect(int(found.rows[at])) for at in spread(len(found.rows), options.shown)],
            kept(work, found.rows),
            {
                "suspects": len(found.rows),
                "margin_threshold": margin.threshold,
                "own_threshold": own.threshold,
                "wrong_share": margin.share,
            },
        )
        return write_result(result, work, options.out / "noise")


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
        copies = None if near is not None else copy_cosines(work, model, options.mirror)
        threshold = near if copies is None else float(np.quantile(copies, COPY_SHARE))
        assert threshold is not None
        centers = centers_of(work)
        found = find_duplicates(
            work.vectors,
            work.labels,
            work.digests,
            centers,
            threshold,
            neighbors=neighbors,
            progress=_bar("images"),
        )
        across = work.labels[found.rows] != work.labels[found.kept]

        def suspect(at: int) -> Suspect:
            row, other = int(found.rows[at]), int(found.kept[at])
            what = "equal bytes" if found.equal[at] else f"cosine {found.cosines[at]:.4f}"
            whose = "two identities" if across[at] else "one identity"
            groups = [
                _group(work, f"left out, {work.name(int(work.labels[row]))}", [row]),
                _group(work, f"kept, {work.name(int(work.labels[other]))}", [other]),
            ]
            return Suspect(f"{_where(work, row)}: {what}, {whose}", groups)

        equal = int(found.equal.sum())
        scores = {"nearest image of the identity": found.nearest}
        if copies is not None:
            scores["copies (made)"] = copies
        lines = [
            f"{len(found.rows):,} of {counted(len(work), 'image')} repeat another one: {equal:,} "
            f"with equal bytes, {len(found.rows) - equal:,} with a cosine of {threshold:.4f} or "
            f"more. {int(across.sum()):,} of them repeat an image of another identity.",
            _shown(len(found.rows), options.shown, "from equal ones to the threshold"),
        ]
        result = Result(
            "Repeated images",
            lines,
            ("row", "image", "identity", "repeats_row", "repeats", "of_identity", "cosine", "why"),
            (
                (
                    *_row(work, row),
                    *_row(work, other),
                    round(cosine, 5),
                    "equal bytes" if same else "near-equal",
                )
                for row, other, cosine, same in zip(
                    found.rows.tolist(),
                    found.kept.tolist(),
                    found.cosines.tolist(),
                    found.equal.tolist(),
                    strict=True,
                )
            ),
            Scores("cosine", scores, {"threshold": threshold}),
            [suspect(at) for at in spread(len(found.rows), options.shown)],
            kept(work, found.rows),
            {
                "suspects": len(found.rows),
                "equal": equal,
                "across": int(across.sum()),
                "threshold": threshold,
            },
        )
        return write_result(result, work, options.out / "duplicates")


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
    test: the test set: any face set, a verification .bin, or with `images` a list of pairs.
    source: the model.
    options: the images, and the folder for the results.
    images: folder or uncompressed zip with the images of the list.
    expected_false: pairs of strangers that are expected above the threshold.
    """
    others = open_test(test, images)
    with opened(faces, source, options) as (work, model):
        name = re.sub(r"[^\w.-]", "_", Path(test).name)
        embedded = embed_set(
            others, test, options.out / f"vectors_of_{name}", model, options.mirror
        )
        with chosen(others, embedded, None, options.out) as tested:
            result = _overlap(work, tested, test, expected_false, options.shown)
        return write_result(result, work, options.out / "overlap")


def _overlap(work: Chosen, tested: Chosen, test: str, expected_false: float, most: int) -> Result:
    own, others = centers_of(work), centers_of(tested)
    found = find_overlap(
        own.vectors, others.vectors, expected_false=expected_false, progress=_bar("people")
    )
    none, nobody = np.zeros(len(work), bool), np.zeros(len(tested), bool)
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
        left = _best(work, own.own, identity, none)
        right = _best(tested, others.own, person, nobody)
        groups = [
            _group(work, f"training, {work.name(identity)}", left),
            _group(tested, f"test, {tested.name(person)}", right),
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
    lines = [
        f"{len(accused):,} of {len(work.identities):,} identities are in {test}, which has "
        f"{len(tested.identities):,} people; "
        f"{counted(len(left_out), 'image')} left out.",
        f"A pair is accused above a score of {found.threshold:.2f}. The scores of strangers have "
        f"mean {found.mean:.2f} and deviation {found.deviation:.2f}; of "
        f"{len(work.identities) * len(tested.identities):,} pairs of strangers, "
        f"{expected_false:g} are expected above the threshold.",
        _shown(len(pairs), most, "from the highest score to the threshold"),
    ]
    return Result(
        "People of the training set who are in the test set",
        lines,
        ("identity", "images", "first", "person", "test_images", "test_first", "score", "cosine"),
        (row(*pair) for pair in pairs),
        Scores(
            "score (standard deviations of strangers)",
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


def copy_cosines(work: Chosen, model: Model, mirror: bool) -> np.ndarray:
    """Cosines of some images with copies of them, float64: smaller by a quarter, and coarser."""

    def copied(number: int, size: int) -> Pixels:
        pixels = read_pixels(work.faces, number)
        small = cv2.resize(pixels, None, fx=COPY_SIDE, fy=COPY_SIDE, interpolation=cv2.INTER_AREA)
        coarse = [cv2.IMWRITE_JPEG_QUALITY, COPY_QUALITY]
        encoded = cv2.imencode(".jpg", small[:, :, ::-1], coarse)[1]
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
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


def _best(work: Chosen, fit: np.ndarray, identity: int, without: np.ndarray) -> list[int]:
    """Some images of an identity: those that fit it best, and that are no suspects."""
    images = work.images_of(identity)
    order = np.lexsort((-fit[images], without[images]))
    return images[order[:PICTURES]].tolist()


def _group(work: Chosen, caption: str, images: list[int]) -> Group:
    return Group(caption, work.faces, work.rows[images].tolist())


def _where(work: Chosen, image: int) -> str:
    return work.faces.describe(int(work.rows[image]))


def _row(work: Chosen, image: int) -> tuple[object, ...]:
    """Row in the set, file and key, and identity of an image, for a table."""
    return int(work.rows[image]), _where(work, image), work.name(int(work.labels[image]))


def _shown(count: int, most: int, order: str) -> str:
    if count <= most:
        return "This page shows all of them."
    return f"This page shows {most:,} of them, spread {order}; suspects.csv has all."


def _bar(what: str) -> Any:
    return partial(progress_bar, what=what)


METHODS: tuple[Callable[..., Record], ...] = (duplicates, noise, overlap)


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
