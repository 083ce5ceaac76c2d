"""What stands in the way of a release. The version is in modelchain/__init__.py; every other place repeats it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = "modelchain/__init__.py"
CHANGELOG = "CHANGELOG.md"
_SOURCE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)
_SEMANTIC = re.compile(r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?")  # https://semver.org


class NoVersionError(Exception):
    """A file has no version where it should have one."""


@dataclass(frozen=True)
class Place:
    """Where the version is repeated."""

    file: str
    field: str

    @property
    def _line(self) -> re.Pattern[str]:
        return re.compile(rf"^(\s*{re.escape(self.field)}: )(\S+)$", re.MULTILINE)

    def read(self, root: Path) -> str:
        """The version that stands there. Raises NoVersionError."""
        found = self._line.search((root / self.file).read_text())
        if found is None:
            raise NoVersionError(f"{self.file} has no line `{self.field}: VERSION`")
        return found[2].strip("\"'")

    def write(self, root: Path, version: str) -> None:
        """Put another version there."""
        path = root / self.file
        path.write_text(self._line.sub(rf"\g<1>{version}", path.read_text(), count=1))


PLACES = (
    Place("charts/modelchain/Chart.yaml", "version"),
    Place("charts/modelchain/Chart.yaml", "appVersion"),
    Place("crds/modelchain.dev_modelchains.yaml", "app.kubernetes.io/version"),
    Place("CITATION.cff", "version"),
)


def version_of(root: Path) -> str:
    """The version of the package. Raises NoVersionError."""
    found = _SOURCE.search((root / SOURCE).read_text())
    if found is None:
        raise NoVersionError(f'{SOURCE} has no line `__version__ = "VERSION"`')
    return found[1]


def problems(root: Path) -> list[str]:
    """Everything that has to be mended before this checkout is released; each says how."""
    version = version_of(root)
    return [*_wrong_versions(root, version), *_changelog(root, version), *_git(root, version)]


def _wrong_versions(root: Path, version: str) -> Iterator[str]:
    if not _SEMANTIC.fullmatch(version):
        yield f"{SOURCE}: {version} is no semantic version; write e.g. 0.2.0 or 0.2.0-rc.1"
    for place in PLACES:
        there = place.read(root)
        if there != version:
            yield f"{place.file}: {place.field} is {there}, and {SOURCE} says {version}; run `make version`"


def _changelog(root: Path, version: str) -> Iterator[str]:
    text = (root / CHANGELOG).read_text()
    sections = dict(re.findall(r"^## \[(.+?)\](.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    if "Unreleased" not in sections:
        yield f"{CHANGELOG} has no section [Unreleased] for what comes next; put an empty one at its top"
    elif re.search(r"^- ", sections["Unreleased"], re.MULTILINE):
        yield f"{CHANGELOG}: entries stand under [Unreleased]; move them to a section [{version}] with today's date"
    section = sections.get(version, "")
    if not re.match(r" - \d{4}-\d{2}-\d{2}\n", section):
        yield f"{CHANGELOG} has no section `## [{version}] - YYYY-MM-DD`"
    elif not re.search(r"^- ", section, re.MULTILINE):
        yield f"{CHANGELOG}: section [{version}] says nothing"


def _git(root: Path, version: str) -> Iterator[str]:
    if changed := _ask(root, "status", "--porcelain"):
        yield f"there are changes that are not committed: {', '.join(line[3:] for line in changed[:5])}"
    tag = f"v{version}"
    if _ask(root, "tag", "--list", tag) and _ask(root, "rev-list", "-1", tag) != _ask(
        root, "rev-parse", "HEAD"
    ):
        yield f"{tag} is released already, from another commit; raise the version in {SOURCE}, then run `make version`"


def _ask(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], check=True, cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines()
