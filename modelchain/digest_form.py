"""Which fields of a block are part of a digest, and how their values are written (see `modelchain.digest`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from modelchain.block import Block

REQUIRED: Final = object()  # always written: its default, if any, depends on other fields

Table = Mapping[str, object]  # fields by their names in the resource, with their frozen defaults


def deciding(block: Block, table: Table) -> dict[str, object]:
    """The fields of `table`, without those that are unset or at their frozen default."""
    values = block.model_dump(mode="json", by_alias=True)
    return {
        name: _normalised(value)
        for name, default in table.items()
        if (value := values.get(name)) is not None and (default is REQUIRED or value != default)
    }


def _normalised(value: object) -> object:
    """Numbers by value, not by notation: 1.0 is 1.

    JSON writes any other number as the shortest text that reads back.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_normalised(item) for item in value]
    return value
