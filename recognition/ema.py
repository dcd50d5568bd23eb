"""`optim.ema`: an exponential moving average of the backbone's weights, and its batch norms.

The average of the weights of many steps is often better than the weights of any one of them
(arXiv 1803.05407). It is evaluated beside the weights, and saved as a model of its own. The running
statistics of batch norm belong to other weights, so they are measured anew on training images.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.augment import augment
from data.decode_threads import decode_threads
from data.files import atomic_write
from data.types import FaceSet
from recognition.checkpoint import save_tensors
from recognition.classifiers import ordinary_loader
from recognition.config import Config
from recognition.device import autocast, lay_out
from recognition.distributed import Ranks
from recognition.freeze import evaluating
from recognition.landmarks import Forward, training_landmarks, with_landmarks
from recognition.parse import to_yaml
from recognition.seeds import seed_of

FOLDER = "average"
"""Folder of the averaged model in the run folder; `recognition.load` takes it."""
MEASURED_IMAGES = 2048  # images, of all ranks, that the statistics of batch norm are measured on


class WeightAverage:
    """The average of the trainable weights of a backbone, in their own number type.

    half_life: images, after which a step counts half as much. At the beginning of a run it is a
    third of the images so far, so that little is left of the random weights.
    """

    def __init__(self, backbone: nn.Module, half_life: float) -> None:
        self._backbone, self._half_life = backbone, half_life
        self._weights = {n: w for n, w in backbone.named_parameters() if w.requires_grad}
        self._averages = {n: w.detach().clone() for n, w in self._weights.items()}

    @torch.no_grad()
    def update(self, images: int, place: int, taken: torch.Tensor) -> None:
        """Count the weights after an optimizer step.

        images: those of the step. place: images of the run up to here. taken (bool, scalar on the
        device): where False, the step was skipped, and the average stays as it is.
        """
        share = 1 - 0.5 ** (images / min(self._half_life, place / 3))
        averages, weights = list(self._averages.values()), list(self._weights.values())
        steps = torch._foreach_sub([weight.detach() for weight in weights], averages)
        torch._foreach_mul_(steps, taken * share)
        torch._foreach_add_(averages, steps)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages by the names of the weights."""
        return dict(self._averages)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue with saved averages; KeyError or RuntimeError if they are of other weights."""
        for name, average in self._averages.items():
            average.copy_(state[name])

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The backbone has the averages for weights inside; afterwards all of it is as before."""
        before = {name: value.clone() for name, value in self._backbone.state_dict().items()}
        try:
            for name, weight in self._weights.items():
                weight.copy_(self._averages[name])
            yield
        finally:
            for name, value in self._backbone.state_dict().items():
                value.copy_(before[name])


@torch.no_grad()
def measure_statistics(config: Config, backbone: nn.Module, faces: FaceSet, ranks: Ranks) -> None:
    """Give the batch norms of a backbone the statistics of its own activations.

    They are means over the batches of MEASURED_IMAGES training images, the same ones each time,
    augmented as in training. Every rank calls it and embeds a part of them. Frozen batch norms stay
    as they are.
    """
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms:
        return
    device = next(backbone.parameters()).device
    momenta = [norm.momentum for norm in norms]
    with evaluating(backbone):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        try:
            for images, network in _images(config, backbone, faces, ranks, device):
                with autocast(device, config.run.precision):
                    network(images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    for statistic in (s for norm in norms for s in norm.buffers() if s.is_floating_point()):
        statistic.copy_(ranks.all_reduce_sum(statistic) / ranks.world)


def _images(
    config: Config, backbone: nn.Module, faces: FaceSet, ranks: Ranks, device: torch.device
) -> Iterator[tuple[torch.Tensor, Forward]]:
    """The batches of this rank, as the backbone gets them in training, and what calls it."""
    run, batch_size = config.run, min(config.optim.batch_size, len(faces) // ranks.world)
    loader = ordinary_loader(
        faces,
        config,
        batch_size=batch_size,
        size=config.data.size,
        seed=run.seed,
        threads=config.data.threads or decode_threads(),
        rank=ranks.rank,
        world=ranks.world,
        device=device,
    )
    loader.landmarks = training_landmarks(backbone, faces)
    count = -(-MEASURED_IMAGES // (batch_size * ranks.world))
    for number, batch in enumerate(islice(loader, count)):
        seed = seed_of(run.seed, number, 0, ranks.rank)
        images = augment(lay_out(batch.images, run.channels_last), config.data.augment, seed)
        network = with_landmarks(backbone, batch, config.data.augment, seed)
        yield lay_out(images, run.channels_last), network


def save_average(config: Config, backbone: nn.Module, folder: Path) -> None:
    """Write the backbone, which holds the average, as a model into FOLDER of the run folder."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    with atomic_write(target / "config.yaml", "w") as file:
        file.write(to_yaml(config))
    shutil.copyfile(folder / "environment.json", target / "environment.json")
    save_tensors(target / "model.pt", backbone.state_dict())
