"""The commands for a cluster do what their pages say: helm, kubectl and the operator, on the tests' control plane.

What the control plane has not is put in its place: pods of jobs run as processes of this machine (tests/control_plane),
the operator's Deployment as a process, SeaweedFS beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control_plane import binaries
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.docs.console import Console
from tests.docs.markdown import DOCS, Block, blocks, pages
from tests.docs.test_commands import is_for_a_cluster, is_run
from tests.operator.operator_process import OperatorProcess
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400), pytest.mark.xdist_group("control-plane")]

FIRST = DOCS / "quickstart-cluster.md"  # the other pages look at the chain that it leaves


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A cluster with PyTorchJobs, and without ModelChain."""
    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def console(plane: ControlPlane, seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[Console]:
    """A terminal whose kubectl and helm know that cluster."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, path in (("helm", binaries.path("helm")), ("kubectl", binaries.kubectl())):
        (programs / name).symlink_to(path)
    runner = PodRunner(plane, tmp_path / "pods")
    operator = OperatorProcess(plane.kubeconfig, None, tmp_path / "operator.log")
    console = Console(
        tmp_path,
        environment={"KUBECONFIG": str(plane.kubeconfig)},
        programs=programs,
        replaced={
            "http://seaweedfs.default:8333": seaweedfs.endpoint_url,
            "http://localhost:8333": seaweedfs.endpoint_url,
            "demo-access-key": ACCESS_KEY,
            "demo-secret-key": SECRET_KEY,
            "NAMESPACE": "default",
            "CHAIN": "digits",
            "STAGE": "small",
        },
    )
    console.after("helm install", operator.start)
    console.before("helm uninstall", operator.kill)
    runner.start()
    yield console
    console.stop()
    operator.kill()
    runner.close()


def for_a_cluster() -> list[Block]:
    """The blocks for a cluster of all pages, in the order of a reader who tries everything."""
    ordered = sorted(pages(), key=lambda page: (page != FIRST, page))
    found = [block for page in ordered for block in blocks(page) if _is_read(page, block)]
    return sorted(found, key=lambda block: "last" in block.checks)


def _is_read(page: Path, block: Block) -> bool:
    return (page == FIRST and block.title is not None) or is_for_a_cluster(block)


def test_the_commands_for_a_cluster_print_what_the_pages_show(console: Console) -> None:
    found = for_a_cluster()
    assert len(found) > 10
    for block in found:
        console.read(block, is_run)
    console.close()
