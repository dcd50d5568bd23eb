"""IJB-B and IJB-C as published: 1:1 verification of templates and, if wanted, 1:N search in
galleries G1 and G2.

Folder: `meta/ijbc_face_tid_mid.txt` (image, template, media), `meta/ijbc_name_5pts_score.txt`
(image, landmarks, detector score), `meta/ijbc_template_pair_label.txt` (template, template, 0|1),
`loose_crop/` with the images, and for 1:N `meta/ijbc_1N_gallery_G1.csv`, `..._G2.csv`,
`meta/ijbc_1N_probe_mixed.csv` (template, subject; S1, S2 in IJB-B).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.align import align
from data.decode import decode_any
from data.images import FileImages
from eval.embed import Embed, embed_faces, mirror_setting
from eval.metrics import verification as metrics
from eval.metrics.identification import Search, concatenated_tpir, rank_rate, search, tpir
from eval.metrics.templates import pair_scores, pool_templates, rows_of
from eval.report.result import Curve, Result, histogram

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class TemplateBenchmark:
    """keep_norm: embeddings weigh by their norm. detector_score: and by the detector's. one_to_n:
    search too."""

    name: str
    root: Path
    target: str
    mirror: bool = True
    keep_norm: bool = True
    detector_score: bool = True
    one_to_n: bool = False
    missing: str | None = None

    def run(self, embed: Embed, size: int) -> Result:
        """Aligns and embeds every image once (N,D), then `score`."""
        if self.missing:
            return Result(self.name, {}, skipped=self.missing)
        names, landmarks, _ = self.images()
        images = FileImages([self.root / "loose_crop" / name for name in names])

        def crop(index: int, size: int) -> np.ndarray:
            return align(decode_any(images.read(index)), landmarks[index], size)

        embeddings = embed_faces(embed, images, size, mirror=self.mirror, crop=crop)
        result = self.score(embeddings)
        return replace(
            result, settings={**result.settings, "mirror": mirror_setting(embed, self.mirror)}
        )

    def images(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """File names (N), landmarks float64 (N,5,2) and detector scores float64 (N,)."""
        path = self.meta("name_5pts_score.txt")
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
        for number, row in enumerate(rows, 1):
            if len(row) != 12:
                raise ValueError(
                    f"{path}, line {number}: {len(row)} fields; expected name, ten coordinates, score"
                )
        numbers = np.array([row[1:] for row in rows], np.float64)
        return [row[0] for row in rows], numbers[:, :10].reshape(-1, 5, 2), numbers[:, 10]

    def score(self, embeddings: np.ndarray) -> Result:
        """From embeddings (N,D) in the order of the image list, not normalized."""
        templates, media = self.template_ids()
        _, _, detector = self.images()
        if not len(embeddings) == len(templates) == len(detector):
            raise ValueError(
                f"{self.name}: {len(embeddings)} embeddings, {len(templates)} images with a template, {len(detector)} "
                "with landmarks; expected as many of each"
            )
        ids, vectors = pool_templates(
            embeddings,
            templates,
            media,
            detector=detector if self.detector_score else None,
            keep_norm=self.keep_norm,
        )
        first, second, same = self.listed_pairs()
        scores = pair_scores(
            vectors, rows_of(ids, first, "template"), rows_of(ids, second, "template")
        )
        curve = metrics.roc(scores, same)
        nearest = metrics.nearest_tar(curve, FARS)
        figures = {
            f"nearest_tar@{far:g}": 100 * tar for far, tar in zip(FARS, nearest, strict=True)
        }
        figures |= {f"tar@{far:g}": 100 * metrics.tar_at_far(curve, far) for far in FARS}
        figures |= {"auc": 100 * metrics.auc(curve), "eer": 100 * metrics.eer(curve)}
        if self.one_to_n:
            figures |= self.search_figures(ids, vectors)
        return Result(
            self.name,
            figures,
            settings={
                "protocol": "templates, 1:1" + (" and 1:N" if self.one_to_n else ""),
                "images": len(embeddings),
                "templates": len(ids),
                "pairs": len(same),
                "genuine": int(same.sum()),
                "norm kept": self.keep_norm,
                "detector score": self.detector_score,
            },
            curves={self.name: Curve.thinned(curve)},
            histogram=histogram(scores, same),
        )

    def search_figures(self, ids: np.ndarray, vectors: np.ndarray) -> dict[str, float]:
        """`rank*`, `tpir@*`: mean over both galleries, as IJB says. `concatenated_*`: in one, as
        insightface does."""
        probes = self.subjects("1N_probe_mixed.csv")
        galleries = [
            self.subjects(f"1N_gallery_{'S' if self.target == 'ijbb' else 'G'}{k}.csv")
            for k in (1, 2)
        ]
        both = tuple(np.concatenate(column) for column in zip(*galleries, strict=True))
        rows = rows_of(ids, probes[0], "probe template")

        def look(gallery: tuple[np.ndarray, ...], hardest: int = 0) -> Search:
            entries = rows_of(ids, gallery[0], "gallery template")
            return search(vectors[rows], probes[1], vectors[entries], gallery[1], hardest=hardest)

        found = [look(gallery) for gallery in galleries]
        figures = {
            f"rank{rank}": 100 * float(np.mean([rank_rate(x, rank) for x in found]))
            for rank in RANKS
        }
        figures |= {
            f"tpir@{fpir:g}": 100 * float(np.mean([tpir(x, fpir) for x in found])) for fpir in FPIRS
        }
        whole = look(both, hardest=int(np.ceil(max(FPIRS) * len(rows))))
        figures |= {f"concatenated_rank{rank}": 100 * rank_rate(whole, rank) for rank in RANKS}
        figures |= {
            f"concatenated_tpir@{fpir:g}": 100 * concatenated_tpir(whole, fpir) for fpir in FPIRS
        }
        return figures

    def template_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Template and media number int64 (N,) of each image."""
        path = self.meta("face_tid_mid.txt")
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line]
        if any(len(row) != 3 for row in rows):
            raise ValueError(f"{path}: expected three fields a line: image, template, media")
        numbers = np.array([row[1:] for row in rows], np.int64)
        return numbers[:, 0], numbers[:, 1]

    def listed_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Template numbers int64 (P,), (P,) and same bool (P,)."""
        path = self.meta("template_pair_label.txt")
        with warnings.catch_warnings():
            # numpy only warns where it stops at something that is no number
            warnings.simplefilter("error")
            try:
                numbers = np.fromfile(path, np.int64, sep=" ")
            except (DeprecationWarning, ValueError) as error:
                raise ValueError(f"{path}: {error}") from None
        if len(numbers) % 3 or len(numbers) == 0 or not np.isin(numbers[2::3], (0, 1)).all():
            raise ValueError(f"{path}: expected three numbers a line: template, template, 0 or 1")
        return numbers[0::3], numbers[1::3], numbers[2::3] == 1

    def subjects(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Templates and subjects int64 (K,) of a 1:N list, each template once."""
        table = np.loadtxt(
            self.meta(name), np.int64, delimiter=",", skiprows=1, usecols=(0, 1), ndmin=2
        )
        table = table[np.unique(table[:, 0], return_index=True)[1]]
        return table[:, 0], table[:, 1]

    def meta(self, name: str) -> Path:
        path = self.root / "meta" / f"{self.target}_{name}"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; {self.name} needs it")
        return path


def build(
    *,
    name: str,
    root: str,
    target: str = "ijbc",
    mirror: bool = True,
    keep_norm: bool = True,
    detector_score: bool = True,
    one_to_n: bool = False,
    optional: bool = False,
) -> TemplateBenchmark:
    """IJB-B or IJB-C (target ijbb or ijbc) from its folder. The published rows have all three
    options on.

    Missing files are a FileNotFoundError now; with `optional` they are said in the result.
    """
    if target not in ("ijbb", "ijbc"):
        raise ValueError(f"benchmark {name}: target {target!r}; expected ijbb or ijbc")
    bare = TemplateBenchmark(name, Path(root), target, mirror, keep_norm, detector_score, one_to_n)
    try:
        for listed in ("face_tid_mid.txt", "name_5pts_score.txt", "template_pair_label.txt"):
            bare.meta(listed)
    except FileNotFoundError as error:
        if not optional:
            raise FileNotFoundError(
                f"benchmark {error}; correct the path or mark it optional: true"
            ) from None
        return TemplateBenchmark(name, Path(root), target, missing=str(error))
    return bare
