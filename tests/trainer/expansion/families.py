"""Models of every family at random sizes, with weights as training leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from modelchain.families import (
    AnyConfig,
    ClassifierConfig,
    LanguageModelConfig,
    ModelConfig,
    Pooling,
    VisionSpec,
)
from modelchain_trainer.expansion import embedding_map
from modelchain_trainer.model.build import build_model
from modelchain_trainer.model.classifier import Classifier
from modelchain_trainer.model.clip import Clip
from modelchain_trainer.model.families import AnyModel
from modelchain_trainer.model.language_model import LanguageModel
from tests.trainer.expansion.growth import batch_of, config_of
from tests.trainer.expansion.growth import trained as trained_clip

HEAD = 8


# Of the image tower: what is pooled and normed, and what is scaled.
CLIP_TOWERS: list[dict[str, Any]] = [
    {},
    {"layer_scale": 0.3},
    {"pooling": Pooling.AVERAGE},
    {"pooling": Pooling.AVERAGE, "norm_after_pooling": True, "input_norm": False},
    {"pooling": Pooling.AVERAGE, "input_norm": False, "layer_scale": 0.3},
]
CLASSIFIER_TOWERS: list[dict[str, Any]] = [
    {},
    {"layer_scale": 0.3},
    {"pooling": Pooling.AVERAGE, "class_token": False},
    {"pooling": Pooling.AVERAGE, "norm_after_pooling": True, "class_token": False, "layer_scale": 0.3},
    {"pooling": Pooling.AVERAGE, "norm_after_pooling": True},
]


def classifier(
    *,
    width: int = 16,
    layers: int = 2,
    classes: int = 5,
    ratio: float = 4.0,
    image: int = 24,
    patch: int = 8,
    tower: Mapping[str, Any] | None = None,
) -> ClassifierConfig:
    """A small classifier, heads of 8 channels; `tower` are more settings of the image tower."""
    vision = VisionSpec(
        image_size=image,
        patch_size=patch,
        width=width,
        layers=layers,
        head_width=HEAD,
        mlp_ratio=ratio,
        **(tower or {}),
    )
    return ClassifierConfig(classes=classes, vision=vision)


def language_model(
    *, width: int = 16, layers: int = 2, ratio: float = 4.0, vocabulary: int = 23, context: int = 12
) -> LanguageModelConfig:
    """A small language model, heads of 8 channels."""
    return LanguageModelConfig(
        context_length=context,
        vocabulary_size=vocabulary,
        width=width,
        layers=layers,
        heads=width // HEAD,
        mlp_ratio=ratio,
    )


def trained(config: AnyConfig, *, dtype: torch.dtype = torch.float64) -> Any:
    """A model none of whose parameters is at its initial value."""
    if isinstance(config, ModelConfig):
        return trained_clip(config, dtype=dtype)
    model = build_model(config, seed=0).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if ".ln_" in name or name.startswith("ln_"):
                parameter.add_(0.3 * noise)
            elif parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.mul_((0.5 * noise).exp() * 2)
    return model.to(dtype)


@dataclass(frozen=True)
class FamilyCase:
    """How a family is grown in tests."""

    sizes: st.SearchStrategy[dict[str, Any]]  # of the small model, and what is added to it
    configs: Callable[[dict[str, Any]], tuple[AnyConfig, AnyConfig]]
    error: Callable[[Any, Any], float]  # of the large model's function, relative to the small one's spread
    loss: Callable[[Any], Tensor]  # of a model, for a few steps of training


def _clip_error(small: Clip, large: Clip) -> float:
    batch = batch_of(small.config)
    map_FE = embedding_map(small.config.embed_dim, large.config.embed_dim)
    errors = []
    for before, after in (
        (small.encode_image(batch.images, False) @ map_FE, large.encode_image(batch.images, False)),
        (small.encode_text(batch.tokens, False) @ map_FE, large.encode_text(batch.tokens, False)),
    ):
        errors.append(float((after - before).norm() / (before - before.mean(0)).norm()))
    return max(errors)


def _clip_loss(model: Clip) -> Tensor:
    batch = batch_of(model.config)
    image, text, scale = model(batch.images.to(model.logit_scale.dtype), batch.tokens)
    return nn.functional.cross_entropy(scale * image @ text.T, torch.arange(len(image)))


def _images(config: ClassifierConfig, dtype: torch.dtype) -> Tensor:
    side = config.vision.image_size
    return torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(
        dtype
    )


def _classifier_error(small: Classifier, large: Classifier) -> float:
    images = _images(small.config, torch.float64)
    before, after = small(images)[1], large(images)[1]
    return float((after - before).norm() / (before - before.mean(0)).norm())


def _classifier_loss(model: Classifier) -> Tensor:
    logits = model(_images(model.config, model.head.weight.dtype))[1]
    return nn.functional.cross_entropy(logits, torch.arange(6) % model.config.classes)


def _packed(config: LanguageModelConfig) -> tuple[Tensor, Tensor]:
    """Sequences of documents of five tokens, and the tokens' positions in them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocabulary_size, (4, config.context_length), generator=generator)
    return tokens, (torch.arange(config.context_length) % 5).expand(4, -1)


