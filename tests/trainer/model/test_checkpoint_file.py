"""Weights out of files of torch.save, and files that are none."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelchain.errors import UserDataError
from modelchain.families import ModelConfig
from modelchain_trainer.model import build_model, save_weights
from modelchain_trainer.model.checkpoint_file import load_checkpoint_file
from modelchain_trainer.model.weights import save_tensors
from tests.trainer.expansion.families import language_model

pytestmark = pytest.mark.xdist_group("open_clip")  # importing it takes seconds

CONFIG = ModelConfig.model_validate(
    {
        "embedDim": 16,
        "vision": {"imageSize": 16, "patchSize": 8, "width": 32, "layers": 2, "headWidth": 16},
        "text": {"contextLength": 16, "width": 32, "layers": 2, "heads": 2},
    }
)


class Payload:
    """What a file can do to who unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch proof-that-code-ran",)


def stock_state(*, custom_text: bool = False) -> dict[str, Tensor]:
    """Of open_clip's own model of these sizes."""
    import open_clip

    vision = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "layers": 2, "heads": 2}
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    return kind(embed_dim=16, vision_cfg=vision, text_cfg=text).state_dict()  # pyright: ignore[reportArgumentType]


def in_checkpoint(state: dict[str, Tensor]) -> dict[str, Any]:
    """As open_clip's training program saves it, from several processes."""
    return {
        "epoch": 3,
        "name": "run",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


@pytest.mark.parametrize("form", ["plain", "checkpoint", "half", "custom-text"])
def test_a_state_dict_of_open_clip_is_read_in_every_form(form: str, tmp_path: Path) -> None:
    state = stock_state(custom_text=form == "custom-text")
    path = tmp_path / "model.pt"
    if form == "half":
        state = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
    torch.save(in_checkpoint(state) if form == "checkpoint" else state, path)
    loaded, config = load_checkpoint_file(path, CONFIG)
    assert config == CONFIG
    assert loaded.keys() == build_model(CONFIG, seed=0).state_dict().keys()
    for name, tensor in loaded.items():
        given = state[name] if name in state else state[f"text.{name}"]
        torch.testing.assert_close(tensor, given.float(), rtol=0, atol=0)


@pytest.mark.parametrize("what", ["a pickled model", "code", "TorchScript", "damaged"])
def test_what_would_run_code_or_is_damaged_is_refused_with_what_to_do(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    match what:
        case "a pickled model":
            torch.save(nn.Linear(2, 2), path)
        case "code":
            torch.save({"state_dict": {"a": torch.zeros(1)}, "run": Payload()}, path)
        case "TorchScript":
            torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
        case _:
            path.write_bytes(b"\x80 nothing of the kind")
    with pytest.raises(UserDataError, match=r"model\.pt: not a file of tensors alone .*save_file") as raised:
        load_checkpoint_file(path, CONFIG)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "proof-that-code-ran").exists()


def test_the_weights_of_another_model_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(stock_state(), path)
    other = CONFIG.model_copy(update={"embed_dim": 24})
    with pytest.raises(
        UserDataError, match=r"shape \[32, 16\], but the stage's own model asks for \[32, 24\]"
    ):
        load_checkpoint_file(path, other)
    torch.save([1, 2], path)
    with pytest.raises(UserDataError, match="holds no state dict"):
        load_checkpoint_file(path, CONFIG)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pt", "w.pth"])
def test_a_configuration_beside_a_file_says_what_model_it_is_of(name: str, tmp_path: Path) -> None:
    model = build_model(CONFIG, seed=0)
    save_weights(model, CONFIG, tmp_path)
    path, written = tmp_path / name, tmp_path / "open_clip_model.safetensors"
    if name == "w.safetensors":
        written.rename(path)
    else:
        torch.save(model.state_dict(), path)
    other = CONFIG.model_copy(update={"embed_dim": 24})
    state, config = load_checkpoint_file(path, other)
    assert config == CONFIG
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    beside = tmp_path / "open_clip_config.json"
    content = json.loads(beside.read_text())
    content["preprocess_cfg"]["mean"] = [0.485, 0.456, 0.406]
    beside.write_text(json.dumps(content))
    with pytest.raises(
        UserDataError, match=r"preprocess_cfg\.mean is \[0\.485, .*only models trained on images"
    ):
        load_checkpoint_file(path, CONFIG)


def test_a_file_alone_is_warned_of_since_nothing_says_how_its_images_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors(build_model(CONFIG, seed=0).state_dict(), path)
    with caplog.at_level(logging.WARNING):
        _, config = load_checkpoint_file(path, CONFIG)
    assert config == CONFIG
    (record,) = caplog.records
    assert "w.safetensors: nothing beside it says how images come to its model" in record.getMessage()
    assert "put its open_clip_config.json beside the file" in record.getMessage()


@pytest.mark.parametrize("content", ['{"lr": 0.1}', "[1]", "lr: 0.1", "<!doctype html>"])
def test_a_config_json_of_a_training_program_is_not_taken_for_the_models(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = language_model(width=16)
    model, path = build_model(config, seed=0), tmp_path / "epoch.pt"
    torch.save(model.state_dict(), path)
    beside = tmp_path / "config.json"
    beside.write_text(content)
    with caplog.at_level(logging.WARNING):
        state, found = load_checkpoint_file(path, config)
    assert found == config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    (record,) = caplog.records
    assert "config.json: has none of architecture, architectures, model_type" in record.getMessage()
    beside.write_text('{"model_type": "llama"}')
    with pytest.raises(
        UserDataError,
        match=r"^epoch\.pt: .*config\.json: model_type is llama.*; if that is not of these weights, put",
    ):
        load_checkpoint_file(path, config)
