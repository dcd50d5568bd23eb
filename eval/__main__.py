"""python -m eval COMMAND: benchmarks by themselves, of a trained run or of stored embeddings; and
the embeddings.

pairs      ten-fold verification: LFW, CFP, AgeDB, ... from a list, a .bin, a numbered folder, or
drawn from a face set templates  IJB-B and IJB-C, 1:1 and 1:N
identify   1:N from a gallery and a probe folder
tinyface   TinyFace identification
rfw        RFW's four groups and their spread
embed      embeddings of a record file, folder or list into a .npy file
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from data.pairs.lists import fold_notes, index_names, read_pair_list
from eval.benchmarks import identification, pairs, rfw, templates, tinyface
from eval.embed import Embed, Stored, load_stored
from eval.extract import extract, model_digest, open_source
from eval.report.published import published_row
from eval.report.result import Result
from eval.report.tables import as_json, markdown, write_report


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    args = _parser().parse_args(argv)
    try:
        row = published_row(args.published) if args.published else None
        record = args.run(args)
        if isinstance(record, Result):
            if args.out:
                write_report([record], args.out, published=args.published)
            print(markdown([record], row), end="")
            found = as_json(record)
            record = {"name": found.pop("name"), **found.pop("metrics"), **found}
        else:
            print(", ".join(f"{key} {value}" for key, value in record.items()))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(record))
    return 0


def run_pairs(args: argparse.Namespace) -> Result:
    name = args.name or Path(args.bin or args.folder or args.pairs or "pairs").stem
    if args.embeddings and args.pairs and not args.images:
        return score_listed(name, load_embed(args)[0], args.pairs)
    benchmark = pairs.build(
        name=name, pairs=args.pairs, images=args.images, bin=args.bin, folder=args.folder, faces=args.faces,
        count=args.count, mirror=not args.no_mirror,
    )  # fmt: skip
    return benchmark.run(*load_embed(args))


def score_listed(name: str, embed: Embed, path: str) -> Result:
    """A pair list by stored embeddings alone, without the images."""
    assert isinstance(embed, Stored)
    listed, same = read_pair_list(path)
    names, first, second = index_names(listed)
    rows = np.array([embed.row(image) for image in names])
    return pairs.score_pairs(
        name, embed.embeddings, rows[first], rows[second], same, notes=fold_notes(same)
    )


def run_templates(args: argparse.Namespace) -> Result:
    benchmark = templates.build(
        name=args.name or args.target, root=args.root, target=args.target, mirror=not args.no_mirror,
        keep_norm=not args.no_norm, detector_score=not args.no_detector_score, one_to_n=args.one_to_n,
    )  # fmt: skip
    return benchmark.run(*load_embed(args))


def run_identify(args: argparse.Namespace) -> Result:
    benchmark = identification.build(
        name=args.name or Path(args.probe).name, gallery=args.gallery, probe=args.probe, mirror=not args.no_mirror,
        pool=not args.no_pool,
    )  # fmt: skip
    return benchmark.run(*load_embed(args))


def run_tinyface(args: argparse.Namespace) -> Result:
    benchmark = tinyface.build(
        name=args.name or "tinyface", root=args.root, mirror=not args.no_mirror
    )
    return benchmark.run(*load_embed(args))


def run_rfw(args: argparse.Namespace) -> Result:
    benchmark = rfw.build(name=args.name or "rfw", root=args.root, mirror=not args.no_mirror)
    return benchmark.run(*load_embed(args))


def run_embed(args: argparse.Namespace) -> dict:
    images, names = open_source(args.data, args.images)
    embed, size = load_embed(args)

    def progress(done: int, of: int) -> None:
        print(f"{done}/{of} images", file=sys.stderr)

    return extract(
        embed, images, names, args.to, size=size, model=model_digest(args.model), mirror=not args.no_mirror,
        dtype=args.dtype, progress=progress,
    )  # fmt: skip


def load_embed(args: argparse.Namespace) -> tuple[Embed, int]:
    """The model of --model and its input size, or the rows of --embeddings."""
    if args.embeddings:
        if not args.names:
            raise ValueError("--embeddings needs --names X.txt, one image name a line")
        return load_stored(args.embeddings, args.names), 0
    if not args.model:
        raise ValueError("give --model RUN, or --embeddings X.npy with --names X.txt")
    from recognition.embedder import load_embedder

    return load_embedder(args.model, args.device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("pairs", help="ten-fold verification on pairs")
    command.set_defaults(run=run_pairs)
    command.add_argument(
        "--pairs", help="pair list of LFW, CALFW, CPLFW or SLLFW, or `path path 0|1` lines"
    )
    command.add_argument("--images", help="image folder or uncompressed zip of the pair list")
    command.add_argument("--bin", help="verification .bin instead of a list")
    command.add_argument(
        "--folder", help="folder with imgs/N.jpg and pair_label.npy instead of a list"
    )
    command.add_argument("--faces", help="any set of faces to draw pairs from instead of a list")
    command.add_argument(
        "--count", type=int, default=6000, help="pairs to draw from --faces (default 6000)"
    )
    _common(command)

    command = commands.add_parser("templates", help="IJB-B, IJB-C")
    command.set_defaults(run=run_templates)
    command.add_argument("--root", required=True, help="folder with meta/ and loose_crop/")
    command.add_argument("--target", default="ijbc", help="ijbb or ijbc (default ijbc)")
    command.add_argument(
        "--no-norm", action="store_true", help="normalize each embedding before pooling"
    )
    command.add_argument(
        "--no-detector-score", action="store_true", help="do not weigh by the detector's score"
    )
    command.add_argument("--one-to-n", action="store_true", help="search galleries G1 and G2 too")
    _common(command)

    command = commands.add_parser("identify", help="1:N from two folders")
    command.set_defaults(run=run_identify)
    command.add_argument("--gallery", required=True, help="folder with one folder a person")
    command.add_argument("--probe", required=True, help="folder with one folder a person")
    command.add_argument(
        "--no-pool", action="store_true", help="every gallery image is an entry of its own"
    )
    _common(command)

    for name, run, help_line in (
        ("tinyface", run_tinyface, "folder with Probe, Gallery_Match, Gallery_Distractor"),
        ("rfw", run_rfw, "folder with txts/ and data/, or GROUP_test.bin"),
    ):
        command = commands.add_parser(name, help=help_line)
        command.set_defaults(run=run)
        command.add_argument("--root", required=True, help=help_line)
        _common(command)

    command = commands.add_parser("embed", help="embeddings into a .npy file")
    command.set_defaults(run=run_embed)
    command.add_argument(
        "--data", required=True, help="record file, folder, .bin, or list of names with --images"
    )
    command.add_argument("--images", help="folder or uncompressed zip of the list's images")
    command.add_argument(
        "--to", required=True, help=".npy to write; the names go beside it as .txt"
    )
    command.add_argument("--dtype", default="float32", help="float32 or float16")
    command.add_argument("--model", required=True, help="run folder or model.pt")
    command.add_argument(
        "--no-mirror", action="store_true", help="without the mirror image's embedding"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    command.add_argument("--json", action="store_true", help="print one JSON line last")
    command.set_defaults(embeddings=None, published=None, out=None)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="run folder or model.pt")
    parser.add_argument("--embeddings", help=".npy of embeddings instead of a model")
    parser.add_argument("--names", help="text file with the image name of each embedding")
    parser.add_argument(
        "--no-mirror", action="store_true", help="without the mirror image's embedding"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--name", help="name of the benchmark in the results")
    parser.add_argument(
        "--out", help="folder for results.json, results.md, report.html, roc.png, scores.png"
    )
    parser.add_argument("--published", help="row of eval/report/published.yaml to print beside")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")


if __name__ == "__main__":
    sys.exit(main())
