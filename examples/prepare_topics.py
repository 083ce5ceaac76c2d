"""Turn the documentation that comes with Python into webdataset shards of documents.

    python examples/prepare_topics.py --output examples/data/topics
    python examples/prepare_topics.py --output FOLDER --folds 5         parts for cross-validation

`help("assert")` and the like show sections of Python's language reference: some 80 documents, half a megabyte, on every
machine with Python, so nothing is downloaded. They differ a little from one release of Python to the next; hence as
much is taken as fills a given number of tokens (bytes, and one for each document), the last document cut off there.
Every tenth document is kept apart for validation; or whole documents are dealt into parts of one size, fold-0,
fold-1 ...

Text: Python documentation, copyright Python Software Foundation, PSF licence version 2; code in it also Zero-Clause
BSD.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from shard_writer import Files, write_shards

TOKENS = {"train": 320_000, "val": 24_000}
TOKENS_OF_FOLDS = 440_000  # together
VALIDATION_EVERY = 10
SHARDS = {"train": 2, "val": 1}
MOST_FOLDS = 8  # the longest document would not fit a smaller one


def main() -> None:
    """Write the shards that examples/topics-language-model.yaml names."""
    parser = argparse.ArgumentParser(
        description="Turn the documentation that comes with Python into webdataset shards of documents."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    parser.add_argument(
        "--folds", type=int, metavar="N", help="write N parts of one size, rather than train and val"
    )
    arguments = parser.parse_args()
    count: int | None = arguments.folds
    if count is not None and not 2 <= count <= MOST_FOLDS:
        parser.error(f"--folds {count}: write 2 to {MOST_FOLDS}")
    texts = [topics[name].encode() for name in sorted(topics)]
    if count is None:
        parts = {
            "train": [text for number, text in enumerate(texts) if number % VALIDATION_EVERY],
            "val": texts[::VALIDATION_EVERY],
        }
        tokens, shards = TOKENS, SHARDS
    else:
        parts = folds(texts, count)
        tokens = dict.fromkeys(parts, TOKENS_OF_FOLDS // count)
        shards = dict.fromkeys(parts, 1)
    for name, documents in parts.items():
        samples: list[Files] = [{"txt": text} for text in cut(documents, tokens[name])]
        written = write_shards(samples, arguments.output, name, -(-len(samples) // shards[name]))
        print(f"{name}: {tokens[name]} tokens, {len(samples)} documents in {len(written)} shards")


def folds(texts: Sequence[bytes], count: int) -> dict[str, list[bytes]]:
    """Whole documents, dealt into `count` parts: the longest first, each into the part that has least."""
    parts: list[list[bytes]] = [[] for _ in range(count)]
    for text in sorted(texts, key=len, reverse=True):
        min(parts, key=lambda part: sum(map(len, part))).append(text)
    return {f"fold-{number}": part for number, part in enumerate(parts)}


def cut(documents: Sequence[bytes], tokens: int) -> Iterator[bytes]:
    """The first documents that have so many tokens together: their bytes, and one more each."""
    for text in documents:
        kept = text[: tokens - 1].decode(errors="ignore").encode()  # no half of a character
        if tokens - 1 - len(kept) < 2:  # no room for a byte with its end of text
            kept = kept.ljust(tokens - 1)
        yield kept
        tokens -= len(kept) + 1
        if not tokens:
            return
    raise SystemExit(f"Python's documentation is {tokens} bytes too short; was it installed whole?")


if __name__ == "__main__":
    main()
