"""How documents become tokens: by bytes, or by a tokenizer.json of the tokenizers library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain.resolved import ResolvedData, ResolvedStore
from modelchain.spec import TokenizerSpec
from modelchain.store import open_location, split_uri
from modelchain.tasks.language_model import BYTE_VOCABULARY
from modelchain_trainer.retry_policy import RetryPolicy

Tokens = NDArray[np.uint32]


class DocumentTokenizer(Protocol):
    """Tokens of whole documents. Special tokens that are written out in a text are text."""

    vocabulary: int  # tokens are 0 .. vocabulary - 1
    end_of_text: int

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, nothing added."""
        ...


class ByteTokenizer:
    """The bytes of UTF-8, and an end of text behind them: nothing to train, nothing to keep."""

    vocabulary = BYTE_VOCABULARY
    end_of_text = BYTE_VOCABULARY - 1

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """A token a byte."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]


class FileTokenizer:
    """A tokenizer.json. The library encodes the texts of one call side by side."""

    def __init__(self, content: bytes, spec: TokenizerSpec) -> None:
        """Raises UserDataError for a file that is none, or lacks the end of text."""
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(content.decode())
        except Exception as error:  # noqa: BLE001 - the library has no errors of its own
            reason = " ".join(str(error).split())[:200]
            raise UserDataError(
                f"{spec.uri}: no tokenizer.json of the tokenizers library ({reason})"
            ) from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        found = self._tokenizer.token_to_id(spec.end_of_text)
        if found is None:
            raise UserDataError(
                f"{spec.uri}: has no token {spec.end_of_text}; name its end of text in data.tokenizer.endOfText"
            )
        self.end_of_text = found
        self.vocabulary = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """By the file's rules, without what it adds to a text."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in found]


def open_tokenizer(data: ResolvedData, access: ResolvedStore, retry_policy: RetryPolicy) -> DocumentTokenizer:
    """The tokenizer of a stage's data. Raises UserDataError where its file is not the one that was meant."""
    content = read_tokenizer(data, access, retry_policy)
    if content is None or data.tokenizer is None:
        return ByteTokenizer()
    return FileTokenizer(content, data.tokenizer)


def read_tokenizer(data: ResolvedData, access: ResolvedStore, retry_policy: RetryPolicy) -> bytes | None:
    """The file of the stage's tokenizer; None: it is the built-in one. Raises UserDataError for another file."""
    if data.tokenizer is None:
        return None
    spec = data.tokenizer
    folder, name = split_uri(spec.uri)
    content, _ = retry_policy.call(lambda: open_location(folder, access).get(name))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != spec.sha256:
        raise UserDataError(
            f"{spec.uri}: its sha256 is {sha256}, not the {spec.sha256} of data.tokenizer; it is another file"
        )
    return content
