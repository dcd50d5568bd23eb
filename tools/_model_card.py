"""The model card: the README.md of a model folder, as the Hugging Face hub expects it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from data.faces import GENERATED
from data.parts import find_part, part_names
from data.text import markdown_text, one_line
from eval.benchmarks import PACKAGE
from eval.metrics.intervals import wilson
from eval.report.result import Protocol
from recognition.models.facts import ModelFacts
from tools._model_record import Record


@dataclass(frozen=True)
class Export:
    """What a card says of the file beside it.

    form: onnx or safetensors. parameters: number of weights. outputs: numbers per embedding.
    origin: where the weights came from and how they were checked, in sentences. license: an
    identifier of the hub. threshold: the cosine at a false accept rate, in words.
    """

    name: str
    form: Literal["onnx", "safetensors"]
    facts: ModelFacts
    parameters: int
    outputs: int
    precision: str
    mirror: bool
    l2_norm: bool
    origin: str
    license: str | None
    threshold: str | None = None


@dataclass(frozen=True)
class Figure:
    """One figure of a benchmark, in percent or as the protocol defines it."""

    benchmark: str
    protocol: str
    metric: str
    heading: str
    value: float
    trials: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of a rate in percent whose trials are known."""
        if not self.trials:
            return None
        low, high = wilson(min(max(self.value / 100, 0.0), 1.0), self.trials)
        return 100 * low, 100 * high


