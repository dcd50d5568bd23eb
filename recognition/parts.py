"""What a run is made of, and its state: all that the next step depends on."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from data.fingerprint import Fingerprint
from data.loader import Loader
from data.types import Batch
from recognition.classifiers import Classifier
from recognition.classifiers._rows import own_share
from recognition.distributed import Ranks
from recognition.ema import WeightAverage
from recognition.loss_scale import LossScale
from recognition.schedulers import Schedule
from recognition.teacher import Teacher

State = dict[str, Any]
CLASSIFIER_GROUP = "classifier"
"""Name of the optimizer's group of class centers."""
TEACHER_GROUP = "teacher"
"""Name of that of the linear map to a teacher's embeddings; all other groups hold the backbone."""


@dataclass(frozen=True)
class Parts:
    """The parts of a run, built for one rank.

    forward: `backbone` behind DistributedDataParallel and compilation, where a run asks for them.
    no_sync: a context in which backward passes do not average gradients over ranks.
    center_factor: what the learning rate of the class centers is multiplied by.
    statistics: buffers of the backbone and the head, which forward passes change.
    chance_loss: the loss of a network that tells nobody apart (recognition/doctor.py); infinite
    with a teacher, whose losses have no such bound.
    fingerprint: that of the training set, which checkpoints hold; None leaves it out.
    landmarks: digest of those of the training set, for a network that needs them.
    average: that of the backbone's weights, where the run keeps one.
    teacher: the losses of a trained model's embeddings, if the run has a teacher.
    """

    backbone: nn.Module
    forward: Callable[..., torch.Tensor]
    no_sync: Callable[[], AbstractContextManager[None]]
    classifier: Classifier
    optimizer: torch.optim.Optimizer
    center_factor: float
    scheduler: Schedule
    loss_scale: LossScale
    statistics: list[torch.Tensor]
    loader: Loader
    chance_loss: float
    device: torch.device
    ranks: Ranks
    fingerprint: Fingerprint | None = None
    landmarks: str | None = None
    average: WeightAverage | None = None
    teacher: Teacher | None = None

    def loss(
        self, images: torch.Tensor, batch: Batch, forward: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Mean loss of the global batch: the classifier's, and that of a teacher if there is one.

        images: those of the batch as the network gets them. forward: the network, as in `forward`.
        """
        if self.teacher is None:
            return self.classifier(forward, images, batch.labels, batch.sample)
        return self.teacher.loss(self.classifier, forward, images, batch, self.loader.place)

    def after_step(self, taken: torch.Tensor) -> None:
        """Called after each optimizer step, as `Classifier.after_step`."""
        self.classifier.after_step(taken)
        if self.teacher is not None:
            self.teacher.after_step(taken)

    def state_dict(self) -> tuple[State, State]:
        """(shared, local): what is equal on all ranks, and what only this rank holds."""
        optimizer = self.optimizer.state_dict()
        own_rows = {
            index
            for group in optimizer["param_groups"]
            if group["name"] == CLASSIFIER_GROUP
            for index in group["params"]
        }
        shared = {
            "backbone": self.backbone.state_dict(),
            "optimizer_groups": optimizer["param_groups"],
            "optimizer": {i: s for i, s in optimizer["state"].items() if i not in own_rows},
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.loss_scale.state_dict(),
            "loader": self.loader.state_dict(),
        }
        if self.fingerprint is not None:
            shared["faces"] = self.fingerprint.state_dict()
            original = getattr(self.loader.faces, "original_labels", None)
            if original is not None:
                shared["faces"]["original_labels"] = torch.from_numpy(original)
        if self.landmarks is not None:
            shared["landmarks"] = self.landmarks
        if self.average is not None:
            shared["average"] = self.average.state_dict()
        local = {
            "classifier": self.classifier.state_dict(),
            "optimizer": {i: s for i, s in optimizer["state"].items() if i in own_rows},
        }
        if self.teacher is not None:
            shared["teacher"] = self.teacher.digest
            local["teacher"] = self.teacher.state_dict()
        return shared, local

    def load_state_dict(self, shared: State, locals_: list[State]) -> None:
        """Load the shared state, and this rank's own.

        locals_: this rank's own state if as many ranks saved it, else the states of all that did.
        """
        digest = None if self.teacher is None else self.teacher.digest
        if shared.get("teacher") != digest:
            raise ValueError("its teacher is another one")
        if shared.get("landmarks") != self.landmarks:
            raise ValueError("the landmarks of its training set were other ones")
        same_world = shared["world"] == self.ranks.world
        local = locals_[0] if same_world else own_share(locals_, self.classifier)
        self.backbone.load_state_dict(shared["backbone"])
        self.classifier.load_state_dict(local["classifier"])
        if self.average is not None:
            self.average.load_state_dict(shared["average"])
        # How a step is computed follows this run's device, not that of the run which saved.
        groups = [
            {**saved, "fused": own["fused"]}
            for saved, own in zip(
                shared["optimizer_groups"], self.optimizer.param_groups, strict=True
            )
        ]
        self.optimizer.load_state_dict(
            {"state": {**shared["optimizer"], **local["optimizer"]}, "param_groups": groups}
        )
        self.scheduler.load_state_dict(shared["scheduler"])
        self.loss_scale.load_state_dict(shared["scaler"])
        self.loader.load_state_dict(shared["loader"])
        if self.teacher is not None:
            taught = [saved["teacher"] for saved in locals_]
            self.teacher.load_state_dict(taught, whole=not same_world)
