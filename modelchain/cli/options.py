"""What commands share on the command line: how the program is called, and which cluster is meant."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path, PurePath

CLUSTER_FLAGS = ("namespace", "context", "kubeconfig")
CLUSTER_EXIT_CODES = (
    "1 the cluster does not answer, 66 no such chain, 77 the cluster refuses it, 78 there is no kubectl, or no "
    "ModelChain in this cluster."
)

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_FILE_ENDINGS = (".yaml", ".yml", ".json")


def program() -> str:
    """What the user types: `kubectl modelchain` where kubectl started us as its plugin."""
    return "kubectl modelchain" if PurePath(sys.argv[0]).name == "kubectl-modelchain" else "modelchain"


def add_cluster_options(parser: argparse.ArgumentParser, *, default: object = argparse.SUPPRESS) -> None:
    """The flags of kubectl that say where a chain is; they may stand before the command as well as behind it.

    Only the parser of all commands gives a `default`: that of a command would hide what stood before it.
    """
    group = parser.add_argument_group("cluster", "as kubectl has them; KUBECONFIG counts too")
    group.add_argument("-n", "--namespace", default=default, help="namespace of the chain")
    group.add_argument("--context", default=default, help="context of the kubeconfig")
    group.add_argument("--kubeconfig", default=default, metavar="FILE", help="the kubeconfig to use")
    if default is argparse.SUPPRESS:
        parser.set_defaults(reads_cluster=True)


def names_a_cluster(arguments: argparse.Namespace) -> bool:
    """Whether a flag says which cluster or which namespace."""
    return any(vars(arguments).get(flag) for flag in CLUSTER_FLAGS)


def names_a_chain(source: str, arguments: argparse.Namespace) -> bool:
    """Whether `source` is the name of a chain in the cluster, rather than a file.

    A name has no slash and no ending of a file. Where a file has that very name the file is meant, unless a flag
    for the cluster is given.
    """
    if not _NAME.fullmatch(source) or source.endswith(_FILE_ENDINGS):
        return False
    return names_a_cluster(arguments) or not Path(source).is_file()
