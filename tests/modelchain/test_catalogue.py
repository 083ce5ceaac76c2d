from __future__ import annotations

from itertools import pairwise

import pytest

from modelchain import catalogue
from modelchain.families import ModelConfig, Pooling, family_of
from modelchain.growth import unbuildable, ungrowable
from tests.open_clip_configurations import stock_configurations

VISION_FIELDS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "ls_init_value"}
TEXT_FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def _expressible(config: dict[str, dict[str, object]]) -> bool:
    """A CLIP of two plain transformers with open_clip's own tokenizer."""
    return (
        set(config) <= {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
        and set(config["vision_cfg"]) <= VISION_FIELDS
        and set(config["text_cfg"]) <= TEXT_FIELDS
        and isinstance(config["vision_cfg"]["layers"], int)
        and config["text_cfg"]["vocab_size"] == 49408
    )


def test_open_clips_models_are_those_of_the_installed_package_and_complete() -> None:
    expected = {
        f"open_clip/{name}": {
            "embed_dim": config["embed_dim"],
            "quick_gelu": config.get("quick_gelu", False),
            "logit_bias": False,
            "vision": {
                "head_width": 64,
                "mlp_ratio": 4.0,
                "pooling": Pooling.CLASS_TOKEN,
                "norm_after_pooling": False,
                "class_token": True,
                "input_norm": True,
                "layer_scale": config["vision_cfg"].get("ls_init_value"),
                **{key: value for key, value in config["vision_cfg"].items() if key != "ls_init_value"},
            },
            "text": {"mlp_ratio": 4.0, "causal": True, **config["text_cfg"]},
        }
        for name, config in stock_configurations().items()
        if _expressible(config)
    }
    ours = {
        name: model.model_dump()
        for name in catalogue.names()
        if "/" in name and isinstance(model := catalogue.find_any(name), ModelConfig)
    }
    assert ours == expected
    assert all(catalogue.find(name) for name in expected)


def test_each_of_open_clips_configurations_can_be_a_stage_or_is_listed_with_its_reason() -> None:
    listed = [catalogue.find_any(name) for name in catalogue.names() if "/" in name]
    grow = [model for model in listed if family_of(model).grows]
    counts = len(grow), len(listed), len(stock_configurations())
    assert counts == (32, 92, 144), "docs/reference/cli.md says so"
    reasons = {
        name.removeprefix("open_clip/"): reason
        for reason, others in catalogue.unavailable().items()
        for name in others
    }
    names = [name.removeprefix("open_clip/") for name in catalogue.names() if "/" in name]
    assert sorted([*names, *reasons]) == sorted(stock_configurations())
    for name, reason in reasons.items():
        config = stock_configurations()[name]
        key = {"tokenizers": "hf_tokenizer_name", "towers": "hf_model_name"}
        (asked,) = [part for word, part in key.items() if word in reason] or ["multimodal_cfg"]
        assert asked in config or asked in config["text_cfg"], name


def test_a_name_that_can_not_be_a_stage_says_why() -> None:
    with pytest.raises(catalogue.UnknownModelError, match="can't be stages: they write captions too"):
        catalogue.find_any("open_clip/coca_ViT-B-32")
    with pytest.raises(catalogue.UnknownModelError, match="no model of two transformers"):
        catalogue.find("open_clip/RN50")


@pytest.mark.parametrize(
    ("name", "vision", "text", "embedding"),
    [  # the CoM-PT paper's family
        ("ViT-T-16", (192, 12), (256, 12), 512),
        ("ViT-C-16", (256, 12), (320, 12), 512),
        ("ViT-S-16", (384, 12), (384, 12), 512),
        ("ViT-M-16", (512, 12), (448, 12), 512),
        ("ViT-B-16", (768, 12), (512, 12), 512),
        ("ViT-BL-16", (1024, 12), (768, 12), 768),
        ("ViT-L-16", (1024, 24), (768, 12), 512),
    ],
)
def test_family_has_the_papers_sizes(
    name: str, vision: tuple[int, int], text: tuple[int, int], embedding: int
) -> None:
    model = catalogue.find(name)
    assert (model.vision.width, model.vision.layers) == vision
    assert (model.text.width, model.text.layers) == text
    assert model.embed_dim == embedding
    assert model.vision.head_width == model.text.width // model.text.heads == 64
    assert (model.vision.image_size, model.vision.patch_size, model.text.context_length) == (224, 16, 77)


def test_every_model_of_the_catalogue_can_be_built() -> None:
    assert [name for name in catalogue.names() if list(unbuildable(catalogue.find_any(name)))] == []


def test_the_family_grows_from_t_to_bl_and_from_b_to_l() -> None:
    names = ("ViT-T-16", "ViT-C-16", "ViT-S-16", "ViT-M-16", "ViT-B-16")
    for small, large in [
        *pairwise(names),
        ("ViT-B-16", "ViT-BL-16"),
        ("ViT-B-16", "ViT-L-16"),
    ]:
        assert list(ungrowable(catalogue.find(small), catalogue.find(large))) == []


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("vit-b-16", "ViT-B-16"),
        ("ViT-B16", "ViT-B-16"),
        ("ViT_S_16", "ViT-S-16"),
        ("ViT-B-32", "open_clip/ViT-B-32"),
        ("open-clip/ViT-L-14", "open_clip/ViT-L-14"),
        ("ViT-L-15", "ViT-L-16"),
    ],
)
def test_an_unknown_name_suggests_the_right_one(wrong: str, right: str) -> None:
    with pytest.raises(catalogue.UnknownModelError) as caught:
        catalogue.find(wrong)
    assert right in str(caught.value)


def test_a_name_like_none_points_to_the_list() -> None:
    with pytest.raises(catalogue.UnknownModelError, match="`modelchain models` lists all"):
        catalogue.find("resnet")


def test_size_name_depends_on_the_configuration_only() -> None:
    named = catalogue.find("ViT-B-16")
    written = ModelConfig.model_validate(named.model_dump(by_alias=True))
    assert (
        catalogue.size_name(written)
        == catalogue.size_name(catalogue.find("open_clip/ViT-B-16"))
        == "ViT-B-16"
    )
    assert catalogue.size_name(catalogue.find("open_clip/ViT-B-32")) == "vit-768x12-p32"
