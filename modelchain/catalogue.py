"""Models by name: our own ViT family, and open_clip's configurations as `open_clip/NAME`.

The family (head width 64, embedding 512 but for BL) is the one of the CoM-PT paper, arXiv 2604.12391.
open_clip's configurations of the same names differ in the size of the embedding and know no T, hence the
prefix. Those of two transformers come first and grow; the others have an image tower of open_clip's or timm's.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from modelchain.errors import UserDataError
from modelchain.families import AnyConfig, ModelConfig, OpenClipConfig, family_of

OPEN_CLIP_PREFIX = "open_clip/"


class UnknownModelError(UserDataError):
    """No model of that name."""


def names() -> tuple[str, ...]:
    """All names: the family by size, then open_clip's by size, those of two transformers first."""
    return tuple(_entries())


def find(name: str) -> ModelConfig:
    """The model of two transformers of that name. Raises UnknownModelError, which suggests the nearest names."""
    model = find_any(name)
    if not isinstance(model, ModelConfig):
        raise UnknownModelError(f"{name!r} is no model of two transformers; `modelchain models` lists them")
    return model


@cache
def find_any(name: str) -> ModelConfig | OpenClipConfig:
    """The model of that name. Raises UnknownModelError, which suggests the nearest names or says why there is none."""
    entry = _entries().get(name)
    if entry is not None:
        adapted = "name" in entry["vision"]
        return OpenClipConfig.model_validate(entry) if adapted else ModelConfig.model_validate(entry)
    for reason, others in unavailable().items():
        if name in others:
            raise UnknownModelError(
                f"{name!r} and its like can't be stages: {reason}; `modelchain models` lists those that can"
            )
    near = nearest(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "`modelchain models` lists all"
    raise UnknownModelError(f"there is no model {name!r}; {hint}")


@cache
def unavailable() -> dict[str, tuple[str, ...]]:
    """Names of open_clip's other configurations, by the reason why they can't be stages."""
    content = json.loads(Path(__file__).with_name("open_clip_unavailable.json").read_text(encoding="utf-8"))
    return {reason: tuple(f"{OPEN_CLIP_PREFIX}{name}" for name in names) for reason, names in content.items()}


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
    return _family_names().get(config) or family_of(config).size_name(config)


@cache
def _family_names() -> dict[AnyConfig, str]:
    return {find(name): name for name in reversed(family())}


@cache
def family() -> tuple[str, ...]:
    """The names of our own family, smallest first."""
    return tuple(name for name in _entries() if not name.startswith(OPEN_CLIP_PREFIX))


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
