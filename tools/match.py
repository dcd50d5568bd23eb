"""Compares the faces in two photos.

    python -m tools.match A.jpg B.jpg --model runs/mine

It prints the cosine of both faces. If the model was evaluated on pairs, it also says in a word what
the cosine means, and how often that word is wrong on pairs like those of the evaluation. On other
kinds of photos, and on other groups of people, it may be wrong more often.
"""

from pathlib import Path
from typing import Any

from data.detect import load_detector
from data.text import one_line
from tools._cli import command
from tools._faces import Align, FaceIn, find_faces
from tools._model import ModelOptions
from tools._recognizer import Recognizer, open_recognizer


def match_faces(first: FaceIn, second: FaceIn, model: Recognizer) -> dict[str, Any]:
    """The cosine of two faces, and by the model's evaluation what it means."""
    one, other = model.vectors([first, second])
    cosine = float(one @ other)
    record: dict[str, Any] = {"cosine": round(cosine, 6), "word": None}
    if model.evaluation:
        word = model.evaluation.word(cosine)
        record |= {"word": word, "evaluation": model.evaluation.facts(), "wrong": []}
        record["wrong"] = model.evaluation.error_lines(word)
    else:
        record["why_no_word"] = model.unknown
    return {**record, "faces": [first.facts(), second.facts()]}


def only_face(photo: Path, model: Recognizer, align: Align) -> FaceIn:
    """The face of a photo, the largest if it shows several; ValueError if it shows none."""
    if not photo.is_file():
        raise FileNotFoundError(f"{photo}: no such file")
    faces = find_faces(photo, model.size, align, load_detector())
    if not faces:
        raise ValueError(
            f"{photo}: no face was found; if the image is an aligned crop, give --align never"
        )
    return faces[0]


def run(
    first: Path,
    second: Path,
    *,
    source: ModelOptions,
    align: Align = "auto",
    evaluation: Path | None = None,
) -> dict[str, Any]:
    """Compare two photos.

    first: a photo, or an aligned crop.
    second: another one.
    source: the model.
    align: in which images a face is sought: auto (those that do not have the size of the model's
        input), always or never.
    evaluation: folder with the results.json of the model, if it is not the model's own folder.
    """
    loaded = open_recognizer(source, evaluation)
    faces = [only_face(photo, loaded, align) for photo in (first, second)]
    for face in faces:
        if face.faces > 1:
            print(one_line(f"{face.photo}: shows {face.faces} faces; the largest is compared"))
    record = match_faces(faces[0], faces[1], loaded)
    print(f"cosine {record['cosine']:.4f}")
    if loaded.evaluation:
        print(record["word"])
        print(one_line(loaded.evaluation.threshold_line()))
        print("\n".join(record["wrong"]))
    else:
        print(one_line(f"no threshold: {loaded.unknown}"))
    return record


main = command(run)