def model_card(export: Export, record: Record) -> str:
    """The text of README.md: YAML front matter, then Markdown."""
    found = list(figures(record.results))
    front = yaml.safe_dump(_front_matter(export, found), sort_keys=False, allow_unicode=True)
    parts = [
        f"# {markdown_text(export.name)}",
        _summary(export, record),
        "## Use\n\n" + _USE[export.form].format(**_words(export)),
        "## Training\n\n" + _training(record),
        "## Results\n\n" + _results(export, record, found),
        "## Intended use\n\n" + _INTENDED_USE,
        "## Limits\n\n" + _limits(export, record),
        "## Biometric data and consent\n\n" + _BIOMETRIC,
        f"## The file\n\n{export.origin}",
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def figures(results: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """The figures that a report's tables show, of all benchmarks that were not skipped."""
    protocols = {
        one.name: one
        for part in part_names(PACKAGE)
        if isinstance(one := getattr(find_part(PACKAGE, part), "PROTOCOL", None), Protocol)
    }
    for result in results:
        protocol = protocols.get(str(result.get("protocol")))
        metrics, settings = result.get("metrics") or {}, result.get("settings") or {}
        columns = protocol.columns if protocol else {metric: metric for metric in metrics}
        for metric, heading in columns.items():
            value = metrics.get(metric)
            if isinstance(value, (int, float)) and math.isfinite(value):
                yield Figure(
                    str(result.get("name")),
                    str(result.get("protocol")),
                    metric,
                    heading,
                    float(value),
                    _trials(metric, settings),
                )


def _trials(metric: str, settings: Mapping[str, Any]) -> int | None:
    """On how many decisions a rate was measured; None where the settings do not say it."""
    groups = str(settings.get("groups", "")).split(", ")
    by_group = dict(zip(groups, settings.get("group_pairs") or [], strict=False))
    kind, _, group = metric.partition("_")
    if kind == "accuracy" and group in by_group:
        found = by_group[group]
    elif metric in ("accuracy", "exact_accuracy", "accuracy_without_mirror"):
        found = settings.get("pairs")
    elif metric.startswith(("tar@", "nearest_tar@")):
        found = settings.get("genuine")
    elif metric.startswith(("rank", "tpir@")):
        found = settings.get("mated")
    else:
        found = None
    return found if isinstance(found, int) and found > 0 else None


def _front_matter(export: Export, found: Sequence[Figure]) -> dict[str, Any]:
    front: dict[str, Any] = {"license": export.license or "other"}
    if export.license is None:
        front["license_name"] = "not-stated"
    front |= {
        "library_name": "onnx" if export.form == "onnx" else "fastface",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["face-recognition", "face-verification", "biometrics", export.form],
    }
    results = []
    for benchmark in dict.fromkeys((figure.benchmark, figure.protocol) for figure in found):
        name, protocol = benchmark
        measured = [
            {"type": figure.metric, "name": figure.heading, "value": round(figure.value, 4)}
            for figure in found
            if (figure.benchmark, figure.protocol) == benchmark
        ]
        results.append(
            {
                "task": {"type": "image-feature-extraction", "name": f"Faces, {protocol}"},
                "dataset": {"type": one_line(name), "name": one_line(name)},
                "metrics": measured,
            }
        )
    if results:
        front["model-index"] = [{"name": one_line(export.name), "results": results}]
    return front


def _words(export: Export) -> dict[str, Any]:
    sums = "the sum of the embeddings of the face and of its mirror image"
    return {
        "size": export.facts.size,
        "outputs": export.outputs,
        "what": sums if export.mirror else "its embedding",
        "length": "of length 1" if export.l2_norm else "whose length is not normalized",
    }


def _summary(export: Export, record: Record) -> str:
    facts, words = export.facts, _words(export)
    options = ", ".join(
        f"{key} {value}" for key, value in facts.architecture.options.items() if value
    )
    inside = ""
    if export.form == "onnx" and facts.color == "bgr":
        inside = " The network was trained on BGR; the graph reverses the channels itself."
    lines = [
        f"A face-recognition model. An aligned face becomes {export.outputs} numbers, its "
        "*embedding*. Two pictures of one person have embeddings with a high cosine.",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {markdown_text(f'{facts.architecture.name}: {options}')} |",
        f"| weights | {export.parameters:,} in {export.precision} |",
        f"| input | aligned RGB faces, {facts.size}×{facts.size} pixels.{inside} |",
        f"| output | {export.outputs} numbers per face: {words['what']}, {words['length']} |",
        f"| license | {markdown_text(export.license or _NO_LICENSE)} |",
    ]
    if _is_drawn(record):
        lines += ["", f"**{_DRAWN}**"]
    return "\n".join(lines)


def _is_drawn(record: Record) -> bool:
    return str(_at(record.config, "data", "train")).startswith(GENERATED)


def _at(tree: Any, *keys: str) -> Any:
    """The node at nested keys; None if there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _training(record: Record) -> str:
    if not record.config:
        return (
            "Not known: the weights came without a record of their training. The people who "
            "published them can say on which images they were trained."
        )
    counts = _at(record.environment, "training_set") or {}
    size = ""
    if {"images", "identities"} <= set(counts):
        size = f", {counts['images']:,} images of {counts['identities']:,} people"
    lines = [f"- training set: {markdown_text(str(_at(record.config, 'data', 'train')))}{size}"]
    for section in ("head", "classifier", "scheduler"):
        part = dict(_at(record.config, section) or {})
        name = part.pop("name", "not known")
        options = ", ".join(f"{key} {value}" for key, value in part.items())
        lines.append(f"- {section}: {markdown_text(f'{name} ({options})' if options else name)}")
    optim = _at(record.config, "optim") or {}
    said = ", ".join(f"{key} {optim[key]}" for key in ("name", "lr", "epochs") if key in optim)
    images = optim.get("step_images") or optim.get("batch_size")
    lines.append(f"- optimizer: {markdown_text(said)}, {images} images per step")
    revision = _at(record.environment, "git") or "not known"
    version = _at(record.environment, "torch") or "not known"
    lines.append(f"- git revision of the code: {markdown_text(f'{revision}; torch {version}')}")
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True).replace("`", "'")
    return (
        "\n".join(lines)
        + "\n\n<details><summary>The whole config</summary>\n\n"
        + f"```yaml\n{text}```\n\n</details>"
    )


def _results(export: Export, record: Record, found: Sequence[Figure]) -> str:
    if not found:
        return "None. The model was not evaluated, so nobody knows how often it is wrong."
    lines = ["| benchmark | figure | value | 95 % interval | decisions |", "|---|---|---|---|---|"]
    for figure in found:
        low_high = figure.interval
        cells = (
            markdown_text(figure.benchmark),
            markdown_text(figure.heading),
            f"{figure.value:.2f}",
            f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else "",
            f"{figure.trials:,}" if figure.trials else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    thresholds = [_threshold(result) for result in record.results]
    if export.threshold:
        thresholds.append(f"- {markdown_text(export.threshold)}")
    notes = [
        f"- {markdown_text(str(one.get('name')))}: {markdown_text(str(note))}"
        for one in record.results
        for note in one.get("notes") or ()
    ]
    return "\n".join([*lines, "", _INTERVALS, "", *filter(None, thresholds), *notes])


def _threshold(result: Mapping[str, Any]) -> str:
    """The threshold of the best accuracy on pairs, as a cosine; nothing for other benchmarks."""
    # |a - b|² = 2 - 2 cos for unit vectors
    distance = _at(result, "metrics", "threshold")
    if not isinstance(distance, (int, float)):
        return ""
    mirror = _at(result, "settings", "mirror") is True
    summed = ", where the embedding of the mirror image is added" if mirror else ""
    return (
        f"- {markdown_text(str(result.get('name')))}: the accuracy is that of a cosine of "
        f"{1 - distance / 2:.3f} as the threshold{summed}."
    )


def _limits(export: Export, record: Record) -> str:
    groups = any(one.get("protocol") == "groups" for one in record.results)
    limits = [
        "- The faces must be aligned to ArcFace's template of 112×112 pixels, as `python -m "
        f"tools.align` does, and then resized to {export.facts.size}×{export.facts.size}. Other "
        "crops give wrong answers without an error.",
        "- Small, blurred, covered or turned faces, and people who look alike or are related, are "
        "confused more often than the pictures of a benchmark.",
        "- A threshold holds for pictures like those that it was chosen on. Choose it on your own "
        "pictures.",
        "- The model does not notice a photo that is held before a camera, or a picture that was "
        "edited.",
        "- **What the figures do not say:** how the errors are spread over people. Models of this "
        "kind are wrong more often for some groups than for others, by skin color, sex and age. "
        + (_MEASURED if groups else _NOT_MEASURED),
    ]
    if _is_drawn(record):
        limits.insert(0, f"- {_DRAWN}")
    return "\n".join(limits)


_NO_LICENSE = (
    "none stated; the terms of the training images may bind the weights, so state one before you "
    "publish this folder"
)
_DRAWN = "It was trained on drawn faces. It does not recognize real people."
_INTERVALS = (
    "Values are in percent. The intervals are Wilson's, for that many independent decisions at the "
    "threshold that was chosen. The same people occur in many pairs, so the figures are less "
    "certain than the intervals say."
)
_MEASURED = (
    "RFW, in the table above, compares four groups of skin color and origin. It says nothing of "
    "sex and age."
)
_NOT_MEASURED = (
    "This was not measured here. Racial Faces in the Wild compares four groups: `python -m eval "
    "rfw`."
)
_INTENDED_USE = """\
- Research, and the comparison of faces of people who agreed to it: whether two pictures show one
  person, who of a known group is in a picture, and which pictures belong together.
- **Not** for a decision about a person that no human checks, such as access, an arrest, a job or a
  contract.
- **Not** for watching people who do not know of it, and not for guesses at sex, age, origin, health
  or mood."""
_BIOMETRIC = """\
An embedding identifies a person. It is biometric data, as the picture is: a face can be
reconstructed from it in part. The law protects such data in many places, in the European Union by
Article 9 of the GDPR.

- Ask people before you embed, store or search their faces, and delete both picture and embedding
  when they ask you to.
- Store and pass on embeddings as carefully as the pictures.
- This card does not know whether the people in the training set agreed. The publisher of the set
  has to say that."""
_USE = {}
_USE["safetensors"] = """\
With the code of the FastFace framework (arXiv 2404.11118), in its folder or with it in
`PYTHONPATH`:

```python
import recognition
import torch

model = recognition.load("FOLDER")  # this folder
embeddings = model.embed(["a.png", "b.png"])  # aligned faces; other sizes are resized
embeddings = torch.nn.functional.normalize(embeddings)
print("cosine:", float(embeddings[0] @ embeddings[1]))
```

`model.json` says how to build the network, and which pixels it takes."""
_USE["onnx"] = """\
```python
import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
faces = [cv2.imread(name)[:, :, ::-1] for name in ("a.png", "b.png")]  # aligned, RGB
faces = [cv2.resize(face, ({size}, {size}), interpolation=cv2.INTER_AREA) for face in faces]
pixels = np.stack(faces).transpose(0, 3, 1, 2).astype(np.float32)  # (B, 3, {size}, {size})
(embeddings,) = session.run(None, {{"input": (pixels - 127.5) / 127.5}})  # (B, {outputs})
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
print("cosine:", embeddings[0] @ embeddings[1])
```

Any number of faces fits into a batch. The input is that of insightface's recognition models, so its
`ArcFaceONNX` can use the file. The metadata of the file repeat size, color and normalization."""
