"""A model grown where a GPU trains it keeps its embeddings there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from modelchain.resolved import ResolvedExpansion
from modelchain_trainer.data.sample import normalize
from modelchain_trainer.expansion.embedding import embedding_map
from modelchain_trainer.expansion.expand import expand
from modelchain_trainer.model.build import build_model, model_from
from tests.gpu.steps import batch, config

pytestmark = pytest.mark.gpu


def test_growth_keeps_the_embeddings(
    device: torch.device, record_property: Callable[[str, object], None]
) -> None:
    small_config = config(width=128, layers=2, embed_dim=64)
    large_config = config(width=256, layers=4, embed_dim=96)
    small = build_model(small_config, seed=1)
    grown = expand(small.state_dict(), small_config, large_config, ResolvedExpansion(), seed=2)
    large = model_from(grown, large_config).to(device)
    small = small.to(device)
    rows = batch(0)
    images = normalize(rows.images.to(device), torch.float32)
    tokens = rows.tokens[0].to(device)
    turn_FE = embedding_map(64, 96).to(device).float()
    with torch.no_grad():
        for kind, before, after in (
            ("image", small.encode_image(images), large.encode_image(images)),
            ("text", small.encode_text(tokens), large.encode_text(tokens)),
        ):
            # Relative to how much the small one's differ from sample to sample: what all have in common hides errors.
            turned = before @ turn_FE
            error = float((after - turned).norm() / (turned - turned.mean(dim=0)).norm())
            record_property(f"{kind}Error", error)
            assert error < 1e-4
