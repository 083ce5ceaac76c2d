"""Contrastive pre-training of an image tower and a text tower (CLIP, Radford et al., arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Final

from modelchain.digest_form import REQUIRED, Table, deciding
from modelchain.resolved import ResolvedData, ResolvedTraining
from modelchain.spec import EvaluationType, LossName, ModelConfig, TaskName
from modelchain.tasks.task import Problem, Task, differs, near_multiple, shrinks
from modelchain.tasks.towers import (
    IMAGE_FIELDS,
    OF_IMAGES,
    VISION_DIGEST,
    Tower,
    block_macs,
    block_parameters,
    image_tower_macs,
    image_tower_parameters,
    largest_in_block,
    shrinking_heads,
    shrinking_tower,
    shrinking_units,
    unbuildable_image_tower,
    vision_heads,
    without_units,
)

MODEL_DIGEST: Final[Table] = {"embedDim": REQUIRED, "quickGelu": False, "logitBias": False}
TEXT_DIGEST: Final[Table] = {
    "contextLength": 77,
    "vocabSize": 49408,
    "width": REQUIRED,
    "layers": REQUIRED,
    "heads": REQUIRED,
    "mlpRatio": 4.0,
}


class ClipTask(Task[ModelConfig]):
    """Images and captions into one embedding."""

    name = TaskName.CLIP
    config = ModelConfig
    config_field = "modelConfig"
    own_fields = IMAGE_FIELDS | {("data", "captionKeys"), ("training", "loss")}
    evaluations = (EvaluationType.ZERO_SHOT, EvaluationType.RETRIEVAL, *OF_IMAGES)
    text = "caption"
    metric_names = MappingProxyType(
        {
            "top1": "Zero-shot accuracy",
            "top5": "Zero-shot accuracy among the best five",
            "loss": "Contrastive loss",
        }
    )
    distillation = (
        "the squared distance between the embeddings of a model and of its teacher, times its weight"
    )
    weights = "open_clip_model.safetensors"
    weights_config = "open_clip_config.json"
    weights_readers = "open_clip loads as local-dir:"

    def loss(self, training: ResolvedTraining) -> str:
        """By training.loss."""
        name = "sigmoid" if training.loss is LossName.SIGMOID else "contrastive"
        return f"the {name} loss, averaged over captions"

    def parameters(self, config: ModelConfig) -> int:
        """Embeddings and the logit scale included."""
        vision, text = config.vision, config.text
        image_tower = (
            image_tower_parameters(vision)
            + 2 * vision.width  # ln_pre
            + vision.width * config.embed_dim
        )
        text_tower = (
            (text.vocab_size + text.context_length) * text.width
            + text.layers * block_parameters(text)
            + 2 * text.width  # ln_final
            + text.width * config.embed_dim
        )
        return image_tower + text_tower + 1 + config.logit_bias

    def forward_macs(self, config: ModelConfig, texts: int) -> int:
        """The image tower runs once, the text tower once a caption."""
        return vision_macs(config) + texts * text_macs(config)

    def embedding_parameters(self, config: ModelConfig) -> int:
        """Of the text tower."""
        return config.text.vocab_size * config.text.width

    def towers(self, config: ModelConfig) -> Sequence[Tower]:
        """One for images, one for texts."""
        return config.vision, config.text

    def largest_parameter(self, config: ModelConfig) -> int:
        """The table of tokens, or a matrix of a wide tower."""
        return max(self.embedding_parameters(config), *map(largest_in_block, self.towers(config)))

    def unbuildable(self, config: ModelConfig) -> Iterator[Problem]:
        """Sizes that do not divide."""
        vision, text = config.vision, config.text
        yield from unbuildable_image_tower(vision)
        if text.width % text.heads:
            yield (
                ("text", "heads"),
                f"{text.heads} heads do not divide a width of {text.width}",
                near_multiple("width", text.width, text.heads),
            )
        yield from without_units("vision", vision)
        yield from without_units("text", text)

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
            "write the same training.loss for both",
        )
        yield from differs(("quickGelu",), "quickGelu", small.quick_gelu, large.quick_gelu)
        yield from shrinking_heads(
            ("vision", "headWidth"), "vision", vision_heads(small.vision), vision_heads(large.vision)
        )
        yield from shrinking_heads(("text", "heads"), "text", _text_heads(small), _text_heads(large))
        yield from self.unteachable(large, small)

    def unteachable(self, student: ModelConfig, teacher: ModelConfig) -> Iterator[Problem]:
        """Both read the same tokens; each looks at its own size of images."""
        before, after = teacher.text.context_length, student.text.context_length
        yield from differs(("text", "contextLength"), "contextLength", before, after)

    def digest_form(self, config: ModelConfig) -> dict[str, object]:
        """Of both towers."""
        towers = {
            "vision": deciding(config.vision, VISION_DIGEST),
            "text": deciding(config.text, TEXT_DIGEST),
        }
        return deciding(config, MODEL_DIGEST) | towers

    def size_name(self, config: ModelConfig) -> str:
        """Where the catalogue's family has no name for it."""
        vision = config.vision
        return f"vit-{vision.width}x{vision.layers}-p{vision.patch_size}"

    def text_keys(self, data: ResolvedData) -> tuple[str, ...]:
        """The captions."""
        return data.caption_keys


CLIP = ClipTask()


def vision_macs(model: ModelConfig) -> int:
    """MACs of the image tower's forward pass over one image."""
    return image_tower_macs(model.vision) + model.vision.width * model.embed_dim


def text_macs(model: ModelConfig) -> int:
    """MACs of the text tower's forward pass over one caption; the whole context is computed, however short it
    is.
    """
    text = model.text
    return text.layers * block_macs(text.context_length, text) + text.width * model.embed_dim


def _text_heads(model: ModelConfig) -> tuple[int, int]:
    """The width, and that of a head."""
    return model.text.width, model.text.width // model.text.heads
