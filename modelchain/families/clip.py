"""CLIP models of two transformers (Radford et al., arXiv 2103.00020), as open_clip describes them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, TypeVar

from pydantic import Field

from modelchain.block import Block
from modelchain.digest_form import REQUIRED, Table, deciding
from modelchain.families.family import (
    Dimension,
    Extent,
    Family,
    FamilyConfig,
    ImageTextConfig,
    LockedTower,
    Problem,
    differs,
    near_multiple,
    shrinks,
)
from modelchain.families.towers import (
    VISION_DIGEST,
    Tower,
    VisionSpec,
    block_macs,
    block_parameters,
    changed_image_tower,
    computed_image_tower_macs,
    image_dimensions,
    image_tower_macs,
    image_tower_parameters,
    largest_in_block,
    pooled_tower_macs,
    shrinking_heads,
    shrinking_tower,
    shrinking_units,
    unbuildable_image_tower,
    vision_heads,
    without_units,
)

TEXT_DIGEST: Final[Table] = {
    "contextLength": 77,
    "vocabSize": 49408,
    "width": REQUIRED,
    "layers": REQUIRED,
    "heads": REQUIRED,
    "mlpRatio": 4.0,
    "causal": True,
}


class TextSpec(Block):
    context_length: Annotated[
        int, Field(ge=4, le=8192, description="Tokens of a caption, begin and end included.")
    ] = 77
    vocab_size: Annotated[int, Field(ge=49408, le=49408, description="Entries of open_clip's tokenizer.")] = (
        49408
    )
    width: Annotated[int, Field(ge=8, le=65536, description="Width of the residual stream.")]
    layers: Annotated[int, Field(ge=1, le=512, description="Transformer blocks.")]
    heads: Annotated[int, Field(ge=1, le=1024, description="Attention heads; divides width.")]
    mlp_ratio: Annotated[
        float, Field(gt=0, le=64, allow_inf_nan=False, description="Hidden width of the MLP over width.")
    ] = 4.0
    causal: Annotated[
        bool,
        Field(
            description="Whether a token attends to none behind it; false is open_clip's no_causal_mask. Then the "
            "whole context is computed of every caption, padding included."
        ),
    ] = True

    @property
    def hidden_width(self) -> int:
        """Units of the MLP between its two layers, rounded as open_clip does."""
        return int(self.width * self.mlp_ratio)


class DualEncoderConfig(ImageTextConfig):
    """Of models with a text transformer beside an image tower of whatever kind."""

    if TYPE_CHECKING:
        vision: Any  # each family declares both
        text: TextSpec

    quick_gelu: Annotated[bool, Field(description="Use QuickGELU, as OpenAI's weights do.")] = False
    logit_bias: Annotated[
        bool, Field(description="Learn a bias of the logits. Set by training.loss: Sigmoid, which needs it.")
    ] = False

    @property
    def text_length(self) -> int:
        """Of the text tower."""
        return self.text.context_length


class ModelConfig(DualEncoderConfig):
    """A CLIP model of two transformers, as open_clip's model_configs/*.json describe it."""

    vision: Annotated[VisionSpec, Field(description="The image tower.")]
    text: Annotated[TextSpec, Field(description="The text tower.")]

    @property
    def image_side(self) -> int:
        """Of the image tower."""
        return self.vision.image_size

    @property
    def patch_tower(self) -> VisionSpec:
        """The image tower."""
        return self.vision


D = TypeVar("D", bound=DualEncoderConfig)


class DualEncoderFamily(Family[D]):
    """Of models with a text transformer, an image tower of whatever kind, and the embedding that they share."""

    digest = {"embedDim": REQUIRED, "quickGelu": False, "logitBias": False}
    image_digest: ClassVar[Table]  # likewise, of the image tower
    weights = "open_clip_model.safetensors"
    pickled_weights = "open_clip_pytorch_model.bin"
    weights_config = "open_clip_config.json"
    weights_readers = "open_clip loads as local-dir:"

    @abstractmethod
    def image_parameters(self, config: D) -> int:
        """Of the image tower, its projection into the embedding included."""

    @abstractmethod
    def image_macs(self, config: D) -> int:
        """MACs of the image tower's forward pass over one image."""

    def parameters(self, config: D) -> int:
        """Embeddings and the logit scale included."""
        return self.image_parameters(config) + text_parameters(config) + 1 + config.logit_bias

    def of_tower(self, config: D, tower: LockedTower, texts: int) -> tuple[int, int]:
        """Its projection into the embedding included."""
        if tower is LockedTower.IMAGE:
            return self.image_parameters(config), self.image_macs(config)
        return text_parameters(config), texts * text_macs(config)

    def forward_macs(self, config: D, texts: int) -> int:
        """The image tower runs once, the text tower once a caption."""
        return self.image_macs(config) + texts * text_macs(config)

    def embedding_parameters(self, config: D) -> int:
        """Of the text tower."""
        return config.text.vocab_size * config.text.width

    def unteachable(self, student: D, teacher: FamilyConfig) -> Iterator[Problem]:
        """Both read the same tokens; each looks at its own size of images."""
        assert isinstance(teacher, ImageTextConfig)
        before, after = teacher.text_length, student.text_length
        yield from differs(("text", "contextLength"), "contextLength", before, after)

    def digest_form(self, config: D) -> dict[str, object]:
        """Of both towers."""
        return deciding(config, self.digest) | {
            "vision": deciding(config.vision, self.image_digest),
            "text": deciding(config.text, TEXT_DIGEST),
        }


