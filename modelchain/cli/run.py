"""`modelchain run`: train a chain on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelchain.local.runner import Outcome
    from modelchain.resolved import ResolvedChain
    from modelchain.spec import ModelChain

SUMMARY = "train a chain on this machine"

EPILOG = """\
The same command goes on with a chain that was interrupted, from its latest checkpoint, and prints the result
of one that is finished. Ctrl-C stops at a checkpoint; a second Ctrl-C stops at once. Relative paths in the file
are relative to its folder.

Exit codes: 0 the chain is complete; 64 wrong usage; 65 bad data; 66 a missing input; 64 to 78 a permanent error: the
message says what to mend; 80 the chain is run by somebody else; 1 retries are used up; 130 and 143 stopped by
Ctrl-C or SIGTERM, go on with the same command.
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "run",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}: stage after stage, smallest model first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="the chain's YAML file")
    parser.add_argument("--chain", metavar="NAME", help="which chain, where the file holds several")
    parser.add_argument("--store", metavar="URI", help="keep artifacts here instead of in spec.store.uri")
    parser.add_argument(
        "--processes",
        type=_positive,
        metavar="N",
        help="processes that train together; default: one for each GPU, or one. The global batch stays the file's.",
    )
    parser.add_argument(
        "--micro-batch-size",
        type=_positive,
        metavar="N",
        help="samples of one forward pass of one process, instead of training.microBatchSize",
    )
    parser.add_argument(
        "--retrain-missing",
        action="store_true",
        help="train a finished stage again whose artifacts have vanished from the store",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("text", "json"),
        default="text",
        help="for people, or one JSON event a line",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train the chain to its end, or until stopped."""
    from modelchain.local.display import make_display
    from modelchain.local.runner import run_chain

    file = Path(arguments.file)
    chain = resolve_for(arguments, file)
    display = make_display(arguments.output, f"{chain.chain.namespace}/{chain.chain.name}")
    try:
        outcome = run_chain(
            chain,
            display=display,
            processes=arguments.processes,
            folder=file.resolve().parent,
            retrain_missing=arguments.retrain_missing,
        )
    finally:
        display.close()
    if arguments.output == "text":
        print(summary(chain, outcome, arguments.file))
    return outcome.exit_code


def resolve_for(arguments: argparse.Namespace, file: Path) -> ResolvedChain:
    """The chain of the file that was asked for, with the command line's settings in it."""
    from modelchain.resolve import resolve
    from modelchain.validation import load_chains

    chain = _chosen(load_chains(arguments.file), arguments.chain, arguments.file)
    if arguments.store:
        store = chain.spec.store.model_copy(update={"uri": _absolute(arguments.store)})
        chain = chain.model_copy(update={"spec": chain.spec.model_copy(update={"store": store})})
    resolved = resolve(chain, base=file.resolve().parent)
    if arguments.micro_batch_size is None:
        return resolved
    stages = tuple(
        stage.model_copy(
            update={
                "training": stage.training.model_copy(update={"micro_batch_size": arguments.micro_batch_size})
            }
        )
        for stage in resolved.stages
    )
    return resolved.model_copy(update={"stages": stages})


def summary(chain: ResolvedChain, outcome: Outcome, file: str) -> str:
    """What the run has come to, for people: each model, what it cost, and what to do next."""
    from modelchain.cli.table import Column, render
    from modelchain.cost import plan
    from modelchain.local.display import top1_text
    from modelchain.status import ChainPhase

    columns = (Column("STAGE"), Column("PHASE"), Column("TOP-1", right=True), Column("WEIGHTS"))
    rows = [
        (stage.name, str(stage.phase), top1_text(stage.metrics) or "-", stage.weights_uri or "-")
        for stage in outcome.status.stages
    ]
    lines = ["", render(columns, rows), ""]
    if outcome.status.phase is ChainPhase.COMPLETE:
        cost = plan(chain)
        share, cheaper = f"{100 * cost.cost_ratio:.1f} %", f"{cost.speedup:.2f}x"
        lines += [
            f"Compute: {share} of training {cost.largest.name} alone; {cheaper} cheaper than the whole family alone.",
            f"See how it went: modelchain report {file}",
        ]
    elif outcome.status.phase is ChainPhase.FAILED:
        lines.append(f"The chain failed: {outcome.status.message}")
        if outcome.log is not None:
            lines.append(f"Log of the last attempt: {outcome.log}")
    else:
        lines.append(f"Stopped. Go on with: modelchain run {file}")
    return "\n".join(lines)


def _chosen(chains: list[ModelChain], name: str | None, file: str) -> ModelChain:
    from modelchain.errors import UserDataError

    names = ", ".join(chain.metadata.name for chain in chains)
    if name is None and len(chains) > 1:
        raise UserDataError(f"{file} holds several chains ({names}); say which one with --chain NAME")
    for chain in chains:
        if name in (None, chain.metadata.name):
            return chain
    raise UserDataError(f"{file} holds no chain named {name!r}; it holds {names}")


def _absolute(uri: str) -> str:
    """A path on the command line is relative to where the command runs, not to the chain's file."""
    return uri if "://" in uri else str(Path(uri).resolve())


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
