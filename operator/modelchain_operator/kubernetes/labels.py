"""Labels and annotations of the objects that the operator creates, and annotations that users may put on a chain.

A job's labels and annotations are on its pods too.
"""

from modelchain.cluster_labels import ATTEMPT, CHAIN_UID, STAGE

__all__ = [
    "ATTEMPT",
    "CHAIN_ANNOTATION",
    "CHAIN_UID",
    "DIGEST",
    "DIGEST_ANNOTATION",
    "QUEUE",
    "QUEUE_PRIORITY",
    "REQUEST_ANNOTATION",
    "RETRAIN_MISSING_ANNOTATION",
    "STAGE",
]

DIGEST = "modelchain.dev/digest"  # first 16 hexadecimal digits of the stage's digest

# Kueue's, on a job. https://kueue.sigs.k8s.io/docs/reference/labels-and-annotations/
QUEUE = "kueue.x-k8s.io/queue-name"
QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"

DIGEST_ANNOTATION = "modelchain.dev/stage-digest"  # all 64
CHAIN_ANNOTATION = "modelchain.dev/chain"  # namespace/name
REQUEST_ANNOTATION = (
    "modelchain.dev/request"  # on a job: which edit of the chain it was made from, by digests
)

# On a chain: any new value asks once to retrain what was complete and has vanished from the store.
RETRAIN_MISSING_ANNOTATION = "modelchain.dev/retrain-missing"
