"""A user's pod template over the generated one, as the API server merges a strategic patch.

https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Lists whose items are told apart by a field; of the pod API (patchMergeKey).
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "resourceClaims": "name",
    "schedulingGates": "name",
    "claims": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "readinessGates": "conditionType",
}
_APPENDED = frozenset({"tolerations", "topologySpreadConstraints"})  # all of them apply together
_REPLACED_ITEMS = frozenset({"env"})  # an item has one source (value, valueFrom): never both
_ONE_SOURCE_ITEMS = frozenset({"volumes"})  # likewise, unless both name the same source


def merge(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `patch` says: mappings field by field, lists by their keys; null removes a field."""
    merged = copy.deepcopy(dict(base))
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merged(name, merged.get(name), value)
    return merged


def _merged(name: str, base: Any, patch: Any) -> Any:
    if isinstance(patch, Mapping):
        return merge(base if isinstance(base, Mapping) else {}, patch)
    if isinstance(patch, list) and isinstance(base, list):
        if name in _APPENDED:
            return [*base, *(copy.deepcopy(item) for item in patch if item not in base)]
        if name in _KEYS:
            return _merged_by_key(name, base, patch)
    return copy.deepcopy(patch)


def _merged_by_key(name: str, base: list[Any], patch: list[Any]) -> list[Any]:
    key = _KEYS[name]
    result = list(base)
    places = {item[key]: place for place, item in enumerate(base)}
    for item in patch:
        place = places.get(item.get(key)) if isinstance(item, Mapping) else None
        if place is None:
            result.append(merge({}, item) if isinstance(item, Mapping) else item)
        elif name in _REPLACED_ITEMS or (name in _ONE_SOURCE_ITEMS and _other_source(key, base[place], item)):
            result[place] = merge({}, item)
        else:
            result[place] = merge(base[place], item)
    return result


def _other_source(key: str, base: Mapping[str, Any], patch: Mapping[str, Any]) -> bool:
    named = {field for field, value in patch.items() if value is not None} - {key}
    return bool(named) and named.isdisjoint(base)