def _language_model_error(small: LanguageModel, large: LanguageModel) -> float:
    packed = _packed(small.config)
    before, after = small.predict(*packed).flatten(0, 1), large.predict(*packed).flatten(0, 1)
    return float((after - before).norm() / (before - before.mean(0)).norm())


def _language_model_loss(model: LanguageModel) -> Tensor:
    tokens, positions = _packed(model.config)
    logits = model.predict(tokens[:, :-1], positions[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


_heads, _layers, _ratios = st.integers(1, 3), st.integers(1, 3), st.sampled_from([1.5, 2.0, 4.0])
_more = st.integers(0, 3)


def _clip_configs(d: dict[str, Any]) -> tuple[AnyConfig, AnyConfig]:
    # Where ln_pre writes the stream, image widths are multiples: others are kept nearly only.
    tower = d.get("tower", {})
    vision, text = HEAD * d["vision_heads"], HEAD * d["text_heads"]
    small = config_of(
        (vision, d["vision_layers"]),
        (text, d["text_layers"]),
        embed=12,
        vision_ratio=d["ratio"],
        text_ratio=d["ratio"],
        tower=tower,
        causal=d.get("causal", True),
    )
    wide = (
        vision * (1 + d["times"]) if tower.get("input_norm", True) else vision + HEAD * d["more_text_heads"]
    )
    large = config_of(
        (wide, d["vision_layers"] + d["more_vision_layers"]),
        (text + HEAD * d["more_text_heads"], d["text_layers"] + d["more_text_layers"]),
        embed=12 + d["more_embed"],
        vision_ratio=d["ratio"] + d["more_ratio"],
        text_ratio=d["ratio"] + d["more_ratio"],
        tower=tower,
        causal=d.get("causal", True),
    )
    return small, large


def _language_model_configs(d: dict[str, Any]) -> tuple[AnyConfig, AnyConfig]:
    width = HEAD * d["heads"]
    small = language_model(width=width, layers=d["layers"], ratio=d["ratio"])
    large = language_model(
        width=width + HEAD * d["more_heads"],
        layers=d["layers"] + d["more_layers"],
        ratio=d["ratio"] + d["more_ratio"],
    )
    return small, large


def _classifier_configs(d: dict[str, Any]) -> tuple[AnyConfig, AnyConfig]:
    width = HEAD * d["heads"]
    tower = d.get("tower", {})
    small = classifier(width=width, layers=d["layers"], ratio=d["ratio"], tower=tower)
    large = classifier(
        width=width + HEAD * d["more_heads"],
        layers=d["layers"] + d["more_layers"],
        ratio=d["ratio"] + d["more_ratio"],
        tower=tower,
    )
    return small, large


FAMILIES: dict[str, FamilyCase] = {
    "clip": FamilyCase(
        st.fixed_dictionaries(
            {
                "tower": st.sampled_from(CLIP_TOWERS),
                "causal": st.booleans(),
                "vision_heads": _heads,
                "text_heads": _heads,
                "vision_layers": _layers,
                "text_layers": _layers,
                "ratio": _ratios,
                "times": st.integers(0, 2),
                "more_text_heads": _more,
                "more_vision_layers": _more,
                "more_text_layers": _more,
                "more_embed": st.integers(0, 20),
                "more_ratio": st.sampled_from([0.0, 0.7, 1.0]),
            }
        ),
        _clip_configs,
        _clip_error,
        _clip_loss,
    ),
    "classifier": FamilyCase(
        st.fixed_dictionaries(
            {
                "tower": st.sampled_from(CLASSIFIER_TOWERS),
                "heads": _heads,
                "layers": _layers,
                "ratio": _ratios,
                "more_heads": _more,
                "more_layers": _more,
                "more_ratio": st.sampled_from([0.0, 0.7, 1.0]),
            }
        ),
        _classifier_configs,
        _classifier_error,
        _classifier_loss,
    ),
    "language model": FamilyCase(
        st.fixed_dictionaries(
            {
                "heads": _heads,
                "layers": _layers,
                "ratio": _ratios,
                "more_heads": _more,
                "more_layers": _more,
                "more_ratio": st.sampled_from([0.0, 0.7, 1.0]),
            }
        ),
        _language_model_configs,
        _language_model_error,
        _language_model_loss,
    ),
}


def duplicates(model: AnyModel, loss: Callable[[Any], Tensor]) -> float:
    """Share of the units of all MLPs that say the same as another unit of theirs, whatever they are given."""
    equal, units = 0, 0

    def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal equal, units
        said_by_unit = output.detach().flatten(0, -2).T.round(decimals=9)
        equal += len(said_by_unit) - len(torch.unique(said_by_unit, dim=0))
        units += len(said_by_unit)

    layers = [module for name, module in model.named_modules() if name.endswith("mlp.c_fc")]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    loss(model)
    for hook in hooks:
        hook.remove()
    return equal / units
