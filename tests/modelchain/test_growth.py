from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelchain import catalogue
from modelchain.families import ClassifierConfig, ModelConfig, TextSpec, VisionSpec
from modelchain.growth import unbuildable, ungrowable

models = st.builds(
    lambda embed, heads, layers, text_heads, text_layers: ModelConfig(
        embed_dim=embed,
        vision=VisionSpec(width=16 * heads, layers=layers, head_width=16, image_size=32, patch_size=8),
        text=TextSpec(width=8 * text_heads, layers=text_layers, heads=text_heads),
    ),
    *(st.integers(1, 5),) * 5,
)


def sizes(model: ModelConfig) -> tuple[int, ...]:
    vision, text = model.vision, model.text
    return (model.embed_dim, vision.width, vision.layers, text.width, text.layers)


@given(models, models)
def test_a_model_grows_out_of_another_if_no_size_shrinks(small: ModelConfig, large: ModelConfig) -> None:
    shrunk = [before for before, after in zip(sizes(small), sizes(large), strict=True) if after < before]
    assert len(list(ungrowable(small, large))) == len(shrunk)


@given(models)
def test_a_model_grows_out_of_itself(model: ModelConfig) -> None:
    assert list(unbuildable(model)) == []
    assert list(ungrowable(model, model)) == []


@given(st.integers(8, 200), st.integers(1, 64))
def test_the_remedy_for_heads_that_do_not_divide_helps(width: int, head_width: int) -> None:
    text = TextSpec(width=64, layers=1, heads=4)

    def model(width: int) -> ModelConfig:
        return ModelConfig(
            embed_dim=8, vision=VisionSpec(width=width, layers=1, head_width=head_width), text=text
        )

    for part, _, remedy in unbuildable(model(width)):
        assert part == ("vision", "headWidth")
        for suggestion in remedy.partition("e.g. ")[2].split(" or "):
            if int(suggestion) >= 8:
                assert list(unbuildable(model(int(suggestion)))) == []


def test_the_ladder_of_open_clip_is_a_chain() -> None:
    ladder = ["ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-g-14", "ViT-bigG-14"]
    models = [catalogue.find(f"open_clip/{name}") for name in ladder]
    for small, large in pairwise(models):
        assert list(ungrowable(small, large)) == []


def vision(**settings: object) -> VisionSpec:
    return VisionSpec.model_validate({"width": 64, "layers": 1, **settings})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"normAfterPooling": True}, "normAfterPooling"),
        ({"classToken": False}, "classToken"),
        ({"classToken": False, "pooling": "Average"}, "classToken"),
    ],
    ids=str,
)
def test_an_image_tower_that_clip_models_do_not_have_is_refused(
    settings: dict[str, object], field: str
) -> None:
    text = TextSpec(width=64, layers=1, heads=1)
    problems = list(unbuildable(ModelConfig(embed_dim=8, vision=vision(**settings), text=text)))
    assert problems
    assert {part for part, _, _ in problems} == {("vision", field)}


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "Average"},
        {"inputNorm": False},
        {"layerScale": 0.1},
        {"pooling": "Average", "normAfterPooling": True},
    ],
    ids=str,
)
def test_growth_changes_neither_what_is_pooled_nor_what_is_normed(settings: dict[str, object]) -> None:
    text = TextSpec(width=64, layers=1, heads=1)
    models = [ModelConfig(embed_dim=8, vision=vision(**each), text=text) for each in ({}, settings)]
    for small, large in (models, models[::-1]):
        parts = {part for part, _, _ in ungrowable(small, large)}
        assert parts == {("vision", field) for field in settings}
    assert list(ungrowable(models[1], models[1])) == []


def test_a_classifier_has_no_norm_before_its_blocks() -> None:
    (problem,) = unbuildable(ClassifierConfig(classes=3, vision=vision(inputNorm=False)))
    assert problem[0] == ("vision", "inputNorm")
