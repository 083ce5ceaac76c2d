"""AdamW with one fused kernel call for each group of parameters.

Not torch.optim.AdamW: its base class imports torch._dynamo when it is made, which costs seconds at the start
of every stage. The kernels are the same (`torch.optim.adamw.adamw`), the state is a flat dict of named
tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from modelchain.resolved import ResolvedTraining


@dataclass(frozen=True)
class _Group:
    weight_decay: float
    names: list[str]
    parameters: list[nn.Parameter]
    mean: list[Tensor]  # exponential moving average of the gradient
    square: list[Tensor]  # and of its square
    steps: list[Tensor]  # steps taken; one number for all, but the kernel wants one each


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101), on tensors of at least two dimensions only."""

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], training: ResolvedTraining
    ) -> None:
        self._training = training
        named = list(named_parameters)
        self._groups: list[_Group] = []
        for decays in (True, False):
            members = [(name, parameter) for name, parameter in named if (parameter.ndim >= 2) == decays]
            if not members:
                continue
            names, parameters = zip(*members, strict=True)
            device = parameters[0].device
            self._groups.append(
                _Group(
                    weight_decay=training.weight_decay if decays else 0.0,
                    names=list(names),
                    parameters=list(parameters),
                    mean=[torch.zeros_like(parameter) for parameter in parameters],
                    square=[torch.zeros_like(parameter) for parameter in parameters],
                    steps=list(torch.zeros(len(parameters), device=device).unbind()),
                )
            )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, those that decay first."""
        return [parameter for group in self._groups for parameter in group.parameters]

    @torch.no_grad()
    def step(
        self, learning_rate: float, *, divisor: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        """One update from the parameters' `grad`.

        `divisor` ([] fp32) divides every gradient first: clipping without a pass of its own. Where `skip` ([]
        fp32) is 1 nothing changes; it is read on the device, so nothing waits for it.
        """
        for group in self._groups:
            gradients = [parameter.grad for parameter in group.parameters]
            adamw(
                list(group.parameters),
                [gradient for gradient in gradients if gradient is not None],
                group.mean,
                group.square,
                [],
                group.steps,
                fused=True,
                grad_scale=divisor,
                found_inf=skip,
                amsgrad=False,
                maximize=False,
                lr=learning_rate,
                beta1=self._training.beta1,
                beta2=self._training.beta2,
                weight_decay=group.weight_decay,
                eps=self._training.epsilon,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter (`mean.<name>`, `square.<name>`) and `steps`. Shares memory with this."""
        state = {"steps": self._groups[0].steps[0]}
        for group in self._groups:
            state |= {f"mean.{name}": tensor for name, tensor in zip(group.names, group.mean, strict=True)}
            state |= {
                f"square.{name}": tensor for name, tensor in zip(group.names, group.square, strict=True)
            }
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, bit for bit. Raises KeyError where a parameter is missing."""
        for group in self._groups:
            for name, mean, square, steps in zip(
                group.names, group.mean, group.square, group.steps, strict=True
            ):
                mean.copy_(state[f"mean.{name}"])
                square.copy_(state[f"square.{name}"])
                steps.copy_(state["steps"])
