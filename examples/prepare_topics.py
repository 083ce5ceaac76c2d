"""Turn the documentation that comes with Python into webdataset shards of documents.

    python examples/prepare_topics.py --output examples/data/topics

`help("assert")` and the like show sections of Python's language reference: some 80 documents, half a megabyte, on every
machine with Python, so nothing is downloaded. They differ a little from one release of Python to the next; hence as
much is taken as fills a given number of tokens (bytes, and one for each document), the last document cut off there.
Every tenth document is kept apart for validation.

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
VALIDATION_EVERY = 10
SHARDS = {"train": 2, "val": 1}


def main() -> None:
    """Write the shards that examples/topics-language-model.yaml names."""
    parser = argparse.ArgumentParser(
        description="Turn the documentation that comes with Python into webdataset shards of documents."
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the shards")
    output = parser.parse_args().output
    texts = [topics[name].encode() for name in sorted(topics)]
    parts = {
        "train": [text for number, text in enumerate(texts) if number % VALIDATION_EVERY],
        "val": texts[::VALIDATION_EVERY],
    }
    for name, documents in parts.items():
        samples: list[Files] = [{"txt": text} for text in cut(documents, TOKENS[name])]
        shards = write_shards(samples, output, name, -(-len(samples) // SHARDS[name]))
        print(f"{name}: {TOKENS[name]} tokens, {len(samples)} documents in {len(shards)} shards")


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
