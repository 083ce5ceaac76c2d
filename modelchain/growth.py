"""What a model must be like to be built, and to grow out of its predecessor."""

from __future__ import annotations

from collections.abc import Iterator

from modelchain.spec import ModelConfig

Part = tuple[str, ...]  # where in the configuration, e.g. ("vision", "width")


def unbuildable(model: ModelConfig) -> Iterator[tuple[Part, str, str]]:
    """What keeps a model from being built: where, what is wrong, what to do."""
    vision, text = model.vision, model.text
    if vision.width % vision.head_width:
        yield (
            ("vision", "headWidth"),
            f"heads of width {vision.head_width} do not divide a width of {vision.width}",
            _near_multiple("width", vision.width, vision.head_width),
        )
    if vision.image_size % vision.patch_size:
        yield (
            ("vision", "patchSize"),
            f"patches of {vision.patch_size} pixels do not divide an image of {vision.image_size}",
            _near_multiple("imageSize", vision.image_size, vision.patch_size),
        )
    if text.width % text.heads:
        yield (
            ("text", "heads"),
            f"{text.heads} heads do not divide a width of {text.width}",
            _near_multiple("width", text.width, text.heads),
        )
    for name, tower in (("vision", vision), ("text", text)):
        if tower.hidden_width < 1:
            yield (name, "mlpRatio"), f"{tower.mlp_ratio:g} leaves the MLP without units", "write about 4"


def ungrowable(small: ModelConfig, large: ModelConfig) -> Iterator[tuple[Part, str, str]]:
    """What keeps `large` from growing out of `small`.

    Both can be built. Images and patches may change either way.
    """
    growing = (
        (("embedDim",), "embedDim", small.embed_dim, large.embed_dim),
        (("vision", "width"), "the vision width", small.vision.width, large.vision.width),
        (("vision", "layers"), "the number of vision layers", small.vision.layers, large.vision.layers),
        (("text", "width"), "the text width", small.text.width, large.text.width),
        (("text", "layers"), "the number of text layers", small.text.layers, large.text.layers),
    )
    for part, name, before, after in growing:
        if after < before:
            yield (
                part,
                f"{name} shrinks from {before} to {after}",
                f"make it at least {before}, or put the smaller model first",
            )
    for side, before, after in (("vision", small.vision, large.vision), ("text", small.text, large.text)):
        if after.hidden_width < before.hidden_width and after.width >= before.width:
            yield (
                (side, "mlpRatio"),
                f"the {side} MLP shrinks from {before.hidden_width} to {after.hidden_width} units (width x mlpRatio)",
                f"make mlpRatio at least {before.hidden_width / after.width:g}",
            )
    fixed = (
        (("quickGelu",), "quickGelu", small.quick_gelu, large.quick_gelu),
        (("vision", "headWidth"), "the vision head width", small.vision.head_width, large.vision.head_width),
        (("text", "heads"), "the text head width (width / heads)", _text_head(small), _text_head(large)),
        (("text", "contextLength"), "contextLength", small.text.context_length, large.text.context_length),
    )
    for part, name, before, after in fixed:
        if before != after:
            yield (
                part,
                f"{name} changes from {_shown(before)} to {_shown(after)}",
                _same(part, before, large),
            )


def _same(part: Part, before: object, large: ModelConfig) -> str:
    if part == ("text", "heads"):
        width = large.text.width
        if isinstance(before, int) and width % before == 0:
            return f"write {width // before} heads for a width of {width}"
        return f"choose a text width that is a multiple of {before}, and heads = width / {before}"
    return f"write {_shown(before)}, as in the predecessor"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _text_head(model: ModelConfig) -> int:
    return model.text.width // model.text.heads


def _near_multiple(name: str, value: int, divisor: int) -> str:
    below = value // divisor * divisor
    choices = [number for number in (below, below + divisor) if number > 0]
    return f"make {name} a multiple of {divisor}, e.g. {' or '.join(map(str, choices))}"
