from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from modelchain.errors import (
    CannotWriteError,
    DiskFullError,
    MissingInputError,
    ModelChainError,
    UserDataError,
)
from modelchain.families import ModelConfig
from modelchain_trainer.model import build_model, load_weights, save_weights, weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


@pytest.fixture
def folder(tmp_path: Path, tiny: ModelConfig) -> Path:
    save_weights(build_model(tiny, seed=1), tiny, tmp_path / "weights")
    return tmp_path / "weights"


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    edit(state)
    save_file(state, folder / WEIGHTS)


def refused(folder: Path) -> str:
    """The message with which the folder is refused: one line that names the file."""
    with pytest.raises(UserDataError) as caught:
        load_weights(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def test_weights_read_back_as_they_were_written(folder: Path, tiny: ModelConfig) -> None:
    state, config = load_weights(folder)
    expected = build_model(tiny, seed=1).state_dict()
    assert config == tiny
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_nothing_but_the_two_files_is_left_and_others_may_read_them(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}


@pytest.mark.parametrize("kept", [0.0, 1e-6, 0.0005, 0.5, 0.999999])
def test_a_truncated_file_is_refused(folder: Path, kept: float) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert str(path) in refused(folder)


def test_no_changed_byte_of_the_header_ends_in_anything_but_a_clear_refusal(folder: Path) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    places = random.Random(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(content)
        damaged[places.randrange(header)] ^= 1 << places.randrange(8)
        path.write_bytes(damaged)
        try:
            load_weights(folder)
            outcomes.add("read")  # e.g. a changed space
        except ModelChainError as error:
            assert "\n" not in str(error)
            outcomes.add("refused")
    assert "refused" in outcomes


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder, lambda state: state.pop("visual.proj"))
    assert "visual.proj is missing" in refused(folder)


def test_a_tensor_that_does_not_belong_is_named(folder: Path) -> None:
    change(folder, lambda state: state.update({"visual.attn_pool.query": torch.zeros(2)}))
    assert "visual.attn_pool.query" in refused(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    change(folder, lambda state: state.update({"ln_final.weight": torch.ones(25)}))
    message = refused(folder)
    assert "ln_final.weight has shape [25]" in message
    assert "[24]" in message


def test_numbers_that_are_not_finite_are_refused(folder: Path) -> None:
    change(folder, lambda state: state["text_projection"][3, 4].fill_(float("nan")))
    assert "text_projection" in refused(folder)


def test_integers_are_refused(folder: Path) -> None:
    change(folder, lambda state: state.update({"ln_final.weight": torch.ones(24, dtype=torch.int64)}))
    assert "torch.int64" in refused(folder)


def test_half_precision_is_read_as_fp32(folder: Path) -> None:
    change(folder, lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    assert {tensor.dtype for tensor in load_weights(folder)[0].values()} == {torch.float32}


def test_a_temperature_of_one_element_is_read_as_a_scalar(folder: Path) -> None:
    change(folder, lambda state: state.update(logit_scale=state["logit_scale"].reshape(1)))
    assert load_weights(folder)[0]["logit_scale"].shape == ()


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingInputError, match=name):
        load_weights(folder)


def test_a_damaged_configuration_is_refused(folder: Path) -> None:
    path = folder / CONFIG
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in refused(folder)
    path.write_bytes(b"\xff\xfe{}")
    assert str(path) in refused(folder)


def test_a_configuration_of_another_model_is_refused(folder: Path) -> None:
    document = json.loads((folder / CONFIG).read_text())
    document["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_base"
    (folder / CONFIG).write_text(json.dumps(document))
    assert "timm_model_name" in refused(folder)
    del document["model_cfg"]["vision_cfg"]["timm_model_name"]
    document["model_cfg"]["vision_cfg"]["head_width"] = 24
    (folder / CONFIG).write_text(json.dumps(document))
    assert "headWidth" in refused(folder)


def test_a_full_disk_is_told_apart(folder: Path, tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / WEIGHTS).read_bytes()

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(DiskFullError, match=WEIGHTS):
        save_weights(build_model(tiny, seed=2), tiny, folder)
    assert (folder / WEIGHTS).read_bytes() == before, "what was there must stay whole"
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, tiny: ModelConfig) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteError, match="file"):
        save_weights(build_model(tiny, seed=1), tiny, tmp_path / "file" / "weights")
