"""Rules of the labels and annotations that a chain puts on its jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from modelchain.spec import JobSpec
from modelchain.validation.problem import Finding, quoted
from modelchain.yaml_reader import FieldPath

# https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but for tabs and ends of lines
_LONGEST_PREFIX = 253
_OWN_PREFIX = "modelchain.dev/"
_SET_BY_US = {
    "kueue.x-k8s.io/queue-name": "write the queue under job.queueName",
    "app.kubernetes.io/managed-by": "remove it; it says that the operator manages the job",
}


def check_job_metadata(job: JobSpec, at: FieldPath) -> Iterator[Finding]:
    """Names that Kubernetes refuses, and those by which the operator knows its jobs."""
    yield from _check_names(job.labels or {}, (*at, "labels"))
    yield from _check_names(job.annotations or {}, (*at, "annotations"))
    for key, value in (job.annotations or {}).items():
        if _CONTROLS.search(value):
            message = "the value holds control characters, which move the cursor of whoever prints it"
            yield Finding((*at, "annotations", key), message, "write it without", frozenset({"annotations"}))


def _check_names(entries: Mapping[str, str], at: FieldPath) -> Iterator[Finding]:
    for key in entries:
        path, about = (*at, key), frozenset({str(at[-1])})
        if key.startswith(_OWN_PREFIX):
            message = "the operator knows its jobs by the names that begin with modelchain.dev/"
            yield Finding(path, message, "choose another name", about)
        elif at[-1] == "labels" and key in _SET_BY_US:
            yield Finding(path, "this label is set by the operator", _SET_BY_US[key], about)
        elif not _is_qualified_name(key):
            message = f"{quoted(key)} is no name that Kubernetes allows"
            yield Finding(path, message, "write name or example.com/name, 63 characters at most", about)


def _is_qualified_name(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name):
        return False
    return not slash or (len(prefix) <= _LONGEST_PREFIX and _PREFIX.fullmatch(prefix) is not None)
