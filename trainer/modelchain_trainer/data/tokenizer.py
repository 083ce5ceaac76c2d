"""Captions to tokens, exactly as `open_clip.tokenizer.SimpleTokenizer` does, without importing open_clip.

The vocabulary is the file that open_clip carries. Words are split by the same expression, and each new word's
byte pairs are merged by the `tokenizers` library; words and captions seen before come from a cache.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import ftfy
import numpy as np
import regex
import torch
from numpy.typing import NDArray
from tokenizers.models import BPE

from modelchain.errors import ConfigurationError

START_OF_TEXT = "<start_of_text>"
END_OF_TEXT = "<end_of_text>"
VOCABULARY_SIZE = 49408

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_BYTE_SYMBOLS = 256
_WORD_ENDS = "</w>"
_CACHED_CAPTIONS = 1 << 14
_CACHED_WORDS = 1 << 16

_WORDS = regex.compile(
    START_OF_TEXT + "|" + END_OF_TEXT + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


class Tokenizer:
    """Tokens of CLIP's byte-pair vocabulary. May be called from several threads at once."""

    def __init__(self, context_length: int) -> None:
        """`context_length`: tokens of a caption, begin and end included."""
        self.context_length = context_length
        symbols, merges = _read_vocabulary()
        vocabulary = _vocabulary(symbols, merges)
        self._start = vocabulary[START_OF_TEXT]
        self._end = vocabulary[END_OF_TEXT]
        self._symbols = symbols
        # No continuing prefix, and "</w>" on the last symbol of each word: CLIP's way of writing where words
        # end.
        self._merge = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_ENDS)
        self._word = lru_cache(_CACHED_WORDS)(self._encode_word)
        self._caption = lru_cache(_CACHED_CAPTIONS)(self._encode_caption)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[int]]:
        return Tokenizer, (self.context_length,)  # another process reads the vocabulary for itself

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Tokens int64 [N, T] of N texts: start, words, end, then zeros; a long text is cut and keeps its
        end.
        """
        tokens_NT = torch.zeros((len(texts), self.context_length), dtype=torch.int64)
        rows = tokens_NT.numpy()
        for row, text in zip(rows, texts, strict=True):
            self.encode_into(text, row)
        return tokens_NT

    def encode_into(self, text: str, row_T: NDArray[np.int64]) -> None:
        """Write the tokens of one text into a row of zeros."""
        tokens = self._caption(text)
        row_T[: len(tokens)] = tokens

    def _encode_caption(self, text: str) -> NDArray[np.int32]:
        tokens = [self._start]
        for word in _WORDS.findall(clean(text)):
            tokens.extend(self._word(word))
        tokens.append(self._end)
        if len(tokens) > self.context_length:
            tokens = [*tokens[: self.context_length - 1], self._end]
        return np.array(tokens, np.int32)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word == START_OF_TEXT:
            return (self._start,)
        if word == END_OF_TEXT:
            return (self._end,)
        written = "".join([self._symbols[byte] for byte in word.encode()])
        return tuple(token.id for token in self._merge.tokenize(written))


def clean(text: str) -> str:
    """Fix broken Unicode, undo HTML entities (twice), squeeze white space, lower case: open_clip's
    clean='lower'.
    """
    # Plain printable ASCII without entities is most of what there is, and comes out of ftfy as it went in.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _read_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """The symbol of each byte, and the merges by rank. Raises ConfigurationError where open_clip is not
    installed.
    """
    package = importlib.util.find_spec("open_clip")  # finds the package without running it
    if package is None or package.origin is None:
        raise ConfigurationError(
            "the package open_clip_torch, whose vocabulary is used, is not installed; install it"
        )
    path = Path(package.origin).parent / _VOCABULARY_FILE
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    # A comment first; then merges, of which as many count as fit between the byte symbols and the two special
    # tokens.
    used = lines[1 : 1 + VOCABULARY_SIZE - 2 * _BYTE_SYMBOLS - 2]
    merges = [(first, second) for first, _, second in (line.partition(" ") for line in used)]
    return _byte_symbols(), merges


def _byte_symbols() -> list[str]:
    """GPT-2's printable symbol for each byte: itself where it prints, else the next unused one from U+0100
    on.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    symbols: list[str] = []
    substitutes = 0
    for byte in range(_BYTE_SYMBOLS):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(_BYTE_SYMBOLS + substitutes))
            substitutes += 1
    return symbols


def _vocabulary(symbols: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    # Ids follow GPT-2's table: the printable bytes first, then the substituted ones.
    ordered = sorted(symbols, key=lambda symbol: (ord(symbol) >= _BYTE_SYMBOLS, ord(symbol)))
    entries = [*ordered, *(symbol + _WORD_ENDS for symbol in ordered), *(a + b for a, b in merges)]
    entries += [START_OF_TEXT, END_OF_TEXT]
    return {entry: number for number, entry in enumerate(entries)}
