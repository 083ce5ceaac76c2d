"""The reference says what the code says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import cast

import pytest

from modelchain.block import Block
from modelchain.resolved import (
    ResolvedData,
    ResolvedDistillation,
    ResolvedExpansion,
    ResolvedJob,
    ResolvedRetry,
    ResolvedTraining,
)
from modelchain.status import ChainPhase, ConditionType, StagePhase, StageReason
from tests.docs.markdown import DOCS, ROOT

# Words in CamelCase that the operator knows and shows in no status: kinds, what Kubernetes says of pods and jobs,
# and reasons of Events.
NO_REASONS = frozenset(
    {
        "Event",
        "TrainJobResourcesCreationFailed",  # of the Trainer, told as FailedCreate
        "JobCreationFailed",  # and of its JobSet
        "HeadlessServiceCreationFailed",
        "PVCCreationFailed",
        "Normal",
        "Warning",
        "True",
        "False",
        "Error",
        "Pending",
        "Succeeded",
        "Failed",
        "Terminating",
        "ContainerCreating",
        "PodInitializing",
        "ContainerStatusUnknown",
        "DeadlineExceeded",
        "DisruptionTarget",
        "FailureTarget",
        "PodFailurePolicy",
        "SuccessCriteriaMet",
        "PodScheduled",
        "Pulling",
        "Pulled",
        "Created",
        "Started",
        "Accepted",
        "Refused",
        "AttemptEnded",
        "JobCreated",
        "StageRunning",
        "StageCached",
        "StageFailed",
        "StageQueued",
        "StageWaiting",
        "Resumed",
    }
)
SOURCES = (
    "modelchain/reconcile",
    "operator/modelchain_operator/jobs/observed.py",
    "operator/modelchain_operator/jobs/events.py",
    "operator/modelchain_operator/jobs/pods.py",
    "operator/modelchain_operator/telemetry/events.py",
    "operator/modelchain_operator/observe.py",
)


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The reference pages as the generator writes them now, in a copy of docs/."""
    program = (
        "import json, pathlib, sys; sys.path.insert(0, 'docs'); import generate_reference as g; "
        "print(json.dumps({str(p.relative_to(g.DOCS)): g.regenerated(p.read_text()) for p in g.pages()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return cast("dict[str, str]", json.loads(done.stdout))


def test_the_reference_is_what_the_generator_writes(generated: dict[str, str]) -> None:
    assert set(generated) == {f"reference/{name}.md" for name in ("cli", "operator-flags", "spec", "status")}
    for page, text in generated.items():
        assert (DOCS / page).read_text() == text, f"docs/{page} is stale: make reference"


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ("data", ResolvedData),
        ("training", ResolvedTraining),
        ("distillation", ResolvedDistillation),
        ("expansion", ResolvedExpansion),
        ("job", ResolvedJob),
        ("retry", ResolvedRetry),
    ],
)
def test_defaults_of_the_reference_are_those_that_are_trained_with(
    generated: dict[str, str], block: str, kind: type[Block]
) -> None:
    """Descriptions name them in words, and `modelchain.resolved` has them as values."""
    section = generated["reference/spec.md"].split(f"\n## spec.{block}\n")[1].split("\n## ")[0]
    shown = dict(re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", section, re.MULTILINE))
    compared = 0
    for name, field in kind.model_fields.items():
        default, text = field.default, shown.get(field.alias or name, "")
        if field.is_required() or default is None or not text.startswith("`"):
            continue
        value = text.strip("` ")
        if isinstance(default, bool):
            assert value == str(default).lower(), name
        elif isinstance(default, int | float) and re.fullmatch(r"[\d.e-]+", value):
            assert float(value) == default, name
        elif isinstance(default, tuple):
            assert value == "[" + ", ".join(str(item) for item in default) + "]", name
        else:
            continue
        compared += 1
    assert compared or block == "expansion", f"nothing of {block} was compared"


def test_every_phase_and_condition_is_explained() -> None:
    page = (DOCS / "reference" / "status.md").read_text()
    for title, members in (
        ("Phases of a chain", ChainPhase),
        ("Phases of a stage", StagePhase),
        ("Conditions", ConditionType),
    ):
        section = page.split(f"\n## {title}\n")[1].split("\n## ")[0]
        explained = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert set(explained) == {str(member) for member in members}


def test_every_reason_is_explained() -> None:
    page = (DOCS / "reference" / "status.md").read_text()
    section = page.split("\n## Reasons\n")[1].split("\n## ")[0]
    explained = set(re.findall(r"`(\w+)`", section))
    known = {reason.value for reason in StageReason}
    for source in SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.glob("*.py")):
            known |= set(re.findall(r'"((?:[A-Z]+[a-z]+)+)"', file.read_text()))
    assert known - NO_REASONS <= explained, sorted(known - NO_REASONS - explained)


def test_the_site_leads_to_every_page() -> None:
    """A page that no navigation names is one that nobody reads."""
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages <= set(re.findall(r"[\w/-]+\.md", navigation)), "mkdocs.yml"
