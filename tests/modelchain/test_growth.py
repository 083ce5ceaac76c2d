from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from modelchain import catalogue
from modelchain.families import ModelConfig, TextSpec, VisionSpec
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
