"""All documents of a data set as one line of tokens, in files that the processes of a node map into memory.

    end t t t end t t end t t t t end
    ^ a document begins with the end of text before it, and the last one has one behind it too

The line is cut into sequences of as many tokens as the context is long, each of which also knows the token behind it:
so every token is predicted once, the end of each document too. What fills no sequence at the end is left out. A
document that is cut goes on in the next sequence as a piece of its own, which does not see what was before.

Shapes: S tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelchain.errors import UserDataError
from modelchain_trainer.data.document_tokenizer import DocumentTokenizer
from modelchain_trainer.data.documents import DocumentList
from modelchain_trainer.data.sample import CorruptSampleError

_DESCRIPTION, _TOKENS = "tokens.json", "tokens"
_NARROW = 1 << 16  # tokens of two bytes up to there
_TOGETHER, _CHARACTERS = (
    512,
    4 << 20,
)  # documents that are encoded at once, and about how long they are in all
_FORGIVEN = 100  # documents: below so many, a share of them says nothing

_Narrowed = NDArray[np.unsignedinteger[Any]]

_logger = logging.getLogger(__name__)


class TokenCount(NamedTuple):
    """What documents came to."""

    tokens: int
    unusable: int  # documents
    example: str  # of these, and why


@dataclass(frozen=True, eq=False)
class TokenStream:
    """N tokens, and one more end of text."""

    tokens: _Narrowed  # [N + 1]
    end_of_text: int
    context_length: int  # S
    left_out: tuple[str, ...] = ()  # shards that can't be used, within what is allowed
    layout: str = ""  # hash of the tokens
    versions: str = ""  # hash of the versions of the shards
    unusable: Mapping[str, int] = field(default_factory=dict)  # documents, by cause, within what is allowed

    def __len__(self) -> int:
        """Whole sequences."""
        return (len(self.tokens) - 1) // self.context_length

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those sequences with the token behind each, and the places of all of them in their documents:
        [2, len(numbers), S + 1].
        """
        places = numbers[:, None] * self.context_length + np.arange(self.context_length + 1)
        tokens = self.tokens[places].astype(np.int64)
        return np.stack([tokens, positions(tokens, self.end_of_text)])


def positions(tokens_BT: NDArray[np.int64], end_of_text: int) -> NDArray[np.int64]:
    """The place of each token in its document, [B, T]: 0 is the end of text before it, or where a sequence begins."""
    place = np.arange(tokens_BT.shape[1])
    return place - np.maximum.accumulate(np.where(tokens_BT == end_of_text, place, 0), axis=1)


def write_tokens(
    folder: Path,
    found: DocumentList,
    tokenizer: DocumentTokenizer,
    on_progress: Callable[[], None],
    *,
    max_corrupt_fraction: float,
) -> TokenCount:
    """Write the documents' tokens into a folder; how many they are. `on_progress` is called at least every 512
    documents. Raises UserDataError for too many bad documents.
    """
    kind = np.uint16 if tokenizer.vocabulary <= _NARROW else np.uint32
    end = np.array([tokenizer.end_of_text], kind)
    bad: list[CorruptSampleError] = []
    written = documents = 0
    layout = hashlib.sha256()

    def write(file: BinaryIO, tokens: _Narrowed) -> int:
        data = tokens.tobytes()
        layout.update(data)
        file.write(data)
        return len(tokens)

    def texts() -> Iterator[str]:
        nonlocal documents
        for documents, document in enumerate(found.documents, start=1):  # noqa: B007 - counted for the message
            if isinstance(document, str):
                yield document
            else:
                bad.append(document)

    with (folder / _TOKENS).open("wb") as file:
        for some in _together(texts()):
            for tokens in tokenizer.encode(some):
                written += write(file, end) + write(file, tokens.astype(kind))
            on_progress()
            if len(bad) > max_corrupt_fraction * max(documents, _FORGIVEN):
                break
        write(file, end)
    if len(bad) > max_corrupt_fraction * max(documents, _FORGIVEN):
        raise UserDataError(
            f"{len(bad)} of the {documents} documents read so far can't be used, more than "
            f"data.maxCorruptFraction {max_corrupt_fraction:g} allows; for example {bad[-1]}; fix the shards"
        )
    for error in bad[:10]:
        _logger.warning("%s; left out", error)
    description = {"wide": kind is np.uint32, "end": tokenizer.end_of_text, "leftOut": list(found.left_out)}
    description["unusable"] = Counter(str(error.cause) for error in bad)
    description |= {"layout": layout.hexdigest(), "versions": found.versions}
    (folder / _DESCRIPTION).write_text(json.dumps(description))
    return TokenCount(written, len(bad), str(bad[0]) if bad else "")


def open_tokens(folder: Path, context_length: int) -> TokenStream:
    """What `write_tokens` wrote, mapped; the files may be deleted afterwards."""
    description = json.loads((folder / _DESCRIPTION).read_bytes())
    kind = np.uint32 if description["wide"] else np.uint16
    tokens = np.asarray(np.memmap(folder / _TOKENS, kind, mode="r"))
    return TokenStream(
        tokens,
        description["end"],
        context_length,
        left_out=tuple(description["leftOut"]),
        layout=description["layout"],
        versions=description["versions"],
        unusable=description["unusable"],
    )


def limited(found: DocumentList, most: int | None) -> DocumentList:
    """The first so many documents (None: all)."""
    return found if most is None else replace(found, documents=islice(found.documents, most))


def check_vocabulary(tokenizer: DocumentTokenizer, vocabulary_size: int) -> None:
    """Raises UserDataError where a model lacks some of the tokenizer's tokens."""
    if tokenizer.vocabulary > vocabulary_size:
        raise UserDataError(
            f"languageModelConfig.vocabularySize is {vocabulary_size}, but the tokenizer has {tokenizer.vocabulary} "
            f"tokens; write vocabularySize: {-(-tokenizer.vocabulary // 64) * 64}, or name another data.tokenizer"
        )


def _together(texts: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    characters = 0
    for text in texts:
        some.append(text)
        characters += len(text)
        if len(some) == _TOGETHER or characters >= _CHARACTERS:
            yield some
            some, characters = [], 0
    if some:
        yield some
