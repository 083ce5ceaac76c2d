"""`modelchain samples`: what to write under spec.data, where a shard index of webdataset says it."""

from __future__ import annotations

import argparse
import json

from modelchain.errors import ExitCode

SUMMARY = "print data.shards and data.samples out of a shard index of webdataset (wids)"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "samples",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}, as `widsindex create` makes one. No shard is opened: the trainer holds "
        "the number against the shards when a stage starts. Paths are printed as seen from the current folder; "
        "a chain reads them as seen from its own file.",
        epilog="Exit codes: 0 done, 65 it is no such index, 66 there is no such file.",
    )
    parser.add_argument(
        "index",
        help="a path or a URI of a JSON file; its relative addresses lie beside it, as wids takes them",
    )
    parser.add_argument("--endpoint-url", help="of an s3:// URI: its server, as in store.endpointUrl")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a block for a chain's file."""
    from modelchain.resolved import ResolvedStore
    from modelchain.shards import compact
    from modelchain.wids import read_index

    index = read_index(arguments.index, ResolvedStore(uri="", endpoint_url=arguments.endpoint_url))
    patterns = compact(index.shards)  # may raise: nothing is printed before
    print("data:\n  shards:")
    for pattern in patterns:
        print(f"    - {json.dumps(pattern, ensure_ascii=False)}")
    print(f"  samples: {index.samples}")
    return ExitCode.OK
