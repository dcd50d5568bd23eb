"""The one place where the parts meet: from a config to a trained and evaluated run folder."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.decode_threads import decode_threads
from data.fingerprint import Fingerprint, fingerprint_of
from data.landmarks import digest
from data.parts import find_part
from data.size_schedule import SizeSchedule
from data.types import FaceSet
from eval.benchmarks import Benchmark, open_benchmark, try_opening, without_figures
from eval.embed import ModelRun, Progress, embed_faces, not_shown
from eval.report.pictures import worst_sheet
from eval.report.published import published_row
from eval.report.write import write_report
from recognition.best_checkpoint import check_keep_best
from recognition.checkpoint import newest
from recognition.classifiers import ClassifierFacts
from recognition.classifiers import Sizes as ClassifierSizes
from recognition.classifiers._margin_softmax import SoftmaxOptions
from recognition.compiled import compiled
from recognition.config import Config, ConfigError, RunConfig
from recognition.device import choose_device, place_backbone, prepare_device
from recognition.distributed import (
    Ranks,
    check_same,
    ranks_of_this_run,
    read_launch,
    texts_of_all,
    told_once,
)
from recognition.doctor import chance_loss
from recognition.ema import FOLDER, WeightAverage, measure_statistics, save_average
from recognition.freeze import freeze
from recognition.init import Weights, check_centers, load_weights, read_weights, set_centers
from recognition.landmarks import training_landmarks
from recognition.logs import evaluation_progress, plot_training
from recognition.lora import add_lora
from recognition.loss_scale import LossScale
from recognition.models.model import Model, build_backbone, facts_of, load_pretrained
from recognition.optimizer import build_optimizer, center_factor
from recognition.parse import build_part, to_yaml
from recognition.parts import Parts
from recognition.run_folder import (
    check_run_folder,
    open_run_folder,
    with_chunk,
    with_saved_choices,
)
from recognition.run_space import sizes_of
from recognition.schedulers import Schedule
from recognition.step_size import rate_share, with_step_size
from recognition.stop import Agreement, Stop, Stopped, stop_on_signals
from recognition.teacher import Teacher, build_teacher
from recognition.teacher_vectors import TeacherSource, complete, open_teacher, vectors_of
from recognition.trackers import check_trackers
from recognition.trainer import train
from recognition.training_set import open_training_set

log = logging.getLogger(__name__)


def run(config: Config, source: str, *, resume: bool = False) -> Path:
    """Train and evaluate as `config` says, and return the run folder.

    source: the config file's name, for errors. Raises ConfigError, before training begins, if this
    machine or the files do not allow what the config asks.
    """
    with stop_on_signals() as stop:
        return _run(config, source, stop, resume)


def _run(config: Config, source: str, stop: Stop, resume: bool) -> Path:
    launch = read_launch()
    device = choose_device(config, source, launch)
    prepare_device(config.run, device)
    with _config_errors(source, "run.trackers: "):
        check_trackers(config.run.trackers)
    config = with_saved_choices(config) if resume else config
    with ranks_of_this_run(device, launch) as ranks, ExitStack() as opened:
        begins = not resume or not _saved_on_rank_0(config, ranks, device)
        with told_once(ranks, device):
            with _config_errors(source):
                config, changed = with_step_size(config, ranks.world)
            if ranks.rank == 0:
                check_run_folder(config, resume)
            faces, benchmarks = _open_files(config, source)
            with _config_errors(source, "init.weights: "):
                weights = read_weights(config.init) if begins else None
            fingerprint = fingerprint_of(faces)
            with _config_errors(source):
                teacher = open_teacher(config, faces, fingerprint, device)
        if changed and ranks.rank == 0:
            log.info(changed)
        with told_once(ranks, device):
            same = _what_must_be_same(config, fingerprint, weights, teacher)
            check_same(same, ranks, device)
        with _config_errors(source):
            parts = build_parts(
                config, faces, device, ranks, weights, fingerprint, teacher, begins=begins
            )

        chosen = getattr(parts.classifier, "options", None)
        if isinstance(chosen, SoftmaxOptions):
            config = with_chunk(config, chosen.chunk)

        # All that may be refused was built above, so a command that fails leaves no folder behind.
        folder = Path(config.run.output)
        sizes = sizes_of(parts)
        with told_once(ranks, device):
            if ranks.rank == 0:
                counts = {"images": len(faces), "identities": faces.num_classes}
                opened.enter_context(open_run_folder(config, resume, sizes, counts))
        with told_once(ranks, device):
            if not folder.is_dir():
                raise ConfigError(
                    f"{source}: run.output: rank {ranks.rank} can't see {folder}, which rank 0 has "
                    "made; give a folder on a drive that all machines share"
                )
        model = Model(parts.backbone, facts_of(config), device)

        worst: dict[str, bytes] = {}

        def figures(into: Path) -> dict[str, float]:
            results = []
            for item, benchmark in zip(config.evaluate.sets, benchmarks, strict=True):
                shown = partial(evaluation_progress, name=item["name"])
                told = _stoppable(shown if ranks.rank == 0 else not_shown, stop, ranks, device)
                try:
                    results.append(benchmark(ModelRun(model, ranks, told), model.size))
                except (OSError, ValueError) as error:
                    log.warning("evaluate.sets: %s: no figures: %s", item["name"], error)
                    results.append(without_figures(item, str(error)))
            if ranks.rank == 0:
                write_report(results, into, published=config.evaluate.published)
                of = "" if into == folder else f"{into.name}/"
                worst.update(
                    {
                        f"{of}{one.name}/worst": worst_sheet(one.worst)
                        for one in results
                        if one.worst
                    }
                )
            return {
                f"{result.name}/{metric}": value
                for result in results
                for metric, value in result.metrics.items()
            }

        def evaluate() -> dict[str, float]:
            """All ranks embed and compute the same figures, and rank 0 writes them."""
            share_buffers(parts.backbone, ranks)
            values = figures(folder)
            if parts.average is not None:
                with parts.average.in_place():
                    measure_statistics(config, parts.backbone, faces, ranks)
                    if ranks.rank == 0:
                        save_average(config, parts.backbone, folder)
                    of_average = figures(folder / FOLDER)
                values |= {f"{FOLDER}/{name}": value for name, value in of_average.items()}
            return values

        if begins and config.init.centers == "means":
            shown = partial(evaluation_progress, name="class means")
            run = ModelRun(model, ranks, shown if ranks.rank == 0 else not_shown)
            of_images = partial(embed_faces, run, faces, model.size, mirror=False)
            with _config_errors(source, "init.centers: "):
                told = set_centers(
                    parts.classifier, faces, lambda indices: of_images(indices=indices), ranks
                )
            log.info(told)
        if teacher is not None:
            with _config_errors(source):
                _complete_vectors(teacher, faces, ranks, device, stop)
            teacher = None  # the memory of its model is free from here on
        train(config, parts, folder, evaluate, stop, resume=resume, pictures=lambda: worst)
        if ranks.rank == 0:
            plot_training(folder)
    return folder


def _complete_vectors(
    teacher: TeacherSource, faces: FaceSet, ranks: Ranks, device: torch.device, stop: Stop
) -> None:
    """Compute what the file of a teacher's vectors lacks."""
    if teacher.model is None or teacher.record is None:
        return
    shown = partial(evaluation_progress, name="the teacher's vectors")
    told = _stoppable(shown if ranks.rank == 0 else not_shown, stop, ranks, device)
    with told(len(faces)) as advance:
        run = ModelRun(teacher.model, ranks, lambda block: nullcontext(advance))
        of_images = partial(embed_faces, run, faces, teacher.model.size, mirror=True)
        complete(teacher, faces, lambda indices: of_images(indices=indices), ranks, device)


