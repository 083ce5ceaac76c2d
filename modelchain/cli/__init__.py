"""The command line: one file a command, each with `register(subparsers)` and `run(arguments) -> exit code`.

May import: all of modelchain. A command imports what it works with inside `run`, so that every command starts
quickly. An error that a user can fix ends in one line on stderr and an exit code of `modelchain.errors`, never in a
traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol, cast

from modelchain import __version__
from modelchain.cli.options import add_cluster_options, names_a_cluster, program
from modelchain.errors import ExitCode, ModelChainError
from modelchain.text import without_controls

COMMANDS = ("validate", "plan", "run", "status", "explain", "logs", "report", "models", "samples", "prune")


class Command(Protocol):
    """The interface of a command's module."""

    def register(self, subparsers: argparse._SubParsersAction[Any]) -> None:
        """Add the command's parser, with `set_defaults(run=run)`. Imports nothing heavy."""
        ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the command's exit code, or the error's."""
    parser = build_parser()
    try:
        parsed = parser.parse_args(arguments)
        if names_a_cluster(parsed) and not vars(parsed).get("reads_cluster"):
            parser.error("-n, --context and --kubeconfig are for commands that look into a cluster")
    except SystemExit as ending:  # --help, --version, usage
        return ending.code if isinstance(ending.code, int) else int(ExitCode.OK)
    try:
        return int(parsed.run(parsed))
    except ModelChainError as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"error: {without_controls(line)}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # `modelchain plan chain.yaml | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if SIGPIPE had ended us


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog=program(),
        description="Pre-train a family of models as one chain: each model grows out of its predecessor.",
        epilog="Exit codes: 0 done, 64 wrong usage, 65 bad data, 66 a missing input, 130 interrupted; "
        "64 to 78 mean that trying again can't help.",
    )
    parser.add_argument("--version", action="version", version=f"modelchain {__version__}")
    add_cluster_options(parser, default=None)  # `kubectl modelchain -n research status`
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        cast("Command", import_module(f"modelchain.cli.{command}")).register(subparsers)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose usage errors end with the exit code of wrong usage (sysexits.h)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"error: {message}; see {self.prog} --help\n")
