"""What towers of transformer blocks cost, and which of them can be built and grow: shared by all families."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Final, Protocol

from pydantic import Field

from modelchain.block import Block
from modelchain.digest_form import REQUIRED, Table
from modelchain.families.family import Dimension, Extent, Problem, differs, near_multiple, shrinks


class Pooling(StrEnum):
    CLASS_TOKEN = "ClassToken"  # noqa: S105 - of a transformer
    AVERAGE = "Average"


class VisionSpec(Block):
    image_size: Annotated[int, Field(ge=4, le=4096, description="Side of the square image, in pixels.")] = 224
    patch_size: Annotated[
        int, Field(ge=1, le=1024, description="Side of a patch, in pixels; divides imageSize.")
    ] = 16
    width: Annotated[int, Field(ge=8, le=65536, description="Width of the residual stream.")]
    layers: Annotated[int, Field(ge=1, le=512, description="Transformer blocks.")]
    head_width: Annotated[
        int, Field(ge=1, le=1024, description="Width of an attention head; divides width.")
    ] = 64
    mlp_ratio: Annotated[
        float, Field(gt=0, le=64, allow_inf_nan=False, description="Hidden width of the MLP over width.")
    ] = 4.0
    pooling: Annotated[
        Pooling,
        Field(
            description="What stands for the image: the class token's output, or the mean of the patches'."
        ),
    ] = Pooling.CLASS_TOKEN
    norm_after_pooling: Annotated[
        bool,
        Field(
            description="Average: take the mean before the last norm (open_clip's final_ln_after_pool), not after it."
        ),
    ] = False
    class_token: Annotated[
        bool,
        Field(
            description="Whether a class token stands before the patches. Without one only in Classification."
        ),
    ] = True
    input_norm: Annotated[
        bool,
        Field(
            description="Clip: a norm before the blocks; false is open_clip's no_ln_pre. A classifier never has one."
        ),
    ] = True
    layer_scale: Annotated[
        float | None,
        Field(
            gt=0,
            le=10,
            allow_inf_nan=False,
            description="Learn a factor for each channel that a block adds (LayerScale), which starts at this value. "
            "Default: none.",
        ),
    ] = None

    @property
    def hidden_width(self) -> int:
        """Units of the MLP between its two layers, rounded as open_clip does."""
        return int(self.width * self.mlp_ratio)


VISION_DIGEST: Final[Table] = {
    "imageSize": 224,
    "patchSize": 16,
    "width": REQUIRED,
    "layers": REQUIRED,
    "headWidth": 64,
    "mlpRatio": 4.0,
    "pooling": "ClassToken",
    "normAfterPooling": False,
    "classToken": True,
    "inputNorm": True,
    "layerScale": None,
}


class Tower(Protocol):
    """The sizes of a tower."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def hidden_width(self) -> int: ...


def block_parameters(tower: Tower) -> int:
    """Of one block."""
    width, hidden = tower.width, tower.hidden_width
    attention = 4 * (width**2 + width)
    mlp = 2 * width * hidden + hidden + width
    return attention + mlp + 2 * 2 * width


def block_macs(tokens: int, tower: Tower) -> int:
    """Of one block's forward pass."""
    width = tower.width
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width  # q, k, v, out; scores and their use
    return attention + 2 * tokens * width * tower.hidden_width


def pooled_block_macs(tokens: int, tower: Tower) -> int:
    """Of a last block that computes one token: of all others it needs keys and values alone."""
    width = tower.width
    attention = 2 * (tokens + 1) * width**2 + 2 * tokens * width
    return attention + 2 * width * tower.hidden_width


def pooled_tower_macs(tokens: int, tower: Tower) -> int:
    """Of all blocks, where one token is read of the last."""
    return (tower.layers - 1) * block_macs(tokens, tower) + pooled_block_macs(tokens, tower)


def largest_in_block(tower: Tower) -> int:
    """Numbers of the largest matrix of a block."""
    return max(3 * tower.width, tower.hidden_width) * tower.width


def image_tokens(vision: VisionSpec) -> int:
    """Tokens of an image tower: the patches and the class token."""
    return image_patches(vision) + vision.class_token


