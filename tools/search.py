"""Finds the people in photos: the faces in PROBE are searched among the faces in GALLERY.

    python -m tools.search GALLERY PROBE --model runs/mine --out FOUND

Each of the two is a photo, a folder of photos, or a folder with one folder per person. A person of
the gallery is called like the folder, or like the photo if it lies in no folder. Of a photo in the
gallery the largest face is used; all faces in the photos of PROBE are searched.

FOUND gets matches.csv, matches.json, and matches.html with the pictures. The embeddings of a
gallery's folder are kept beside it, in GALLERY.index, until the model or the photos change.
"""

import csv
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import encode_jpeg
from data.files import atomic_write
from data.options import Count
from data.text import csv_cell, one_line
from eval.report.html import document, escape, faces_notice, image
from eval.search import PROBES, top_matches
from eval.verdict import FAR
from tools._cli import command
from tools._faces import Align, FaceImages, FaceIn, counted
from tools._gallery import Gallery, LeftOut, faces_of, open_gallery
from tools._model import ModelOptions
from tools._progress import progress_bar
from tools._recognizer import Recognizer, open_recognizer
from tools.align import list_photos

CROP = 112  # side of the faces on the page, in pixels
MOST_SHOWN = 200  # faces of PROBE on the page: about 8 MB with 5 matches each
MOST_PRINTED = 20
FILES = ("matches.csv", "matches.json", "matches.html")


@dataclass(frozen=True)
class Match:
    """A person of the gallery, by the face that is most like the probe's.

    word: what the cosine means by the model's evaluation; None without one.
    """

    name: str
    cosine: float
    word: str | None
    face: FaceIn


@dataclass(frozen=True)
class Found:
    """A face of PROBE and its matches, best first."""

    face: FaceIn
    matches: list[Match]


def search_faces(
    faces: Sequence[FaceIn], gallery: Gallery, model: Recognizer, top: int
) -> list[Found]:
    """The `top` people of the gallery that are most like each face.

    Among the (top - 1)·M + 1 best entries, where nobody has more than M, are at least `top` people,
    or all people if the gallery has fewer.
    """
    vectors = model.vectors(faces, partial(progress_bar, what="faces to search"))
    people = gallery.people
    wanted, found = (top - 1) * int(np.bincount(people).max()) + 1, []
    for start in range(0, len(faces), PROBES):  # so that the best entries need bounded memory
        here = slice(start, start + PROBES)
        best = top_matches(vectors[here], gallery.vectors, wanted)
        for face, rows, scores in zip(faces[here], best.rows, best.scores, strict=True):
            _, first = np.unique(people[rows], return_index=True)
            places = np.sort(first)[:top]
            matches = [
                _match(gallery, int(rows[place]), float(scores[place]), model) for place in places
            ]
            found.append(Found(face, matches))
    return found


def _match(gallery: Gallery, row: int, cosine: float, model: Recognizer) -> Match:
    word = model.evaluation.word(cosine) if model.evaluation else None
    return Match(gallery.names[row], cosine, word, gallery.face(row))


def strangers_line(gallery: int) -> str:
    """How often a search finds somebody for a person who is not in the gallery, in words."""
    share = min(1.0, gallery * FAR)
    return (
        f"Each face is compared with {counted(gallery, 'face')}. The threshold is for one "
        f"comparison: of the people who are not in the gallery, up to {100 * share:.2g} % find "
        "somebody above it."
    )


def as_json(
    found: Sequence[Found], gallery: Gallery, model: Recognizer, left_out: LeftOut
) -> dict[str, Any]:
    """All matches, and what they depend on."""
    return {
        "gallery_faces": len(gallery),
        "gallery_left_out": gallery.left_out,
        "probe_left_out": left_out,
        "evaluation": model.evaluation.facts() if model.evaluation else None,
        "probes": [
            {
                **one.face.facts(),
                "matches": [
                    {
                        "name": match.name,
                        "cosine": round(match.cosine, 6),
                        "word": match.word,
                        "photo": str(match.face.photo),
                    }
                    for match in one.matches
                ],
            }
            for one in found
        ],
    }


