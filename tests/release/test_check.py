"""`make release-check` finds whatever would make a release wrong, and says what to do."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import modelchain
from tools.release.check import CHANGELOG, PLACES, SOURCE, Place, problems, version_of

ROOT = Path(__file__).parents[2]
RELEASED = """\
# Changelog

## [Unreleased]

## [{version}] - 2026-11-25

### Added
- Everything.
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that can be released."""
    for name in {SOURCE, *(place.file for place in PLACES)}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / CHANGELOG).write_text(RELEASED.format(version=version_of(tmp_path)))
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    assert problems(tmp_path) == []
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.com"]
    subprocess.run(["git", *identity, *arguments], check=True, cwd=folder)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "A commit")


def test_this_checkout_has_one_version() -> None:
    assert {place.read(ROOT) for place in PLACES} == {version_of(ROOT)} == {modelchain.__version__}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.file}:{place.field}")
def test_a_version_that_was_forgotten_is_found_and_written(checkout: Path, place: Place) -> None:
    place.write(checkout, "9.9.9")
    commit(checkout)
    (problem,) = problems(checkout)
    assert problem.startswith(f"{place.file}: {place.field} is 9.9.9, and ")
    assert "make version" in problem
    place.write(checkout, version_of(checkout))
    commit(checkout)
    assert problems(checkout) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n- A bug.\n", "entries stand under [Unreleased]"),
        ("## [Unreleased]\n", "", "no section [Unreleased]"),
        (" - 2026-11-25", "", "has no section `## ["),
        ("- Everything.\n", "", "says nothing"),
    ],
)
def test_a_changelog_that_does_not_tell_of_the_release_is_found(
    checkout: Path, old: str, new: str, problem: str
) -> None:
    changelog = checkout / CHANGELOG
    changelog.write_text(changelog.read_text().replace(old, new))
    commit(checkout)
    (found,) = problems(checkout)
    assert problem in found


def test_changes_that_are_not_committed_and_a_version_that_is_out_already_are_found(checkout: Path) -> None:
    (checkout / "new.txt").write_text("new")
    assert problems(checkout) == ["there are changes that are not committed: new.txt"]
    git(checkout, "tag", f"v{version_of(checkout)}")
    commit(checkout)
    (found,) = problems(checkout)
    assert "is released already" in found


def test_a_version_that_is_none_is_refused(checkout: Path) -> None:
    source = checkout / SOURCE
    source.write_text(source.read_text().replace(version_of(checkout), "next"))
    for place in PLACES:
        place.write(checkout, "next")
    (checkout / CHANGELOG).write_text(RELEASED.format(version="next"))
    commit(checkout)
    (found,) = problems(checkout)
    assert "no semantic version" in found
