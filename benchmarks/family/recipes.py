"""Recipes: how the stages of a chain are trained, in fields of the spec, and the settings that a grid varies.

A recipe is written as its name, or with settings: `trunk:first=20,later=3,wd=0.3`. Settings are the fields of
`Settings` below, and any field of the spec behind the stages that it is for:
`trunk:later.training.beta2=0.95,last.training.schedule.type=Cosine`. Values are YAML; a list stands as 20/4/3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

import yaml

from benchmarks.family.errors import StudyError

Fragment = Mapping[str, Any]  # of a stage's spec
SCOPES = ("every", "first", "later", "last")  # a later one overrides an earlier one


@dataclass(frozen=True)
class Settings:
    """Numbers of a recipe that are not the same for all stages, or that depend on the data set."""

    first: int = 30  # epochs of the first stage
    later: int = 12  # of each later one
    epochs: tuple[int, ...] | None = None  # of each stage, instead of both
    lr: float = 2e-3  # peak learning rate of the family's smallest model
    lr_power: float = 0.0  # a model k times as wide has lr / k ** lr_power
    lr_grown: float = 1.0  # times that, for grown stages
    lr_floor: float = 0.01  # the last learning rate, over the peak
    warmup: int = 20  # steps, at most a fifth of the stage
    warmup_grown: int | None = None  # of grown stages; None: as `warmup`
    wd: float = 0.1  # weight decay
    ema: float | None = None  # decay of the averaged weights a step
    beta2: float | None = None
    decay: float | None = None  # decayFraction of WarmupStableDecay
    batch: int | None = None  # None: the data set's


@dataclass(frozen=True)
class Recipe:
    """Fragments of the stages' specs, and settings other than the data set's."""

    summary: str
    every: Fragment = field(default_factory=dict)
    first: Fragment = field(default_factory=dict)
    later: Fragment = field(default_factory=dict)
    last: Fragment = field(default_factory=dict)
    family: str | None = None  # a family of its own
    settings: Mapping[str, Any] = field(default_factory=dict)


WSD: Fragment = {"training": {"schedule": {"type": "WarmupStableDecay"}}}
_NO_TEACHER: Fragment = {"distillation": {"weight": 0}}
_EXACT = {"width": "Exact", "depth": "Identity"}
_FROM_TRUNK = _EXACT | {"weights": "Trunk"}
_CARRIED = {"weights": "Trunk", "optimizerState": "Carried"}

RECIPES: Mapping[str, Recipe] = {
    "alone": Recipe("the models alone, each with a cosine"),
    "alone-wsd": Recipe("the models alone, each at a constant rate, then decayed", every=WSD),
    "defaults": Recipe(
        "exact growth, distillation with weight 1",
        later={"expansion": _EXACT, "distillation": {"weight": 1}},
    ),
    "paper": Recipe(
        "the paper's: leading slices, interleaved copies, distillation with weight 0.98",
        later={"expansion": {"width": "Slice", "depth": "Interleave"}, "distillation": {"weight": 0.98}},
    ),
    "distillation-only": Recipe(
        "fresh models, distillation with weight 1",
        later={"expansion": {"width": "Fresh"}, "distillation": {"weight": 1}},
    ),
    "growth-only": Recipe("exact growth, no distillation", later={"expansion": _EXACT, **_NO_TEACHER}),
    "strong-then-weak": Recipe(
        "exact growth, a distillation weight that falls from 10 to 0 in a third of the stage",
        later={
            "expansion": _EXACT,
            "distillation": {"weight": 10, "schedule": {"type": "Linear", "until": 0.33, "endWeight": 0}},
        },
    ),
    "until-surpassed": Recipe(
        "exact growth, distillation until the student is better than its teacher",
        later={"expansion": _EXACT, "distillation": {"weight": 1, "surpassWindowSteps": 20}},
    ),
    "trunk": Recipe(
        "grown out of the trunk before its decay, no distillation",
        every=WSD,
        later={"expansion": _FROM_TRUNK, **_NO_TEACHER},
    ),
    "trunk-carried": Recipe(
        "as trunk, with the optimizer's moments grown along and no warm-up",
        every=WSD,
        later={"expansion": _EXACT | _CARRIED, **_NO_TEACHER},
        settings={"warmup_grown": 0},
    ),
    "trunk-teacher": Recipe(
        "as trunk, taught by the decayed predecessor with weight 1",
        every=WSD,
        later={"expansion": _FROM_TRUNK, "distillation": {"weight": 1}},
    ),
    "trunk-until-surpassed": Recipe(
        "as trunk, taught by the decayed predecessor until the student is better",
        every=WSD,
        later={"expansion": _FROM_TRUNK, "distillation": {"weight": 1, "surpassWindowSteps": 20}},
    ),
    "trunk-padded": Recipe(
        "as trunk, with zero-padded streams and units that start without effect",
        every=WSD,
        later={"expansion": _FROM_TRUNK | {"width": "Padded"}, **_NO_TEACHER},
    ),
    "trunk-padded-carried": Recipe(
        "as trunk-padded, with the optimizer's moments grown along and no warm-up",
        every=WSD,
        later={"expansion": {"width": "Padded", "depth": "Identity", **_CARRIED}, **_NO_TEACHER},
        settings={"warmup_grown": 0},
    ),
    "trunk-stack": Recipe(
        "as trunk, deepened by copies of the whole tower",
        every=WSD,
        later={"expansion": _FROM_TRUNK | {"depth": "Stack"}, **_NO_TEACHER},
    ),
    "trunk-slice": Recipe(
        "the paper's growth, out of the trunk, no distillation",
        every=WSD,
        later={"expansion": {"width": "Slice", "depth": "Interleave", "weights": "Trunk"}, **_NO_TEACHER},
    ),
    "late-jump": Recipe(
        "the largest alone, with one block a tower for four fifths of its epochs",
        every=WSD,
        later={"expansion": {"depth": "Stack", "weights": "Trunk"}, **_NO_TEACHER},
        family="late-jump",
        settings={"first": 24, "later": 6},
    ),
}


@dataclass(frozen=True)
class Variant:
    """A recipe with settings, by the text that it was asked for with, in one spelling."""

    text: str
    recipe: Recipe
    settings: Mapping[str, Any]  # fields of Settings
    overrides: tuple[tuple[str, Any], ...]  # scope and path in the spec, value

    @property
    def name(self) -> str:
        """Without its settings."""
        return self.text.partition(":")[0]

    def complete_settings(self, defaults: Settings) -> Settings:
        """All settings: the data set's, the recipe's, the variant's."""
        return replace(defaults, **{**self.recipe.settings, **self.settings})

    def fragment(self, index: int, count: int) -> dict[str, Any]:
        """The spec's fields of stage `index` of `count` that the recipe sets."""
        scopes = (
            {"every"} | ({"first"} if index == 0 else {"later"}) | ({"last"} if index == count - 1 else set())
        )
        result: dict[str, Any] = {}
        for scope in SCOPES:
            if scope in scopes:
                result = _merged(result, getattr(self.recipe, scope))
        for scope in SCOPES:
            for path, value in self.overrides:
                head, _, rest = path.partition(".")
                if head == scope and scope in scopes:
                    result = _merged(result, _nested(rest.split("."), value))
        return result


