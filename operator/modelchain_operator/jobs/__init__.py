"""Jobs on a cluster: manifests of the kinds of job that can train a stage, and what is to be seen of them.

Values in, values out: nothing here asks the API server. May import modelchain and the operator's kinds, labels
and Object.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from modelchain.spec import JobBackend
from modelchain_operator.jobs.indexed_job import IndexedJobBackend
from modelchain_operator.jobs.pytorchjob import PyTorchJobBackend
from modelchain_operator.jobs.request import Backend, JobDefaults, JobRequest

__all__ = ["BACKENDS", "Backend", "JobDefaults", "JobRequest"]

BACKENDS: Mapping[JobBackend, Backend] = MappingProxyType(
    {JobBackend.PYTORCH_JOB: PyTorchJobBackend(), JobBackend.JOB: IndexedJobBackend()}
)
