"""`modelchain validate`: report all that is wrong with chain files, at once."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from modelchain.errors import ExitCode

if TYPE_CHECKING:
    from modelchain.validation import CheckedChain

SUMMARY = "say all that is wrong with a chain, and what to do about it"
SHORT_DIGEST = 8


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "validate",
        help=SUMMARY,
        description=f"{SUMMARY.capitalize()}. Reads the file as kubectl does; opens no store and no shard.",
        epilog="Exit codes: 0 all chains are valid, 65 one is not, 66 there is no such file.",
    )
    parser.add_argument("file", nargs="+", help="a chain's YAML file, '-' for standard input")
    parser.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to print the result"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check every document of every file."""
    from modelchain.validation import check_file

    checked = [(file, one) for file in arguments.file for one in check_file(file)]
    if arguments.output == "json":
        print(json.dumps(_as_json([one for _, one in checked]), indent=2))
    else:
        for file, one in checked:
            if one.chain is not None:
                print(_line(file, one))
            for problem in one.problems:
                print(f"error: {problem}", file=sys.stderr)
    return ExitCode.DATA if any(one.problems for _, one in checked) else ExitCode.OK


def _line(file: str, checked: CheckedChain) -> str:
    from modelchain.resolve import resolve

    assert checked.chain is not None
    resolved = resolve(checked.chain)
    stages = ", ".join(f"{stage.name} {stage.digest[:SHORT_DIGEST]}" for stage in resolved.stages)
    count = len(resolved.stages)
    return f"{file}: {resolved.chain.name} is valid: {count} stage{'s' * (count != 1)} ({stages})"


def _as_json(checked: list[CheckedChain]) -> dict[str, object]:
    from modelchain.resolve import resolve

    resolved = [resolve(one.chain) for one in checked if one.chain is not None]
    return {
        "valid": all(not one.problems for one in checked),
        "chains": [
            {
                "namespace": chain.chain.namespace,
                "name": chain.chain.name,
                "stages": [
                    {"name": stage.name, "model": stage.model, "digest": stage.digest, "folder": stage.folder}
                    for stage in chain.stages
                ],
            }
            for chain in resolved
        ],
        "problems": [
            {
                "document": problem.document,
                "line": problem.line,
                "path": problem.path,
                "message": problem.message,
                "remedy": problem.remedy,
            }
            for one in checked
            for problem in one.problems
        ],
    }
