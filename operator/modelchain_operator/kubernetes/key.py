"""The name of a chain in a cluster: what queues, caches and logs know it by."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """A chain, by name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
