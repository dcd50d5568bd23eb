"""The textbook training loop, with which the GPU benchmark compares ours.

An NCHW module that is never compiled, cosines as one product of normalized embeddings and
normalized centers under autocast, ArcFace's margin in float32, cross_entropy, GradScaler, clipping,
and torch.optim.SGD. It reads the loss in every step. That is the recipe of insightface's
arcface_torch on one GPU.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from data.types import Batch
from recognition.backbones import embedding_of
from recognition.config import Config
from recognition.device import autocast
from recognition.models.model import build_backbone


class Textbook:
    """One model with its optimizer; `step` trains it on a batch.

    sample_rate: share of the centers in each step's product (Partial FC, arXiv 2203.15565). As in
    the released code, the optimizer step moves all centers.
    """

    def __init__(
        self, config: Config, classes: int, device: torch.device, *, sample_rate: float
    ) -> None:
        self.config, self.device = config, device
        self.sampled = round(sample_rate * classes) if sample_rate < 1 else 0
        head = config.head.options
        self.margin, self.scale = head["margin"], head["scale"]
        self.net: nn.Module = build_backbone(config).to(device)
        centers = torch.empty(classes, embedding_of(self.net), device=device)
        self.weight = nn.Parameter(centers.normal_(0, 0.01))
        self.optimizer = torch.optim.SGD(
            [*self.net.parameters(), self.weight],
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )
        fp16 = config.run.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16, growth_interval=100)

    def step(self, batch: Batch) -> float:
        """One optimizer step; returns the loss."""
        loss = self._loss(self._images(batch.images), batch.labels)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.net.parameters(), 5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return float(loss.item())

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B,3,H,W) -> normalized float images in NCHW, half of them flipped."""
        images = pixels.contiguous().float().div_(127.5).sub_(1)
        flipped = torch.rand(len(images), 1, 1, 1, device=self.device) < 0.5
        return torch.where(flipped, images.flip(3), images)

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight, labels = self._sample(labels) if self.sampled else (self.weight, labels)
        with autocast(self.device, self.config.run.precision):
            logits = F.linear(F.normalize(self.net(images)), F.normalize(weight))
        logits = logits.float().clamp(-1, 1)

        # The margin changes the cosine with a sample's own class alone.
        own = logits.gather(1, labels[:, None])
        sine = (1 - own**2).clamp_min(1e-9).sqrt()
        with_margin = own * math.cos(self.margin) - sine * math.sin(self.margin)
        return F.cross_entropy(self.scale * logits.scatter(1, labels[:, None], with_margin), labels)

    def _sample(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sampled centers, all of `labels` among them, and the labels as rows of the sample."""
        draws = torch.rand(len(self.weight), device=self.device)
        draws[labels] = 2.0
        index = draws.topk(max(self.sampled, len(labels))).indices.sort().values
        return self.weight[index], torch.searchsorted(index, labels)
