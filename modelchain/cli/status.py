"""`modelchain status`: how chains of a cluster stand, stage by stage."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from modelchain.cli.options import CLUSTER_EXIT_CODES, add_cluster_options
from modelchain.errors import ExitCode

if TYPE_CHECKING:
    from modelchain.cli.cluster import ClusterChain
    from modelchain.cli.table import Column
    from modelchain.spec import ModelChainSpec
    from modelchain.status import ChainStatus, Condition, StageStatus

SUMMARY = "show how a chain in the cluster stands, stage by stage; without a name, all chains"
WATCH_SECONDS = 3.0  # the operator writes progress at most every 15 s, everything else at once

_NONE = "-"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "status",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}. Reads the resource with kubectl, and nothing else.",
        epilog=f"Exit codes: 0 shown, {CLUSTER_EXIT_CODES}",
    )
    parser.add_argument("name", nargs="?", help="name of the chain; default: all of the namespace")
    parser.add_argument(
        "-A", "--all-namespaces", action="store_true", help="the chains of all namespaces, without a name"
    )
    parser.add_argument(
        "-w", "--watch", action="store_true", help="show it again whenever it changes, until Ctrl-C"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table", help="how to print the status"
    )
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the status of one chain or of all, once or again and again."""
    from modelchain.cli.cluster import Cluster
    from modelchain.errors import UsageError

    if arguments.name and arguments.all_namespaces:
        raise UsageError(f"{arguments.name}: a name and -A don't go together; say the namespace with -n")
    cluster = Cluster.of(arguments)

    def look() -> str:
        chains = (
            [cluster.chain(arguments.name)]
            if arguments.name
            else cluster.chains(everywhere=arguments.all_namespaces)
        )
        if arguments.output == "json":
            documents = [as_json(chain) for chain in chains]
            value = documents[0] if arguments.name else documents
            return json.dumps(value, indent=None if arguments.watch else 2)
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        if arguments.name:
            return as_text(chains[0], width=width)
        if not chains:
            return f"no chains in {'any namespace' if arguments.all_namespaces else cluster.where()}"
        return as_list(chains, now=time.time(), namespaces=arguments.all_namespaces, width=width)

    if arguments.watch:
        _watch(look, redraw=arguments.output == "table" and sys.stdout.isatty())
    else:
        print(look())
    return ExitCode.OK


