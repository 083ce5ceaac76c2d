"""`modelchain report`: what a chain's artifacts say, as one HTML page and PNGs."""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelchain.cli.options import add_cluster_options, names_a_chain
from modelchain.errors import ModelChainError

if TYPE_CHECKING:
    from modelchain.cli.cluster import Cluster, ClusterChain
    from modelchain.report.data import ChainArtifacts
    from modelchain.resolved import ResolvedStore
    from modelchain.spec import BundleReference

SUMMARY = "write a page on what a chain cost and how good its models are"
FOLDER = Path("reports")

_NAME = re.compile(r"([a-z0-9][-a-z0-9]*)/([a-z0-9][-a-z0-9.]*)")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "report",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}: report.html, which needs nothing beside it, and the plots as "
        "PNGs. Everything is read from the store, so the chain may have run elsewhere, or still be running. Of a "
        "chain in the cluster, spec and status come from there. The store is read with your own "
        "credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE ...); no Secret is ever read.",
        epilog="Exit codes: 0 written, 65 the chain is not valid, 66 no such file or chain, or nothing has started, "
        "77 the store or the cluster refuses it, 78 there is no kubectl, or no ModelChain in this cluster.",
    )
    parser.add_argument(
        "chain",
        help="the chain's YAML file ('-' for standard input), or its name in the cluster; with --store also "
        "NAMESPACE/NAME",
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
        "--ca-bundle",
        metavar="FILE",
        help="the certificate authority of the S3 endpoint; default: of a chain in the cluster, its ConfigMap's",
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        metavar="CHAIN",
        help="runs that trained models of the chain alone, each as a chain of one stage: a file, a name in the "
        "cluster, or with --store NAMESPACE/NAME; they are drawn and counted beside the chain. May be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"where to write it; default: {FOLDER}/NAME of the chain",
    )
    add_cluster_options(parser)
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
    if names_a_chain(source, arguments):
        yield _read_from_cluster(source, arguments)
        return
    for chain in load_chains(source):
        resolved = resolve(chain, base=Path(source).resolve().parent)  # as `modelchain run` does
        yield read_chain(open_store(_access(resolved.store, arguments)), resolved)


def _read_from_cluster(name: str, arguments: argparse.Namespace) -> ChainArtifacts:
    from modelchain.cli.cluster import Cluster, find_chain
    from modelchain.report.reading import read_chain
    from modelchain.resolve import resolve
    from modelchain.store import open_store

    found = find_chain(name, arguments)
    chain = found.to_model_chain()
    resolved = resolve(chain)
    with _certificates(found, chain.spec.store.ca_bundle_ref, Cluster.of(arguments)) as bundle:
        access = _access(resolved.store.model_copy(update={"ca_bundle": bundle}), arguments)
        try:
            return read_chain(open_store(access), resolved, status=found.status)
        except ModelChainError as error:
            secret = chain.spec.store.secret_ref
            hint = _hint(error, access, secret.name if secret else None)
            raise type(error)(f"{error}{hint}") from None


@contextmanager
def _certificates(
    chain: ClusterChain, reference: BundleReference | None, cluster: Cluster
) -> Iterator[str | None]:
    """The store's certificate authority as a file. None where it is in a Secret, which is not read, or its ConfigMap
    can't be read: this machine may trust the authority already.
    """
    entry = None
    if reference is not None and reference.kind == "ConfigMap":
        with suppress(ModelChainError):
            entry = cluster.config_map_entry(chain.metadata.namespace, reference.name, reference.key)
    if entry is None:
        yield None
        return
    with tempfile.NamedTemporaryFile("w", suffix=".crt") as file:
        file.write(entry)
        file.flush()
        yield file.name


def _hint(error: ModelChainError, store: ResolvedStore, secret: str | None) -> str:
    """What to check where the store of a chain in a cluster can't be read from here, to be appended to the error."""
    from modelchain.store import Forbidden, StoreUnavailable

    if store.uri.startswith(("file:", "/")):
        return ". This folder was looked for on this machine: copy it here from the cluster and name it with --store"
    if isinstance(error, Forbidden):
        theirs = f", not with those of the Secret {secret}" if secret else ", not with the chain's"
        return f". The store is read with your own credentials{theirs}"
    host = urlsplit(store.endpoint_url or "").hostname or ""
    inside = host.endswith((".svc", ".cluster.local")) or (
        host != "" and "." not in host and host != "localhost"
    )
    if isinstance(error, StoreUnavailable) and inside:
        return (
            f". {host} looks like a name inside of the cluster: reach it with `kubectl port-forward`, and give "
            "--endpoint-url"
        )
    return ""


def _access(store: ResolvedStore, arguments: argparse.Namespace) -> ResolvedStore:
    """The store, with what the command line overrides."""
    wanted = {
        "uri": arguments.store,
        "endpoint_url": arguments.endpoint_url,
        "region": arguments.region,
        "ca_bundle": arguments.ca_bundle,
    }
    return store.model_copy(update={key: value for key, value in wanted.items() if value})
