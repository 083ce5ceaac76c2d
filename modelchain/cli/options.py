"""What commands share: how the program is called, and the flags that select a cluster."""

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
    """kubectl's flags that say where a chain is; they may be given before the command or after it.

    Only the main parser gives a `default`: one of a command's parser would overwrite what was given before the command.
    """
    group = parser.add_argument_group("cluster", "as kubectl has them; KUBECONFIG counts too")
    group.add_argument("-n", "--namespace", default=default, help="namespace of the chain")
    group.add_argument("--context", default=default, help="context of the kubeconfig")
    group.add_argument("--kubeconfig", default=default, metavar="FILE", help="the kubeconfig to use")
    if default is argparse.SUPPRESS:
        parser.set_defaults(reads_cluster=True)


def names_a_cluster(arguments: argparse.Namespace) -> bool:
    """Whether a flag selects a cluster or a namespace."""
    return any(vars(arguments).get(flag) for flag in CLUSTER_FLAGS)


def names_a_chain(source: str, arguments: argparse.Namespace) -> bool:
    """Whether `source` is the name of a chain in the cluster, rather than a file.

    A name has no slash and no file extension. Where a file has that very name the file is meant, unless a flag
    selects a cluster.
    """
    if not _NAME.fullmatch(source) or source.endswith(_FILE_ENDINGS):
        return False
    return names_a_cluster(arguments) or not Path(source).is_file()
