"""The site can be built, strictly, without a network, and needs nothing from other hosts to be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.markdown import ROOT

pytestmark = pytest.mark.slow

# A process that can open no socket: whatever wants to fetch something fails, and the build with it.
_WITHOUT_NETWORK = """
import runpy, socket, sys
def refuse(*_, **__):
    raise OSError("the documentation is built without a network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["mkdocs", *sys.argv[1:]]
runpy.run_module("mkdocs", run_name="__main__")
"""


class _Links(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []  # by the browser, unasked
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tables = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        self.tables += tag == "table"
        if tag == "a":
            self.links.append(values.get("href", ""))
        elif tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src", ""))
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate", "edit"):
            self.loaded.append(values.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_NETWORK, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Links]:
    """What its pages refer to."""
    found: dict[Path, _Links] = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = _Links()
        found[path].feed(path.read_text())
    return found


def test_pages_load_nothing_from_other_hosts(pages: dict[Path, _Links]) -> None:
    for path, page in pages.items():
        for address in page.loaded:
            assert not urlsplit(address).netloc, f"{path} loads {address}"


def test_links_within_the_site_lead_somewhere(site: Path, pages: dict[Path, _Links]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are of the site's root
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.relative_to(site)} links to {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (
                    f"{path.relative_to(site)}: {address}"
                )


def test_links_into_the_repository_lead_to_files(pages: dict[Path, _Links]) -> None:
    repository = re.compile(r"https://github\.com/modelchain/modelchain/(?:blob|tree)/main/([^#]+)")
    found = {match[1] for page in pages.values() for link in page.links if (match := repository.match(link))}
    assert found
    for path in found:
        assert (ROOT / unquote(path)).exists(), path


def test_tables_are_tables(site: Path, pages: dict[Path, _Links]) -> None:
    """A line too many or too few makes a table a paragraph full of bars."""
    assert sum(page.tables for page in pages.values()) > 50
    for path in pages:
        text = re.sub(r"<(pre|code|script|style).*?</\1>", "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"<p>\|", text), path.relative_to(site)
