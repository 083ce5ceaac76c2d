"""What mkdocs does beyond its configuration: pages from files outside docs/, and links out of docs/.

A page links to `../examples/digits.yaml` as it would on GitHub. On the site that becomes the file's address in the
repository, and the build fails if there is no such file.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages that are files of the repository's root, where GitHub looks for them.
INCLUDED = {
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
    "reference/chart.md": "charts/modelchain/README.md",
}

_LINK = re.compile(r"(?<!!)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
# GitHub wants a bar escaped that stands in code in a table; Python-Markdown would show the backslash.
_ESCAPED_BAR = re.compile(r"(?<=^\|)[^\n]*`[^`\n]*\\\|[^\n]*", re.MULTILINE)
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the included pages."""
    for page, source in INCLUDED.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turn links by the repository's paths into links of the site."""
    source = INCLUDED.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = _CODE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = _LINK.sub(lambda found: _mended(found, source, page, config), parts[index])
    return _ESCAPED_BAR.sub(lambda found: found[0].replace("\\|", "|"), "".join(parts))


def _mended(found: re.Match[str], source: str, page: Page, config: MkDocsConfig) -> str:
    """A link of the file `source` as it should stand on `page`."""
    target, anchor = found[1], found[2] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists() or path.startswith(".."):
        raise PluginError(f"{source}: there is no {path}, to which it links")
    included = {file: name for name, file in INCLUDED.items()}
    name = included.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if name is not None:
        if not name.endswith(".md") and source.startswith("docs/"):
            return found[0]  # an image and the like
        here = posixpath.dirname(page.file.src_uri)
        return f"]({posixpath.relpath(name, here or '.')}{anchor})"
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"]({str(config.repo_url).rstrip('/')}/{kind}/main/{path}{anchor})"