def _stoppable(progress: Progress, stop: Stop, ranks: Ranks, device: torch.device) -> Progress:
    """The progress of an evaluation that a signal ends: its images are embedded with a resume."""
    agreement = Agreement(ranks, device)

    @contextmanager
    def stoppable(total: int) -> Iterator[Callable[[int], None]]:
        with progress(total) as advance:

            def checked(images: int) -> None:
                advance(images)
                if agreement.stops(stop):
                    raise Stopped(f"stopped by {stop.signal or 'a signal'} in an evaluation")

            yield checked

    return stoppable


def share_buffers(backbone: nn.Module, ranks: Ranks) -> None:
    """Give all ranks the buffers of rank 0: in training, each has running statistics of its own."""
    with torch.no_grad():
        for buffer in backbone.buffers():
            buffer.copy_(ranks.broadcast(buffer))


def build_parts(
    config: Config,
    faces: FaceSet,
    device: torch.device,
    ranks: Ranks,
    weights: Weights | None = None,
    fingerprint: Fingerprint | None = None,
    source: TeacherSource | None = None,
    *,
    begins: bool = True,
) -> Parts:
    """Everything that `train` needs, on `device`, seeded by `run.seed`.

    weights: what the backbone starts from; None for random weights and for a run that goes on.
    begins: False for a run that goes on, whose checkpoint has all weights.
    source: where the vectors of a teacher come from; None for a run without one.

    Raises ValueError for options that can't go together.
    """
    optim, run_ = config.optim, config.run
    torch.manual_seed(run_.seed)
    facts: ClassifierFacts = find_part("recognition.classifiers", config.classifier.name).FACTS
    loader = facts.make_loader(
        faces,
        config,
        batch_size=optim.batch_size,
        size=SizeSchedule(config.data.size, config.data.size_schedule or {}, optim.epochs),
        seed=run_.seed,
        threads=config.data.threads or decode_threads(),
        rank=ranks.rank,
        world=ranks.world,
        device=device,
        accumulation=optim.accumulation,
        step_images=optim.step_images,
    )

    backbone = build_backbone(config)
    if begins and (line := load_pretrained(backbone, config)):
        log.info(line)
    backbone = place_backbone(backbone, device, run_.channels_last)
    if config.data.size_schedule and not getattr(backbone, "takes_smaller_images", False):
        raise ValueError(
            f"data.size_schedule: the backbone {config.backbone.name} takes images of one size "
            "only; set data.size_schedule=null, or choose iresnet or ir"
        )
    loader.landmarks = training_landmarks(backbone, faces)
    if weights is not None:
        log.info(load_weights(backbone, weights, config))
    lora = config.init.lora
    frozen = freeze(backbone, config.init.freeze, more=lora.rank > 0)
    if config.init.freeze:
        log.info(f"init.freeze: {frozen.report(backbone)}")
    if lora.rank:
        frozen, line = add_lora(backbone, lora, frozen)
        log.info(line)
    head = build_part("recognition.heads", config.head, seed=run_.seed)
    chance = chance_loss(head, _compared(config, faces.num_classes, ranks))
    chance *= facts.losses(config)
    classifier = build_part(
        "recognition.classifiers",
        config.classifier,
        backbone=backbone,
        classes=faces.num_classes,
        head=head,
        ranks=ranks,
        seed=run_.seed,
        optimizer_name="adamw" if optim.name == "adamw" else "sgd",  # of centers
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        accumulation=optim.accumulation,
        batch_size=optim.batch_size,
        precision=run_.precision,
    ).to(device)
    check_centers(config, classifier)

    teacher: Teacher | None = None
    if source is not None:
        teacher = build_teacher(
            config,
            vectors_of(source),
            width=source.width,
            digest=source.digest,
            backbone=backbone,
            classifier=classifier,
            head=build_part("recognition.heads", config.head, seed=run_.seed),
            ranks=ranks,
            device=device,
            planned=loader.steps.epoch * optim.epochs,
        )
        where = f"vectors in {source.file}" if source.file else "of the augmented batch"
        linear = ", after a linear map of the student's" if teacher.projection else ""
        log.info(f"teacher: {where}, {source.width} numbers per embedding{linear}")
    share = rate_share(config, ranks.world)
    scaled = replace(optim, lr=optim.lr * share, muon_lr=optim.muon_lr * share)
    taught = teacher.parameters() if teacher else []
    fused = device.type == "cuda"
    optimizer = build_optimizer(scaled, backbone, frozen, classifier, taught, fused=fused)
    steps_per_epoch = loader.steps.planned_per_epoch
    scheduler = build_part(
        "recognition.schedulers",
        config.scheduler,
        optimizer=optimizer,
        total_steps=steps_per_epoch * optim.epochs,
        steps_per_epoch=steps_per_epoch,
    )
    forward, no_sync = _wrapped(backbone, device, ranks, run_)
    half_life = optim.ema and optim.ema * loader.steps.epoch
    return Parts(
        backbone=backbone,
        forward=forward,
        no_sync=no_sync,
        classifier=classifier,
        optimizer=optimizer,
        center_factor=center_factor(optim),
        scheduler=Schedule(scheduler, loader.steps),
        loss_scale=LossScale(device, enabled=run_.precision == "fp16"),
        statistics=[
            *(*backbone.buffers(), *head.buffers()),
            *(teacher.statistics() if teacher else ()),
        ],
        loader=loader,
        chance_loss=math.inf if teacher else chance,
        device=device,
        ranks=ranks,
        fingerprint=fingerprint,
        landmarks=None if loader.landmarks is None else digest(loader.landmarks),
        average=WeightAverage(backbone, half_life) if half_life else None,
        teacher=teacher,
    )


