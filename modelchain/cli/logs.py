"""`modelchain logs`: the trainer's log of a chain in a cluster, found by stage and attempt instead of by pod."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelchain.cli.options import add_cluster_options, program
from modelchain.errors import MissingInputError, ModelChainError

if TYPE_CHECKING:
    from modelchain.cli.cluster import ClusterChain, Pod
    from modelchain.cli.kubectl import Kubectl

SUMMARY = "show the trainer's log of a chain in the cluster"
WAIT_SECONDS = 2.0

# How the kinds of jobs say which of its pods runs node 0, and so rank 0.
_REPLICA_TYPE = "training.kubeflow.org/replica-type"
_REPLICA_INDEX = "training.kubeflow.org/replica-index"
_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "logs",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}: that of rank 0's pod, of the newest attempt, of the stage that runs "
        "(else of the one that ran last).",
        epilog="Exit codes: 0 shown, 1 the log can't be had now, 66 no such chain, or no pod of it is left, 77 the "
        "cluster refuses it, 78 there is no kubectl, or no ModelChain in this cluster.",
    )
    parser.add_argument("name", help="name of the chain")
    parser.add_argument("--stage", help="of this stage")
    parser.add_argument("--attempt", type=_positive, metavar="N", help="of this attempt of the stage")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="wait for it to start, and go on as it is written"
    )
    parser.add_argument(
        "--previous-attempts",
        action="store_true",
        help="the logs of the stage's earlier attempts first, as far as their pods are left",
    )
    parser.add_argument(
        "--all-pods",
        action="store_true",
        help="of all nodes, each line with its pod, instead of rank 0's (so too where that one's pod is gone)",
    )
    parser.add_argument("--tail", type=_positive, metavar="N", help="only the last N lines of each pod")
    parser.add_argument("--since", metavar="DURATION", help="only what is newer, e.g. 10m")
    parser.add_argument("--timestamps", action="store_true", help="each line with its time")
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Have kubectl print the logs; returns its exit code."""
    from modelchain.cli.cluster import Cluster
    from modelchain.cluster_labels import CHAIN_UID

    cluster = Cluster.of(arguments)
    waiting = None
    while True:
        chain = cluster.chain(arguments.name)
        pods = cluster.pods(chain.metadata.namespace, f"{CHAIN_UID}={chain.metadata.uid}")
        try:
            chosen = choose(
                chain,
                attempts_of(pods),
                stage=arguments.stage,
                attempt=arguments.attempt,
                previous=arguments.previous_attempts,
            )
            reason = not_started(chosen[-1], chain.metadata.namespace)
        except NoPodYet as error:
            if not arguments.follow:
                raise
            chosen, reason = [], str(error)
        if not arguments.follow or reason is None:
            break
        if reason != waiting:
            print(f"waiting: {reason}", file=sys.stderr, flush=True)
            waiting = reason
        time.sleep(WAIT_SECONDS)
    for one in chosen[:-1]:
        try:
            show(cluster.kubectl, one, chain, arguments, titled=True)
        except ModelChainError as error:  # its pod may be gone by now
            print(f"error: {error}", file=sys.stderr)
    if reason is not None:
        from modelchain.cli.kubectl import ClusterError

        raise ClusterError(f"{reason}; -f waits for it")
    return show(
        cluster.kubectl, chosen[-1], chain, arguments, titled=len(chosen) > 1, follow=arguments.follow
    )


class NoPodYet(MissingInputError):  # noqa: N818  named for what it is about
    """There is no pod yet, but one is expected."""


@dataclass(frozen=True)
class Attempt:
    """The pods of one attempt of a stage, rank 0's first; of a pod that was made again, the newest."""

    stage: str
    number: int
    pods: tuple[Pod, ...]

    @property
    def created(self) -> str:
        """When its newest pod was made, RFC 3339."""
        return max(pod.metadata.creation_timestamp or "" for pod in self.pods)

    @property
    def has_rank_0(self) -> bool:
        """Whether rank 0's pod is left, whose log says most."""
        return node_of(self.pods[0]) == 0


