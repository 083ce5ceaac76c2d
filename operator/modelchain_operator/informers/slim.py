"""What is kept in memory of the objects that watches show: what is read of them, and no more of it than can be meant.

Whoever may create jobs in a namespace may write megabytes into their annotations, by the hundred.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelchain.cluster_labels import CONTAINERS
from modelchain_operator.jobs.registry import READ_LABELS, slim_spec
from modelchain_operator.kubernetes import labels
from modelchain_operator.kubernetes.api import Object
from modelchain_operator.kubernetes.fields import mapping, mappings
from modelchain_operator.kubernetes.kinds import CHAIN, POD, Kind

TOO_LARGE = "tooLarge"  # beside the spec of a chain that is not kept whole
# Of a chain's spec, compressed: about a megabyte of YAML. One that is larger is refused.
MAX_SPEC_BYTES = 256 << 10
MAX_STORE_BYTES = 32 << 10  # of JSON; no valid `spec.store` is larger
MAX_NAME, MAX_TEXT = 256, 4096  # a kubelet cuts termination messages there
MAX_ITEMS = 32  # conditions, containers, finalizers

_METADATA = (
    "namespace",
    "name",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_OF_CHAINS = (labels.RETRAIN_MISSING_ANNOTATION,)
_OF_JOBS = (labels.DIGEST_ANNOTATION, labels.REQUEST_ANNOTATION)
_OWNER = ("apiVersion", "kind", "name", "uid", "controller")
_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
_CONTAINER = ("name", "state")
_STATE = ("reason", "message", "exitCode", "finishedAt")
_LISTS: Mapping[str, tuple[str, ...]] = {  # of a status
    "conditions": _CONDITION,
    "jobsStatus": ("name", "ready"),
}
_CONTAINERS = ("initContainerStatuses", "containerStatuses")


def slim(kind: Kind, item: Object) -> Object:
    """An object without what is not read. Of a chain, the spec and the status are whole."""
    slimmed: Object = {
        "apiVersion": item.get("apiVersion", kind.api_version),
        "kind": item.get("kind", kind.kind),
        "metadata": _metadata(kind, item["metadata"]),
    }
    if "status" in item:
        slimmed["status"] = item["status"] if kind == CHAIN else _status(item["status"])
    spec = item.get("spec")
    if isinstance(spec, dict):
        slimmed["spec"] = spec if kind == CHAIN else _spec(kind, spec)
    return slimmed


def bounded(body: Object) -> Object:
    """A chain as it is kept: that chain itself, or of a spec of more than MAX_SPEC_BYTES what its jobs still need,
    `suspend` and the store. It then says TOO_LARGE: the same of a chain from the API server and from the cache.
    """
    spec = mapping(body.get("spec"))
    try:
        is_large = len(_json(spec)) > MAX_SPEC_BYTES and len(packed(spec)) > MAX_SPEC_BYTES
    except RecursionError:  # validation says where it is nested too deeply
        is_large = False
    if not is_large:
        return body
    kept: Object = {"suspend": spec.get("suspend") is True}
    if len(_json(spec.get("store"))) <= MAX_STORE_BYTES:
        kept["store"] = spec.get("store")
    return {**body, "spec": kept, TOO_LARGE: True}


def packed(value: Any) -> bytes:
    """A value as compressed JSON."""
    return zlib.compress(_json(value), 1)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _spec(kind: Kind, spec: Mapping[str, Any]) -> Object:
    kept = _fields(spec, ("nodeName",)) if kind == POD else slim_spec(kind, spec)
    return _cut(kept)


def _metadata(kind: Kind, metadata: Mapping[str, Any]) -> Object:
    kept = _cut(_fields(metadata, _METADATA))
    annotations = _fields(mapping(metadata.get("annotations")), _OF_CHAINS if kind == CHAIN else _OF_JOBS)
    if annotations:
        kept["annotations"] = _cut(annotations, MAX_TEXT)
    if kind == CHAIN:
        return kept
    if found := _fields(mapping(metadata.get("labels")), READ_LABELS):
        kept["labels"] = _cut(found)
    owners = [one for one in mappings(metadata.get("ownerReferences")) if one.get("controller") is True]
    if owners:  # the API server lets an object have one controller
        kept["ownerReferences"] = [_cut(_fields(one, _OWNER)) for one in owners[:1]]
    if isinstance(finalizers := metadata.get("finalizers"), list):
        kept["finalizers"] = _cut(finalizers[:MAX_ITEMS])
    return kept


def _status(status: Any) -> Any:
    if not status:
        return {}
    status = mapping(status)
    kept: Object = {"conditions": []}  # that there is a status at all is read, too
    kept |= _cut(_fields(status, ("phase", "reason", "message", "ready")), MAX_TEXT)
    for name, fields in _LISTS.items():
        if name in status:
            kept[name] = [_cut(_fields(one, fields), MAX_TEXT) for one in mappings(status[name])[:MAX_ITEMS]]
    for name in _CONTAINERS:
        if name in status:
            kept[name] = [_container(one) for one in _trainers_first(mappings(status[name]))]
    return kept


def _container(status: Mapping[str, Any]) -> Object:
    state = mapping(status.get("state"))
    return {
        "name": _cut(status.get("name")),
        "state": {
            name: _cut(_fields(mapping(state[name]), _STATE), MAX_TEXT)
            for name in ("waiting", "running", "terminated")
            if name in state
        },
    }


def _trainers_first(statuses: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(statuses) <= MAX_ITEMS:
        return statuses
    return sorted(statuses, key=lambda one: one.get("name") not in CONTAINERS)[:MAX_ITEMS]


def _fields(value: Mapping[str, Any], names: Iterable[str]) -> Object:
    return {name: value[name] for name in names if name in value}


def _cut(value: Any, length: int = MAX_NAME) -> Any:
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, dict):
        return {name: _cut(item, length) for name, item in value.items()}
    return [_cut(item, length) for item in value] if isinstance(value, list) else value
