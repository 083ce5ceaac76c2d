"""What is wrong with a chain is said where it is applied, or by the operator: the field, and what to do about it.

Each file in invalid_manifests/ begins with what is expected of it:

    # expect: api         kubectl or the API server refuse it
    # expect: accepted    it is stored, and the operator refuses it: condition Accepted is False
    # message: ...        words of the answer; there may be several
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelchain.validation import check_file
from modelchain_operator.acceptance import Refused, accept
from tests.control_plane.plane import ControlPlane

pytestmark = pytest.mark.xdist_group("control-plane")

FOLDER = Path(__file__).parent / "invalid_manifests"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMESPACE = "invalid-manifests"
FIT_FOR_A_LAPTOP = {"image-missing", "store-relative"}  # refused for what a cluster needs
MAX_ANSWER = 30_000  # characters of one condition's message: the API takes 32768


@dataclass(frozen=True)
class Expectation:
    """The header of a file."""

    by: str
    messages: tuple[str, ...]


def expectation(file: Path) -> Expectation:
    header = [line for line in file.read_text().splitlines() if re.match("# (expect|message): ", line)]
    (by,) = [line.removeprefix("# expect: ") for line in header if line.startswith("# expect: ")]
    messages = [line.removeprefix("# message: ") for line in header if line.startswith("# message: ")]
    assert by in ("api", "accepted"), f"{file.name}: expect is api or accepted, not {by}"
    assert messages, f"{file.name}: no message is expected, so nothing would be tested"
    return Expectation(by, tuple(messages))


@pytest.fixture(scope="module")
def shared(control_plane: ControlPlane) -> Iterator[str]:
    """One namespace for all files: each names its chain after itself."""
    control_plane.kubectl("create", "namespace", NAMESPACE)
    yield NAMESPACE
    control_plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false", check=False)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_invalid_manifest_is_refused_with_field_and_remedy(
    control_plane: ControlPlane, shared: str, file: Path
) -> None:
    expected = expectation(file)
    done = control_plane.kubectl("create", "-n", shared, "-f", str(file), "-o", "json", check=False)
    if expected.by == "api":
        assert done.returncode != 0, "the API server took it"
        answer = done.stderr
    else:
        assert done.returncode == 0, done.stderr
        answer = accept(json.loads(done.stdout), default_image=None)
        assert isinstance(answer, Refused), "the operator would train it"
        answer = "\n".join(answer.problems)
        assert len(answer) < MAX_ANSWER
    for message in expected.messages:
        assert message in answer, f"{message!r} is not in the answer:\n{answer[:4000]}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_command_line_refuses_it_as_well(file: Path) -> None:
    (checked,) = check_file(file)
    assert (checked.chain is None) == (file.stem not in FIT_FOR_A_LAPTOP)
    for problem in checked.problems:
        assert problem.remedy or "YAML" in problem.message, problem


def test_there_are_manifests_of_both_kinds() -> None:
    kinds = [expectation(file).by for file in FILES]
    assert len(kinds) >= 60
    assert kinds.count("api") >= 40
    assert kinds.count("accepted") >= 15
