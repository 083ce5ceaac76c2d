"""What is trained where speed is measured: models, captions, batches."""

from __future__ import annotations

from dataclasses import dataclass

from modelchain import catalogue
from modelchain.families import ModelConfig


@dataclass(frozen=True)
class Setting:
    """One comparison. Both programs train the same model on the same batch."""

    name: str
    model: str  # modelchain models
    teacher: str | None
    captions: int  # one of raw captions, or seven: see synthetic.py
    batch_size: int
    compile: bool
    precision: str = "bf16"
    image_size: int = 224
    layers: int | None = None  # of each tower, where the catalogue's are too many for a CPU
    steps: int = 10  # measured in one round
    seconds: float = 30.0  # that preparing and measuring both programs takes, roughly

    def config(self) -> ModelConfig:
        """The model."""
        return self._sized(self.model)

    def teacher_config(self) -> ModelConfig | None:
        """Its teacher."""
        return None if self.teacher is None else self._sized(self.teacher)

    def _sized(self, name: str) -> ModelConfig:
        config = catalogue.find(name)
        vision, text = {"image_size": self.image_size}, {}
        if self.layers is not None:
            vision["layers"] = text["layers"] = self.layers
        return config.model_copy(
            update={
                "vision": config.vision.model_copy(update=vision),
                "text": config.text.model_copy(update=text),
            }
        )


# open_clip's towers compile for over a minute.
GPU = (
    Setting("oneCaption", "ViT-B-16", None, 1, 512, compile=False),
    Setting("sevenCaptions", "ViT-B-16", None, 7, 128, compile=False),
    Setting("oneCaptionCompiled", "ViT-B-16", None, 1, 512, compile=True, seconds=120),
    Setting("taught", "ViT-B-16", "ViT-S-16", 1, 512, compile=False),
    Setting("sevenCaptionsCompiled", "ViT-B-16", None, 7, 128, compile=True, seconds=120),
    Setting("taughtCompiled", "ViT-B-16", "ViT-S-16", 1, 512, compile=True, seconds=130),
)
# The same code on something that a processor core trains in moments.
_SMALL = {"image_size": 32, "layers": 2, "batch_size": 4, "steps": 1, "seconds": 1.0}
CPU = (
    Setting("oneCaption", "ViT-T-16", None, 1, compile=False, **_SMALL),
    Setting("taught", "ViT-C-16", "ViT-T-16", 1, compile=False, **_SMALL),
    Setting("sevenCaptions", "ViT-T-16", None, 7, compile=False, **_SMALL),
)


def settings(device: str) -> tuple[Setting, ...]:
    """Those first that take little, so that each has a figure: time may not suffice for all."""
    return GPU if device == "cuda" else CPU


def find(device: str, name: str) -> Setting:
    """The setting of that name. KeyError if there is none."""
    return {setting.name: setting for setting in settings(device)}[name]
