"""What the pages show as YAML is what ModelChain reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from modelchain.validation import check_object
from modelchain.yaml_reader import read_documents
from tests.docs.markdown import Block, blocks, pages

Object = dict[str, Any]

# What a fragment of a chain leaves out.
_REST: Object = {
    "apiVersion": "modelchain.dev/v1alpha1",
    "kind": "ModelChain",
    "metadata": {"name": "example"},
    "spec": {
        "store": {"uri": "s3://models/chains"},
        "data": {"shards": ["s3://data/{000..009}.tar"], "samples": 2891445},
        "training": {"epochs": 1},
        "stages": [{"name": "vit-t", "model": "ViT-T-16"}],
    },
}


def yaml_blocks() -> list[Block]:
    """Every block of YAML in the documentation."""
    return [block for page in pages() for block in blocks(page) if block.language in ("yaml", "yml")]


def _over(base: Object, fragment: Object) -> Object:
    merged = copy.deepcopy(base)
    for name, value in fragment.items():
        replaces = (
            not isinstance(value, dict) or "sources" in value
        )  # these take the place of shards and samples
        nested = not replaces and isinstance(merged.get(name), dict)
        merged[name] = _over(merged[name], value) if nested else value
    return merged


@pytest.mark.parametrize("block", yaml_blocks(), ids=lambda block: block.where)
def test_chains_and_parts_of_them_are_valid(block: Block) -> None:
    for document in read_documents(block.text):
        value = document.value
        assert isinstance(value, dict), f"{block.where}: no mapping"
        if set(value) == {"spec"}:
            value = _over(_REST, value)
        elif value.get("kind") != "ModelChain":
            continue
        checked = check_object("", value)
        assert checked.chain is not None, f"{block.where}: {checked.problems}"
        assert not checked.problems, f"{block.where}: {checked.problems}"


def test_parts_of_chains_are_among_them() -> None:
    """So that the test above does not pass over everything."""
    chains = [block for block in yaml_blocks() if "kind: ModelChain" in block.text]
    parts = [block for block in yaml_blocks() if block.text.startswith("spec:")]
    assert len(chains) >= 2
    assert len(parts) >= 8
