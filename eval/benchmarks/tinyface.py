"""TinyFace identification: `Probe/ID_n.jpg` in `Gallery_Match/ID_n.jpg` and `Gallery_Distractor/*`,
rank-1/5/20.

Works on the original `Testing_Set` folder and on an aligned copy with the same three folders. A hit
is any image of the probe's identity among the first entries, as AdaFace and the set's authors count
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.images import SUFFIXES, FileImages
from eval.benchmarks.identification import identify, unit
from eval.embed import Embed, embed_faces, mirror_setting
from eval.report.result import Result

FOLDERS = ("Probe", "Gallery_Match", "Gallery_Distractor")


@dataclass(frozen=True)
class TinyFace:
    name: str
    root: Path
    mirror: bool = True
    missing: str | None = None

    def run(self, embed: Embed, size: int) -> Result:
        """Embeds all three folders and searches every probe in the gallery with distractors."""
        if self.missing:
            return Result(self.name, {}, skipped=self.missing)
        paths = [list_images(self.root / folder) for folder in FOLDERS]
        vectors = [
            unit(embed_faces(embed, FileImages(part), size, mirror=self.mirror)) for part in paths
        ]
        ids = [identities(paths[0]), identities(paths[1]), np.full(len(paths[2]), -1)]
        gallery, gallery_ids = np.concatenate(vectors[1:]), np.concatenate(ids[1:])
        return identify(
            self.name,
            vectors[0],
            ids[0],
            gallery,
            gallery_ids,
            mirror=mirror_setting(embed, self.mirror),
        )


def list_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted; FileNotFoundError if there is none."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder}: no image in it")
    return paths


def identities(paths: list[Path]) -> np.ndarray:
    """int64 (N,), the number before the first underscore of each file name."""
    for path in paths:
        if not path.name.split("_")[0].isdigit():
            raise ValueError(f"{path}: expected a name ID_n.jpg")
    return np.array([int(path.name.split("_")[0]) for path in paths])


def build(*, name: str, root: str, mirror: bool = True, optional: bool = False) -> TinyFace:
    """root: the folder that holds Probe, Gallery_Match and Gallery_Distractor."""
    absent = [str(Path(root) / folder) for folder in FOLDERS if not (Path(root) / folder).is_dir()]
    missing = f"{absent[0]}: no such folder" if absent else None
    if missing and not optional:
        raise FileNotFoundError(
            f"benchmark {name}: {missing}; correct the path or mark it optional: true"
        )
    return TinyFace(name, Path(root), mirror, missing)
