"""An exponential moving average of a model's weights, which is evaluated and published in their place.

    average <- d * average + (1 - d) * weights,   d = min(decay, (1 + step) / (10 + step))

after every step of the stage, counted from 0: early on a shorter memory, so that the average does not stay at
where the stage began (as in TensorFlow's ExponentialMovingAverage). Averaging makes up for much of the decay
of the learning rate (Morales-Brotons et al., arXiv 2411.18704).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.distributed.sharding import (
    gathered,
    in_parts,
    own_part,
    part_from_first,
    part_of,
    parts_of,
    tensors_of,
    whole_model,
)
from modelchain_trainer.model.build import model_from
from modelchain_trainer.model.families import AnyModel


class AveragedModel:
    """The average of a model on its device; it begins as a copy. Of a sharded model each rank averages its part."""

    def __init__(self, model: AnyModel, decay: float, group: Group | None = None) -> None:
        self._decay, self._group = decay, group or Group()
        self._trained = model
        self._trained_tensors = tensors_of(model)
        self._parts = {name: part.clone() for name, part in parts_of(model).items()}
        self._whole = None
        if not in_parts(model):
            self._whole = model_from(self._parts, model.config).requires_grad_(False)
            self._parts = parts_of(self._whole)

    @property
    def model(self) -> AnyModel:
        """A model with the averages for weights. Of a sharded one a copy, for which all ranks must ask."""
        if self._whole is not None:
            return self._whole
        return whole_model(self._trained, self._group, parts=self._parts)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, part in self._parts.items():
            part.lerp_(own_part(self._trained_tensors[name]), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter, as `sharding.gathered` has them."""
        state = gathered(self._parts, self._trained_tensors, self._group)
        return {f"average.{name}": tensor for name, tensor in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave. Raises KeyError where a parameter is missing."""
        for name, part in self._parts.items():
            part.copy_(part_of(state[f"average.{name}"], self._trained_tensors[name], self._group))

    @torch.no_grad()
    def load_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over rank 0's `state` on every rank; the others pass None."""
        for name, part in self._parts.items():
            whole = None if state is None else state[f"average.{name}"]
            part.copy_(part_from_first(whole, self._trained_tensors[name], self._group))
