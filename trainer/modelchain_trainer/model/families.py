"""The families of models, by the type of their configuration."""

from __future__ import annotations

from modelchain.families import FamilyConfig
from modelchain_trainer.model.classifier import CLASSIFIER
from modelchain_trainer.model.clip import CLIP
from modelchain_trainer.model.family import AnyModel, Family
from modelchain_trainer.model.language_model import LANGUAGE_MODEL
from modelchain_trainer.model.layout import Layout
from modelchain_trainer.model.open_clip_adapter import OPEN_CLIP
from modelchain_trainer.model.timm_adapter import TIMM

FAMILIES: dict[type[FamilyConfig], Family] = {
    family.config: family for family in (CLIP, CLASSIFIER, LANGUAGE_MODEL, TIMM, OPEN_CLIP)
}

__all__ = ["FAMILIES", "AnyModel", "Family", "family_of", "layout_of"]


def family_of(config: FamilyConfig) -> Family:
    """The family of a configuration."""
    return FAMILIES[type(config)]


def layout_of(config: FamilyConfig) -> Layout:
    """What every axis of every parameter of a model means. Only families that grow say so."""
    layout = family_of(config).layout
    assert layout is not None, f"{type(config).__name__} does not grow"
    return layout(config)
