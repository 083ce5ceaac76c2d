"""`modelchain explain`: why a chain of a cluster waits or has failed, and what comes next."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import time

from modelchain.cli.options import CLUSTER_EXIT_CODES, add_cluster_options
from modelchain.errors import ExitCode

SUMMARY = "say why a chain in the cluster waits or has failed, what the operator will do, and what you can do"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "explain",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}. Reads the resource and its Events with kubectl, and nothing else.",
        epilog=f"Exit codes: 0 explained, {CLUSTER_EXIT_CODES}",
    )
    parser.add_argument("name", help="name of the chain")
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print one paragraph."""
    from modelchain.cli.cluster import Cluster
    from modelchain.explanation import Situation, explain
    from modelchain.validation.problem import printable

    cluster = Cluster.of(arguments)
    chain = cluster.chain(arguments.name)
    situation = Situation(
        name=chain.full_name,
        status=chain.status,
        generation=chain.metadata.generation,
        deleting=chain.metadata.deletion_timestamp is not None,
        warnings=cluster.warnings(chain.metadata),
    )
    text = printable(explain(situation, time.time()))
    if sys.stdout.isatty():
        width = max(20, shutil.get_terminal_size().columns)
        text = textwrap.fill(text, width, break_on_hyphens=False, break_long_words=False)
    print(text)
    return ExitCode.OK
