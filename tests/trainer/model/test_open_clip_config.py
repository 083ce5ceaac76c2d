from __future__ import annotations

import json

import pytest

from modelchain.catalogue import find, find_any, names
from modelchain.errors import UserDataError
from modelchain.families import ModelConfig, OpenClipConfig
from modelchain_trainer.model import open_clip_adapter
from modelchain_trainer.model.open_clip_config import from_open_clip, to_open_clip
from tests.open_clip_configurations import stock_configurations


def document(**changes: object) -> dict[str, object]:
    vision: dict[str, object] = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    text: dict[str, object] = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 512,
        "heads": 8,
        "layers": 12,
    }
    whole: dict[str, object] = {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        {"": whole, "vision": vision, "text": text}[part][key] = value
    return {"model_cfg": whole, "preprocess_cfg": {}}


def test_a_text_tower_that_is_not_causal_reads_back_the_same() -> None:
    found = from_open_clip(document(text__no_causal_mask=True), "c.json")
    assert not found.text.causal
    assert from_open_clip(to_open_clip(found), "c.json") == found


@pytest.mark.parametrize(
    "name", ["ViT-T-16", "ViT-L-16", "open_clip/ViT-bigG-14", "open_clip/ViT-B-32-quickgelu"]
)
def test_what_is_written_reads_back_the_same(name: str) -> None:
    assert from_open_clip(json.loads(json.dumps(to_open_clip(find(name)))), "c.json") == find(name)


def test_every_stock_configuration_is_the_catalogues_or_is_refused() -> None:
    accepted: dict[str, ModelConfig] = {}
    for name, content in stock_configurations().items():
        try:
            accepted[f"open_clip/{name}"] = from_open_clip(content, name)
        except UserDataError as error:
            assert str(error).startswith(f"{name}: ")
            assert "\n" not in str(error)
    listed = {name: find_any(name) for name in names() if name.startswith("open_clip/")}
    assert accepted == {name: model for name, model in listed.items() if isinstance(model, ModelConfig)}


def test_every_stock_configuration_with_another_image_tower_is_the_catalogues_or_is_refused() -> None:
    accepted: dict[str, OpenClipConfig] = {}
    for name, content in stock_configurations().items():
        try:
            accepted[f"open_clip/{name}"] = open_clip_adapter.from_open_clip(content, name)
        except UserDataError as error:
            assert str(error).startswith(f"{name}: ")
            assert "\n" not in str(error)
    listed = {name: find_any(name) for name in names() if name.startswith("open_clip/")}
    assert accepted == {name: model for name, model in listed.items() if isinstance(model, OpenClipConfig)}
    for name, model in accepted.items():
        again = open_clip_adapter.from_open_clip(
            json.loads(json.dumps(open_clip_adapter.to_open_clip(model))), name
        )
        assert again == model


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "vision_cfg.layers (a ResNet)"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ("convnext_base", "vision_cfg.timm_model_name"),
        ("roberta-ViT-B-32", "text_cfg.hf_model_name"),
        ("ViT-B-16-SigLIP", "text_cfg.hf_tokenizer_name"),
        ("ViT-L-14-CLIPA", "text_cfg.pool_type"),
        ("EVA02-B-16", "vision_cfg.timm_model_name"),
    ],
)
def test_models_of_another_kind_are_refused_by_what_differs(name: str, reason: str) -> None:
    with pytest.raises(UserDataError) as caught:
        from_open_clip(stock_configurations()[name], f"{name}.json")
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{name}.json: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"vision__pool_type": "none"},
        {"text__ls_init_value": 0.1},
        {"vision__patch_dropout": 0.5},
        {"vision__norm_kwargs": {"eps": 1e-6}},
        {"text__act_kwargs": {"approximate": "tanh"}},
        {"text__pool_type": "last"},
        {"text__tokenizer_kwargs": {"clean": "canonicalize"}},
        {"vision__qk_norm": True},
        {"custom_text": True},
        {"text__something_new": 1},
        {"anything": "else"},
    ],
    ids=str,
)
def test_a_key_that_changes_the_function_is_refused_by_name(changes: dict[str, object]) -> None:
    (name,) = changes
    with pytest.raises(UserDataError, match=name.rpartition("__")[2]):
        from_open_clip(document(**changes), "c.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"vision__ls_init_value": None},
        {"vision__patch_dropout": 0},
        {"vision__pool_type": "tok"},
        {"vision__image_size": [224, 224]},
        {"text__pool_type": "argmax"},
        {"text__hf_tokenizer_name": None},
        {"custom_text": False},
        {"init_logit_scale": 1.0},
        {"vision__attn_pooler_heads": 4},
        {"text__no_causal_mask": False},
    ],
    ids=str,
)
def test_a_key_that_is_switched_off_is_no_hindrance(changes: dict[str, object]) -> None:
    assert from_open_clip(document(**changes), "c.json") == from_open_clip(document(), "c.json")


def test_other_image_statistics_are_refused() -> None:
    content = document() | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    with pytest.raises(UserDataError, match=r"preprocess_cfg\.mean is \[0\.5, 0\.5, 0\.5\]"):
        from_open_clip(content, "c.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object"),
        ({}, "vision_cfg is missing"),
        ({"model_cfg": 3}, "model_cfg: expected a JSON object"),
        (document(vision__width="wide"), r"vision\.width"),
        (document(vision__image_size=[224, 192]), r"vision\.imageSize|vision\.image_size"),
        (document(text__vocab_size=1000), r"text\.vocab"),
    ],
)
def test_nonsense_is_refused_in_one_line(content: object, message: str) -> None:
    with pytest.raises(UserDataError, match=message) as caught:
        from_open_clip(content, "c.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("c.json")
