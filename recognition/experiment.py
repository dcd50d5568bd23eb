"""The one place where the parts meet: from a config to a trained run folder, and from a run folder
to a model."""

from __future__ import annotations

import inspect
import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.faces import open_faces, resolve_path
from data.loader import Loader
from data.options import PathText
from data.order import named_order
from data.parts import find_part
from data.types import FaceSet
from eval.report.published import published_row
from eval.report.tables import write_report
from recognition.config import Config, ConfigError, build_part
from recognition.device import choose_device, place_backbone
from recognition.distributed import Ranks, ranks_of_this_run
from recognition.embedder import Embedder, build_backbone
from recognition.logs import plot_training
from recognition.run_folder import open_run_folder
from recognition.trainer import Parts, steps_per_epoch, train


def run(config: Config, source: str, *, resume: bool = False) -> Path:
    """Train and evaluate as `config` says and return the run folder; `source` names the config file
    in errors.

    Raises ConfigError for what the config asks and this machine or these files can't give, before
    training begins.
    """
    device = choose_device(config, source)
    with ranks_of_this_run(device) as ranks:
        faces = _open_training_faces(config, source)
        benchmarks = _build_benchmarks(config, source)
        _check_published(config, source)
        try:
            parts = build_parts(config, faces, device, ranks)
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
        if (
            ranks.rank == 0
        ):  # after all that may be refused, so that the corrected command finds no folder in its way
            folder = open_run_folder(config, resume)
        ranks.barrier()
        folder = Path(config.run.output)
        embed = Embedder(
            parts.backbone, config.data.size, device, config.run.precision, config.run.channels_last
        )

        def evaluate(step: int) -> dict[str, float]:
            results = [benchmark.run(embed, embed.size) for benchmark in benchmarks]
            write_report(results, folder, published=config.evaluate.published)
            return {
                f"{result.name}/{metric}": value
                for result in results
                for metric, value in result.metrics.items()
            }

        train(config, parts, folder, evaluate, resume=resume)
        if ranks.rank == 0:
            plot_training(folder)
    return folder


def build_parts(config: Config, faces: FaceSet, device: torch.device, ranks: Ranks) -> Parts:
    """Everything that `train` needs, on `device`, seeded by `run.seed`. ValueError for what can't
    go together."""
    optim, run_ = config.optim, config.run
    torch.manual_seed(run_.seed)
    make_loader = getattr(
        find_part("recognition.classifiers", config.classifier.name), "make_loader", None
    )
    if make_loader is None:
        order: dict[str, Any] = {
            "order": named_order(
                faces.labels, config.data.order, seed=run_.seed, batch_size=optim.batch_size
            )
        }
    elif config.data.order != "shuffled":
        raise ValueError(
            f"data.order: {config.data.order}, but {config.classifier.name} brings an order of its own"
        )
    else:
        wanted = inspect.signature(make_loader).parameters
        order = {key: value for key, value in config.classifier.options.items() if key in wanted}
    loader: Loader = (make_loader or Loader)(
        faces,
        batch_size=optim.batch_size,
        size=config.data.size,
        seed=run_.seed,
        threads=config.data.threads or os.cpu_count() or 1,
        rank=ranks.rank,
        world=ranks.world,
        channels_last=run_.channels_last,
        device=device,
        **order,
    )
    per_epoch = steps_per_epoch(config, loader)
    if per_epoch < 1:
        raise ValueError(
            f"optim.accumulation: {optim.accumulation} of {loader.steps_per_epoch} batches an epoch"
        )
    backbone = place_backbone(build_backbone(config), device, run_.channels_last)
    classifier = build_part(
        "recognition.classifiers",
        config.classifier,
        backbone=backbone,
        classes=faces.num_classes,
        head=build_part("recognition.heads", config.head, seed=run_.seed),
        ranks=ranks,
        seed=run_.seed,
        optimizer_name=optim.name,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        accumulation=optim.accumulation,
        loss_scaling=run_.precision == "fp16",
        batch_size=optim.batch_size,
    ).to(device)
    optimizer = _build_optimizer(config, backbone, classifier)
    scheduler = build_part(
        "recognition.schedulers",
        config.scheduler,
        optimizer=optimizer,
        total_steps=per_epoch * optim.epochs,
        steps_per_epoch=per_epoch,
    )
    forward: Callable[..., torch.Tensor] = backbone
    if ranks.world > 1:
        forward = DistributedDataParallel(
            backbone, device_ids=[device] if device.type == "cuda" else None
        )
    if run_.compile:
        forward = torch.compile(forward)
    # arcface_torch's growth interval: fp16 runs of a few thousand steps find their scale in time
    scaler = torch.amp.GradScaler(
        device.type, enabled=run_.precision == "fp16", growth_interval=100
    )
    return Parts(backbone, forward, classifier, optimizer, scheduler, scaler, loader, device, ranks)


def _build_optimizer(
    config: Config, backbone: nn.Module, classifier: nn.Module
) -> torch.optim.Optimizer:
    """Backbone parameters first, so that a checkpoint can tell them from the rows of the centers by
    position."""
    optim = config.optim
    parameters = list(backbone.parameters())
    centers = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if optim.no_decay_1d:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if centers:
        groups.append({"params": centers})
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )


def _open_training_faces(config: Config, source: str) -> FaceSet:
    data = config.data
    path = resolve_path(data.train, data.root)
    try:
        return open_faces(path, data.format)
    except FileNotFoundError as error:
        hint = (
            ""
            if data.root
            else " (data.root is not set: relative paths start from the working directory)"
        )
        raise ConfigError(f"{source}: data.train: {error}{hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: data.train: {error}") from None


def _build_benchmarks(config: Config, source: str) -> list[Any]:
    benchmarks = []
    for item in config.evaluate.sets:
        build = find_part("eval.benchmarks", item["protocol"]).build
        hints = typing.get_type_hints(build, include_extras=True)
        options = {key: value for key, value in item.items() if key != "protocol"}
        for key, value in options.items():
            if value is not None and _is_path(hints.get(key)):
                options[key] = resolve_path(str(value), config.data.root)
        try:
            benchmarks.append(build(**options))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{source}: evaluate.sets: {item['name']}: {error}") from None
    return benchmarks


def _check_published(config: Config, source: str) -> None:
    if config.evaluate.published is not None:
        try:
            published_row(config.evaluate.published)
        except ValueError as error:
            raise ConfigError(f"{source}: evaluate.published: {error}") from None


def _is_path(hint: Any) -> bool:
    return hint is PathText or PathText in typing.get_args(hint)
