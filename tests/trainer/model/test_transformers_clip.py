"""CLIP models as transformers writes them: their function is that of the model that is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelchain.errors import UserDataError
from modelchain.families import ModelConfig
from modelchain_trainer.model import load_weights, model_from

END_OF_TEXT = 49407
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 100,  # 100 / 48 * 48 rounds down to 99, unless the ratio is chosen for it
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "image_size": 32,
    "patch_size": 8,
}


def clip_model(folder: Path, activation: str = "quick_gelu") -> Any:
    """A model of random weights, as transformers has written it into the folder."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config=TEXT | {"hidden_act": activation},
        vision_config=VISION | {"hidden_act": activation},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def change(folder: Path, edit: Callable[[Any], object], name: str = "config.json") -> None:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_are_those_of_transformers(tmp_path: Path, activation: str) -> None:
    theirs = clip_model(tmp_path, activation)
    state, config = load_weights(tmp_path)
    assert isinstance(config, ModelConfig)
    assert config.quick_gelu == (activation == "quick_gelu")
    ours = model_from(state, config).eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 49000, (3, 16), generator=generator)
    for row, length in enumerate((4, 9, 15)):
        tokens[row, length:] = 0
        tokens[row, length] = END_OF_TEXT
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=images)
        torch.testing.assert_close(ours.encode_image(images), found.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(tokens), found.text_embeds, rtol=0, atol=1e-5)
    assert torch.equal(ours.logit_scale, theirs.logit_scale)


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    """They hold numbers of positions, an end of text that no tokenizer has, and a tower's settings twice."""
    clip_model(tmp_path)
    before, config = load_weights(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})

    def older(document: Any) -> None:
        document["text_config"] |= {"eos_token_id": 2, "hidden_size": 512}
        document["text_config_dict"] = TEXT

    change(tmp_path, older)
    after, found = load_weights(tmp_path)
    assert found == config
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_settings_that_stand_twice_count_whole_the_second_time(tmp_path: Path) -> None:
    clip_model(tmp_path)

    def twice(document: Any) -> None:
        for tower in ("text_config", "vision_config"):
            document[tower]["hidden_act"] = "gelu"
        document["text_config_dict"] = {name: value for name, value in TEXT.items() if name != "hidden_act"}

    change(tmp_path, twice)
    theirs = pytest.importorskip("transformers").CLIPConfig(
        **json.loads((tmp_path / "config.json").read_text())
    )
    assert theirs.text_config.hidden_act == "quick_gelu"
    with pytest.raises(UserDataError, match="hidden_act is gelu of images and quick_gelu of texts"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda d: d.update(architectures=["SiglipModel"], model_type="siglip"),
            "only CLIPModel can be used, not SiglipModel",
        ),
        (
            lambda d: d["text_config"].update(hidden_act="gelu"),
            "hidden_act is quick_gelu of images and gelu of texts",
        ),
        (lambda d: d["vision_config"].update(hidden_act=[1]), "hidden_act is [1] of images"),
        (lambda d: d["vision_config"].update(layer_norm_eps=1e-6), "vision_config.layer_norm_eps is 1e-06"),
        (lambda d: d["text_config"].update(eos_token_id=7), "text_config.eos_token_id is 7; only 49407 or 2"),
        (lambda d: d["text_config"].update(vocab_size=32000), "text.vocab_size: "),
        (lambda d: d["vision_config"].update(num_attention_heads=5), "5 heads do not divide a width of 48"),
        (lambda d: d["vision_config"].update(hidden_size=None), "vision_config.hidden_size is None"),
        (
            lambda d: d["vision_config"].update(num_hidden_layers=2),
            "not part of a model as config.json describes",
        ),
        (
            lambda d: d["vision_config"].update(num_hidden_layers=4),
            "missing; the file does not fit config.json",
        ),
    ],
)
def test_what_is_no_such_model_is_refused_by_what_differs(
    tmp_path: Path, edit: Callable[[Any], object], says: str
) -> None:
    clip_model(tmp_path)
    change(tmp_path, edit)
    with pytest.raises(UserDataError) as caught:
        load_weights(tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_that_are_normalised_otherwise_are_refused(tmp_path: Path) -> None:
    clip_model(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    usual = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    path.write_text(json.dumps(usual))
    load_weights(tmp_path)
    path.write_text(json.dumps(usual | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(UserDataError, match=r"preprocessor_config.json: image_mean is \[0.5, 0.5, 0.5\]"):
        load_weights(tmp_path)
    path.write_text(json.dumps(usual | {"do_normalize": False}))
    with pytest.raises(UserDataError, match=r"preprocessor_config.json: do_normalize is false"):
        load_weights(tmp_path)
