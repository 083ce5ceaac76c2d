"""The whole growth, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedExpansion
from modelchain.spec import ModelConfig, WidthExpansion
from modelchain_trainer.expansion.depth import source_of
from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.expansion.exact import ExactWidth, tower_of
from modelchain_trainer.expansion.paper import fill_leading
from modelchain_trainer.expansion.plan import plan_expansion
from modelchain_trainer.expansion.resize import resized
from modelchain_trainer.model.build import initial_tensor, parameter_shapes


@torch.no_grad()
def expand(
    small: Mapping[str, Tensor],
    small_config: ModelConfig,
    large_config: ModelConfig,
    expansion: ResolvedExpansion,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """The state dict of the large model, in the small one's dtype; it shares no memory with `small`.

    Equal arguments give equal tensors. At any time only one tensor beyond the result is held. Raises
    ConfigurationError if the large model cannot grow out of the small one, and UserDataError if `small` is
    not of `small_config`.
    """
    plan_expansion(small_config, large_config, expansion)
    _check_state(small, small_config)
    exact = {
        vision: ExactWidth(
            tower_of(small_config, large_config, expansion.width, vision=vision),
            large_config,
            small["visual.ln_pre.weight"],
            seed=seed,
        )
        for vision in (True, False)
    }
    projection_map = embedding_map(small_config.embed_dim, large_config.embed_dim)
    grown = {}
    for name, shape in parameter_shapes(large_config).items():
        source = source_of(name, small_config, large_config, expansion.depth)
        tensor = resized(small[source.name], source, large_config)
        if source.silent and source.writes:
            grown[name] = tensor.new_zeros(shape)
        elif expansion.width is not WidthExpansion.SLICE:
            if source.leaf in {"proj", "text_projection"} and large_config.embed_dim > small_config.embed_dim:
                tensor = tensor @ projection_map.to(tensor.dtype)
            grown[name] = exact[source.vision].grow(name, tensor, source)
        else:
            fresh = initial_tensor(name, shape, large_config, seed=seed, dtype=tensor.dtype)
            grown[name] = fill_leading(fresh, tensor, source.leaf)
        assert grown[name].shape == shape, name
    return grown


def _check_state(state: Mapping[str, Tensor], config: ModelConfig) -> None:
    expected = parameter_shapes(config)
    if state.keys() != expected.keys():
        different = sorted(state.keys() ^ expected.keys())
        raise UserDataError(f"the predecessor's weights do not fit its configuration: {different[0]}")
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise UserDataError(
                f"the predecessor's weights do not fit its configuration: {name} has shape "
                f"{list(state[name].shape)}, not {list(shape)}"
            )
