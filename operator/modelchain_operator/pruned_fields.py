"""Fields of the status that the API server prunes, because the installed CRD is older than the operator.

A status is compared with the stored one as it would be stored. Otherwise every pass would find a difference, and write
it again.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#field-pruning
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

from pydantic import ValidationError

from modelchain.status import WHOLE, ChainStatus
from modelchain_operator.kubernetes.api import Object

logger = logging.getLogger(__name__)

Path: TypeAlias = tuple[str, ...]  # of a field; [] stands for every item of a list


class PrunedFields:
    """Learns them by comparing what was written with what was stored. Used in one event loop."""

    def __init__(self) -> None:
        self._dropped: frozenset[Path] = frozenset()

    def learn(self, asked: Object, kept: Object) -> None:
        """Compare a status that was written with what the API server has stored of it."""
        dropped = frozenset(_absent(asked, kept, ()))
        if new := dropped - self._dropped:
            logger.warning(
                "the CRD modelchains.modelchain.dev is older than this operator and drops %s of the status: upgrade it",
                ", ".join(sorted(".".join(path).replace(".[]", "[]") for path in new)),
            )
        served_now = {path for path in self._dropped if _holds(kept, path)}  # the CRD was upgraded
        self._dropped = self._dropped - served_now | dropped

    def of(self, status: ChainStatus) -> ChainStatus:
        """The status as it would be stored."""
        if not self._dropped:
            return status
        written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        for path in self._dropped:
            _remove(written, path)
        try:
            return ChainStatus.model_validate(written, context=WHOLE)
        except ValidationError:  # invalid without the fields that are dropped
            return status


def _absent(asked: Any, kept: Any, path: Path) -> Iterator[Path]:
    if isinstance(asked, dict) and isinstance(kept, dict):
        for name, value in asked.items():
            if name in kept:
                yield from _absent(value, kept[name], (*path, name))
            elif value not in ({}, []):
                yield *path, name
    elif isinstance(asked, list) and isinstance(kept, list):
        for one, other in zip(asked, kept, strict=False):
            yield from _absent(one, other, (*path, "[]"))


def _holds(part: Any, path: Path) -> bool:
    if not path:
        return True
    first, *rest = path
    if first == "[]":
        return isinstance(part, list) and any(_holds(item, tuple(rest)) for item in part)
    return isinstance(part, dict) and first in part and _holds(part[first], tuple(rest))


def _remove(part: Any, path: Path) -> None:
    first, *rest = path
    if first == "[]":
        for item in part if isinstance(part, list) else ():
            _remove(item, tuple(rest))
    elif isinstance(part, dict):
        if rest:
            _remove(part.get(first), tuple(rest))
        else:
            part.pop(first, None)
