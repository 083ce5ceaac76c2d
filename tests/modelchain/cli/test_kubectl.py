"""What kubectl's failures mean to a person. The lines are those that kubectl 1.37 writes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from modelchain.cli import main
from modelchain.cli.kubectl import _Complaints, explain
from modelchain.cli.options import names_a_chain

LOST = (
    '"Couldn\'t get current server API group list" err="Get \\"https://c:6443/api\\": dial tcp: i/o timeout"'
)


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        (['error: the server doesn\'t have a resource type "modelchains"'], 78, "CRD is missing"),
        (['Error from server (NotFound): modelchains.modelchain.dev "x" not found'], 66, '"x" not found'),
        (
            ['Error from server (Forbidden): User "a" cannot get resource "modelchains"'],
            77,
            'refuses it: User "a" cannot get',
        ),
        (
            [
                f"E1124 02:42:57.508013   27975 memcache.go:381] {LOST}",
                "error: You must be logged in to the server (the server has asked for the client to ...)",
            ],
            77,
            "does not accept your credentials",
        ),
        (
            ["Unable to connect to the server: getting credentials: exec: executable aws not found"],
            77,
            "executable aws not found",
        ),
        (
            [
                "The connection to the server localhost:8080 was refused - did you specify the right host or port?"
            ],
            78,
            "kubectl knows no cluster",
        ),
        (
            [
                f"E1124 02:42:57.508013   27975 memcache.go:381] {LOST}",
                "Unable to connect to the server: dial tcp 10.0.0.1:6443: i/o timeout",
            ],
            1,
            "the cluster does not answer: dial tcp 10.0.0.1:6443: i/o timeout",
        ),
        (["Error in configuration: context was not found for specified context: x"], 78, "get-contexts"),
        (["error: stat /none: no such file or directory"], 78, "kubectl's configuration: stat /none"),
        (
            [
                'Get "https://10.0.0.7:10250/containerLogs/a/b/pytorch?follow=true": dial tcp: connection refused',
                "error: context deadline exceeded",
            ],
            1,
            "can't be had from the pod's node",
        ),
        (
            ['error: invalid argument "x" for "--since" flag', "See 'kubectl logs --help' for usage."],
            1,
            'kubectl logs pod: invalid argument "x"',
        ),
        (["Error from server: etcdserver: leader changed"], 1, "the cluster does not answer: etcdserver"),
        ([], 1, "it gave no reason"),
    ],
    ids=[
        "no-crd",
        "not-found",
        "forbidden",
        "unauthorized",
        "no-credential-plugin",
        "no-cluster",
        "unreachable",
        "no-context",
        "no-kubeconfig",
        "silent-node",
        "usage",
        "etcd",
        "silence",
    ],
)
def test_a_failure_of_kubectl_is_one_line_and_says_whether_to_try_again(
    lines: list[str], code: int, says: str
) -> None:
    error = explain(lines, ["logs", "pod"])
    assert error.exit_code == code
    assert says in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["status"], "error: kubectl is not installed, or not on PATH"),
        (
            ["plan", "family"],
            "error: family: there is no such file, and of the cluster: kubectl is not installed",
        ),
    ],
)
def test_without_kubectl_the_message_says_so(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 78
    assert capsys.readouterr().err.startswith(line)


class _Closed(io.StringIO):
    """Standard error that nobody reads."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_what_kubectl_says_is_read_to_its_end_though_nobody_reads_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else kubectl would wait for ever for its own standard error to be read."""
    monkeypatch.setattr(sys, "stderr", _Closed())
    process = subprocess.Popen(["sh", "-c", "printf 'one\\ntwo\\n' >&2"], stderr=subprocess.PIPE)
    complaints = _Complaints(process)
    complaints.join()
    process.wait()
    assert complaints.lines == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "is_name"),
    [
        ("family", True),
        ("a-family.of.4", True),
        ("family.yaml", False),
        ("family.yml", False),
        ("family.json", False),
        ("default/family", False),
        ("./family", False),
        ("Family", False),
        ("-", False),
        ("", False),
    ],
)
def test_what_is_taken_for_a_name(
    source: str, is_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import argparse

    monkeypatch.chdir(tmp_path)
    assert names_a_chain(source, argparse.Namespace()) is is_name
    if is_name:
        Path(source).write_text("")
        assert not names_a_chain(source, argparse.Namespace())
        assert names_a_chain(source, argparse.Namespace(namespace="research"))


def test_a_folder_of_that_name_hides_no_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    monkeypatch.chdir(tmp_path)
    Path("family").mkdir()
    assert names_a_chain("family", argparse.Namespace())


def test_starting_a_command_of_the_cluster_imports_nothing_heavy() -> None:
    program = (
        "import sys; from modelchain.cli import main; main(['status', '--kubeconfig', '/nonexistent']);"
        "heavy = {'boto3', 'rich', 'matplotlib', 'kopf', 'torch'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
