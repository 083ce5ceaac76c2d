"""Jobs on a cluster: manifests of the kinds of job that can train a stage, and what their objects and pods show.

Pure: nothing here sends a request. May import kubernetes. `backend` is the interface that a kind of job implements,
`registry` lists them.
"""

from modelchain_operator.jobs.backend import Backend, kinds_of
from modelchain_operator.jobs.registry import BACKENDS, JOB_KINDS, backend_for, backend_of
from modelchain_operator.jobs.request import JobDefaults, JobRequest

__all__ = [
    "BACKENDS",
    "JOB_KINDS",
    "Backend",
    "JobDefaults",
    "JobRequest",
    "backend_for",
    "backend_of",
    "kinds_of",
]
