"""Models whose weights, gradients and moments lie in parts on the ranks (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each rank keeps an equal number of rows of every parameter (ZeRO stage 3, Rajbhandari et al., arXiv 1910.02054). A
block's weights are gathered before it runs, and let go after; its gradients are summed over the ranks and cut into the
same parts. A scalar (the logit scale) lies whole on every rank.

The update reads one element's own numbers, so nothing changes but the order in which gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from modelchain.errors import ConfigurationError
from modelchain.families import AnyConfig
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.build import model_from
from modelchain_trainer.model.families import AnyModel, family_of
from modelchain_trainer.model.transformer import Block

# Methods by which a model or its block is entered beside `forward`; FSDP gathers weights there too.
_ENTRIES = ("encode_image", "encode_text", "encode_texts", "pooled")


def sharded_model(
    config: AnyConfig,
    state: Mapping[str, Tensor] | None,
    *,
    device: torch.device,
    group: Group,
    dtype: torch.dtype = torch.float32,
    prepare: Callable[[AnyModel], None] = lambda _model: None,
) -> AnyModel:
    """A model with the weights of rank 0's `state` (the others pass None), of which every rank keeps its part.

    It is never whole on any device. `prepare` sees the model before it is cut: what it changes of dtypes and of
    `requires_grad` holds. Every rank of `group`, the default process group, calls it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ConfigurationError(
            f"training.sharding: Full needs torch 2.8 or later, and this is {torch.__version__}; "
            "use a newer image, or sharding: Optimizer"
        )
    mesh = init_device_mesh(device.type, (group.world_size,))
    model = family_of(config).build(config, "meta").to(dtype)
    prepare(model)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for module in [m for m in model.modules() if isinstance(m, Block)] + [model]:
        fully_shard(module, mesh=mesh, ignored_params=scalars)
        for entry in _ENTRIES:
            if hasattr(module, entry):
                register_fsdp_forward_method(module, entry)
        assert isinstance(module, FSDPModule)
        # A rank's loss is its share of the global batch's: gradients are summed, not averaged. gloo knows sums only.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own_part(parameter).copy_(
                part_from_first(None if state is None else state[name], parameter, group)
            )
    return model


def is_sharded(parameter: Tensor) -> bool:
    """Whether this rank has a part of the parameter only."""
    return hasattr(parameter, "to_local")  # a DTensor; its module is not imported where nothing is sharded


def own_part(tensor: Tensor) -> Tensor:
    """What this rank has of a parameter or of its gradient, sharing memory; all of it where it is not sharded."""
    return cast("Tensor", tensor.detach().to_local()) if is_sharded(tensor) else tensor.detach()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


def part_of(whole: Tensor, like: Tensor, group: Group) -> Tensor:
    """What this rank keeps of `whole`, a view: as much as of the parameter `like`.

    Of one that is sharded that is an equal part of its rows; the last ranks' are shorter or empty.
    """
    if not is_sharded(like):
        return whole
    rows = _rows(whole, group)
    return whole[rows * group.rank : rows * (group.rank + 1)]


def part_from_first(whole: Tensor | None, like: Tensor, group: Group) -> Tensor:
    """What this rank keeps of rank 0's `whole`, in the form of the parameter `like`; the others pass None."""
    sent = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    if whole is not None:
        sent.copy_(whole)
    return part_of(group.broadcast(sent), like, group)


def whole_of(part: Tensor, like: Tensor, group: Group) -> Tensor:
    """The parts of all ranks put together, in the form of the parameter `like`. All ranks call it."""
    if not is_sharded(like):
        return part
    rows = _rows(like, group)
    padded = part.new_zeros(rows, *like.shape[1:])
    padded[: part.shape[0]] = part
    return group.gather(padded)[: like.shape[0]]


def gathered(parts: Mapping[str, Tensor], like: Mapping[str, Tensor], group: Group) -> dict[str, Tensor]:
    """What lies in parts, whole: on rank 0, on the CPU, one tensor after another; nothing on the others.

    Where no parameter is sharded every rank has everything, and it shares memory with `parts`. All ranks call it.
    """
    if not any(map(is_sharded, like.values())):
        return dict(parts)
    state: dict[str, Tensor] = {}
    for name, part in parts.items():
        whole = whole_of(part, like[name], group)
        if group.rank == 0:
            state[name] = whole.cpu()
    return state


def whole_model(model: AnyModel, group: Group, *, parts: Mapping[str, Tensor] | None = None) -> AnyModel:
    """An ordinary model with the same weights on the same device, on every rank. All ranks call it.

    `parts` replace the model's own weights (its average's, say).
    """
    parts = parts_of(model) if parts is None else parts
    state = {name: whole_of(parts[name], parameter, group) for name, parameter in model.named_parameters()}
    return model_from(state, model.config).requires_grad_(False)


def total_norm(parameters: Iterable[nn.Parameter], group: Group) -> Tensor:
    """The norm of all gradients, [], the same on every rank."""
    gradients = [(parameter.grad, is_sharded(parameter)) for parameter in parameters]
    whole = [gradient for gradient, sharded in gradients if gradient is not None and not sharded]
    parts = [own_part(gradient) for gradient, sharded in gradients if gradient is not None and sharded]
    if not any(sharded for _, sharded in gradients):
        return nn.utils.get_total_norm(whole)
    norm = nn.utils.get_total_norm([part for part in parts if part.numel()])
    squares = group.sum(norm.square())
    if whole:
        squares = squares + nn.utils.get_total_norm(whole).square()
    return squares.sqrt()


def in_parts(model: nn.Module) -> bool:
    """Whether no rank has the whole model."""
    return any(map(is_sharded, model.parameters()))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Its parameters, and running statistics where it has them."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def parts_of(model: nn.Module) -> dict[str, Tensor]:
    """What this rank has of each of these, sharing memory."""
    return {name: own_part(tensor) for name, tensor in tensors_of(model).items()}


def _rows(whole: Tensor, group: Group) -> int:
    """Rows of a rank's part: those of `torch.chunk`, as FSDP cuts."""
    return -(-whole.shape[0] // group.world_size)
