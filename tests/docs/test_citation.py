"""CITATION.cff says what its readers (GitHub, Zenodo, Zotero) need: https://citation-file-format.github.io"""

from __future__ import annotations

import yaml

import modelchain
from tests.docs.markdown import ROOT


def test_the_citation_has_what_the_format_asks_for_and_the_version_of_this_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type", "license", "repository-code"} <= set(citation)
    assert citation["version"] == modelchain.__version__
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "year", "url"} <= set(paper)
    assert paper["url"] == "https://arxiv.org/abs/2604.12391"
    assert all(set(author) in ({"name"}, {"given-names", "family-names"}) for author in paper["authors"])
