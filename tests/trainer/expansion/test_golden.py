"""Growth makes today what it has made before: chains go on from weights that were grown by earlier versions."""

from __future__ import annotations

import json

import pytest
import torch

from tests.trainer.expansion.golden import FILE, cases, sums_of


@pytest.mark.parametrize("name", cases())
def test_growth_makes_the_recorded_weights(name: str) -> None:
    recorded, found = json.loads(FILE.read_text(encoding="utf-8"))[name], sums_of(*cases()[name])
    assert found.keys() == recorded.keys()
    for tensor, sums in recorded.items():
        torch.testing.assert_close(
            torch.tensor(found[tensor]),
            torch.tensor(sums),
            rtol=1e-6,
            atol=1e-6,
            msg=lambda m, t=tensor: f"{t}: {m}",
        )
