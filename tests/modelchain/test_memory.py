"""What a GPU keeps of a stage: the rule for sharding, and the largest models of open_clip's list."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain import catalogue
from modelchain.cost import parameters
from modelchain.memory import kept_bytes, shards_moments
from modelchain.resolved import ResolvedStage, StageReference
from tests.trainer.test_step import stage

GIB = 2**30
H100 = 80 * 10**9


def of(name: str, teacher: str | None = None, **training: Any) -> ResolvedStage:
    made = stage(**training).model_copy(update={"model_config_": catalogue.find(name)})
    if teacher is None:
        return made
    reference = StageReference(name="t", digest="1" * 64, folder="t", modelConfig=catalogue.find(teacher))
    return made.model_copy(update={"teacher": reference})


@pytest.mark.parametrize(
    ("name", "sharded"),
    [
        ("ViT-B-16", False),
        ("open_clip/ViT-H-14", False),
        ("open_clip/ViT-g-14", True),
        ("open_clip/ViT-bigG-14", True),
    ],
)
def test_moments_are_sharded_where_they_are_large_unless_the_spec_says(name: str, sharded: bool) -> None:
    count = parameters(catalogue.find(name))
    assert shards_moments(of(name).training, count, H100) is sharded
    assert not shards_moments(of(name, shard_optimizer=False).training, count, H100)
    assert shards_moments(of(name, shard_optimizer=True).training, count, H100)


def test_the_largest_models_fit_an_h100_with_room_for_activations() -> None:
    large = of("open_clip/ViT-bigG-14", "open_clip/ViT-g-14", precision="Bf16")
    kept = {ranks: kept_bytes(large, ranks=ranks, gpu_bytes=H100) / GIB for ranks in (1, 8)}
    # 2.54 G parameters: 16 bytes each alone; on eight 8, an eighth of 8, and one table of tokens more.
    assert kept[1] == pytest.approx(2.54e9 * 16 / GIB + 2.6, rel=0.01)
    assert kept[8] == pytest.approx(2.54e9 * 9 / GIB + 2.6 + 0.47, rel=0.01)
    assert kept[8] < H100 / GIB / 2.5
    assert kept_bytes(of("open_clip/ViT-g-14"), ranks=8, gpu_bytes=H100) / GIB < 13
