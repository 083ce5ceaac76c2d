from __future__ import annotations

import pytest

from modelchain.families import ModelConfig, TextSpec, VisionSpec


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return ModelConfig(
        embed_dim=20,
        vision=VisionSpec(image_size=24, patch_size=8, width=32, layers=2, head_width=16),
        text=TextSpec(context_length=12, vocab_size=49408, width=24, layers=2, heads=3),
    )
