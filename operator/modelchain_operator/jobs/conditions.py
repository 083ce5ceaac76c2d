"""Conditions of a Kubernetes object's status.

https://github.com/kubernetes/community/blob/master/contributors/devel/sig-architecture/api-conventions.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import mapping, mappings


def condition(item: Object, kind: str) -> Mapping[str, Any] | None:
    """The condition of that type; their order means nothing."""
    found = mappings(mapping(item.get("status")).get("conditions"))
    return next((one for one in found if one.get("type") == kind), None)


def is_true(item: Object, *kinds: str) -> bool:
    """Whether a condition of any of these types holds."""
    found = (condition(item, kind) for kind in kinds)
    return any(one is not None and one.get("status") == "True" for one in found)
