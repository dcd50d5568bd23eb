"""TinyFace identification: rank-1/5/10/20 of low-resolution probes among many distractors.

`Probe/ID_n.jpg` is searched in `Gallery_Match/ID_n.jpg` together with `Gallery_Distractor/*`. The
folder is the original `Testing_Set`, or an aligned copy with the same three folders. Any image of
the probe's identity among the first entries is a hit, as AdaFace and the authors of the set count.
"""

from functools import partial
from pathlib import Path

import numpy as np

from data.images import FileImages, image_files
from data.options import PathText
from eval.benchmarks import Benchmark, existing_folder, identification
from eval.benchmarks.identification import identify
from eval.embed import Embed, embed_faces, mirror_setting, normalized
from eval.report.result import Result

FOLDERS = ("Probe", "Gallery_Match", "Gallery_Distractor")
PROTOCOL = identification.PROTOCOL


def build(*, name: str = "tinyface", root: PathText, mirror: bool = True) -> Benchmark:
    """TinyFace identification.

    name: name in the results.
    root: folder with Probe, Gallery_Match and Gallery_Distractor.
    mirror: add the embedding of the mirror image to that of the image.
    """
    for folder in FOLDERS:
        existing_folder(Path(root) / folder)
    return partial(run, name, Path(root), mirror)


def run(name: str, root: Path, mirror: bool, embed: Embed, size: int) -> Result:
    """Embed all three folders and search matches and distractors for every probe."""
    probes, matches, distractors = (image_files(root / folder) for folder in FOLDERS)
    vectors, *entries = (
        normalized(embed_faces(embed, FileImages(paths, root / folder), size, mirror=mirror))
        for paths, folder in zip((probes, matches, distractors), FOLDERS, strict=True)
    )
    # No person has the number -1.
    entry_ids = identities(matches), np.full(len(distractors), -1)
    return identify(
        name,
        vectors,
        identities(probes),
        np.concatenate(entries),
        np.concatenate(entry_ids),
        mirror=mirror_setting(embed, mirror),
    )


def identities(paths: list[Path]) -> np.ndarray:
    """int64 (N,), the number before the first underscore of each file name."""
    numbers = [path.name.split("_")[0] for path in paths]
    for path, number in zip(paths, numbers, strict=True):
        if not number.isdigit():
            raise ValueError(f"{path}: expected a name ID_n.jpg")
    return np.array([int(number) for number in numbers])
