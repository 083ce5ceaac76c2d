"""Weights that anybody may have written: whatever is in them, only errors of ours come out, on one clean line."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modelchain.errors import ModelChainError, UserDataError
from modelchain.families import (
    CLASSIFIER,
    CLIP,
    LANGUAGE_MODEL,
    OPEN_CLIP,
    TIMM,
    ClassifierConfig,
    Family,
    LanguageModelConfig,
    ModelConfig,
    TextSpec,
    VisionSpec,
)
from modelchain_trainer.model import build_model, load_weights, save_weights
from modelchain_trainer.model.checkpoint_file import load_checkpoint_file

SIDE = VisionSpec(image_size=16, patch_size=8, width=32, layers=1, head_width=16)
GPT = LanguageModelConfig(context_length=8, vocabulary_size=257, width=32, layers=1, heads=2)
MODELS = {
    CLIP: ModelConfig(
        embed_dim=16, vision=SIDE, text=TextSpec(context_length=8, width=32, layers=1, heads=2)
    ),
    CLASSIFIER: ClassifierConfig(classes=3, vision=SIDE),
    LANGUAGE_MODEL: GPT,
}
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 2**70, 10**300, 1e308, float("inf"), float("-inf"), float("nan")),
    *("", "x", "\x1b[2J\x07\u202e", "n" * 20_000, [], [[]], [1, 2], {}, {"a": {}}, ["\x1b"]),
)
ESCAPE = "\x1b[31m"


class Everywhere:
    """Documents in which one value, of any depth, is an odd one, missing, or there beside the others."""

    def __init__(self, document: Any) -> None:
        self.text = json.dumps(document)
        self.places = list(self._places(document))

    def __iter__(self) -> Iterator[Any]:
        for place in self.places:
            for odd in ODD:
                yield self.changed(lambda parent, key, odd=odd: parent.__setitem__(key, odd), place)
            yield self.changed(lambda parent, key: parent.pop(key), place)
            if isinstance(place[-1], str):
                yield self.changed(lambda parent, _: parent.__setitem__(ESCAPE, ESCAPE), place)

    def changed(self, change: Callable[[Any, Any], object], place: tuple[Any, ...]) -> Any:
        document = parent = json.loads(self.text)
        for key in place[:-1]:
            parent = parent[key]
        change(parent, place[-1])
        return document

    def _places(self, value: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            yield (*above, key)
            yield from self._places(value[key], *above, key)


def clean(read: Callable[[], object], what: object) -> str | None:
    """The one line with which something is refused; None where it is read."""
    try:
        read()
    except ModelChainError as error:
        message = str(error)
        assert message.isprintable(), what
        assert len(message) < 2_000, what
        return message
    except Exception as error:
        error.add_note(f"of {what!r:.300}")
        raise
    return None


@pytest.fixture(params=MODELS, ids=lambda family: family.config.__name__)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Family[Any], Path]:
    config = MODELS[request.param]
    save_weights(build_model(config, seed=1), config, tmp_path)
    return request.param, tmp_path


def test_any_value_of_a_configuration_is_read_or_refused(saved: tuple[Family[Any], Path]) -> None:
    family, folder = saved
    path = folder / family.weights_config
    refused = 0
    for document in (*Everywhere(json.loads(path.read_text())), *ODD):
        path.write_text(json.dumps(document))
        refused += clean(lambda: load_weights(folder, family), document) is not None
    assert refused > 100


@pytest.mark.parametrize("family", [OPEN_CLIP, TIMM], ids=["open_clip", "timm"])
def test_any_value_of_a_configuration_of_a_library_is_read_or_refused(
    family: Family[Any], tmp_path: Path
) -> None:
    path = tmp_path / family.weights_config
    vision = {
        "timm_model_name": "resnet50",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "image_size": 64,
    }
    model = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": {"context_length": 8, "layers": 1, "width": 32},
    }
    pixels = {"input_size": [3, 64, 64], "mean": [0.5], "std": [0.5]}
    documents: dict[Any, Any] = {
        OPEN_CLIP: {
            "model_cfg": model,
            "preprocess_cfg": {"mean": [0.5]},
            "modelchain": {"norm_batch_size": 8},
        },
        TIMM: {
            "architecture": "resnet10t",
            "num_classes": 3,
            "model_args": {},
            "pretrained_cfg": pixels,
            "modelchain": {"norm_batch_size": 8},
        },
    }
    for document in (*Everywhere(documents[family]), *ODD):
        path.write_text(json.dumps(document))
        assert clean(lambda: load_weights(tmp_path, family), document), "there are no weights"


@pytest.mark.parametrize(
    "text",
    [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 10_000, b"\xff", b"", b"\x00"],
    ids=["lists", "objects", "digits", "no UTF-8", "nothing", "zero"],
)
def test_a_configuration_that_is_no_json_is_refused_by_its_name(
    text: bytes, saved: tuple[Family[Any], Path]
) -> None:
    family, folder = saved
    (folder / family.weights_config).write_bytes(text)
    message = clean(lambda: load_weights(folder, family), text)
    assert message is not None
    assert family.weights_config in message


def test_any_header_of_a_safetensors_file_is_read_or_refused(saved: tuple[Family[Any], Path]) -> None:
    family, folder = saved
    path = folder / family.weights
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    kept = dict(list(header.items())[:3])  # it is about the kinds of values, not about each tensor
    dtypes = ["F64", "F16", "BF16", "F8_E4M3", "F8_E8M0", "F4", "BOOL", "C64", "I64", "U16", "X", "\x1b"]
    name = next(name for name in header if name != "__metadata__")
    odd = [{**header, name: {**header[name], "dtype": dtype}} for dtype in dtypes]
    for document in (
        *({**header, **changed} for changed in Everywhere(kept) if isinstance(changed, dict)),
        *odd,
    ):
        encoded = json.dumps(document).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
        clean(lambda: load_weights(folder, family), document)


def state_of_gpt() -> dict[str, Tensor]:
    return dict(build_model(GPT, seed=1).state_dict())


def pickled(content: object, *, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
def test_no_changed_byte_of_a_pickle_ends_in_anything_but_a_refusal(legacy: bool, tmp_path: Path) -> None:
    path, places = tmp_path / "model.pt", random.Random(0)
    content = pickled({"state_dict": {"a": torch.zeros(2, 3), "b": torch.ones(1)}, "epoch": 3}, legacy=legacy)
    for _ in range(600):
        damaged = bytearray(content)
        for _ in range(places.randint(1, 3)):
            damaged[places.randrange(len(damaged))] = places.randrange(256)
        path.write_bytes(damaged[: places.choice([len(damaged), places.randrange(len(damaged))])])
        assert clean(lambda: load_checkpoint_file(path, GPT), bytes(damaged))


def test_no_program_of_a_pickle_ends_in_anything_but_a_refusal(tmp_path: Path) -> None:
    path, places = tmp_path / "model.pt", random.Random(1)
    opcodes = b"()]}.012aebtu\x85\x86\x87\x88\x89h\x05q\x00KaX\x01\x00\x00\x00sRccollections\nOrderedDict\nQ\x8a\x01"
    programs = [
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        pickle.dumps(torch.float32),
        b"\x80\x02" + b"]" * 100_000 + b".",
    ]
    programs += [
        b"\x80\x02" + bytes(places.choices(opcodes, k=places.randint(1, 12))) + b"." for _ in range(600)
    ]
    for program in programs:
        path.write_bytes(program)
        assert clean(lambda: load_checkpoint_file(path, GPT), program)


@pytest.mark.parametrize(
    "make",
    [
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda tensor: tensor.flatten()[:1].expand(2**40, 2),
    ],
    ids=["meta", "sparse", "quantized", "expanded"],
)
def test_what_is_no_plain_tensor_is_named(make: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    state = state_of_gpt()
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    torch.save(state | {name: make(state[name])}, tmp_path / "model.pt")
    with pytest.raises(UserDataError, match=rf"model\.pt: {name} is no plain tensor"):
        load_checkpoint_file(tmp_path / "model.pt", GPT)


def test_a_refusal_is_in_our_own_words_and_names_what_the_file_refers_to(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": state_of_gpt(), "args": Everywhere({})}, path)
    message = clean(lambda: load_checkpoint_file(path, GPT), "an object") or ""
    assert "(it refers to tests.trainer.model.test_foreign.Everywhere)" in message
    assert "weights_only" not in message
    path.write_bytes(b"\x80\x02c\x1b[2Jos\nsystem\x1b[31m\n.")
    message = clean(lambda: load_checkpoint_file(path, GPT), "an escape") or ""
    assert "weights_only" not in message
