"""The layout of a CLIP model: open_clip's parameter names, and the distributions that it starts from.

Those are of open_clip's `VisionTransformer` (torch's defaults for attention and linear layers) and
`TextTransformer.init_parameters` (after Radford et al., arXiv 2103.00020).
"""

from __future__ import annotations

import math
from functools import lru_cache

from modelchain.families import ModelConfig, TextSpec, VisionSpec
from modelchain.families.towers import image_tokens
from modelchain_trainer.model.layers import CHANNELS
from modelchain_trainer.model.layout import (
    ZERO,
    Axis,
    BlockStarts,
    Kind,
    Layout,
    Parameter,
    Side,
    Space,
    Start,
    TowerSpaces,
    norm,
    normal,
    transformer,
    uniform,
)
from modelchain_trainer.model.open_clip_config import SIGMOID_LOGIT_BIAS

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
SIGMOID_LOGIT_SCALE = math.log(10)  # SigLIP, arXiv 2303.15343, section 3.2

VISION, TEXT = TowerSpaces.named("vision"), TowerSpaces.named("text")
COLOURS, PATCH = Space("colours", Kind.FIXED), Space("vision.patch", Kind.PATCH)
_EMBEDDING = Space("embedding", Kind.EMBEDDING)
_BEFORE_NORM = Space("vision.input", Kind.BEFORE_NORM, VISION.stream.name, "visual.ln_pre.weight")
_VOCABULARY, _CONTEXT = Space("vocabulary", Kind.FIXED), Space("context", Kind.FIXED)
VISION_TOWER, TEXT_TOWER = "visual.transformer.resblocks.", "transformer.resblocks."


@lru_cache(maxsize=16)
def clip_layout(config: ModelConfig) -> Layout:
    """The layout of `modelchain_trainer.model.clip.Clip`."""
    vision, text = config.vision, config.text
    return Layout(
        parameters=_vision(vision) | _text(text) | _logits(config),
        sizes={
            **VISION.sizes(vision.width, vision.hidden_width),
            **TEXT.sizes(text.width, text.hidden_width),
            **image_sizes(vision),
            _VOCABULARY.name: text.vocab_size,
            _CONTEXT.name: text.context_length,
            _EMBEDDING.name: config.embed_dim,
        },
        depths={VISION_TOWER: vision.layers, TEXT_TOWER: text.layers},
        head_widths={VISION.heads.name: vision.head_width, TEXT.heads.name: text.width // text.heads},
    )


def image_sizes(vision: VisionSpec) -> dict[str, int]:
    """The sizes of the spaces in front of an image tower."""
    return {COLOURS.name: CHANNELS, PATCH.name: vision.patch_size, grid(vision).name: image_tokens(vision)}


def grid(vision: VisionSpec) -> Space:
    """Of its positions."""
    return Space("vision.grid", Kind.GRID, prefix=int(vision.class_token))


def vision_starts(vision: VisionSpec) -> BlockStarts:
    """torch's defaults: Xavier for q, k and v as one matrix, and by the fan-in for linear layers."""
    fan, hidden_fan = uniform(vision.width**-0.5), uniform(vision.hidden_width**-0.5)
    return BlockStarts(
        in_proj=uniform(math.sqrt(6 / (3 * vision.width + vision.width))),
        out_proj=fan,
        c_fc=fan,
        c_fc_bias=fan,
        c_proj=hidden_fan,
        c_proj_bias=hidden_fan,
    )


def _vision(vision: VisionSpec) -> dict[str, Parameter]:
    stream, scale = VISION.stream, normal(vision.width**-0.5)
    before, patch = Axis(_BEFORE_NORM if vision.input_norm else stream), Axis(PATCH)
    input_norm = {
        "visual.ln_pre.weight": Parameter((Axis(_BEFORE_NORM, Side.GAIN),), _constant(1.0)),
        "visual.ln_pre.bias": Parameter((Axis(stream),), ZERO),
    }
    return {
        "visual.class_embedding": Parameter((before,), scale),
        "visual.positional_embedding": Parameter((Axis(grid(vision)), before), scale),
        "visual.proj": Parameter((Axis(stream, Side.IN), Axis(_EMBEDDING)), scale),
        "visual.conv1.weight": Parameter(
            (before, Axis(COLOURS, Side.IN), patch, patch), uniform((CHANNELS * vision.patch_size**2) ** -0.5)
        ),
        **(input_norm if vision.input_norm else {}),
        **transformer(VISION_TOWER, VISION, vision.layers, vision_starts(vision), vision.layer_scale),
        **norm("visual.ln_post", stream),
    }


def _text(text: TextSpec) -> dict[str, Parameter]:
    stream, scale = TEXT.stream, text.width**-0.5
    deep = normal(scale * (2 * text.layers) ** -0.5)
    starts = BlockStarts(
        in_proj=normal(scale),
        out_proj=deep,
        c_fc=normal((2 * text.width) ** -0.5),
        c_fc_bias=uniform(scale),
        c_proj=deep,
        c_proj_bias=uniform(text.hidden_width**-0.5),
    )
    return {
        "positional_embedding": Parameter((Axis(_CONTEXT), Axis(stream)), normal(0.01)),
        "text_projection": Parameter((Axis(stream, Side.IN), Axis(_EMBEDDING)), normal(scale)),
        "token_embedding.weight": Parameter((Axis(_VOCABULARY), Axis(stream)), normal(0.02)),
        **transformer(TEXT_TOWER, TEXT, text.layers, starts),
        **norm("ln_final", stream),
    }


def _logits(config: ModelConfig) -> dict[str, Parameter]:
    if not config.logit_bias:
        return {"logit_scale": Parameter((), _constant(INITIAL_LOGIT_SCALE))}
    return {
        "logit_scale": Parameter((), _constant(SIGMOID_LOGIT_SCALE)),
        "logit_bias": Parameter((), _constant(SIGMOID_LOGIT_BIAS)),
    }


def _constant(value: float) -> Start:
    return Start("constant", value)
