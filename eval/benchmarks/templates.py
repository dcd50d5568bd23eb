"""IJB-B and IJB-C as published: 1:1 verification of templates, and 1:N search in two galleries.

The set is a folder with these files, where IJB-B has `ijbb` for `ijbc` and S1, S2 for G1, G2:

    loose_crop/                             the images
    meta/ijbc_face_tid_mid.txt              image, template, media
    meta/ijbc_name_5pts_score.txt           image, landmarks, detector score
    meta/ijbc_template_pair_label.txt       template, template, 0|1
    meta/ijbc_1N_gallery_G1.csv, _G2.csv    template, subject (only for 1:N)
    meta/ijbc_1N_probe_mixed.csv            template, subject (only for 1:N)
"""

import warnings
from dataclasses import dataclass
from functools import partial
from math import log10
from pathlib import Path
from typing import Literal

import numpy as np

from data.align import align
from data.files import read_lines
from data.images import FileImages
from data.landmarks import Landmarks, in_crop
from data.options import PathText
from data.read_image import read_pixels
from eval.benchmarks import Benchmark
from eval.embed import Embed, embed_faces, mirror_setting
from eval.metrics import verification as metrics
from eval.metrics.identification import Search, concatenated_tpir, rank_rate, search, tpir
from eval.metrics.templates import pair_scores, pool_templates, rows_of
from eval.report.result import Curve, Protocol, Result, histogram

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)
IDS, IMAGES, PAIRS = "face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt"
PROBES = "1N_probe_mixed.csv"
GALLERIES = {
    "ijbb": ("1N_gallery_S1.csv", "1N_gallery_S2.csv"),
    "ijbc": ("1N_gallery_G1.csv", "1N_gallery_G2.csv"),
}
PROTOCOL = Protocol(
    name="templates",
    title="templates",
    columns={
        **{f"nearest_tar@{far:g}": f"TAR@1e{log10(far):.0f}" for far in FARS},
        **{f"tar@{far:g}": f"strict TAR@1e{log10(far):.0f}" for far in FARS},
        "auc": "AUC %",
        "eer": "EER %",
        **{f"rank{rank}": f"rank-{rank}" for rank in RANKS},
        **{f"tpir@{fpir:g}": f"TPIR@FPIR 1e{log10(fpir):.0f}" for fpir in FPIRS},
        **{f"concatenated_rank{rank}": f"rank-{rank}, one gallery" for rank in RANKS},
        **{
            f"concatenated_tpir@{fpir:g}": f"TPIR@1e{log10(fpir):.0f}, one gallery"
            for fpir in FPIRS
        },
    },
    less_is_better=("eer",),
)


def build(
    *,
    name: str = "",
    root: PathText,
    target: Literal["ijbb", "ijbc"] = "ijbc",
    mirror: bool = True,
    keep_norm: bool = True,
    detector_score: bool = True,
    one_to_n: bool = False,
) -> Benchmark:
    """IJB-B or IJB-C. Published rows use `mirror`, `keep_norm` and `detector_score`.

    name: name in the results. Without it, the target is used.
    root: folder with meta/ and loose_crop/.
    target: which of the two sets: `ijbb` or `ijbc`.
    mirror: add the embedding of the mirror image to that of the image.
    keep_norm: weigh each embedding by its norm; otherwise normalize it before pooling.
    detector_score: weigh each embedding by the score of the face detector.
    one_to_n: also search in the galleries G1 and G2 (1:N).
    """
    lists = Lists(Path(root), target)
    for listed in (IDS, IMAGES, PAIRS, *((PROBES, *GALLERIES[target]) if one_to_n else ())):
        lists.file(listed)
    options = {"keep_norm": keep_norm, "detector_score": detector_score, "one_to_n": one_to_n}
    return partial(run, name or target, lists, mirror, options)


