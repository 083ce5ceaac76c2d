"""The families of the study: models of ascending size, in one range of sizes for each data set.

A model is named after the width of its tower (of CLIP's image tower), so that families share the models that they have
in common: one that was trained alone serves them all. Text towers grow along, as far as heads of one width allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.family.errors import StudyError


@dataclass(frozen=True)
class Size:
    """Widths and layers of a model's tower, and of a text tower beside it."""

    name: str
    tower: tuple[int, int]
    text: tuple[int, int] = (0, 0)
    wanted: bool = True  # False: only a way to a larger one


@dataclass(frozen=True)
class ClipShape:
    """What all CLIP models of a family share."""

    image_size: int
    patch_size: int
    context_length: int
    embed_dim: int
    head_width: int = 16

    def fields(self, size: Size) -> dict[str, object]:
        """The model as a stage of a chain has it."""
        text_width, text_layers = size.text
        return {
            "modelConfig": {
                "embedDim": self.embed_dim,
                "vision": _vision(self, size),
                "text": {
                    "contextLength": self.context_length,
                    "width": text_width,
                    "layers": text_layers,
                    "heads": text_width // self.head_width,
                },
            }
        }


@dataclass(frozen=True)
class ClassifierShape:
    """What all classifiers of a family share."""

    image_size: int
    patch_size: int
    classes: int
    head_width: int = 16

    def fields(self, size: Size) -> dict[str, object]:
        """The model as a stage of a chain has it."""
        return {"classifierConfig": {"classes": self.classes, "vision": _vision(self, size)}}


@dataclass(frozen=True)
class LanguageModelShape:
    """What all language models of a family share."""

    context_length: int
    vocabulary_size: int
    head_width: int = 16

    def fields(self, size: Size) -> dict[str, object]:
        """The model as a stage of a chain has it."""
        width, layers = size.tower
        return {
            "languageModelConfig": {
                "contextLength": self.context_length,
                "vocabularySize": self.vocabulary_size,
                "width": width,
                "layers": layers,
                "heads": width // self.head_width,
            }
        }


Shape = ClipShape | ClassifierShape | LanguageModelShape


def _vision(shape: ClipShape | ClassifierShape, size: Size) -> dict[str, object]:
    width, layers = size.tower
    return {
        "imageSize": shape.image_size,
        "patchSize": shape.patch_size,
        "width": width,
        "layers": layers,
        "headWidth": shape.head_width,
    }


def _sizes(*sizes: Size) -> dict[str, Size]:
    return {size.name: size for size in sizes}


_DIGITS = _sizes(
    Size("w32", (32, 2), (32, 1)),
    Size("w48", (48, 2), (32, 1)),
    Size("w64", (64, 3), (32, 2)),
    Size("w80", (80, 3), (48, 2)),
    Size("w96", (96, 3), (48, 2)),
    Size("w112", (112, 4), (64, 2)),
    Size("w128", (128, 4), (64, 2)),
    Size("w128-shallow", (128, 1), (64, 1), wanted=False),
)

SIZES: Mapping[str, Mapping[str, Size]] = {
    "digits": _DIGITS,
    "digit-classes": _DIGITS,
    "fashion-mnist": _sizes(
        Size("w48", (48, 3), (48, 2)),
        Size("w64", (64, 3), (48, 2)),
        Size("w80", (80, 4), (48, 2)),
        Size("w96", (96, 4), (48, 2)),
        Size("w112", (112, 4), (64, 2)),
        Size("w128", (128, 5), (64, 3)),
        Size("w160", (160, 5), (80, 3)),
        Size("w192", (192, 6), (96, 3)),
        Size("w192-shallow", (192, 1), (96, 1), wanted=False),
    ),
    "unifont": _sizes(
        Size("w32", (32, 2), (32, 1)),
        Size("w48", (48, 3), (48, 2)),
        Size("w64", (64, 3), (48, 2)),
        Size("w80", (80, 4), (64, 2)),
        Size("w96", (96, 4), (64, 2)),
        Size("w112", (112, 4), (80, 3)),
        Size("w128", (128, 5), (80, 3)),
        Size("w160", (160, 5), (96, 3)),
        Size("w192", (192, 6), (96, 3)),
        Size("w192-shallow", (192, 1), (96, 1), wanted=False),
    ),
    "topics": _sizes(
        Size("w32", (32, 2)),
        Size("w48", (48, 2)),
        Size("w64", (64, 3)),
        Size("w96", (96, 4)),
        Size("w96-shallow", (96, 1), wanted=False),
    ),
}

# By how many models they have; "late-jump" is the largest with one block a tower, and itself.
_OF_DIGITS = {
    "3": ("w32", "w64", "w128"),
    "4": ("w32", "w48", "w80", "w128"),
    "7": ("w32", "w48", "w64", "w80", "w96", "w112", "w128"),
    "2": ("w32", "w64"),  # for the tests
    "late-jump": ("w128-shallow", "w128"),
}

FAMILIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "digits": _OF_DIGITS,
    "digit-classes": _OF_DIGITS,
    "fashion-mnist": {
        "3": ("w48", "w96", "w192"),
        "4": ("w48", "w80", "w128", "w192"),
        "7": ("w48", "w64", "w80", "w96", "w128", "w160", "w192"),
        "late-jump": ("w192-shallow", "w192"),
    },
    "unifont": {
        "3": ("w48", "w96", "w192"),
        "3-small": ("w32", "w64", "w96"),  # where a core has to do
        "4": ("w48", "w80", "w128", "w192"),
        "7": ("w48", "w64", "w80", "w96", "w128", "w160", "w192"),
        "late-jump": ("w192-shallow", "w192"),
    },
    "topics": {
        "3": ("w32", "w64", "w96"),
        "4": ("w32", "w48", "w64", "w96"),
        "2": ("w32", "w64"),  # for the tests
        "late-jump": ("w96-shallow", "w96"),
    },
}


def family(dataset: str, name: str) -> tuple[str, ...]:
    """The models of a family, smallest first. Raises StudyError."""
    known = FAMILIES[dataset]
    if name not in known:
        raise StudyError(f"{dataset} has no family {name!r}; it has {', '.join(known)}")
    return known[name]


def find_size(dataset: str, model: str) -> Size:
    """The size of a model. Raises StudyError."""
    known = SIZES[dataset]
    if model not in known:
        raise StudyError(f"{dataset} has no model {model!r}; it has {', '.join(known)}")
    return known[model]
