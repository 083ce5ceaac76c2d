"""What to do where the API server refuses a job, its pods or what is between them: by the words of the refusal."""

from __future__ import annotations

import re

from modelchain.text import one_line

MAX_REFUSAL = 700  # characters, so that the remedy has room in a status
INIT_CONTAINER = "init-pytorch"  # the training operator's, in the pods of workers
# With the webhook's name and address, under status 500.
WEBHOOK_AWAY = "failed calling webhook"

# Of Kubernetes' own admission: https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/
_REMEDIES = (
    (WEBHOOK_AWAY, "start the controller behind that Service, or find out why it does not answer"),
    ("exceeded quota", "raise the ResourceQuota, or ask for less in spec.job"),
    (
        f"violates PodSecurity.*{INIT_CONTAINER}",
        "give the training operator an init container that passes: docs/operator.md, Pod Security",
    ),
    ("violates PodSecurity", "change spec.job.podTemplate, or the namespace's Pod Security level"),
    (
        "no PriorityClass with name",
        "create it, or correct spec.job.priorityClassName (kubectl get priorityclasses)",
    ),
    ("error looking up service account", "create it, or correct spec.job.serviceAccountName"),
    ("RuntimeClass .* not found", "create it, or correct runtimeClassName in spec.job.podTemplate"),
    (
        r'Job\.batch "\S+-node-0" is invalid',  # of a TrainJob
        "correct spec.job, or the runtime, which needs a replicated job node with a container node (docs/backends.md)",
    ),
    (r"(usage|ratio) per \w+ is", "change the namespace's LimitRange, or spec.job.resources"),
)


def find_remedy(message: str) -> str:
    """What to do about a refusal; empty if its message says so itself."""
    return next((remedy for words, remedy in _REMEDIES if re.search(words, message, re.DOTALL)), "")


def with_remedy(message: str, remedy: str) -> str:
    """Both, short enough for a status. A long message keeps its beginning, which says who refuses, and its end, which
    says why: between them, an API server repeats the value that is refused.
    """
    text = one_line(message)
    if len(text) > MAX_REFUSAL:
        half = (MAX_REFUSAL - len(" ... ")) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return f"{text}; {remedy}" if remedy else text