def as_json(chain: ClusterChain) -> dict[str, object]:
    """The status for programs, as the resource has it; null before an operator has looked at the chain."""
    status = chain.status
    return {
        "namespace": chain.metadata.namespace,
        "name": chain.metadata.name,
        "uid": chain.metadata.uid,
        "generation": chain.metadata.generation,
        "status": status and status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def as_text(chain: ClusterChain, *, width: int | None) -> str:
    """One chain for people: a headline, a line for each stage, and notes on what somebody should know or do.

    `width`: columns of the terminal; None does not fold and leaves nothing out.
    """
    from modelchain.cli.table import Column
    from modelchain.reconcile.summary import duration
    from modelchain.status import ChainStatus, StagePhase, StageStatus

    spec = chain.read_spec()
    status = chain.status or ChainStatus()
    named = [StageStatus(name=stage.name) for stage in spec.stages] if spec is not None else []
    columns = (
        Column("STAGE"),
        Column("PHASE"),
        Column("ATTEMPT", right=True),
        Column("STEP", right=True),
        Column("SAMPLES/S", right=True),
        Column("LOSS", right=True),
        Column("TOP-1", right=True),
        Column("ETA", right=True),
    )

    def row(stage: StageStatus) -> tuple[str, ...]:
        running = stage.phase is StagePhase.RUNNING
        doing = stage.activity if running and stage.activity not in (None, "Training") else None
        loss = stage.loss.get("total")
        top1 = _top1(spec, stage)
        return (
            stage.name,
            doing or stage.phase.value,
            str(stage.attempt) if stage.attempt else _NONE,
            f"{stage.step or 0}/{stage.steps}" if stage.steps else _NONE,
            f"{stage.samples_per_second:,.0f}" if running and stage.samples_per_second is not None else _NONE,
            f"{loss:.3f}" if loss is not None else _NONE,
            f"{top1:.1%}" if top1 is not None else _NONE,
            duration(stage.eta_seconds) if running and stage.eta_seconds is not None else _NONE,
        )

    rows = [row(stage) for stage in (*(status.stages or named), *status.baselines)]
    table = _fitted(columns, rows, width, optional=("LOSS", "ATTEMPT", "SAMPLES/S"))
    notes = [_folded(note, width) for note in notes_of(chain)]
    return "\n".join([_folded(_headline(chain, status), width), "", table, *([""] if notes else []), *notes])


def as_list(
    chains: Sequence[ClusterChain], *, now: float, namespaces: bool = False, width: int | None
) -> str:
    """Several chains for people, a line each, in columns like those of `kubectl get modelchains`."""
    from modelchain.cli.table import Column
    from modelchain.reconcile.summary import duration
    from modelchain.status import ChainStatus
    from modelchain.times import from_rfc3339

    columns = (
        Column("NAMESPACE"),
        Column("NAME"),
        Column("PHASE"),
        Column("STAGE"),
        Column("PROGRESS", right=True),
        Column("ETA", right=True),
        Column("TOP-1", right=True),
        Column("SPEEDUP", right=True),
        Column("AGE", right=True),
    )

    def row(chain: ClusterChain) -> tuple[str, ...]:
        status, created = chain.status or ChainStatus(), chain.metadata.creation_timestamp
        return (
            chain.metadata.namespace,
            chain.metadata.name,
            "Deleting" if chain.metadata.deletion_timestamp else status.phase.value,
            status.stage or _NONE,
            status.columns.progress or _NONE,
            status.columns.eta or _NONE,
            status.columns.top1 or _NONE,
            status.columns.speedup_measured or _NONE,
            duration(now - from_rfc3339(created)) if created else _NONE,
        )

    rows, start = [row(chain) for chain in chains], 0 if namespaces else 1
    table = _fitted(columns[start:], [row[start:] for row in rows], width, optional=("SPEEDUP", "TOP-1"))
    notes = [
        _folded(f"{chain.full_name if namespaces else chain.metadata.name}: {note}", width)
        for chain in chains
        for note in _problems(chain)
    ]
    return "\n".join([table, *([""] if notes else []), *notes])


def notes_of(chain: ClusterChain) -> list[str]:
    """What the table does not say: what is wrong, why stages wait, and how their last attempts ended."""
    from modelchain.status import StageReason

    status = chain.status
    notes = _problems(chain)
    for stage in status.all_stages if status is not None else ():
        if stage.finished:
            continue
        text = f"stage {stage.name}: {stage.message}"
        waits_its_turn = stage.reason in (StageReason.PREDECESSOR_INCOMPLETE, StageReason.CHAIN_INCOMPLETE)
        if stage.message and not waits_its_turn and not any(text in note for note in notes):
            notes.append(text)
        ended = stage.last_ended
        if ended is not None and not any(ended.message and ended.message in note for note in notes):
            code = f", exit code {ended.exit_code}" if ended.exit_code is not None else ""
            counted = "" if ended.counted else ", not counted as a failure"
            why = f": {ended.message}" if ended.message else ""
            notes.append(
                f"stage {stage.name}: attempt {ended.attempt} ended ({ended.reason}{code}{counted}){why}"
            )
    return notes


def _problems(chain: ClusterChain) -> list[str]:
    """What somebody should look at."""
    from modelchain.status import ChainPhase

    status, metadata = chain.status, chain.metadata
    notes: list[str] = []
    if metadata.deletion_timestamp:
        notes.append("is being deleted: its jobs end, its artifacts stay in the store")
    if status is None:
        return [*notes, "no operator has looked at it yet; is one running, and does it watch this namespace?"]
    seen, generation = status.observed_generation, metadata.generation
    if seen is not None and generation is not None and seen < generation:
        notes.append(f"the last edit (generation {generation}) was not acted on yet (generation {seen} was)")
    for condition in status.conditions:
        if _is_problem(condition, status):
            texts = condition.message.split(" | ") if condition.reason == "Invalid" else [condition.message]
            name = condition.type if condition.status == "True" else f"not {condition.type}"
            notes += [f"{name} ({condition.reason}): {text}" for text in texts]
    if not status.conditions and status.message and status.phase is not ChainPhase.COMPLETE:
        notes.append(status.message)
    return notes


def _is_problem(condition: Condition, status: ChainStatus) -> bool:
    from modelchain.status import ChainPhase, ConditionType

    holds = condition.status == "True"
    match condition.type:
        case ConditionType.ACCEPTED:
            return not holds
        case ConditionType.PROGRESSING:  # where it does not move because of something, not because it is done
            at_rest = (ChainPhase.COMPLETE, ChainPhase.FAILED, ChainPhase.REFUSED)
            reported = any(
                other.type == ConditionType.ARTIFACTS_MISSING and other.status == "True"
                for other in status.conditions
            )
            return not holds and bool(condition.message) and status.phase not in at_rest and not reported
        case ConditionType.READY | ConditionType.COMPLETE | ConditionType.STALLED:
            return False  # they sum up what others say
        case ConditionType.BASELINE_COMPLETE:
            return condition.reason in ("RunsFailed", "NotMeasured", "ArtifactsMissing")
        case _:  # Failed, Unresponsive, ArtifactsMissing, Disrupted
            return holds


def _headline(chain: ClusterChain, status: ChainStatus) -> str:
    parts = [f"{chain.full_name}: {status.phase.value if chain.status else 'no status yet'}"]
    texts = status.columns
    if status.stage and texts.progress:
        parts.append(f"stage {status.stage} at {texts.progress}")
    if texts.eta:
        parts.append(f"{texts.eta} to go")
    if texts.top1:
        parts.append(f"top-1 {texts.top1}")
    if texts.speedup_measured:
        parts.append(f"{texts.speedup_measured} measured against training alone")
    elif texts.speedup_planned:
        parts.append(f"{texts.speedup_planned} planned against training alone")
    return ", ".join(parts)


def _top1(spec: ModelChainSpec | None, stage: StageStatus) -> float | None:
    """As in the operator's TOP-1 column; where the spec can't be read, of the first set in the metrics."""
    from modelchain.reconcile.summary import top1_on

    if spec is None:
        return next((value for name, value in stage.metrics.items() if name.endswith("/top1")), None)
    own = next((one.evaluation for one in spec.stages if one.name == stage.name), None)
    return top1_on(own if own is not None else spec.evaluation or (), stage.metrics)


def _fitted(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None, *, optional: Sequence[str]
) -> str:
    """The table; where it is wider than `width`, without as many `optional` columns as needed, in their order."""
    from modelchain.cli.table import render

    kept = list(range(len(columns)))
    table = render(columns, rows)
    for title in optional:
        if width is None or max(len(line) for line in table.splitlines()) <= width:
            break
        kept = [i for i in kept if columns[i].title != title]
        table = render([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
    return table


def _folded(text: str, width: int | None) -> str:
    """One line of text, wrapped for a terminal of `width` columns."""
    from modelchain.validation.problem import printable

    line = printable(text)
    if width is None:
        return line
    return textwrap.fill(line, max(width, 20), subsequent_indent="  ", break_on_hyphens=False)


def _watch(look: Callable[[], str], *, redraw: bool) -> None:
    """Poll until Ctrl-C. With `redraw` the text is drawn over the last one, else printed whenever it has changed."""
    shown = None
    for text in _looks(look):
        if redraw:
            screen = "".join(f"{line}\x1b[K\n" for line in text.splitlines())
            first = "\x1b[2J" if shown is None else ""
            print(f"{first}\x1b[H{screen}\x1b[J", end="", flush=True)
        elif text != shown:
            print(text, flush=True)
        shown = text


def _looks(look: Callable[[], str]) -> Iterator[str]:
    """What `look` returns, every few seconds. Raises if the first call fails; later a ClusterError is retried."""
    from modelchain.cli.kubectl import ClusterError

    yield look()
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            yield look()
        except ClusterError as error:
            print(f"error: {error}; trying again", file=sys.stderr)
