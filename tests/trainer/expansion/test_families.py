"""Every family grows by the one engine: exactly where the plan says so, and copies part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain.resolved import ResolvedExpansion
from modelchain.spec import WidthExpansion
from modelchain_trainer.expansion import Fidelity, expand, expand_moments, plan_expansion
from modelchain_trainer.model.build import model_from, parameter_shapes
from tests.trainer.expansion.families import FAMILIES, duplicates, trained


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_growth_of_any_size_keeps_the_function_to_rounding(family: str, data: st.DataObject) -> None:
    case = FAMILIES[family]
    small_config, large_config = case.configs(data.draw(case.sizes))
    assert plan_expansion(small_config, large_config).fidelity is Fidelity.EXACT
    small = trained(small_config)
    state = expand(small.state_dict(), small_config, large_config, ResolvedExpansion(), seed=1)
    with torch.no_grad():
        assert case.error(small, model_from(state, large_config)) < 1e-12


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_every_growth_gives_tensors_and_moments_of_the_large_models_shapes(
    family: str, data: st.DataObject
) -> None:
    case = FAMILIES[family]
    small_config, large_config = case.configs(data.draw(case.sizes))
    how = ResolvedExpansion(
        width=data.draw(st.sampled_from(sorted(set(WidthExpansion) - {WidthExpansion.FRESH})))
    )
    state, shapes = trained(small_config).state_dict(), parameter_shapes(large_config)
    grown = expand(state, small_config, large_config, how, seed=1)
    assert {name: tensor.shape for name, tensor in grown.items()} == shapes
    squares = {name: tensor.square() for name, tensor in state.items()}
    moments = expand_moments(squares, small_config, large_config, how, power=2)
    assert {name: tensor.shape for name, tensor in moments.items()} == shapes
    assert all(bool((tensor >= 0).all()) for tensor in moments.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_part_within_ten_steps(family: str) -> None:
    case = FAMILIES[family]
    sizes = "vision_heads text_heads vision_layers text_layers" if family == "clip" else "heads layers"
    drawn = dict.fromkeys(sizes.split(), 1) | {"ratio": 2.0, "times": 1, "more_ratio": 0.0, "more_embed": 0}
    drawn |= dict.fromkeys(("more_text_heads", "more_heads"), 1)
    drawn |= dict.fromkeys(("more_vision_layers", "more_text_layers", "more_layers"), 1)
    small_config, large_config = case.configs(drawn)
    state = expand(
        trained(small_config).state_dict(), small_config, large_config, ResolvedExpansion(), seed=1
    )
    model = model_from(state, large_config)
    assert duplicates(model, case.loss) > 0.2, "growth repeats units"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(10):
        optimizer.zero_grad()
        case.loss(model).backward()
        optimizer.step()
    assert duplicates(model, case.loss) == 0
