"""Chains for a queue, and what tests wait for of them."""

from __future__ import annotations

from modelchain.commit import list_checkpoints
from tests.operator.chains import ClusterChain
from tests.operator.kueue.queues import Queues
from tests.operator.operator_process import OperatorProcess
from tests.processes import wait_until


def queued_chain(chain: ClusterChain, backend: str = "PyTorchJob", *, stages: int = 1, **job: object) -> None:
    """Of so many stages, which ask for a tenth of a CPU in queue `research`."""
    chain.document["spec"]["stages"] = chain.document["spec"]["stages"][:stages]
    chain.document["spec"]["job"] |= {"backend": backend, "queueName": "research", **job}
    if backend == "TrainJob":  # its runtime's
        del chain.document["spec"]["job"]["terminationGracePeriodSeconds"]


def queue_behind_others(chain: ClusterChain, operator: OperatorProcess, queues: Queues, backend: str) -> None:
    """Such a chain of one stage, in a queue whose quota job `others` has. Returns when it says that it waits for it."""
    queues.quota("150m")
    queues.occupy("others", "100m")
    wait_until(lambda: queues.is_running("others"), "others have the quota", pause=0.3)
    queued_chain(chain, backend)
    operator.start()
    chain.apply()
    wait_for_message(chain, "insufficient unused quota for cpu")


def wait_for_message(chain: ClusterChain, text: str) -> None:
    """Until condition Progressing says this."""
    wait_until(
        lambda: text in chain.condition("Progressing").get("message", ""),
        f"the chain says {text!r}: {chain.condition('Progressing')}, {chain.stage('tiny')}",
        pause=0.3,
    )


def newest_checkpoint(chain: ClusterChain) -> int:
    """The step of the only stage's newest checkpoint."""
    stored = list_checkpoints(chain.store, chain.resolved().stages[0].folder)
    return max((checkpoint.step for checkpoint in stored if checkpoint.finished), default=0)


def wait_until_taken_back(chain: ClusterChain) -> None:
    """Until the pods of the chain are asked to go."""
    wait_until(
        lambda: all("deletionTimestamp" in pod["metadata"] for pod in chain.pods()),
        "its pod is taken back",
        pause=0.1,
    )
