"""What a GPU keeps of a stage: the rule for sharding, and the largest models of open_clip's list."""

from __future__ import annotations

from typing import Any

import pytest

from modelchain import catalogue
from modelchain.cost import parameters
from modelchain.families import LanguageModelConfig
from modelchain.memory import gathered_bytes, kept_bytes, sharding_of
from modelchain.resolved import ResolvedStage, StageReference
from modelchain.spec import Sharding
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
    ("name", "gpu_bytes", "expected"),
    [
        ("ViT-B-16", H100, Sharding.NONE),
        ("open_clip/ViT-H-14", H100, Sharding.NONE),
        ("open_clip/ViT-g-14", H100, Sharding.OPTIMIZER),
        ("open_clip/ViT-bigG-14", H100, Sharding.OPTIMIZER),
        ("open_clip/ViT-bigG-14", H100 // 2, Sharding.FULL),
    ],
)
def test_as_little_is_sharded_as_the_memory_allows_unless_the_spec_says(
    name: str, gpu_bytes: int, expected: Sharding
) -> None:
    assert sharding_of(of(name), ranks=8, gpu_bytes=gpu_bytes) is expected
    assert sharding_of(of(name), ranks=1, gpu_bytes=gpu_bytes) is Sharding.NONE
    for wanted in Sharding:
        assert sharding_of(of(name, sharding=wanted), ranks=8, gpu_bytes=gpu_bytes) is wanted


def test_the_largest_models_fit_an_h100_with_room_for_activations() -> None:
    large = of("open_clip/ViT-bigG-14", "open_clip/ViT-g-14", precision="Bf16")
    kept = {ranks: kept_bytes(large, ranks=ranks, gpu_bytes=H100) / GIB for ranks in (1, 8)}
    # 2.54 G parameters: 16 bytes each alone; on eight 8, an eighth of 8, and one table of tokens more.
    assert kept[1] == pytest.approx(2.54e9 * 16 / GIB + 2.6, rel=0.01)
    assert kept[8] == pytest.approx(2.54e9 * 9 / GIB + 2.6 + 0.47, rel=0.01)
    assert kept[8] < H100 / GIB / 2.5
    assert kept_bytes(of("open_clip/ViT-g-14"), ranks=8, gpu_bytes=H100) / GIB < 13


def test_fully_sharded_the_largest_models_leave_a_gpu_to_activations() -> None:
    large = of("open_clip/ViT-bigG-14", "open_clip/ViT-g-14", precision="Bf16", sharding=Sharding.FULL)
    kept = kept_bytes(large, ranks=8, gpu_bytes=H100) / GIB
    assert kept == pytest.approx((2.54e9 * 16 / GIB + 2.6) / 8, rel=0.01)
    # Of bigG two blocks of its image tower and what lies outside of blocks, each with its gradient; of g without.
    assert kept + gathered_bytes(large, ranks=8, gpu_bytes=H100) / GIB < 6.6
    assert gathered_bytes(of("open_clip/ViT-bigG-14"), ranks=8, gpu_bytes=H100) == 0


def test_of_a_language_model_two_blocks_are_gathered_and_what_lies_outside_of_them() -> None:
    sizes = LanguageModelConfig(vocabulary_size=50304, width=1600, layers=48, heads=25)
    made = stage(sharding=Sharding.FULL).model_copy(update={"task": "LanguageModel", "model_config_": sizes})
    block = 12 * 1600**2 + 13 * 1600
    outside = (50304 + 1024 + 2) * 1600
    assert gathered_bytes(made, ranks=8, gpu_bytes=H100) == 2 * 4 * (outside + 2 * block)
    assert 48 * block + outside == parameters(sizes)
