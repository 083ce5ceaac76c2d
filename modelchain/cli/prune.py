"""`modelchain prune`: delete from a store what no chain needs any more."""

from __future__ import annotations

import argparse
import json
import re

SUMMARY = "delete stages that no chain refers to, attempts that did not win, and old checkpoints"

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prune",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}, and unfinished uploads older than a day. Without --yes, lists them and "
        "deletes nothing. A chain is what the store's folder chains/ holds a file of: delete that file to give a "
        "chain up. A stage that somebody trains is never touched.",
    )
    parser.add_argument("store", metavar="STORE_URI", help="s3://bucket/prefix, file:///folder or a path")
    parser.add_argument("--yes", action="store_true", help="delete what is listed")
    parser.add_argument("--dry-run", action="store_true", help="list and delete nothing (the default)")
    parser.add_argument(
        "--min-age",
        type=_age,
        default="1d",
        metavar="AGE",
        help="touch nothing younger than this, e.g. 90s, 30m, 12h, 7d (default: 1d)",
    )
    parser.add_argument(
        "--even-without-chains",
        action="store_true",
        help="take every stage if the store knows no chain at all; without this, all are kept then",
    )
    parser.add_argument("--endpoint-url", help="S3 endpoint, e.g. http://minio:9000 (default: AWS)")
    parser.add_argument("--region", help="S3 region (default: from the environment)")
    parser.add_argument("--ca-bundle", help="file with the certificate authority of the S3 endpoint")
    parser.add_argument(
        "--allow-unconditional-writes",
        action="store_true",
        help="accept a store without conditional writes, as store.allowUnconditionalWrites does",
    )
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to print the result"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """List what can be deleted; with --yes, delete it."""
    import time

    from modelchain.commit import require_conditional_writes
    from modelchain.errors import ExitCode, UsageError
    from modelchain.prune import plan_prune, prune
    from modelchain.resolved import ResolvedStore
    from modelchain.store import open_store

    if arguments.yes and arguments.dry_run:
        raise UsageError("--yes and --dry-run exclude each other")
    risky = arguments.allow_unconditional_writes
    store = open_store(
        ResolvedStore(
            uri=arguments.store,
            endpoint_url=arguments.endpoint_url,
            region=arguments.region,
            ca_bundle=arguments.ca_bundle,
            allow_unconditional_writes=risky,
        )
    )
    plan = plan_prune(
        store,
        now=time.time(),
        min_age_seconds=arguments.min_age,
        without_chains=arguments.even_without_chains,
    )
    removed, kept, uploads = plan.removals, plan.kept, 0
    if arguments.yes:
        require_conditional_writes(store, accept_risk=risky)
        pruned = prune(store, plan, min_age_seconds=arguments.min_age)
        removed, kept, uploads = pruned.removed, (*plan.kept, *pruned.kept), pruned.uploads
    total = sum(removal.bytes for removal in removed)
    if arguments.output == "json":
        result = {
            "deleted": bool(arguments.yes),
            "bytes": total,
            "removals": [
                {"place": one.place, "reason": one.reason, "objects": len(one.keys), "bytes": one.bytes}
                for one in removed
            ],
            "kept": [{"place": one.place, "reason": one.reason} for one in kept],
            "unfinishedUploads": uploads,
        }
        print(json.dumps(result, indent=2))
        return ExitCode.OK
    for one in removed:
        print(f"{_size(one.bytes):>10}  {one.place}: {one.reason}")
    for one in kept:
        print(f"{'kept':>10}  {one.place}: {one.reason}")
    if uploads:
        print(f"{'':>10}  {uploads} unfinished uploads")
    if arguments.yes:
        print(f"Deleted {_size(total)} in {len(removed)} places of {store.uri}.")
    elif removed:
        print(
            f"{_size(total)} in {len(removed)} places of {store.uri} may go. Nothing was deleted; --yes deletes it."
        )
    else:
        print(f"Nothing in {store.uri} may go; stages in it: {plan.stages}.")
    return ExitCode.OK


def _age(text: str) -> float:
    match = _AGE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 90s, 30m, 12h or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def _size(number: int) -> str:
    """Bytes for people, in powers of 1000: 1500000 is '1.5 MB'."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable")
