"""Every command of the documentation does what its page says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.docs.console import Console, pattern
from tests.docs.markdown import ROOT, SHELLS, Block, Command, blocks, indented_lines, pages

# What no test runs, and why. A command that is none of these is run, by the tests of this file or of
# test_cluster.py.
NOT_RUN = {
    r"git clone https://github\.com/modelchain/modelchain\b": "the tests run in the checkout that it makes",
    r"cd modelchain$": "as above",
    r"make [a-z0-9-]+( [A-Z0-9_]+=\S+)*$": "a test below knows every target; they are what runs the tests",
    r"\. \.venv/bin/activate$": "the tests run in this environment",
    r"kubectl apply --server-side -k .?github\.com/kubeflow/": "fetches from GitHub; the tests' control plane has the "
    "same release from its Go module",
    r"kubectl apply --server-side -f https://github\.com/kubernetes-sigs/kueue/": "as above",
    r"kubectl (-n \S+ )?port-forward ": "needs a kubelet, which the tests' control plane has not",
    r"kubectl (-n \S+ )?rollout status ": "needs a kubelet",
    r"kubectl (-n \S+ )?logs ": "needs a kubelet",
    r"kubectl modelchain (-n \S+ )?logs ": "needs a kubelet; tests/modelchain/cli/test_logs.py has one that is made up",
    r"kubectl (-n \S+ )?top ": "needs the metrics server",
    r"kubectl (-n \S+ )?get lease ": "the operator is a process here, without a Lease; tests/operator/test_replicas.py "
    "reads that of several",
    r"kubectl (-n \S+ )?get servicemonitor,": "needs the Prometheus operator's kinds",
    r"kubectl (-n \S+ )?patch deployment training-operator ": "that operator is a process here; "
    "tests/operator/test_restricted.py has one that was given the file",
    r"python -m modelchain_operator --default-image ": "runs until it is stopped; tests/operator starts it so",
    r"docker push ": "to a registry of the reader's",
    r"aws s3": "a program of its own, at a bucket of the reader's",
    r"python (-m benchmarks\.|benchmarks/)": "measures for minutes; the figures beside it name their machine",
}
FOR_A_CLUSTER = re.compile(r"(time )?(kubectl|helm) ")
COMMAND = re.compile(
    r"(kubectl|helm|make|modelchain|python3?|pip3?|uv|git|docker|buildah|aws|mc|weed|curl|export|\.venv/bin/\S+) "
)


def shell_blocks() -> list[Block]:
    """Every block of the documentation that holds commands."""
    return [block for page in pages() for block in blocks(page) if block.language in SHELLS]


def is_run(command: Command) -> bool:
    """Whether a test runs it."""
    return not any(re.match(reason, command.text) for reason in NOT_RUN)


def is_for_a_cluster(block: Block) -> bool:
    """Whether its commands are for a cluster: kubectl and helm by themselves, others if the page says so."""
    return "cluster" in block.checks or (
        block.language == "console"
        and any(FOR_A_CLUSTER.match(command.text) for command in block.commands() if is_run(command))
    )


def quick(page: Path) -> list[Block]:
    """The blocks of a page that the ordinary tests read: all before the first long one, without a cluster's."""
    found: list[Block] = []
    for block in _local(page):
        if "long" in block.checks:
            break
        found.append(block)
    return found


def _local(page: Path) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.title or (block.language == "console" and not is_for_a_cluster(block))
    ]


def _with_commands(found: Iterable[Block]) -> bool:
    return any(
        is_run(command) for block in found if block.language == "console" for command in block.commands()
    )


QUICK = [page for page in pages() if _with_commands(quick(page))]
LONG = [page for page in pages() if _with_commands(block for block in _local(page) if "long" in block.checks)]


def _id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", QUICK, ids=_id)
def test_the_commands_of_a_page_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    _read(quick(page), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("page", LONG, ids=_id)
def test_the_commands_of_a_page_that_take_minutes_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    _read(_local(page), tmp_path)


def _read(found: Iterable[Block], folder: Path) -> None:
    console = Console(folder)
    for block in found:
        console.read(block, is_run)
    console.close()


def test_every_shell_block_is_a_console_with_prompts() -> None:
    """So that a test can tell commands from what they print."""
    for block in shell_blocks():
        assert block.language == "console", f"{block.where}: call it console, with '$ ' before each command"
        assert block.commands(), f"{block.where}: no command"


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    commands = [command.text for block in shell_blocks() for command in block.commands()]
    commands += [line for page in pages() for _, line in indented_lines(page)]
    for reason in NOT_RUN:
        assert any(re.match(reason, command) for command in commands), f"nothing is {reason}"


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in pages():
        named = set(re.findall(r"(?:`|^ {4,}|^ *\$ )make ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, f"{_id(page)}: {sorted(named - targets)}"


def test_no_command_hides_where_no_test_looks() -> None:
    """In text that is code for its indentation alone, or in a block of another language."""
    for page in pages():
        for block in blocks(page):
            if block.language not in SHELLS:
                assert not re.search(r"^\$ ", block.text, re.MULTILINE), f"{block.where}: call it console"
        for number, line in indented_lines(page):
            if COMMAND.match(line):
                command = Command(line.partition("  #")[0].rstrip(), ())
                assert not is_run(command), f"{_id(page)}:{number}: {line}: put it into a console block"


def test_a_reader_sees_the_difference() -> None:
    """The comparison itself: an ellipsis stands for anything, figures for figures if the page says so."""
    shown = ("stage tiny", "...", "done in 3.2 s at 10 samples/s")
    assert pattern(shown, numbers_vary=True).fullmatch("stage tiny\na\nb\ndone in 14 s at  7.25 samples/s")
    assert not pattern(shown, numbers_vary=False).fullmatch("stage tiny\ndone in 14 s at 7.25 samples/s")
    assert not pattern(shown, numbers_vary=True).fullmatch("stage base\ndone in 14 s at 7.25 samples/s")
    assert not pattern(shown, numbers_vary=True).fullmatch(
        "stage tiny\ndone in 14 s at 7.25 samples/s\nerror"
    )
