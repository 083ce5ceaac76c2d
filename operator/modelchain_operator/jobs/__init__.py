"""Jobs on a cluster: manifests of the kinds of job that can train a stage, and what is to be seen of them.

Values in, values out: nothing here asks the API server. May import modelchain and the operator's kinds, labels
and Object. `backend` is the seam that a kind of job fills, `registry` knows them all.
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