@lru_cache(maxsize=4096)
def variant(text: str) -> Variant:
    """The recipe and the settings that a text names. Raises StudyError."""
    name, _, options = text.partition(":")
    if name not in RECIPES:
        raise StudyError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    known = {each.name for each in fields(Settings)}
    settings: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        key, equals, value = (part.strip() for part in option.partition("="))
        if not equals or not value:
            raise StudyError(f"{text!r}: {option!r} is no NAME=VALUE")
        if key in known:
            settings[key] = _setting(text, key, value)
        elif key.partition(".")[0] in SCOPES and re.fullmatch(r"\w+(\.\w+)+", key):
            overrides[key] = _value(value)
        else:
            raise StudyError(
                f"{text!r}: no setting is called {key!r}; there are {', '.join(sorted(known))}, and fields of the "
                f"spec as every.training.beta1, with {', '.join(SCOPES[1:])} for every"
            )
    shown = [f"{key}={_shown(value)}" for key, value in sorted({**settings, **overrides}.items())]
    canonical = name + (":" + ",".join(shown) if shown else "")
    return Variant(canonical, RECIPES[name], settings, tuple(sorted(overrides.items())))


def _setting(text: str, key: str, value: str) -> Any:
    if key == "epochs":
        parts = [_value(part) for part in value.split("/")]
        if all(isinstance(part, int) for part in parts):
            return tuple(parts)
    else:
        number = _value(value)
        whole = key in {"first", "later", "warmup", "warmup_grown", "batch"}
        if (
            isinstance(number, int)
            or (isinstance(number, float) and not whole)
            or (key == "ema" and number is None)
        ):
            return number
    raise StudyError(f"{text!r}: {key} is {value!r}, which is no number for it")


def _value(text: str) -> Any:
    try:
        return float(text) if re.fullmatch(r"\d+(\.\d+)?e-?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _shown(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else "null" if value is None else f"{value}"


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: _nested(path[1:], value) if path[1:] else value}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(before, value) if both and before is not None else value
    return result