def as_csv(found: Sequence[Found]) -> str:
    """One line per match."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "face", "rank", "name", "cosine", "word", "gallery_photo"])
    for one in found:
        for rank, match in enumerate(one.matches, 1):
            cells = (
                *(str(one.face.photo), one.face.number, rank, match.name),
                *(round(match.cosine, 6), match.word, str(match.face.photo)),
            )
            writer.writerow([csv_cell(cell) for cell in cells])
    return text.getvalue()


def as_html(found: Sequence[Found], gallery: Gallery, model: Recognizer, left_out: LeftOut) -> str:
    """The page with the pictures of the first faces and of their matches."""
    shown = found[:MOST_SHOWN]
    faces = [face for one in shown for face in (one.face, *(match.face for match in one.matches))]
    images = FaceImages(faces)
    with ThreadPoolExecutor() as threads:
        crops = iter(threads.map(lambda i: encode_jpeg(images.crop(i, CROP)), range(len(faces))))
        rows = [_row(one, [next(crops) for _ in (one.face, *one.matches)]) for one in shown]
    lines = [f"Searched: {counted(len(found), 'face')}, among {len(gallery):,} of the gallery."]
    if len(found) > len(shown):
        lines.append(f"This page shows the first {len(shown)}; matches.csv has all.")
    if model.evaluation:
        lines += [model.evaluation.threshold_line(), strangers_line(len(gallery))]
    else:
        lines.append(f"No threshold: {model.unknown}")
    missing = [
        f"{counted(len(photos), 'photo')} of the {side} left out: {_shortened(photos)}"
        for side, photos in (("gallery", gallery.left_out), ("search", left_out))
        if photos
    ]
    body = [
        "<h1>Who was found</h1>",
        faces_notice("the pictures of the search and of the gallery"),
        *(f"<p>{escape(line)}</p>" for line in lines),
        *(f"<p class=warning>{escape(line)}</p>" for line in missing),
        *rows,
    ]
    return document("Who was found", "".join(body))


def _row(one: Found, crops: Sequence[bytes]) -> str:
    """A face and its matches, one beside the other."""
    captions = [f"<b>{escape(str(one.face))}</b>"]
    captions += [
        f"{escape(match.name)}<br>{match.cosine:.4f} {match.word or ''}<br>"
        f"{escape(match.face.photo.name)}"
        for match in one.matches
    ]
    figures = (
        f"<figure>{image(crop, 'face')}<figcaption>{caption}</figcaption></figure>"
        for crop, caption in zip(crops, captions, strict=True)
    )
    return f"<div class=sheet style='margin-top:1.5rem'>{''.join(figures)}</div>"


def _shortened(left_out: LeftOut, most: int = 5) -> str:
    texts = [f"{photo} ({why})" for photo, why in left_out[:most]]
    return ", ".join(texts) + (f" and {len(left_out) - most:,} more" if left_out[most:] else "")


def photos_of(path: Path) -> list[Path]:
    """A photo, or the photos of a folder; ValueError or FileNotFoundError if there is none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such photo or folder")
    if listed := list_photos(path)[0]:
        return [path / photo for photo in listed]
    raise ValueError(f"{path}: holds no photo")


def run(
    gallery: Path,
    probe: Path,
    *,
    source: ModelOptions,
    top: Count = 5,
    out: Path | None = None,
    index: Path | None = None,
    align: Align = "auto",
    evaluation: Path | None = None,
) -> dict[str, Any]:
    """Search faces in a gallery.

    gallery: photo, folder of photos, or folder with one folder per person.
    probe: the photos to search, likewise.
    source: the model.
    top: people to list for each face.
    out: folder for matches.csv, matches.json and matches.html.
    index: folder in which the embeddings of the gallery are kept, instead of GALLERY.index.
    align: in which images a face is sought: auto (those that do not have the size of the model's
        input), always or never.
    evaluation: folder with the results.json of the model, if it is not the model's own folder.
    """
    photos = photos_of(probe)
    model = open_recognizer(source, evaluation)
    known = open_gallery(gallery, model, align, index)
    faces, left_out = faces_of(photos, model, align)
    if not faces:
        raise ValueError(
            f"{probe}: no face was found: {_shortened(left_out)}; if the images are aligned crops, "
            "give --align never"
        )
    found = search_faces(faces, known, model, top)
    record = as_json(found, known, model, left_out)
    _print(found, known, model, left_out)
    if out:
        contents = (as_csv(found), json.dumps(record), as_html(found, known, model, left_out))
        out.mkdir(parents=True, exist_ok=True)
        for name, content in zip(FILES, contents, strict=True):
            with atomic_write(out / name) as file:
                file.write(content.encode("utf-8", "backslashreplace"))
        print(one_line(f"{', '.join(FILES)} are in {out}; matches.html shows faces"))
    return record


def _print(found: Sequence[Found], gallery: Gallery, model: Recognizer, left_out: LeftOut) -> None:
    for one in found[:MOST_PRINTED]:
        print(one_line(str(one.face)))
        for match in one.matches:
            print(f"  {match.cosine:7.4f}  {one_line(match.name)}  {match.word or ''}".rstrip())
    if len(found) > MOST_PRINTED:
        print(f"… and {len(found) - MOST_PRINTED:,} more; --out FOLDER writes all")
    for side, photos in (("gallery", gallery.left_out), ("search", left_out)):
        if photos:
            what = f"{counted(len(photos), 'photo')} of the {side} left out"
            print(one_line(f"{what}: {_shortened(photos)}"))
    if model.evaluation:
        print(one_line(model.evaluation.threshold_line()))
        print(strangers_line(len(gallery)))
    else:
        print(one_line(f"no threshold: {model.unknown}"))


main = command(run)
