"""timm's own modules as classifiers of a chain. timm is imported here only, once such a model is built.

Shape suffixes: B images, C colours, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from modelchain.block import first_problem
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.families import TimmConfig
from modelchain.families.timm_adapter import NORM_BATCH, near, timm_models
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.batch_norm import BatchNorms, as_of_today, without_counters
from modelchain_trainer.model.family import AnyModel, ClassifierModel, Family, ImageTower
from modelchain_trainer.model.timm_config import check_pixels, mapping, pixels

_NET = "net."  # before timm's names of parameters


def timm_library() -> ModuleType:
    """timm. Raises ConfigurationError where it is not installed, or its torchvision is of another torch."""
    try:
        import timm
    except (ImportError, RuntimeError, OSError) as error:  # the latter two: libraries of another torch
        cause = " ".join(str(error).split())
        raise ConfigurationError(
            f"models under timmConfig are timm's, which this trainer can't import ({cause}); install timm, and the "
            "torchvision of its torch, with pip install 'modelchain[trainer]', or take the trainer's image of the "
            "release"
        ) from error
    return timm


class TimmClassifier(ClassifierModel[TimmConfig]):
    """A model of timm, whose last layer is the head."""

    def __init__(self, config: TimmConfig, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        if config.name not in timm_models():
            raise ConfigurationError(
                f"timmConfig.name: {config.name!r} can't be a stage; {near(config.name)}"
            )
        self.config = config
        with torch.device(device or "cpu"):
            self.net: Any = timm_library().create_model(
                config.name, pretrained=False, num_classes=config.classes
            )
        self.norms = BatchNorms(self.net)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """As timm does, block by block."""
        if enabled and self.norms:
            raise ConfigurationError(
                f"training.gradientCheckpointing: {self.config.name} has BatchNorm, whose statistics a second forward "
                "pass would count twice; remove it"
            )
        self.net.set_grad_checkpointing(enabled)

    def recomputing(self) -> AbstractContextManager[None]:
        """See `Model`."""
        return self.norms.recomputing()

    def end_step(self, group: Group, skip: Tensor) -> None:
        """See `Model`."""
        self.norms.end_step(group, skip)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """A state dict of ours, without BatchNorm's counters."""
        return super().load_state_dict(as_of_today(self, state_dict), strict=strict, assign=assign)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """What the head reads, [B, D]."""
        return self.net.forward_head(self.net.forward_features(images_BCHW), pre_logits=True)

    def forward(self, images_BCHW: Tensor, kept_BK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, K]; in training, samples are normed in groups of `normBatchSize`."""
        assert kept_BK is None, "it has no patches that could be left out"
        if self.training and self.norms:
            features_BD = self.norms.in_groups(self.features, images_BCHW, self.config.norm_batch_size)
        else:
            features_BD = self.features(images_BCHW)
        return features_BD, self.net.get_classifier()(features_BD)

    def image_tower(self) -> ImageTower:
        """The whole model but for its head."""
        return _Features(self)

    def new_image_tower(self) -> ImageTower:
        """See `Model`."""
        device = next(self.parameters()).device
        return _Features(TimmClassifier(self.config, device=device)).train()


class _Features(ImageTower):
    """A classifier's features. It norms by its running statistics in training too, which stay as they are."""

    def __init__(self, classifier: TimmClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def train(self, mode: bool = True) -> _Features:
        """All but BatchNorm."""
        super().train(mode)
        self.classifier.norms.use_running()
        return self

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`. Running statistics are only read, so that a second pass counts nothing twice."""
        self.classifier.net.set_grad_checkpointing(enabled)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.classifier.features(images_BCHW)


def initialise(model: AnyModel, generator: torch.Generator) -> None:
    """As timm initialises it, which draws from torch's global generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = TimmClassifier(model.config)
    model.load_state_dict(fresh.state_dict())


def to_timm(config: TimmConfig) -> dict[str, object]:
    """The content of config.json, and of our own what timm does not know."""
    known = timm_library().get_pretrained_cfg(config.name)
    content: dict[str, object] = {
        "architecture": config.name,
        "num_classes": config.classes,
        "num_features": config.feature_size,
        "pretrained_cfg": {
            **pixels(config.image_size),
            "num_classes": config.classes,
            "classifier": known.classifier,
            "first_conv": known.first_conv,
        },
    }
    if config.has_batch_norm:
        content["modelchain"] = {"norm_batch_size": config.norm_batch_size}
    return content


def from_timm(content: object, where: str) -> TimmConfig:
    """The model of a config.json. Raises UserDataError for one that can't be a stage, is not as timm builds it by its
    name, or sees images that are normalised otherwise than ours.
    """
    whole = mapping(content, where)
    name, arguments = str(whole.get("architecture")), whole.get("model_args") or {}
    if name not in timm_models():
        raise UserDataError(f"{where}: architecture {name} can't be a stage; {near(name)}")
    if arguments:
        raise UserDataError(
            f"{where}: only models as timm builds them by their name can be used, without model_args"
        )
    images = mapping(whole.get("pretrained_cfg"), f"{where}: pretrained_cfg")
    check_pixels(images, where)
    size = images.get("input_size")
    ours = mapping(whole.get("modelchain") or {}, f"{where}: modelchain")
    document = {
        "name": name,
        "classes": whole.get("num_classes"),
        "image_size": size[-1] if isinstance(size, list) and size else size,
        "norm_batch_size": ours.get("norm_batch_size", NORM_BATCH),
    }
    try:
        return TimmConfig.model_validate(document)
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As timm has them."""
    return {name.removeprefix(_NET): tensor for name, tensor in state.items()}


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As we have them."""
    return {f"{_NET}{name}": tensor for name, tensor in without_counters(state).items()}


TIMM = Family(
    config=TimmConfig,
    build=lambda config, device: TimmClassifier(config, device=device),
    to_config=to_timm,
    from_config=from_timm,
    initialise=initialise,
    published_names=published_names,
    own_names=own_names,
)
