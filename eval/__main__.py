"""Run one benchmark on a trained model or on stored embeddings, compare models, or embed a set."""

import argparse
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from data.files import file_digest
from data.parts import find_part, part_names
from eval.benchmarks import PACKAGE, open_benchmark
from eval.compare import compare
from eval.embed import Embed, ModelRun
from eval.extract import extract, open_source
from eval.report.published import published_row
from eval.report.tables import markdown
from eval.report.write import as_json, write_report
from eval.stored import load_stored
from tools._cli import add_options, command_parser, run_command
from tools._model import ModelOptions
from tools._progress import progress_bar

SHOWN = partial(progress_bar, what="images")


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    argv = sys.argv[1:] if argv is None else argv
    builds = {name: find_part(PACKAGE, name).build for name in part_names(PACKAGE)}
    others: dict[str, Callable[..., Mapping[str, Any]]] = {
        "embed": write_embeddings,
        "compare": compare,
    }
    commands = {**builds, **others}
    lines = {name: str(inspect.getdoc(one)).splitlines()[0] for name, one in commands.items()}
    listed = "\n".join(f"  {name:16}{line}" for name, line in lines.items())
    parser = command_parser("eval", f"{__doc__}\n\n{listed}")
    parser.add_argument("command", metavar="COMMAND", choices=commands, help="one of the above")
    command = parser.parse_args(argv[:1] or ["--help"]).command

    function = commands[command]
    module = sys.modules[function.__module__]
    own_page = module.__name__ != __name__
    parser = command_parser(f"eval {command}", module.__doc__ if own_page else lines[command])
    values_for = add_options(parser, function, positionals=command in others)
    run_values_for = add_options(parser, run_benchmark) if command in builds else None

    def action(options: argparse.Namespace) -> Mapping[str, Any]:
        if run_values_for is None:
            return others[command](**values_for(options))
        item = {"protocol": command, **values_for(options)}
        return run_benchmark(item, **run_values_for(options))

    return run_command(action, parser.parse_intermixed_args(argv[1:]))


def run_benchmark(
    item: Mapping[str, Any],
    *,
    source: ModelOptions,
    embeddings: str | None = None,
    names: str | None = None,
    out: str | None = None,
    published: str | None = None,
) -> dict[str, Any]:
    """Run the benchmark of an entry as in `evaluate.sets`, print its figures and return them.

    source: the model.
    embeddings: .npy file of embeddings, if you give no model.
    names: text file with the image name of each embedding, one per line.
    out: folder for results.json, results.md, report.html, roc.png and scores.png; identification
        also writes matches.csv, which lists whom it found.
    published: row of eval/report/published.yaml whose figures are printed beside yours.
    """
    row = published_row(published) if published else None
    benchmark = open_benchmark(item, stored=embeddings is not None)
    result = benchmark(*load_embed(source, embeddings, names))
    if out:
        write_report([result], out, published=published)
    print(markdown([result], row), end="")
    record = as_json(result)
    return {"name": record.pop("name"), **record.pop("metrics"), **record}


def write_embeddings(
    *,
    data: str,
    to: str,
    source: ModelOptions,
    images: str | None = None,
    mirror: bool = True,
    dtype: Literal["float32", "float16"] = "float32",
) -> dict[str, Any]:
    """Write the embeddings of a set to a .npy file.

    data: image, record file, folder, .bin or any other set of faces; with `images`, a list of image
        names.
    to: .npy file to write. The image names are written beside it, into a .txt file.
    source: the model.
    images: folder or uncompressed zip with the images of the list.
    mirror: add the embedding of the mirror image to that of the image.
    dtype: type of the numbers in the file.
    """
    faces, names = open_source(data, images)
    model = source.load()
    assert model.weights is not None
    record = extract(
        model,
        faces,
        names,
        to,
        size=model.size,
        model=f"{file_digest(model.weights)} {model.color}{source.landmarks or ''}",
        mirror=mirror,
        dtype=dtype,
        progress=SHOWN,
    )
    print(", ".join(f"{key} {value}" for key, value in record.items()))
    return record


def load_embed(
    source: ModelOptions, embeddings: str | None, names: str | None
) -> tuple[Embed, int]:
    """(model, side of its input in pixels), or (stored embeddings, 0)."""
    if embeddings:
        if not names:
            raise ValueError("--embeddings needs --names X.txt, one image name per line")
        return load_stored(embeddings, names), 0
    if not source.model:
        raise ValueError("give --model MODEL, or --embeddings X.npy with --names X.txt")
    model = source.load()
    return ModelRun(model, progress=SHOWN), model.size


if __name__ == "__main__":
    sys.exit(main())
