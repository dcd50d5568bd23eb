"""1:N identification: probe images are searched in a gallery of known people.

Both are folders with one folder per person: `gallery/NAME/*.jpg`. A probe of a person who is not in
the gallery is unmated; such probes give the open-set figures.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from data.images import FileImages, image_files
from data.options import PathText
from eval.benchmarks import Benchmark, existing_folder
from eval.embed import Embed, embed_faces, mirror_setting, normalized
from eval.metrics.identification import rank_rate, search, tpir
from eval.metrics.templates import pool_templates
from eval.report.result import Identified, Protocol, Result
from eval.search import top_matches

RANKS = (1, 5, 10, 20)
FPIRS = (1e-2, 1e-1)
LISTED = 5  # gallery entries in the list of each probe image
PROTOCOL = Protocol(
    name="identification",
    title="identification, 1:N",
    columns={
        **{f"rank{rank}": f"rank-{rank}" for rank in RANKS},
        "tpir@0.01": "TPIR@FPIR 1e-2",
        "tpir@0.1": "TPIR@FPIR 1e-1",
    },
)


def build(
    *,
    name: str = "",
    gallery: PathText,
    probe: PathText,
    mirror: bool = True,
    pool: bool = True,
) -> Benchmark:
    """1:N identification with two folders that have one folder per person.

    name: name in the results. Without it, the name of the probe folder is used.
    gallery: folder with images of the people who are known.
    probe: folder with the images to identify. A person has the same folder name in gallery and
        probe.
    mirror: add the embedding of the mirror image to that of the image.
    pool: make one gallery entry per person, the normalized mean of the images; otherwise each image
        is an entry.
    """
    folders = existing_folder(gallery), existing_folder(probe)
    return partial(run, name or folders[1].name, *folders, mirror, pool)


def run(
    name: str, gallery: Path, probe: Path, mirror: bool, pool: bool, embed: Embed, size: int
) -> Result:
    """Embed both folders, search the gallery for every probe image, and list whom it finds."""
    files = image_files(gallery, people=True), image_files(probe, people=True)
    people = [[path.parent.name for path in paths] for paths in files]
    names = np.array(sorted({*people[0], *people[1]}), object)
    numbers = {person: number for number, person in enumerate(names)}
    ids, probe_ids = (np.array([numbers[person] for person in side]) for side in people)
    vectors, probe_vectors = (
        normalized(embed_faces(embed, FileImages(paths, folder), size, mirror=mirror))
        for paths, folder in zip(files, (gallery, probe), strict=True)
    )
    if pool:
        ids, vectors = pool_templates(vectors, ids, media=np.arange(len(ids)))
    result = identify(
        name, probe_vectors, probe_ids, vectors, ids, mirror=mirror_setting(embed, mirror)
    )
    best = top_matches(probe_vectors, vectors, LISTED)
    listed = tuple(
        Identified(str(path), path.parent.name, tuple(zip(names[ids[rows]], scores, strict=True)))
        for path, rows, scores in zip(files[1], best.rows, best.scores.tolist(), strict=True)
    )
    return replace(result, identified=listed)


def identify(
    name: str,
    probes: np.ndarray,
    probe_ids: np.ndarray,
    gallery: np.ndarray,
    gallery_ids: np.ndarray,
    *,
    mirror: object,
) -> Result:
    """Rank-1/5/10/20 from unit vectors float32 (Q,D), (G,D) and identities int64 (Q,), (G,).

    If there are unmated probes, it adds TPIR at FPIR 0.01 and 0.1.
    """
    found = search(probes, probe_ids, gallery, gallery_ids)
    if not found.mated.any():
        raise ValueError(
            f"{name}: no probe has its identity in the gallery; are the folders' names the same?"
        )
    figures = {f"rank{rank}": 100 * rank_rate(found, rank) for rank in RANKS}
    if not found.mated.all():
        figures |= {f"tpir@{fpir:g}": 100 * tpir(found, fpir) for fpir in FPIRS}
    settings = {
        "gallery": len(gallery),
        "probes": len(probes),
        "mated": int(found.mated.sum()),
        "mirror": mirror,
    }
    return Result(name, PROTOCOL, figures, settings=settings)
