"""A language model's tokenizer as transformers reads it: `AutoTokenizer.from_pretrained(FOLDER)`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedData
from modelchain.tasks.language_model import BYTE_VOCABULARY

TOKENIZER: Final = "tokenizer.json"
BYTE_END: Final = "<|endoftext|>"  # of the built-in tokenizer, in these files
_CONFIG: Final = "tokenizer_config.json"


def published_tokenizer(content: bytes | None, end_of_text: str, context_length: int) -> Mapping[str, bytes]:
    """The files of a tokenizer.json with this content (None: of the built-in tokenizer), by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }
    return {
        TOKENIZER: byte_tokenizer() if content is None else content,
        _CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    }


def byte_tokenizer() -> bytes:
    """The built-in tokenizer as a tokenizer.json: its tokens are bytes, in the letters in which GPT-2 writes them."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    end = {"id": BYTE_VOCABULARY - 1, "content": BYTE_END, "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | flags],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {letter: byte for byte, letter in enumerate(_letters())}
            | {BYTE_END: BYTE_VOCABULARY - 1},
            "merges": [],
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def check_same_tokenizer(content: bytes, data: ResolvedData, where: str) -> None:
    """Raises UserDataError where weights come with another tokenizer than the stage's."""
    found = hashlib.sha256(content).hexdigest()
    if data.tokenizer is None:
        if content != byte_tokenizer():
            raise UserDataError(
                f"{where}: these weights read other tokens than the built-in tokenizer's; name that file in "
                f"data.tokenizer (uri, sha256: {found})"
            )
    elif found != data.tokenizer.sha256:
        raise UserDataError(
            f"{where}: the tokenizer of these weights is another file (sha256 {found}) than data.tokenizer "
            f"(sha256 {data.tokenizer.sha256}); name that one, or remove it from the folder if its tokens are the same"
        )


def _letters() -> list[str]:
    """A printable letter for each byte (`bytes_to_unicode` of github.com/openai/gpt-2, src/encoder.py)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]