def attempts_of(pods: Sequence[Pod]) -> list[Attempt]:
    """Pods of one chain by stage and attempt, the oldest first."""
    from modelchain.cluster_labels import ATTEMPT, STAGE

    newest: dict[tuple[str, int], dict[int, Pod]] = {}
    for pod in sorted(pods, key=lambda pod: (pod.metadata.creation_timestamp or "", pod.metadata.name)):
        stage, number = pod.metadata.labels.get(STAGE), pod.metadata.labels.get(ATTEMPT, "")
        if stage and number.isascii() and number.isdigit():
            newest.setdefault((stage, int(number)), {})[node_of(pod)] = pod
    attempts = [
        Attempt(stage, number, tuple(pod for _, pod in sorted(by_node.items())))
        for (stage, number), by_node in newest.items()
    ]
    return sorted(attempts, key=lambda one: (one.created, one.stage, one.number))


def node_of(pod: Pod) -> int:
    """Which node of the job a pod is; 0 holds rank 0."""
    labels, annotations = pod.metadata.labels, pod.metadata.annotations
    if _REPLICA_TYPE in labels:
        index = _number(labels.get(_REPLICA_INDEX))
        return index if labels[_REPLICA_TYPE].lower() == "master" else 1 + index
    return _number(labels.get(_COMPLETION_INDEX) or annotations.get(_COMPLETION_INDEX))


def choose(
    chain: ClusterChain,
    attempts: Sequence[Attempt],
    *,
    stage: str | None = None,
    attempt: int | None = None,
    previous: bool = False,
) -> list[Attempt]:
    """The attempts to show, the one that is asked for last.

    Raises MissingInputError, which says what there is instead, if no pod is left; NoPodYet, if one will come.
    """
    if stage is not None:
        _require_stage(chain, stage)
    name = stage or _current_stage(chain, attempts)
    of_stage = sorted((one for one in attempts if one.stage == name), key=lambda one: one.number)
    wanted = of_stage[-1].number if of_stage and attempt is None else attempt
    found = [one for one in of_stage if one.number == wanted]
    if not found:
        raise nothing_left(chain, name, attempt, [one.number for one in of_stage])
    earlier = [one for one in of_stage if one.number < found[0].number] if previous else []
    return earlier + found


def nothing_left(
    chain: ClusterChain, name: str | None, attempt: int | None, there: Sequence[int]
) -> MissingInputError:
    """Why there is no log, and where else to look. `there`: attempts of the stage that still have pods."""
    from modelchain.status import StagePhase

    status, head, namespace = chain.status, f"chain {chain.full_name}", chain.metadata.namespace
    look = f"see `{program()} status {chain.metadata.name} -n {namespace}`"
    report = f"what was measured is in the store: `{program()} report {chain.metadata.name} -n {namespace}` shows it"
    if status is None:
        return NoPodYet(f"{head}: no operator has looked at it yet, so nothing runs; is one running?")
    stage = status.find_stage(name) if name is not None else None
    if stage is None:
        return NoPodYet(f"{head}: nothing of it has started yet ({status.message or status.phase}); {look}")
    head = f"{head}, stage {stage.name}"
    if stage.phase is StagePhase.CACHED:
        return MissingInputError(f"{head}: not trained here, its weights were in the store already; {report}")
    if stage.attempt == 0 and not stage.finished:
        return NoPodYet(f"{head}: it has not started yet ({stage.message or stage.phase}); {look}")
    if attempt is not None and attempt > stage.attempt:
        return MissingInputError(f"{head}: there was no attempt {attempt}, the last is {stage.attempt}")
    wanted = attempt or stage.attempt
    if wanted > stage.last_ended_attempt and not stage.finished and stage.phase is not StagePhase.FAILED:
        return NoPodYet(
            f"{head}: attempt {wanted} has no pod yet ({stage.message or stage.reason or stage.phase}); {look}"
        )
    ended = stage.last_ended
    why = ""
    if ended is not None and ended.attempt == wanted and not stage.finished:
        why = f" (it ended: {ended.reason}: {ended.message})"
    left = f"those of attempt {', '.join(map(str, there))} are; " if there else ""
    return MissingInputError(f"{head}: the pods of attempt {wanted} are gone{why}; {left}{report}")


