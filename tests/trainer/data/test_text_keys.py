"""Captions in fields of JSON files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from modelchain_trainer.data.sample import Cause, CorruptSampleError
from modelchain_trainer.data.text_field import decode_label
from modelchain_trainer.data.text_keys import extension_of, text_of
from modelchain_trainer.data.tokenizer import Tokenizer
from tests.trainer.data.shards import index_of, number_of, png, stage_of, write_shards
from tests.trainer.data.test_loader import load


def test_a_key_is_an_extension_or_a_field() -> None:
    assert extension_of("TXT") == "txt"
    assert extension_of("Meta.json:Caption") == "meta.json"
    assert text_of(b"a text", "txt") == "a text"
    assert text_of(b'{"caption": "a text", "n": 3}', "json:caption") == "a text"
    assert text_of(b'{"caption": "a text", "n": 3}', "json:n") == "3"


def test_fields_lie_in_objects_or_have_dots_in_their_names() -> None:
    document = json.dumps({"a": {"b": {"c": "deep"}}, "x.y": "flat", "x": {"y": "nested"}}).encode()
    assert text_of(document, "json:a.b.c") == "deep"
    assert text_of(document, "json:x.y") == "flat"


@pytest.mark.parametrize(
    ("data", "cause", "message"),
    [
        (b"", Cause.BAD_CAPTION, "is not JSON"),
        (b"a caption", Cause.BAD_CAPTION, "is not JSON"),
        (b"\xff\xfe", Cause.BAD_CAPTION, "is not JSON"),
        (b"[" * 100_000, Cause.BAD_CAPTION, "is not JSON"),
        (b"9" * 10_000, Cause.BAD_CAPTION, "is not JSON"),
        (b"[]", Cause.MISSING_CAPTION, "it has: no fields"),
        (b'{"text": "x", "\\ud83d": 1}', Cause.MISSING_CAPTION, "it has: text, "),
        (b'{"caption": null}', Cause.MISSING_CAPTION, "it has: caption"),
        (b'{"caption": ["a", "b"]}', Cause.MISSING_CAPTION, "no text in its field caption"),
        (b'{"caption": true}', Cause.MISSING_CAPTION, "no text in its field caption"),
        (b'{"caption": " "}', Cause.BAD_CAPTION, "is empty"),
        (b'{"caption": "\\ud83d"}', Cause.BAD_CAPTION, "is not Unicode"),
    ],
)
def test_a_file_without_such_a_text_is_a_corrupt_sample(data: bytes, cause: Cause, message: str) -> None:
    with pytest.raises(CorruptSampleError, match=message) as raised:
        text_of(data, "json:caption")
    assert raised.value.cause is cause
    str(raised.value).encode()


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"{}", Cause.MISSING_LABEL),
        (b'{"label": null}', Cause.MISSING_LABEL),
        (b'{"label": ""}', Cause.BAD_LABEL),
        (b'{"label": "cat"}', Cause.BAD_LABEL),
        (b'{"label": "\\ud83d"}', Cause.BAD_LABEL),
        (b"no JSON", Cause.BAD_LABEL),
    ],
)
def test_a_label_in_a_field_is_no_caption_when_it_can_not_be_used(data: bytes, cause: Cause) -> None:
    with pytest.raises(CorruptSampleError) as raised:
        decode_label(data, "json:label")
    assert raised.value.cause is cause


def test_captions_come_out_of_the_json_beside_each_image(tmp_path: Path) -> None:
    def make(number: int) -> dict[str, bytes]:
        fields = {"caption": f"number {number}", "alt": f"other {number}", "url": "x"}
        return {"png": png(number), "json": json.dumps(fields).encode()}

    shards = write_shards(tmp_path / "data", 20, 20, make)
    index = index_of(shards, 20, tmp_path / "store", caption_keys=("json:caption", "json:alt"))
    tokenizer = Tokenizer(8)
    (batch,) = load(index, stage_of(shards, 20, batch=10, steps=1), tokenizer)
    numbers = [number_of(image) for image in batch.images.numpy()]
    assert torch.equal(batch.tokens[0], tokenizer([f"number {number}" for number in numbers]))
    assert torch.equal(batch.tokens[1], tokenizer([f"other {number}" for number in numbers]))
