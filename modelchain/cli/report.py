"""`modelchain report`: what a chain's artifacts say, as one HTML page and PNGs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelchain.report.data import ChainArtifacts
    from modelchain.resolved import ResolvedStore

SUMMARY = "write a page on what a chain cost and how good its models are"
FOLDER = Path("reports")

_NAME = re.compile(r"([a-z0-9][-a-z0-9]*)/([a-z0-9][-a-z0-9.]*)")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}: report.html, which needs nothing beside it, and the plots as "
        "PNGs. Everything is read from the store, so the chain may have run elsewhere, or still be running.",
        epilog="Exit codes: 0 written, 65 the chain is not valid, 66 no such file, or nothing has started.",
    )
    parser.add_argument(
        "chain", help="the chain's YAML file ('-' for standard input); with --store also NAMESPACE/NAME"
    )
    parser.add_argument(
        "--store",
        metavar="URI",
        help="read from this store: s3://bucket/prefix or a folder; default: the file's",
    )
    parser.add_argument(
        "--endpoint-url", metavar="URL", help="S3 endpoint of --store; default: the file's, or AWS"
    )
    parser.add_argument("--region", help="S3 region of --store")
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="CHAIN",
        help="runs that trained models of the chain alone, each as a chain of one stage: a file, or with "
        "--store NAMESPACE/NAME; they are drawn and counted beside the chain. May be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"where to write it; default: {FOLDER}/NAME of the chain",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write a report of each chain, and print where it is."""
    from datetime import UTC, datetime

    from modelchain.report.accounting import match_baselines
    from modelchain.report.page import make_report, write_report

    chains = list(_read(arguments.chain, arguments))
    baselines = [run for source in arguments.baseline for run in _read(source, arguments)]
    for chain in chains:
        report = make_report(chain, match_baselines(chain, baselines), datetime.now(UTC))
        folder = FOLDER / chain.name
        if arguments.output is not None:
            folder = arguments.output if len(chains) == 1 else arguments.output / chain.name
        print(write_report(report, folder))
    return 0


def _read(source: str, arguments: argparse.Namespace) -> Iterator[ChainArtifacts]:
    """What a store holds of the chains of a file, or of one that the store knows by name."""
    from modelchain.report.reading import read_chain, read_recorded_chain
    from modelchain.resolve import resolve
    from modelchain.resolved import ResolvedStore
    from modelchain.store import open_store
    from modelchain.validation import load_chains

    name = _NAME.fullmatch(source)
    if arguments.store and name and not Path(source).exists():
        store = open_store(_access(ResolvedStore(uri=arguments.store), arguments))
        yield read_recorded_chain(store, name[1], name[2])
        return
    for chain in load_chains(source):
        resolved = resolve(chain, base=Path(source).resolve().parent)  # as `modelchain run` does
        yield read_chain(open_store(_access(resolved.store, arguments)), resolved)


def _access(store: ResolvedStore, arguments: argparse.Namespace) -> ResolvedStore:
    """The store, as the command line has it."""
    wanted = {
        "uri": arguments.store,
        "endpoint_url": arguments.endpoint_url,
        "region": arguments.region,
    }
    return store.model_copy(update={key: value for key, value in wanted.items() if value})
