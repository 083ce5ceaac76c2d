"""The documents of the language model's example: exactly as many tokens as its chain says, the same each time."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from modelchain.validation import load_chains

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


def tokens_of(folder: Path, name: str) -> int:
    count = 0
    for path in folder.glob(f"{name}-*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                count += len(content.read().decode().encode()) + 1
    return count


def test_there_are_as_many_tokens_as_the_chain_says_and_none_are_in_both_parts(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "prepare_topics.py"), "--output", str(tmp_path)]
    subprocess.run(command, check=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(written) == ["train-0000.tar", "train-0001.tar", "val-0000.tar"]
    (chain,) = load_chains(EXAMPLES / "topics-language-model.yaml")
    assert chain.spec.data is not None
    assert tokens_of(tmp_path, "train") == chain.spec.data.tokens
    assert tokens_of(tmp_path, "val") == 24_000
    subprocess.run(command, check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_folds_are_of_one_size_and_share_no_document(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "prepare_topics.py"), "--output", str(tmp_path), "--folds", "4"]
    subprocess.run(command, check=True)
    assert [tokens_of(tmp_path, f"fold-{fold}") for fold in range(4)] == [110_000] * 4

    folds = importlib.import_module("prepare_topics").folds
    texts = [
        bytes([letter]) * length for letter, length in zip(b"abcdefg", (9, 1, 4, 4, 7, 2, 3), strict=True)
    ]
    parts = folds(texts, 3)
    assert sorted(text for part in parts.values() for text in part) == sorted(texts)
    assert [sum(map(len, part)) for part in parts.values()] == [10, 10, 10]


@pytest.mark.parametrize("tokens", range(5, 20))
def test_the_last_document_is_cut_where_the_tokens_end(tokens: int) -> None:
    cut = importlib.import_module("prepare_topics").cut

    documents = list(cut(["für".encode(), b"xy", "süß".encode(), b"longer than all"], tokens))
    assert sum(len(text) + 1 for text in documents) == tokens
    assert all(text and text.decode() for text in documents)
