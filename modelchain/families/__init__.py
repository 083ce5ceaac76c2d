"""The families of models, one file each: their configuration as a chain writes it, what they cost, which can be built
and grow, and what of them is in the digest.

No torch: `modelchain_trainer.model.families` has each family's module. May import block and digest_form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, Union

from modelchain.families.classifier import CLASSIFIER, ClassifierConfig
from modelchain.families.clip import CLIP, DualEncoderConfig, ModelConfig, TextSpec
from modelchain.families.family import Family, FamilyConfig, LockedTower, Problem
from modelchain.families.language_model import LANGUAGE_MODEL, Activation, LanguageModelConfig
from modelchain.families.open_clip_adapter import OPEN_CLIP, OpenClipConfig
from modelchain.families.timm_adapter import TIMM, TimmConfig
from modelchain.families.towers import Pooling, VisionSpec

FAMILIES: tuple[Family[Any], ...] = (CLIP, CLASSIFIER, LANGUAGE_MODEL, TIMM, OPEN_CLIP)
_OF_CONFIG: dict[type[FamilyConfig], Family[Any]] = {family.config: family for family in FAMILIES}

# The configuration of a model of any family: where it is read, one of the types that are registered.
if TYPE_CHECKING:
    AnyConfig: TypeAlias = FamilyConfig
else:
    AnyConfig = Union[tuple(family.config for family in FAMILIES)]  # noqa: UP007

__all__ = [
    "CLASSIFIER",
    "CLIP",
    "FAMILIES",
    "LANGUAGE_MODEL",
    "OPEN_CLIP",
    "TIMM",
    "Activation",
    "AnyConfig",
    "ClassifierConfig",
    "DualEncoderConfig",
    "Family",
    "FamilyConfig",
    "LanguageModelConfig",
    "LockedTower",
    "ModelConfig",
    "OpenClipConfig",
    "Pooling",
    "Problem",
    "TextSpec",
    "TimmConfig",
    "VisionSpec",
    "families_of",
    "family_of",
]


def family_of(config: FamilyConfig | type[FamilyConfig]) -> Family[Any]:
    """The family of a configuration."""
    return _OF_CONFIG[config if isinstance(config, type) else type(config)]


def families_of(kind: type[FamilyConfig]) -> tuple[Family[Any], ...]:
    """The families whose models are of that kind, the usual one first."""
    return tuple(family for family in FAMILIES if issubclass(family.config, kind))
