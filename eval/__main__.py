"""python -m eval pairs: benchmarks by themselves, from a trained run or from stored embeddings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from eval.benchmarks import pairs as pair_benchmark
from eval.pair_lists import fold_notes, index_names, read_pair_list
from eval.published import published_row
from eval.report import as_json, markdown, write_report
from eval.result import Result


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr for a wrong argument or file."""
    args = _parser().parse_args(argv)
    try:
        results = args.run(args)
        if args.out:
            write_report(results, args.out, published=args.published)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(markdown(results, published_row(args.published) if args.published else None), end="")
    if args.json:
        records = [as_json(result) for result in results]
        print(json.dumps(_flat(records[0]) if len(records) == 1 else {"results": [_flat(r) for r in records]}))
    return 0


def _flat(record: dict) -> dict:
    metrics = record.pop("metrics")
    return {"name": record.pop("name"), **metrics, **record}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pairs = commands.add_parser("pairs", help="ten-fold verification on pairs")
    pairs.set_defaults(run=run_pairs)
    pairs.add_argument("--pairs", help="pair list in LFW's form, or `path path 0|1` lines")
    pairs.add_argument("--images", help="image folder or uncompressed zip of the pair list")
    pairs.add_argument("--bin", help="verification .bin instead of a list")
    pairs.add_argument("--folder", help="folder with imgs/N.jpg and pair_label.npy instead of a list")
    pairs.add_argument("--faces", help="any set of faces to draw pairs from instead of a list")
    pairs.add_argument("--count", type=int, default=6000, help="pairs to draw from --faces (default 6000)")
    _add_source(pairs)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="run folder or model.pt")
    parser.add_argument("--embeddings", help=".npy of embeddings instead of a model")
    parser.add_argument("--names", help="text file with the image name of each embedding")
    parser.add_argument("--no-mirror", action="store_true", help="without the mirror image's embedding")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default auto)")
    parser.add_argument("--name", help="name of the benchmark in the results")
    parser.add_argument("--out", help="folder for results.json, results.md, roc.png")
    parser.add_argument("--published", help="row of eval/published.yaml to print beside")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")


def run_pairs(args: argparse.Namespace) -> list[Result]:
    if args.embeddings:
        return [_pairs_from_embeddings(args)]
    if not args.model:
        raise ValueError("give --model RUN, or --embeddings X.npy with --names X.txt")
    name = args.name or Path(args.bin or args.folder or args.pairs or "pairs").stem
    benchmark = pair_benchmark.build(
        name=name, pairs=args.pairs, images=args.images, bin=args.bin, folder=args.folder, faces=args.faces,
        count=args.count, mirror=not args.no_mirror,
    )  # fmt: skip
    from recognition.experiment import load_embedder  # here alone: benchmarks know no models

    embed, size = load_embedder(args.model, args.device)
    return [benchmark.run(embed, size)]


def _pairs_from_embeddings(args: argparse.Namespace) -> Result:
    if not args.names or not args.pairs:
        raise ValueError("--embeddings needs --names X.txt (one image name a line) and --pairs P.txt")
    embeddings, rows = load_embeddings(args.embeddings, args.names)
    listed, same = read_pair_list(args.pairs)
    names, first, second = index_names(listed)
    missing = [name for name in names if _stem(name) not in rows]
    if missing:
        raise ValueError(f"{args.names}: {len(missing)} of {len(names)} images of {args.pairs} are not in it, "
                         f"the first is {missing[0]}")  # fmt: skip
    at = np.array([rows[_stem(name)] for name in names])
    name = args.name or Path(args.pairs).stem
    return pair_benchmark.score_pairs(name, embeddings, at[first], at[second], same, notes=fold_notes(same))


def load_embeddings(path: str, names: str) -> tuple[np.ndarray, dict[str, int]]:
    """Embeddings (N,D) from .npy (mapped, nothing unpickled) and the row of each image name without its suffix."""
    for file in (path, names):
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: no such file")
    embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
    listed = Path(names).read_text(encoding="utf-8").split("\n")
    listed = listed[:-1] if listed and not listed[-1] else listed
    if embeddings.ndim != 2 or len(embeddings) != len(listed):
        raise ValueError(f"{path} holds {embeddings.shape}, {names} {len(listed)} names; expected one name a row")
    return embeddings, {_stem(name.strip()): row for row, name in enumerate(listed)}


def _stem(name: str) -> str:
    head, dot, suffix = name.rpartition(".")
    return head if dot and f".{suffix.lower()}" in (".jpg", ".jpeg", ".png", ".bmp", ".webp") else name


if __name__ == "__main__":
    sys.exit(main())
