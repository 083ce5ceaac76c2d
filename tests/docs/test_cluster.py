"""The commands for a cluster do what their pages say: helm, kubectl and the operator, on the tests' control plane.

What the control plane has not is put in its place: pods of jobs run as processes of this machine (tests/control_plane),
the operator's Deployment as a process, SeaweedFS beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control_plane import binaries
from tests.control_plane.kueue import Kueue
from tests.control_plane.plane import ControlPlane
from tests.control_plane.pods import PodRunner
from tests.control_plane.trainer import TrainerStack
from tests.docs.console import Console
from tests.docs.markdown import DOCS, Block, blocks, pages
from tests.docs.test_commands import is_for_a_cluster, is_run
from tests.operator.operator_process import OperatorProcess
from tests.seaweedfs import ACCESS_KEY, SECRET_KEY, SeaweedFS

pytestmark = pytest.mark.long

FIRST = DOCS / "quickstart-cluster.md"  # the other pages look at the chain that it leaves
TRAINJOB = DOCS / "quickstart-trainjob.md"  # on a cluster of its own, with the stack that it installs
QUEUED = (TRAINJOB, DOCS / "backends.md", DOCS / "kueue.md")  # the others look at the chain that it leaves


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    """A cluster with PyTorchJobs, and without ModelChain."""
    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@contextmanager
def terminal(plane: ControlPlane, seaweedfs: SeaweedFS, folder: Path) -> Iterator[Console]:
    """A terminal whose kubectl and helm know a cluster, in which pods run and `helm install` starts an operator."""
    programs = folder / "bin"
    programs.mkdir()
    for name, path in (("helm", binaries.path("helm")), ("kubectl", binaries.kubectl())):
        (programs / name).symlink_to(path)
    runner = PodRunner(plane, folder / "pods")
    operator = OperatorProcess(plane.kubeconfig, None, folder / "operator.log")
    console = Console(
        folder,
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
    try:
        yield console
    finally:
        console.stop()
        operator.kill()
        runner.close()


@pytest.fixture
def console(plane: ControlPlane, seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[Console]:
    """A terminal at a cluster with PyTorchJobs."""
    with terminal(plane, seaweedfs, tmp_path) as console:
        yield console


@pytest.fixture
def queued_console(plane: ControlPlane, seaweedfs: SeaweedFS, tmp_path: Path) -> Iterator[Console]:
    """A terminal at a cluster with TrainJobs and Kueue; the chart installs the runtime."""
    stack, kueue = TrainerStack(plane), Kueue(plane)
    try:
        stack.install(runtime=False)
        kueue.install()
        with terminal(plane, seaweedfs, tmp_path) as console:
            yield console
    finally:
        kueue.kill()
        stack.kill()


def for_a_cluster() -> list[Block]:
    """The blocks for a cluster of all pages, in the order of a reader who tries everything."""
    ordered = sorted(pages(), key=lambda page: (page != FIRST, page))
    found = [
        block for page in ordered if page not in QUEUED for block in blocks(page) if _is_read(page, block)
    ]
    return sorted(found, key=lambda block: "last" in block.checks)


def _is_read(page: Path, block: Block) -> bool:
    return (page in (FIRST, *QUEUED) and block.title is not None) or is_for_a_cluster(block)


def section(page: Path, *headings: str) -> Callable[[Block], bool]:
    """Whether a block stands below one of these headings."""
    lines, spans = page.read_text().splitlines(), []
    starts = [number for number, line in enumerate(lines, 1) if re.match("## ", line)]
    for begin, end in zip(starts, [*starts[1:], len(lines) + 1], strict=True):
        if lines[begin - 1].removeprefix("## ") in headings:
            spans.append(range(begin, end))
    assert len(spans) == len(headings), f"{page} has not all of {headings}"
    return lambda block: any(block.line in span for span in spans)


def test_the_commands_for_a_cluster_print_what_the_pages_show(console: Console) -> None:
    found = for_a_cluster()
    assert len(found) > 10
    for block in found:
        console.read(block, is_run)
    console.close()


def test_the_pages_on_trainjobs_and_kueue_print_what_they_show(queued_console: Console) -> None:
    is_store_or_data = section(FIRST, "A store", "Data")
    found = [block for block in blocks(FIRST) if is_store_or_data(block) and _is_read(FIRST, block)]
    found += [block for page in QUEUED for block in blocks(page) if _is_read(page, block)]
    for block in sorted(found, key=lambda block: "last" in block.checks):
        queued_console.read(block, is_run)
    queued_console.close()
