"""Two small networks of timm on real faces: untrained, trained, and as an exported file.

    python -m scripts.experiments.timm_faces FACES

FACES holds train.rec, lfw_112.zip and protocol/pairs.txt (docs/benchmarks/README.md). The command
trains configs/timm_cpu.yaml with a ConvNeXt and with a ViT, minutes on one core each, or goes on
where it was stopped. Then it evaluates each network on LFW before its training, after it, and from
the ONNX file that tools.export writes.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

import recognition
from data.files import atomic_write
from eval.benchmarks import open_benchmark
from recognition.config import Config
from recognition.models.model import Model, build_backbone, facts_of
from recognition.parse import load_config
from scripts._tables import TableRow, show_table
from scripts.experiments._train import run_training
from tools._cli import command
from tools.export import export

CONFIG = "configs/timm_cpu.yaml"
ROWS: dict[str, list[str]] = {
    "convnext": [],
    "vit": [
        "backbone={name: timm, model: vit_tiny_patch16_224, embedding: 128, options: {depth: 4, "
        "embed_dim: 96, num_heads: 3, patch_size: 6}}"
    ],
}


def train(folder: Path, options: list[str]) -> None:
    """Run train.py, or continue it, and add its CPU seconds to a file in the folder."""
    seconds = run_training(CONFIG, options, folder)
    with atomic_write(folder / "cpu_seconds.json", "w") as file:
        json.dump(seconds, file)


def lfw(model: Model, config: Config) -> TableRow:
    """Figures of a model on the pairs of LFW."""
    (item,) = config.evaluate.sets
    found = open_benchmark(item, config.data.root)(model, model.size).metrics
    return {
        "LFW accuracy": f"{found['accuracy']:.2f} ± {found['accuracy_std']:.2f}",
        "TAR at FAR 1e-2": f"{found['tar@0.01']:.2f}",
        "AUC": f"{found['auc']:.2f}",
    }


def rows(faces: str, runs: Path) -> Iterator[TableRow]:
    """Three lines per network; each comes as soon as it is known."""
    for name, changes in ROWS.items():
        folder = runs / name
        options = [*changes, f"data.root={faces}", "data.threads=1", f"run.output={folder}"]
        if not (folder / "results.json").exists():
            train(folder, options)
        config = load_config(CONFIG, options)
        torch.manual_seed(config.run.seed)
        untrained = Model(build_backbone(config).eval(), facts_of(config), torch.device("cpu"))
        yield {"network": name, "form": "untrained", **lfw(untrained, config)}
        trained = recognition.load(folder, device="cpu")
        yield {"network": name, "form": "trained", **lfw(trained, config)}
        exported = runs / f"{name}-onnx"
        if not exported.exists():
            export(str(folder), to="onnx", out=str(exported), faces=f"{faces}/train.rec")
        carried = recognition.load(exported, device="cpu")
        yield {"network": name, "form": "ONNX", **lfw(carried, config)}


def run_experiment(faces: str, *, runs: Path = Path("runs/timm_faces")) -> None:
    """Do what is not yet done, and print the table.

    faces: folder with train.rec, lfw_112.zip and protocol/pairs.txt.
    runs: folder for run folders and exported models.
    """
    torch.set_num_threads(1)
    show_table(rows(faces, runs))


main = command(run_experiment)