class ClipFamily(DualEncoderFamily[ModelConfig]):
    """An image tower, a text tower, and the embedding that they share."""

    config = ModelConfig
    field = "modelConfig"
    description = "A CLIP model of two transformers, written out. Either this or model or openClipConfig."
    image_digest = VISION_DIGEST

    def image_parameters(self, config: ModelConfig) -> int:
        """A norm before its blocks included."""
        width = config.vision.width
        norm = 2 * width * config.vision.input_norm
        return image_tower_parameters(config.vision) + norm + width * config.embed_dim

    def image_macs(self, config: ModelConfig) -> int:
        """All blocks compute all tokens."""
        return image_tower_macs(config.vision) + config.vision.width * config.embed_dim

    def computed_macs(
        self, config: ModelConfig, rows: int, texts: Mapping[int, int], patch_dropout: float
    ) -> tuple[int, int]:
        """Texts are as long as they are handed to the tower; last blocks compute what is pooled."""
        vision = config.vision
        image = computed_image_tower_macs(vision, patch_dropout) + vision.width * config.embed_dim
        return rows * image, computed_text_macs(config, texts)

    def towers(self, config: ModelConfig) -> Sequence[Tower]:
        """One for images, one for texts."""
        return config.vision, config.text

    def largest_parameter(self, config: ModelConfig) -> int:
        """The table of tokens, or a matrix of a wide tower."""
        return max(self.embedding_parameters(config), *map(largest_in_block, self.towers(config)))

    def unbuildable(self, config: ModelConfig) -> Iterator[Problem]:
        """Sizes that do not divide."""
        vision = config.vision
        yield from unbuildable_image_tower(vision)
        if not vision.class_token:
            message = "image towers of CLIP models have a class token, as open_clip's do"
            yield ("vision", "classToken"), message, "leave it out"
        yield from without_units("vision", vision)
        yield from unbuildable_text_tower(config.text)

    def ungrowable(self, small: ModelConfig, large: ModelConfig) -> Iterator[Problem]:
        """Images and patches may change either way."""
        yield from shrinks(("embedDim",), "embedDim", small.embed_dim, large.embed_dim)
        yield from shrinking_tower("vision", small.vision, large.vision)
        yield from shrinking_tower("text", small.text, large.text)
        yield from shrinking_units("vision", small.vision, large.vision)
        yield from shrinking_units("text", small.text, large.text)
        yield from differs(
            ("logitBias",),
            "the bias of the logits (training.loss: Sigmoid)",
            small.logit_bias,
            large.logit_bias,
            f"write training.loss: {'Sigmoid' if small.logit_bias else 'Contrastive'}",
        )
        yield from differs(("quickGelu",), "quickGelu", small.quick_gelu, large.quick_gelu)
        yield from differs(("text", "causal"), "text.causal", small.text.causal, large.text.causal)
        yield from shrinking_heads(
            ("vision", "headWidth"), "vision", vision_heads(small.vision), vision_heads(large.vision)
        )
        yield from changed_image_tower(small.vision, large.vision)
        yield from shrinking_heads(("text", "heads"), "text", _text_heads(small), _text_heads(large))
        yield from self.unteachable(large, small)

    def dimensions(self, config: ModelConfig) -> Sequence[Dimension]:
        """Of both towers, and the embedding."""
        vision, text = config.vision, config.text
        return (
            *image_dimensions(vision, normed=vision.input_norm),
            Dimension("text.width", text.width, Extent.WIDTH),
            Dimension("text.layers", text.layers, Extent.DEPTH),
            Dimension("text head width", text.width // text.heads, Extent.WIDTH),
            Dimension("text MLP units", text.hidden_width, Extent.WIDTH),
            Dimension("embedDim", config.embed_dim, Extent.WIDTH),
        )

    def size_name(self, config: ModelConfig) -> str:
        """Where the catalogue's family has no name for it."""
        vision = config.vision
        return f"vit-{vision.width}x{vision.layers}-p{vision.patch_size}"


CLIP = ClipFamily()


def unbuildable_text_tower(text: TextSpec) -> Iterator[Problem]:
    """Heads that do not divide, an MLP of no unit."""
    if text.width % text.heads:
        yield (
            ("text", "heads"),
            f"{text.heads} heads do not divide a width of {text.width}",
            near_multiple("width", text.width, text.heads),
        )
    yield from without_units("text", text)


def text_parameters(model: DualEncoderConfig) -> int:
    """Of the text tower, its projection into the embedding included."""
    text = model.text
    return (
        (text.vocab_size + text.context_length) * text.width
        + text.layers * block_parameters(text)
        + 2 * text.width  # ln_final
        + text.width * model.embed_dim
    )


def text_macs(model: DualEncoderConfig) -> int:
    """MACs of the text tower's forward pass over one caption; the whole context is computed, however short it
    is.
    """
    text = model.text
    return text.layers * block_macs(text.context_length, text) + text.width * model.embed_dim


def computed_text_macs(model: DualEncoderConfig, texts: Mapping[int, int]) -> int:
    """MACs that the trainer computes of captions: how many of these lengths in tokens, padding included."""
    text = model.text
    projection = text.width * model.embed_dim
    return sum(
        number * (pooled_tower_macs(length if text.causal else text.context_length, text) + projection)
        for length, number in texts.items()
    )


def _text_heads(model: ModelConfig) -> tuple[int, int]:
    """The width, and that of a head."""
    return model.text.width, model.text.width // model.text.heads