def _compared(config: Config, classes: int, ranks: Ranks) -> int:
    """The number of classes that an embedding is compared with in a step."""
    facts: ClassifierFacts = find_part("recognition.classifiers", config.classifier.name).FACTS
    sizes = ClassifierSizes(classes, ranks.world, 1, 0, 0, "cpu")
    work = facts.work(config, sizes)
    sub_centers: int = config.classifier.options.get("sub_centers", 1)
    # Centers that are trained are divided among the ranks; others are on each of them.
    return work.rows * (ranks.world if work.trained else 1) // sub_centers


def _wrapped(
    backbone: nn.Module, device: torch.device, ranks: Ranks, run_: RunConfig
) -> tuple[Callable[..., torch.Tensor], Callable[[], AbstractContextManager[None]]]:
    """The backbone behind DistributedDataParallel and torch.compile, where a run asks for them.

    With it comes `no_sync` of `Parts`. The statistics of batch norm stay each rank's own during
    training, as in arcface_torch: they would be sent in every step, and only an evaluation uses
    them.
    """
    forward: Callable[..., torch.Tensor] = backbone
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext
    if ranks.world > 1:
        with warnings.catch_warnings():
            # Newer versions of torch have another name for broadcast_buffers, which 2.8 lacks.
            warnings.simplefilter("ignore", FutureWarning)
            data_parallel = DistributedDataParallel(
                backbone,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        forward, no_sync = data_parallel, data_parallel.no_sync
    if run_.compile:
        if run_.compile_mode == "reduce-overhead" and ranks.world > 1:
            raise ValueError(
                "run.compile_mode: found reduce-overhead with several processes, whose gradients "
                "do not fit CUDA graphs; use default"
            )
        forward = compiled(forward, run_.compile_mode)
    return forward, no_sync


def _open_files(config: Config, source: str) -> tuple[FaceSet, list[Benchmark]]:
    """The training set and the sets of `evaluate`. ConfigError names what can't be used."""
    with _config_errors(source):
        check_keep_best(config)
    with _config_errors(source, "data.train: "):
        faces = _open_training_faces(config)
    benchmarks = []
    for item in config.evaluate.sets:
        with _config_errors(source, f"evaluate.sets: {item['name']}: "):
            benchmarks.append(open_benchmark(item, config.data.root))
            try_opening(benchmarks[-1], config.data.size)
    if config.evaluate.published is not None:
        with _config_errors(source, "evaluate.published: "):
            published_row(config.evaluate.published)
    return faces, benchmarks


def _saved_on_rank_0(config: Config, ranks: Ranks, device: torch.device) -> bool:
    """Whether the run folder has a checkpoint. Rank 0 looks, and all ranks get its answer."""
    found = ranks.rank == 0 and newest(Path(config.run.output) / "checkpoints") is not None
    return bool(texts_of_all("found" if found else "", ranks, device)[0])


def _what_must_be_same(
    config: Config,
    fingerprint: Fingerprint,
    weights: Weights | None,
    teacher: TeacherSource | None,
) -> dict[str, bytes]:
    """What has to be equal on all ranks. Only where the files are may differ."""
    here = replace(config.data, root=None, train=".", subset=None, threads=None)
    return {
        "the config": to_yaml(replace(config, data=here)).encode(),
        "data.train": fingerprint.digest.encode(),
        "init.weights": weights.digest() if weights else b"",
        "the teacher": _what_teaches(teacher).encode(),
    }


def _what_teaches(teacher: TeacherSource | None) -> str:
    """The teacher and whether its vectors have to be computed, which all ranks do together."""
    return f"{teacher.digest} {teacher.record}" if teacher else ""


def _open_training_faces(config: Config) -> FaceSet:
    data = config.data
    try:
        return open_training_set(data)
    except FileNotFoundError as error:
        hint = "data.root is not set: relative paths start from the working directory"
        raise ValueError(str(error) if data.root else f"{error} ({hint})") from None


@contextmanager
def _config_errors(source: str, key: str = "") -> Iterator[None]:
    """Turn errors about files and options into ConfigErrors that name the config `source`."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{source}: {key}{error}") from None