def not_started(attempt: Attempt, namespace: str) -> str | None:
    """Why rank 0's pod has no log yet; None if it has one."""
    pod = attempt.pods[0]
    if pod.status.phase != "Pending":
        return None
    states = [
        one.state.waiting for one in (*pod.status.init_container_statuses, *pod.status.container_statuses)
    ]
    waits = [
        f"{state.reason}: {state.message}" if state.message else state.reason for state in states if state
    ]
    said = [one.message for one in pod.status.conditions if one.status == "False" and one.message]
    reason = next((text for text in (*waits, *said) if text), "it waits for a node")
    name = pod.metadata.name
    return f"pod {name} has not started: {reason} (see `kubectl describe pod {name} -n {namespace}`)"


def show(
    kubectl: Kubectl,
    attempt: Attempt,
    chain: ClusterChain,
    arguments: argparse.Namespace,
    *,
    titled: bool,
    follow: bool = False,
) -> int:
    """Have kubectl print the log of an attempt; returns its exit code. Raises as `Kubectl.show`."""
    every = arguments.all_pods or not attempt.has_rank_0
    names = [pod.metadata.name for pod in attempt.pods]
    if not attempt.has_rank_0:
        where = f"stage {attempt.stage}, attempt {attempt.number}"
        print(
            f"{where}: rank 0 has no pod (any more); shown are {', '.join(names)}",
            file=sys.stderr,
            flush=True,
        )
    if titled:
        pods = "all pods" if every else names[0]
        print(f"==> stage {attempt.stage}, attempt {attempt.number}, {pods} <==", flush=True)
    return kubectl.show(*log_arguments(attempt, chain, arguments, follow=follow))


def log_arguments(
    attempt: Attempt, chain: ClusterChain, arguments: argparse.Namespace, *, follow: bool
) -> list[str]:
    """What kubectl is asked for."""
    from modelchain.cluster_labels import ATTEMPT, CHAIN_UID, STAGE

    tail = arguments.tail
    if arguments.all_pods or not attempt.has_rank_0:
        labels = {CHAIN_UID: chain.metadata.uid, STAGE: attempt.stage, ATTEMPT: str(attempt.number)}
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        what = ["-l", selector, "--prefix", f"--max-log-requests={max(5, len(attempt.pods))}"]
        tail = tail or -1  # by a selector kubectl shows ten lines unless told otherwise
    else:
        what = [attempt.pods[0].metadata.name]
    return [
        "logs",
        *what,
        *("-n", chain.metadata.namespace, "-c", _container(attempt)),
        *(["-f"] if follow else []),
        *([f"--tail={tail}"] if tail is not None else []),
        *([f"--since={arguments.since}"] if arguments.since else []),
        *(["--timestamps"] if arguments.timestamps else []),
    ]


def _container(attempt: Attempt) -> str:
    """The trainer's: some kinds of job ask for another name."""
    from modelchain.cluster_labels import CONTAINER, CONTAINERS

    names = (one.name for pod in attempt.pods for one in pod.status.container_statuses)
    return next((name for name in names if name in CONTAINERS), CONTAINER)


def _current_stage(chain: ClusterChain, attempts: Sequence[Attempt]) -> str | None:
    """The stage that runs; else the one that ran last; else the one that is worked on."""
    from modelchain.status import StagePhase

    status = chain.status
    running = (
        [stage.name for stage in status.all_stages if stage.phase is StagePhase.RUNNING] if status else []
    )
    if running:
        return status.stage if status is not None and status.stage in running else running[0]
    if attempts:
        return attempts[-1].stage
    started = [stage.name for stage in status.all_stages if stage.attempt] if status else []
    return started[-1] if started else status.stage if status else None


def _require_stage(chain: ClusterChain, name: str) -> None:
    from difflib import get_close_matches

    from modelchain.errors import UsageError

    spec = chain.read_spec()
    names = [stage.name for stage in spec.stages] if spec is not None else []
    names += (
        [stage.name for stage in chain.status.all_stages if stage.name not in names] if chain.status else []
    )
    if name not in names:
        near = get_close_matches(name, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"they are {', '.join(names)}"
        raise UsageError(f"--stage {name}: chain {chain.full_name} has no such stage; {remedy}")


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
