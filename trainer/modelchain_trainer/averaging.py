"""An exponential moving average of a model's weights, which is evaluated and published in their place.

    average <- d * average + (1 - d) * weights,   d = min(decay, (1 + step) / (10 + step))

after every step of the stage, counted from 0: early on a shorter memory, so that the average does not stay at
where the stage began (as in TensorFlow's ExponentialMovingAverage). Averaging makes up for much of the decay
of the learning rate (Morales-Brotons et al., arXiv 2411.18704).
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelchain_trainer.model.build import model_from
from modelchain_trainer.model.families import AnyModel


class AveragedModel:
    """The average of a model on its device; it begins as a copy."""

    def __init__(self, model: AnyModel, decay: float) -> None:
        self._decay = decay
        self._weights = [parameter.detach() for parameter in model.parameters()]
        copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.model = model_from(copy, model.config).requires_grad_(False)
        self._averages = list(self.model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, weights in zip(self._averages, self._weights, strict=True):
            average.lerp_(weights, 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter. Shares memory with this."""
        return {f"average.{name}": parameter.data for name, parameter in self.model.named_parameters()}
