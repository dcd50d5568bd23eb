"""1:N identification from a gallery and a probe folder, each with one folder a person:
`gallery/NAME/*.jpg`.

A probe's name that the gallery lacks makes it an unmated probe, for the open-set figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import SUFFIXES, FileImages
from eval.embed import Embed, embed_faces, mirror_setting
from eval.metrics.identification import rank_rate, search, tpir
from eval.metrics.templates import pool_templates
from eval.report.result import Result

RANKS = (1, 5, 10, 20)
FPIRS = (1e-2, 1e-1)


@dataclass(frozen=True)
class Identification:
    """pool: one gallery entry a person, the normalized mean; otherwise every gallery image is an
    entry."""

    name: str
    gallery: Path
    probe: Path
    mirror: bool = True
    pool: bool = True
    missing: str | None = None

    def run(self, embed: Embed, size: int) -> Result:
        """Embeds both folders and searches every probe image."""
        if self.missing:
            return Result(self.name, {}, skipped=self.missing)
        (entries, people), (probes, probe_people) = (
            list_people(self.gallery),
            list_people(self.probe),
        )
        numbers = {person: k for k, person in enumerate(sorted({*people, *probe_people}))}
        ids, probe_ids = (np.array([numbers[p] for p in names]) for names in (people, probe_people))
        vectors = unit(embed_faces(embed, FileImages(entries), size, mirror=self.mirror))
        probe_vectors = unit(embed_faces(embed, FileImages(probes), size, mirror=self.mirror))
        if self.pool:
            ids, vectors = pool_templates(vectors, ids, np.arange(len(ids)))
        return identify(
            self.name,
            probe_vectors,
            probe_ids,
            vectors,
            ids,
            mirror=mirror_setting(embed, self.mirror),
        )


def identify(
    name: str,
    probes: np.ndarray,
    probe_ids: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: np.ndarray,
    *,
    mirror: object,
) -> Result:
    """Rank-1/5/10/20 and, where probes without a mate exist, TPIR at FPIR 0.01 and 0.1, from unit
    vectors."""
    found = search(probes, probe_ids, gallery, gallery_ids)
    if not found.mated.any():
        raise ValueError(
            f"{name}: no probe has its identity in the gallery; are the folders' names the same?"
        )
    figures = {f"rank{rank}": 100 * rank_rate(found, rank) for rank in RANKS}
    if not found.mated.all():
        figures |= {f"tpir@{fpir:g}": 100 * tpir(found, fpir) for fpir in FPIRS}
    settings = {
        "protocol": "identification, 1:N",
        "gallery": len(gallery),
        "probes": len(probes),
        "mated": int(found.mated.sum()),
        "mirror": mirror,
    }
    return Result(name, figures, settings=settings)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N,D) divided by their norms; a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def list_people(root: Path) -> tuple[list[Path], list[str]]:
    """All images `root/NAME/*`, sorted, and the name of each."""
    paths = sorted(p for p in root.glob("*/*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{root}: no image in it; expected one folder a person")
    return paths, [path.parent.name for path in paths]


def build(
    *,
    name: str,
    gallery: str,
    probe: str,
    mirror: bool = True,
    pool: bool = True,
    optional: bool = False,
) -> Identification:
    """Missing folders are a FileNotFoundError now; with `optional` they are said in the result."""
    absent = [path for path in (gallery, probe) if not Path(path).is_dir()]
    missing = f"{absent[0]}: no such folder" if absent else None
    if missing and not optional:
        raise FileNotFoundError(
            f"benchmark {name}: {missing}; correct the path or mark it optional: true"
        )
    return Identification(name, Path(gallery), Path(probe), mirror, pool, missing)
