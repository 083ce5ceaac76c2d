"""Models by name: our own ViT family, and open_clip's ViT CLIP configurations as `open_clip/NAME`.

The family (head width 64, embedding 512 but for BL) is the one of the CoM-PT paper, arXiv 2604.12391.
open_clip's configurations of the same names differ in the size of the embedding and know no T, hence the
prefix.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from modelchain.errors import UserDataError
from modelchain.families import AnyConfig, ModelConfig, family_of

OPEN_CLIP_PREFIX = "open_clip/"


class UnknownModelError(UserDataError):
    """No model of that name."""


def names() -> tuple[str, ...]:
    """All names: the family by size, then open_clip's by size."""
    return tuple(_entries())


@cache
def find(name: str) -> ModelConfig:
    """The model of that name. Raises UnknownModelError, which suggests the nearest names."""
    entry = _entries().get(name)
    if entry is None:
        near = nearest(name)
        hint = f"did you mean {' or '.join(near)}?" if near else "`modelchain models` lists all"
        raise UnknownModelError(f"there is no model {name!r}; {hint}")
    return ModelConfig.model_validate(entry)


def nearest(name: str) -> list[str]:
    """At most three names that look like `name`, best first."""
    from difflib import get_close_matches

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum()).removeprefix("openclip")

    known: dict[str, str] = {}
    for known_name in names():
        known.setdefault(plain(known_name), known_name)  # the family stands first
    if plain(name) in known:
        return [known[plain(name)]]
    return [known[match] for match in get_close_matches(plain(name), known, n=3, cutoff=0.75)]


def size_name(config: AnyConfig) -> str:
    """A short name that is a function of the configuration alone: `ViT-B-16`, or for others such as
    `vit-96x6-p7`.

    Folders of artifacts carry it, so equal models share a folder however a chain writes them down. Only the
    family's names are looked up: a name given to a configuration later must not rename the folders of
    finished stages.
    """
    for name in family():
        if find(name) == config:
            return name
    return family_of(config).size_name(config)


@cache
def family() -> tuple[str, ...]:
    """The names of our own family, smallest first."""
    return tuple(name for name in _entries() if not name.startswith(OPEN_CLIP_PREFIX))


@cache
def _entries() -> dict[str, dict[str, object]]:
    return json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
