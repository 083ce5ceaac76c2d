"""AdamW with one fused kernel call for each group of parameters.

Not torch.optim.AdamW: its base class imports torch._dynamo when it is made, which costs seconds at the start
of every stage. The kernels are the same (`torch.optim.adamw.adamw`), the state is a flat dict of named
tensors.

Sharded (ZeRO stage 1, arXiv 1910.02054) each parameter has its moments on one rank alone, which updates it and gives
it to the others. Of parameters that lie in parts on the ranks (sharding.py) each rank has the moments of its part.
Nothing else changes: an update reads one element's own numbers, so weights are those of the unsharded optimizer bit for
bit, and the state has the same form on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from modelchain.resolved import ResolvedTraining
from modelchain_trainer.distributed.collectives import BUCKET_BYTES, Group
from modelchain_trainer.distributed.sharding import is_sharded, own_part, part_from_first, part_of, whole_of

STEPS = "steps"


@dataclass(frozen=True)
class _ParameterGroup:
    """Parameters of one weight decay whose moments are on this rank."""

    weight_decay: float
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    mean: list[Tensor] = field(default_factory=list)  # exponential moving average of the gradient
    square: list[Tensor] = field(default_factory=list)  # and of its square
    steps: list[Tensor] = field(
        default_factory=list
    )  # steps taken; one number for all, but the kernel wants one each


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101), on tensors of at least two dimensions only."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        training: ResolvedTraining,
        group: Group | None = None,
        *,
        sharded: bool = False,
    ) -> None:
        """All ranks of `group` pass the same parameters in the same order."""
        self._training = training
        self._ranks = group or Group()
        # Those that decay first: the order in which gradients are summed.
        self.named = sorted(named_parameters, key=lambda item: item[1].ndim < 2)
        sizes = [parameter.numel() for _, parameter in self.named]
        self._in_parts = any(is_sharded(parameter) for _, parameter in self.named)
        self._by_owner = sharded and not self._ranks.alone and not self._in_parts
        owners = (
            shard_owners(sizes, self._ranks.world_size) if self._by_owner else [self._ranks.rank] * len(sizes)
        )
        self._owners = owners
        self._groups = [_ParameterGroup(training.weight_decay), _ParameterGroup(0.0)]
        for (name, parameter), owner in zip(self.named, owners, strict=True):
            if owner != self._ranks.rank:
                continue
            group_ = self._groups[parameter.ndim < 2]
            group_.names.append(name)
            group_.parameters.append(parameter)
            group_.mean.append(torch.zeros_like(own_part(parameter)))
            group_.square.append(torch.zeros_like(own_part(parameter)))
        self._groups = [each for each in self._groups if each.names]
        for each in self._groups:
            device = each.parameters[0].device
            each.steps.extend(torch.zeros(len(each.parameters), device=device).unbind())

    @property
    def sharded(self) -> bool:
        """Whether no rank has all of the moments: all must take part where they are asked for."""
        return self._by_owner or self._in_parts

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters, those that decay first."""
        return [parameter for _, parameter in self.named]

    @torch.no_grad()
    def step(
        self, learning_rate: float, *, divisor: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        """One update from the parameters' `grad`.

        `divisor` ([] fp32) divides every gradient first: clipping without a pass of its own. Where `skip` ([]
        fp32) is 1 nothing changes; it is read on the device, so nothing waits for it.
        """
        for group in self._groups:
            # A rank may have no row of a parameter; the kernel is not asked about it.
            here = [index for index, part in enumerate(group.mean) if part.numel()]
            gradients = [group.parameters[index].grad for index in here]
            adamw(
                [own_part(group.parameters[index]) for index in here],
                [own_part(gradient) for gradient in gradients if gradient is not None],
                [group.mean[index] for index in here],
                [group.square[index] for index in here],
                [],
                [group.steps[index] for index in here],
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

        if self._by_owner:
            self._spread()

    def state_dict(self) -> dict[str, Tensor]:
        """Moments by parameter (`mean.<name>`, `square.<name>`) and `steps`.

        Shares memory with this, but where it is sharded: then every rank must call it, and rank 0 gets everything, on
        the CPU, and the others nothing.
        """
        own = self.own_state()
        if not self.sharded:
            return own
        state: dict[str, Tensor] = {}
        for name, owner, like in self._layout():
            if self._in_parts:
                tensor = whole_of(own[name], like, self._ranks)
            else:
                tensor = own[name] if owner == self._ranks.rank else torch.empty_like(like)
                self._ranks.broadcast(tensor, source=owner)
            if self._ranks.rank == 0:
                state[name] = tensor.cpu()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave, bit for bit. Raises KeyError where a parameter is missing."""
        own = self.own_state()
        for name, _, like in self._layout():
            if name in own:
                own[name].copy_(part_of(state[name], like, self._ranks))
        self._equal_steps()

    @torch.no_grad()
    def load_from_first(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over rank 0's `state` on every rank, one tensor at a time; the others pass None.

        Moments that it lacks stay zero: those of parameters that are new.
        """
        own = self.own_state()
        for name, owner, like in self._layout():
            tensor = part_from_first(None if state is None else state.get(name), like, self._ranks)
            if name in own and owner == self._ranks.rank:
                own[name].copy_(tensor)
            if name == STEPS:
                for group in self._groups:
                    group.steps[0].copy_(tensor)
        self._equal_steps()

    def own_state(self) -> dict[str, Tensor]:
        """What is on this rank, sharing its memory."""
        state = {STEPS: self._groups[0].steps[0]} if self._groups else {}
        for group in self._groups:
            state |= {f"mean.{name}": tensor for name, tensor in zip(group.names, group.mean, strict=True)}
            state |= {
                f"square.{name}": tensor for name, tensor in zip(group.names, group.square, strict=True)
            }
        return state

    def _layout(self) -> Iterator[tuple[str, int, Tensor]]:
        """Everything that a whole state has: its name, the rank that has it, and a tensor of its form."""
        first = self.named[0][1]
        yield STEPS, self._owners[0], torch.zeros((), device=first.device)
        for kind in ("mean", "square"):
            for (name, parameter), owner in zip(self.named, self._owners, strict=True):
                yield f"{kind}.{name}", owner, parameter.detach()

    def _equal_steps(self) -> None:
        for group in self._groups:
            for steps in group.steps:
                steps.copy_(self._groups[0].steps[0])

    def _spread(self) -> None:
        """Give every rank the parameters that it does not update, in flat tensors of one owner."""
        for owner in range(self._ranks.world_size):
            mine = [p for (_, p), o in zip(self.named, self._owners, strict=True) if o == owner]
            for bucket in _buckets(mine):
                flat = torch.cat([parameter.detach().flatten() for parameter in bucket])
                self._ranks.broadcast(flat, source=owner)
                if owner != self._ranks.rank:
                    parts = flat.split([parameter.numel() for parameter in bucket])
                    for parameter, part in zip(bucket, parts, strict=True):
                        parameter.copy_(part.view_as(parameter))


def shard_owners(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank that has the moments of each parameter: the largest first, each to whoever has least."""
    load = [0] * ranks
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        owner = load.index(min(load))
        owners[index] = owner
        load[owner] += sizes[index]
    return owners


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parts of at most `BUCKET_BYTES`, a larger parameter alone."""
    bucket: list[nn.Parameter] = []
    filled = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and filled + size > BUCKET_BYTES:
            yield bucket
            bucket, filled = [], 0
        bucket.append(parameter)
        filled += size
    if bucket:
        yield bucket
