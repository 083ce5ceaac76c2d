"""What is measured of growth that is not exact: each kind, and by a figure that can be read as a share."""

from __future__ import annotations

import json

import pytest
import torch

from modelchain.exactness import APPROXIMATIONS, Approximation, growth_changes
from modelchain_trainer.expansion import expand
from modelchain_trainer.model import model_from
from tests.trainer.expansion.growth import config_of, trained
from tools import growth_figures

SMALL = config_of(vision=(32, 2), image=growth_figures.SIDE, patch=growth_figures.PATCH)


def test_every_kind_is_measured_by_itself() -> None:
    found = set()
    for kind, large, expansion in growth_figures.approximate_growths(SMALL):
        changes = growth_changes(SMALL, large, expansion)
        assert [change.approximation for change in changes if change.approximation] == [kind]
        found.add(kind)
    assert found == set(Approximation) == set(json.loads(APPROXIMATIONS.read_text()))


@pytest.mark.parametrize("kind", Approximation)
def test_what_plan_says_is_what_is_in_the_file(kind: Approximation) -> None:
    large, expansion = next(
        growth[1:] for growth in growth_figures.approximate_growths(SMALL) if growth[0] is kind
    )
    (change,) = [one for one in growth_changes(SMALL, large, expansion) if one.approximation]
    assert change.moves == tuple(json.loads(APPROXIMATIONS.read_text())[kind].values())


def test_a_copy_moves_nothing_and_a_random_model_moves_all() -> None:
    pytest.importorskip("sklearn")
    model = trained(SMALL)
    copy = model_from(
        expand(model.state_dict(), SMALL, SMALL, growth_figures.ResolvedExpansion(), seed=0), SMALL
    )
    assert growth_figures.distance(model, copy) == 0
    with torch.no_grad():
        for parameter in copy.visual.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.std(correction=0))
    assert growth_figures.distance(model, copy) > 1