def image_patches(vision: VisionSpec) -> int:
    """Patches of an image."""
    return (vision.image_size // vision.patch_size) ** 2


def kept_patches(vision: VisionSpec, dropout: float) -> int:
    """Patches of a picture that are computed where a share of them is left out: at least one."""
    return max(1, int(image_patches(vision) * (1 - dropout)))


def image_tower_parameters(vision: VisionSpec) -> int:
    """Class token, positions, patches (without a bias), blocks, and the norm behind them."""
    scales = 0 if vision.layer_scale is None else 2 * vision.width
    return (
        vision.class_token * vision.width
        + image_tokens(vision) * vision.width
        + 3 * vision.patch_size**2 * vision.width
        + vision.layers * (block_parameters(vision) + scales)
        + 2 * vision.width
    )


def image_tower_macs(vision: VisionSpec, dropout: float = 0.0) -> int:
    """Of the forward pass over one image, up to the features; a share of its patches is embedded and then left out."""
    tokens = kept_patches(vision, dropout) + vision.class_token
    return _embedding_macs(vision) + vision.layers * block_macs(tokens, vision)


def computed_image_tower_macs(vision: VisionSpec, dropout: float = 0.0) -> int:
    """Of these what is computed: where the class token is pooled, the last block computes nothing else."""
    tokens = kept_patches(vision, dropout) + vision.class_token
    pooled = vision.pooling is Pooling.CLASS_TOKEN
    blocks = pooled_tower_macs(tokens, vision) if pooled else vision.layers * block_macs(tokens, vision)
    return _embedding_macs(vision) + blocks


def _embedding_macs(vision: VisionSpec) -> int:
    """Of all patches of an image."""
    return image_patches(vision) * 3 * vision.patch_size**2 * vision.width


def unbuildable_image_tower(vision: VisionSpec) -> Iterator[Problem]:
    """Sizes that do not divide."""
    if vision.width % vision.head_width:
        yield (
            ("vision", "headWidth"),
            f"heads of width {vision.head_width} do not divide a width of {vision.width}",
            near_multiple("width", vision.width, vision.head_width),
        )
    if vision.image_size % vision.patch_size:
        yield (
            ("vision", "patchSize"),
            f"patches of {vision.patch_size} pixels do not divide an image of {vision.image_size}",
            near_multiple("imageSize", vision.image_size, vision.patch_size),
        )
    if vision.pooling is Pooling.CLASS_TOKEN:
        if not vision.class_token:
            yield ("vision", "classToken"), "there is no class token to pool", "write pooling: Average"
        if vision.norm_after_pooling:
            message = "normAfterPooling is of pooling Average alone"
            yield ("vision", "normAfterPooling"), message, "leave it out, or write pooling: Average"


def image_dimensions(vision: VisionSpec, *, normed: bool) -> tuple[Dimension, ...]:
    """The sizes of an image tower; `normed`: its stream begins as the output of a norm."""
    width = Extent.NORMED_WIDTH if normed else Extent.WIDTH
    return (
        Dimension("vision.imageSize", vision.image_size, Extent.IMAGE),
        Dimension("vision.patchSize", vision.patch_size, Extent.PATCH),
        Dimension("vision.width", vision.width, width),
        Dimension("vision.layers", vision.layers, Extent.DEPTH),
        Dimension("vision.headWidth", vision.head_width, Extent.WIDTH),
        Dimension("vision MLP units", vision.hidden_width, Extent.WIDTH),
    )


def changed_image_tower(small: VisionSpec, large: VisionSpec) -> Iterator[Problem]:
    """What growth can't turn into something else."""
    for field, before, after in (
        ("pooling", small.pooling, large.pooling),
        ("normAfterPooling", small.norm_after_pooling, large.norm_after_pooling),
        ("classToken", small.class_token, large.class_token),
        ("inputNorm", small.input_norm, large.input_norm),
    ):
        yield from differs(("vision", field), f"vision.{field}", before, after)
    scale, large_scale = small.layer_scale, large.layer_scale
    if (scale is None) != (large_scale is None):
        yield (
            ("vision", "layerScale"),
            f"vision.layerScale is {_or_left_out(large_scale)}, not {_or_left_out(scale)}",
            "leave it out" if scale is None else f"write {scale:g}",
        )


def _or_left_out(value: float | None) -> str:
    return "left out" if value is None else f"{value:g}"


def without_units(name: str, tower: Tower) -> Iterator[Problem]:
    """An MLP of no unit."""
    if tower.hidden_width < 1:
        yield (name, "mlpRatio"), f"{tower.mlp_ratio:g} leaves the MLP without units", "write about 4"


def shrinking_tower(name: str, small: Tower, large: Tower) -> Iterator[Problem]:
    """A width or depth that shrinks."""
    yield from shrinks((name, "width"), f"the {name} width", small.width, large.width)
    yield from shrinks((name, "layers"), f"the number of {name} layers", small.layers, large.layers)


def vision_heads(vision: VisionSpec) -> tuple[int, int]:
    """The width of an image tower, and that of a head."""
    return vision.width, vision.head_width


def shrinking_heads(
    part: tuple[str, ...], name: str, small: tuple[int, int], large: tuple[int, int]
) -> Iterator[Problem]:
    """Heads that become narrower, or fewer though the width does not shrink. Of each model (width, width of a head)."""
    (width, head), (large_width, large_head) = small, large
    yield from shrinks(part, f"the {name} head width", head, large_head)
    heads, large_heads = width // head, large_width // large_head
    if large_head >= head and large_width >= width and large_heads < heads:
        yield (
            part,
            f"the {name} heads become fewer, from {heads} to {large_heads}",
            f"make the heads at most {large_width // heads} wide, or the model wider",
        )


def shrinking_units(name: str, small: Tower, large: Tower) -> Iterator[Problem]:
    """An MLP that shrinks, though the width does not."""
    if large.hidden_width < small.hidden_width and large.width >= small.width:
        yield (
            (name, "mlpRatio"),
            f"the {name} MLP shrinks from {small.hidden_width} to {large.hidden_width} units (width x mlpRatio)",
            f"make mlpRatio at least {small.hidden_width / large.width:g}",
        )
