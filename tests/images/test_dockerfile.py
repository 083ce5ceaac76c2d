"""The Dockerfile: its style, and that its steps, run here as they stand, make what the images promise."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelchain import __version__
from modelchain.errors import ExitCode
from tests.images.dockerfile import ROOT, Instruction, Sandbox, Stage, read_stages

TARGETS = ("operator", "trainer")
STAGES = read_stages((ROOT / "Dockerfile").read_text())
_DISTRIBUTIONS = """
import importlib.metadata, json
print(json.dumps({one.name.lower().replace("_", "-"): one.version for one in importlib.metadata.distributions()}))
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    yield Sandbox(tmp_path, STAGES)
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes of three runs


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("target", TARGETS)
def test_images_run_as_a_user_that_kubernetes_knows_not_to_be_root(target: str) -> None:
    user, _, group = STAGES[target].last("USER").argument.partition(":")
    assert int(user) == int(group) > 0


@pytest.mark.parametrize("target", TARGETS)
def test_images_say_what_they_were_built_from(target: str) -> None:
    stage = STAGES[target]
    label = stage.last("LABEL").argument
    for name in ("version", "revision", "source", "licenses"):
        assert f'org.opencontainers.image.{name}="${{{name.upper()}}}"' in label
        assert any(re.match(rf"{name.upper()}\b", one.argument) for one in _arguments(stage))
    assert f'org.opencontainers.image.title="modelchain-{target}"' in label


def _arguments(stage: Stage) -> list[Instruction]:
    return [one for one in stage.instructions if one.keyword == "ARG"]


@pytest.mark.slow
def test_operator_image_runs_without_what_only_training_and_the_command_line_need(sandbox: Sandbox) -> None:
    entry = STAGES["operator"].last("ENTRYPOINT").exec_form
    assert entry is not None
    assert sandbox.run("operator", [*entry, "--version"]).stdout == f"modelchain-operator {__version__}\n"
    help_text = sandbox.run("operator", [*entry, "--help"]).stdout
    assert "--own-identity-store" in help_text
    installed = _installed(sandbox, "operator")
    assert installed.keys() >= {"kopf", "aiohttp", "boto3", "modelchain"}
    assert installed.keys().isdisjoint({"torch", "open-clip-torch", "numpy", "matplotlib", "jinja2", "rich"})
    _check_pinned(installed)
    clients = "import boto3\nfor name in ('s3', 'sts', 'sso', 'sso-oidc'): boto3.client(name, region_name='us-east-1')"
    sandbox.run("operator", ["python", "-c", clients])


@pytest.mark.long
def test_trainer_image_runs_the_trainer_and_the_command_line(sandbox: Sandbox) -> None:
    command = STAGES["trainer"].last("CMD").exec_form
    assert command is not None
    done = sandbox.run("trainer", command, check=False)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "MODELCHAIN_STAGE" in done.stderr
    installed = _installed(sandbox, "trainer")
    assert installed.keys() >= {"torch", "open-clip-torch", "modelchain"}
    assert installed.keys().isdisjoint({"kopf", "prometheus-client"})
    _check_pinned(installed)
    assert "vit-l" in sandbox.run("trainer", ["modelchain", "plan", str(ROOT / "examples/cc3m.yaml")]).stdout


def _installed(sandbox: Sandbox, target: str) -> dict[str, str]:
    return json.loads(sandbox.run(target, ["python", "-c", _DISTRIBUTIONS]).stdout)


def _check_pinned(installed: dict[str, str]) -> None:
    pins = [line.partition(" ;")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    loose = {f"{name}=={version}" for name, version in installed.items()} - set(pins)
    assert loose == {f"modelchain=={__version__}"}