@dataclass(frozen=True)
class Lists:
    """The files below `root/meta`."""

    root: Path
    target: str

    def images(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """File names (N), landmarks float64 (N,5,2) and detector scores float64 (N,)."""
        rows = self.rows(IMAGES, 12, "name, ten coordinates, score")
        numbers = np.array([row[1:] for row in rows], np.float64)
        return [row[0] for row in rows], numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10]

    def template_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Template and media number int64 (N,) of each image."""
        rows = self.rows(IDS, 3, "image, template, media")
        numbers = np.array([row[1:] for row in rows], np.int64)
        return numbers[:, 0], numbers[:, 1]

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Template numbers int64 (P,), (P,) and same bool (P,)."""
        path = self.file(PAIRS)
        with warnings.catch_warnings():
            # numpy only warns where it stops at something that is not a number.
            warnings.simplefilter("error")
            try:
                numbers = np.fromfile(path, np.int64, sep=" ")
            except (DeprecationWarning, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
        if len(numbers) % 3 or len(numbers) == 0 or not np.isin(numbers[2::3], (0, 1)).all():
            raise ValueError(f"{path}: expected three numbers per line: template, template, 0 or 1")
        return numbers[0::3], numbers[1::3], numbers[2::3] == 1

    def subjects(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Templates and subjects int64 (K,) of a 1:N list, each template once."""
        table = np.loadtxt(
            self.file(name), np.int64, delimiter=",", skiprows=1, usecols=(0, 1), ndmin=2
        )
        table = table[np.unique(table[:, 0], return_index=True)[1]]
        return table[:, 0], table[:, 1]

    def rows(self, name: str, fields: int, expected: str) -> list[list[str]]:
        """The fields of each line that is not empty."""
        path = self.file(name)
        rows = [line.split() for line in read_lines(path) if line]
        for number, row in enumerate(rows, 1):
            if len(row) != fields:
                raise ValueError(f"{path}, line {number}: {len(row)} fields; expected {expected}")
        return rows

    def file(self, name: str) -> Path:
        """The path of a list, or FileNotFoundError if it is missing."""
        path = self.root / "meta" / f"{self.target}_{name}"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        return path


def run(
    name: str, lists: Lists, mirror: bool, options: dict[str, bool], embed: Embed, size: int
) -> Result:
    """Align and embed every image once (N,D), then `score`."""
    names, landmarks, _ = lists.images()
    images = FileImages([lists.root / "loose_crop" / name for name in names])

    def crop(index: int, size: int) -> np.ndarray:
        return align(read_pixels(images, index), landmarks[index], size)

    def in_crops() -> Landmarks:
        return np.stack([in_crop(points, size) for points in landmarks])

    embeddings = embed_faces(embed, images, size, mirror=mirror, crop=crop, landmarks=in_crops)
    result = score(name, lists, embeddings, **options)
    result.settings["mirror"] = mirror_setting(embed, mirror)
    return result


def score(
    name: str,
    lists: Lists,
    embeddings: np.ndarray,
    *,
    keep_norm: bool = True,
    detector_score: bool = True,
    one_to_n: bool = False,
) -> Result:
    """Figures from embeddings (N,D) in the order of the image list, not normalized."""
    templates, media = lists.template_ids()
    _, _, detector = lists.images()
    if not len(embeddings) == len(templates) == len(detector):
        raise ValueError(
            f"{name}: {len(embeddings)} embeddings, {len(templates)} images with a template, "
            f"{len(detector)} with landmarks; expected as many of each"
        )
    weights = detector if detector_score else None
    ids, vectors = pool_templates(
        embeddings, templates, media, detector=weights, keep_norm=keep_norm
    )
    first, second, same = lists.pairs()
    rows = rows_of(ids, first, "template"), rows_of(ids, second, "template")
    scores = pair_scores(vectors, *rows)
    curve = metrics.roc(scores, same)
    nearest = metrics.nearest_tar(curve, FARS)
    figures = {
        **{f"nearest_tar@{far:g}": 100 * tar for far, tar in zip(FARS, nearest, strict=True)},
        **{f"tar@{far:g}": 100 * metrics.tar_at_far(curve, far) for far in FARS},
        "auc": 100 * metrics.auc(curve),
        "eer": 100 * metrics.eer(curve),
    }
    if one_to_n:
        figures |= search_figures(lists, ids, vectors)
    return Result(
        name,
        PROTOCOL,
        figures,
        settings={
            "images": len(embeddings),
            "templates": len(ids),
            "pairs": len(same),
            "genuine": int(same.sum()),
            "1:N search": one_to_n,
            "norm kept": keep_norm,
            "detector score": detector_score,
        },
        curves={name: Curve.thinned(curve)},
        histogram=histogram(scores, same),
    )


def search_figures(lists: Lists, ids: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
    """`rank*` and `tpir@*` are means over the two galleries, as IJB defines them.

    `concatenated_*` search both galleries as one, as insightface does.
    """
    probes, people = lists.subjects(PROBES)
    rows = rows_of(ids, probes, "probe template")
    galleries = [lists.subjects(file) for file in GALLERIES[lists.target]]
    both = tuple(np.concatenate(column) for column in zip(*galleries, strict=True))

    def searched(gallery: tuple[np.ndarray, ...], hardest: int = 0) -> Search:
        entries = rows_of(ids, gallery[0], "gallery template")
        return search(vectors[rows], people, vectors[entries], gallery[1], hardest=hardest)

    first, second = (searched(gallery) for gallery in galleries)
    whole = searched(both, hardest=int(np.ceil(max(FPIRS) * len(rows))))
    shares = {
        **{f"rank{k}": (rank_rate(first, k) + rank_rate(second, k)) / 2 for k in RANKS},
        **{f"tpir@{fpir:g}": (tpir(first, fpir) + tpir(second, fpir)) / 2 for fpir in FPIRS},
        **{f"concatenated_rank{k}": rank_rate(whole, k) for k in RANKS},
        **{f"concatenated_tpir@{fpir:g}": concatenated_tpir(whole, fpir) for fpir in FPIRS},
    }
    return {key: 100 * share for key, share in shares.items()}
