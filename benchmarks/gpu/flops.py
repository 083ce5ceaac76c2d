"""Floating-point operations of a training step, of the tokens that a program computes.

    FLOP of a step = 2 x (3 x MACs of the student's forward pass + MACs of the teacher's)

The MACs are those of `modelchain.cost`: products of patches, attention (with its masked half), projections and
MLPs; the backward pass counts as two forward passes, and what is computed again is not counted. Unlike there,
a text has as many tokens as the program hands to the tower, and a last block that computes only the pooled token
(ours) is counted so. MFU is FLOP a second over the GPU's peak.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelchain.cost import TRAINING_PASSES
from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.families.towers import block_macs, pooled_tower_macs

FLOP_PER_MAC = 2
# Dense bf16 with fp32 sums, from NVIDIA's data sheets of the SXM modules.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


def peak_flops(gpu: str) -> float | None:
    """FLOP a second that the data sheet promises; None for a GPU that is not listed."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in gpu), None)


def forward_macs(config: ModelConfig, texts: Mapping[int, float], *, pooled_last_block: bool) -> float:
    """MACs of a forward pass over an image and its texts: how many of each length in tokens."""
    vision, text = config.vision, config.text
    patches = (vision.image_size // vision.patch_size) ** 2
    image = patches * 3 * vision.patch_size**2 * vision.width + vision.width * config.embed_dim
    image += _blocks(patches + 1, vision, pooled_last_block=pooled_last_block)
    per_text = {n: _blocks(n, text, pooled_last_block=pooled_last_block) for n in texts}
    return image + sum(many * (per_text[n] + text.width * config.embed_dim) for n, many in texts.items())


def step_flops(
    student: ModelConfig, teacher: ModelConfig | None, texts: Mapping[int, float], *, pooled_last_block: bool
) -> float:
    """FLOP of a training step, a sample."""
    macs = TRAINING_PASSES * forward_macs(student, texts, pooled_last_block=pooled_last_block)
    if teacher is not None:
        macs += forward_macs(teacher, texts, pooled_last_block=pooled_last_block)
    return FLOP_PER_MAC * macs


def _blocks(tokens: int, tower: VisionSpec | TextSpec, *, pooled_last_block: bool) -> int:
    return pooled_tower_macs(tokens, tower) if pooled_last_block else tower.layers * block_macs(tokens, tower)
