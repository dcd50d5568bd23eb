"""Embeddings of a whole set, written to a .npy file with a file of names beside it.

An extraction that was stopped continues where it was.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.faces import open_faces
from data.files import atomic_write, read_lines
from data.formats import recordio
from data.images import FileImages, Images, image_files, open_images
from data.names import is_image
from data.pairs.lists import from_bin
from data.text import one_line
from eval.batches import Crop
from eval.embed import Model, ModelRun, Progress, embed_faces, normalized, not_shown

BLOCK = 2048  # images between two writes of the position
FloatType = Literal["float32", "float16"]


def open_source(data: str, images: str | None = None) -> tuple[Images, list[str]]:
    """The images of `data` and a name for each.

    data: an image, a verification .bin, any set of faces, or a folder of image files at any depth,
    which are named by their paths in it. With `images`, a folder or uncompressed zip, `data` is a
    file that lists the names of its images.
    """
    path = Path(data)
    if images:
        if not path.is_file():
            raise FileNotFoundError(
                f"{data}: no such file; expected a list of image names inside {images}"
            )
        names = read_names(path)
        return open_images(images, names), names
    if is_image(path.name) and path.is_file():
        return FileImages([path]), [path.name]
    if path.suffix == ".bin":
        packed = from_bin(path).images
        return packed, [Path(packed.describe(i)).name for i in range(len(packed))]
    if path.is_dir() and not recordio.detect(data):
        with suppress(FileNotFoundError):  # a folder of shards holds no image
            files = image_files(path)
            return FileImages(files, path), [str(file.relative_to(path)) for file in files]
    faces = open_faces(data)
    root = str(path.parent if path.is_file() else path) + "/"
    return faces, [faces.describe(i).removeprefix(root) for i in range(len(faces))]


def read_names(path: Path) -> list[str]:
    """The names in a list: each line up to a tab, or up to a comma if every line has one there."""
    lines = [line for line in read_lines(path) if line.strip(" \t")]
    heads = [line.split(",")[0] for line in lines]
    if not any("\t" in line for line in lines) and all(map(is_image, heads)):
        return [head.strip(" ") for head in heads]
    return [line.split("\t")[0].strip(" ") for line in lines]


def extract(
    embed: Model,
    images: Images,
    names: list[str],
    out: str | Path,
    *,
    size: int,
    model: str,
    mirror: bool = True,
    dtype: FloatType = "float32",
    unit: bool = False,
    crop: Crop | None = None,
    progress: Progress = not_shown,
) -> dict[str, Any]:
    """Write `out` (.npy, (N,D) of dtype) and a .txt beside it with one name per line.

    The other arguments, the result and the errors are those of `write_vectors`.

    model: text that differs between models, e.g. a digest of the file.
    """
    out = Path(out)
    if out.suffix != ".npy":
        raise ValueError(f"{out}: expected the name of a .npy file")
    digest = hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()
    return write_vectors(
        embed,
        images,
        out,
        {"model": model, "names": digest},
        size=size,
        mirror=mirror,
        dtype=dtype,
        unit=unit,
        crop=crop,
        progress=progress,
        finish=lambda: _write_names(out.with_suffix(".txt"), names),
    )


def _write_names(file: Path, names: list[str]) -> None:
    with atomic_write(file) as lines:
        lines.writelines(f"{one_line(name)}\n".encode() for name in names)


def write_vectors(
    embed: Model,
    images: Images,
    out: Path,
    identity: dict[str, str],
    *,
    size: int,
    mirror: bool = True,
    dtype: FloatType = "float32",
    unit: bool = False,
    crop: Crop | None = None,
    progress: Progress = not_shown,
    finish: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the embeddings of all images, (N,D) of dtype, to the .npy file `out`.

    Returns the number of images, how many an earlier call had done, and the seconds. Until `out` is
    complete, it is called `out`.part and has a position file. A call continues an earlier one with
    the same identity and options, and raises ValueError if they differ.

    identity: texts that tell the model and the images from others. unit: divide each embedding by
    its length. crop: makes the pixels of an image; without it, the whole image is resized. finish:
    writes what must be there before `out` is.
    """
    part, position = out.with_name(out.name + ".part"), out.with_name(out.name + ".position.json")
    settings = {**identity, "size": size, "mirror": mirror, "dtype": dtype}
    if unit:
        settings["unit"] = True
    count, done = len(images), 0
    if part.exists() and position.exists():
        saved = json.loads(position.read_text(encoding="utf-8"))
        changed = [key for key in settings if saved.get(key) != settings[key]]
        if changed:
            raise ValueError(
                f"{part}: was begun with another {', '.join(changed)}; delete it to start again"
            )
        done = int(saved["done"])
    start, resumed = time.monotonic(), done
    with progress(count) as advance:
        advance(done)
        run = ModelRun(embed, progress=lambda block: nullcontext(advance))
        while done < count:
            # Every block opens the file again, so that it is on disk before the position says so.
            block = np.arange(done, min(done + BLOCK, count))
            vectors = embed_faces(run, images, size, indices=block, mirror=mirror, crop=crop)
            vectors = normalized(vectors) if unit else vectors
            if np.abs(vectors).max() > np.finfo(dtype).max:
                raise ValueError(
                    f"{out}: an embedding holds {np.abs(vectors).max():.3g}, too much for {dtype}; "
                    "use float32"
                )
            mode: Any = "r+" if done else "w+"
            shape = None if done else (count, vectors.shape[1])
            stored = np.lib.format.open_memmap(part, mode, np.dtype(dtype), shape)
            stored[block] = vectors
            stored.flush()
            del stored
            done = int(block[-1]) + 1
            with atomic_write(position) as file:
                file.write(json.dumps({**settings, "done": done}).encode())
    finish()
    os.replace(part, out)
    position.unlink()
    return {
        "images": count,
        "resumed_at": resumed,
        "seconds": round(time.monotonic() - start, 3),
    }
