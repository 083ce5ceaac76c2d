"""open_clip's own modules as image towers of a chain's models: its ResNets, and models of timm as it adapts them.

The text tower is `DualEncoder`'s. open_clip, which takes seconds to import, is imported here only, once such a model is
built. What these libraries drop at random in training (activations, whole layers) is kept: a step's randomness is that
of its seed alone.

Shape suffixes: B images or texts, C colours, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from modelchain.block import first_problem
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.families import LockedTower, OpenClipConfig
from modelchain.families.open_clip_adapter import image_towers
from modelchain.families.timm_adapter import NORM_BATCH
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model.batch_norm import BatchNorms, as_of_today, without_counters
from modelchain_trainer.model.clip import DualEncoder, unit
from modelchain_trainer.model.clip_layout import SIGMOID_LOGIT_SCALE
from modelchain_trainer.model.family import AnyModel, Family, ImageTower
from modelchain_trainer.model.layers import check_buildable
from modelchain_trainer.model.open_clip_config import (
    mapping,
    model_and_vision_cfg,
    outside_of_image_tower,
    refused_outside_of_image_tower,
    side,
    with_vision_cfg,
)

_RESNET_HEAD = 64  # channels of a head of the attention that pools
_TEXT_APART = "text."  # before names of the text tower in open_clip's CustomTextCLIP
# Keys of vision_cfg that do not tell towers apart, and open_clip's own values where a model of timm is named.
_NOT_OF_THE_TOWER = frozenset(
    {"image_size", "patch_size", "patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path"}
)
_TIMM_DEFAULTS = {"timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": False}


def open_clip_library() -> Any:
    """open_clip. Raises ConfigurationError where it is not installed, or its torchvision is of another torch."""
    try:
        import open_clip
    except (ImportError, RuntimeError, OSError) as error:  # the latter two: libraries of another torch
        cause = " ".join(str(error).split())
        raise ConfigurationError(
            f"image towers under openClipConfig are open_clip's, which this trainer can't import ({cause}); install "
            "open_clip_torch, and the torchvision of its torch, with pip install 'modelchain[trainer]', or take the "
            "trainer's image of the release"
        ) from error
    return open_clip


def image_module(vision_cfg: Mapping[str, Any], image_size: int, embed_dim: int) -> nn.Module:
    """The image tower that open_clip builds of such a configuration: [B, C, S, S] -> [B, E]."""
    open_clip_library()
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    if "timm_model_name" not in vision_cfg:
        width = vision_cfg["width"]
        heads = width * 32 // _RESNET_HEAD
        return ModifiedResNet(vision_cfg["layers"], embed_dim, heads, image_size=image_size, width=width)
    return TimmModel(
        vision_cfg["timm_model_name"],
        embed_dim,
        image_size=image_size,
        pool=vision_cfg["timm_pool"],
        proj=vision_cfg["timm_proj"],
    )


def _image_tower(config: OpenClipConfig, device: torch.device | str | None) -> nn.Module:
    """Without what would be dropped at random."""
    with torch.device(device or "cpu"):
        visual = image_module(_vision_cfg(config), config.vision.image_size, config.embed_dim)
    module: Any
    for module in visual.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):  # timm's DropPath
            module.drop_prob = 0.0
    return visual


def _compute_buffers(module: Any, device: torch.device) -> None:
    """Those of a module of timm's, built on torch's meta device, that are in no state dict: tables of positions, masks.

    Its parameters are filled in already.
    """
    computed = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
    for name in computed:
        setattr(module, name, torch.empty_like(module.get_buffer(name), device=device))
    if computed:
        module.init_non_persistent_buffers()


def _vision_cfg(config: OpenClipConfig) -> dict[str, Any]:
    mlp = {"timm_proj": "mlp"} if config.vision.mlp_projection else {}
    return dict(config.tower.vision_cfg) | mlp


class OpenClip(DualEncoder[OpenClipConfig]):
    """A model with an image tower of open_clip's, under its names of parameters."""

    def __init__(self, config: OpenClipConfig, *, device: torch.device | str | None = None) -> None:
        check_buildable(config)
        super().__init__(config, _image_tower(config, device), device=device)
        self.norms = BatchNorms(self.visual)
        self._image_locked = False

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`."""
        if enabled and self.norms:
            raise ConfigurationError(
                f"training.gradientCheckpointing: {self.config.vision.name} has BatchNorm, whose statistics a second "
                "forward pass would count twice; remove it"
            )
        super().set_gradient_checkpointing(enabled)
        self.image_tower().set_gradient_checkpointing(enabled)

    def lock(self, tower: LockedTower) -> None:
        """See `ImageTextModel`. A locked image tower norms by its running statistics, which stay."""
        super().lock(tower)
        if tower is LockedTower.IMAGE:
            self._image_locked = True
            self.visual.eval()

    def train(self, mode: bool = True) -> OpenClip:
        """All but a locked image tower."""
        super().train(mode)
        if self._image_locked:
            self.visual.eval()
        return self

    def recomputing(self) -> AbstractContextManager[None]:
        """See `Model`."""
        return self.norms.recomputing()

    def end_step(self, group: Group, skip: Tensor) -> None:
        """See `Model`."""
        if not self._image_locked:
            self.norms.end_step(group, skip)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """A state dict of ours, without BatchNorm's counters."""
        result = super().load_state_dict(as_of_today(self, state_dict), strict=strict, assign=assign)
        for module in self.visual.modules():
            _compute_buffers(module, self.logit_scale.device)
        return result

    def image_tower(self) -> ImageTower:
        """The image tower, up to the embedding."""
        return _Tower(self.visual)

    def new_image_tower(self) -> ImageTower:
        """See `Model`."""
        return _Tower(_image_tower(self.config, self.logit_scale.device)).train()

    def encode_image(
        self, images_BCHW: Tensor, normalize: bool = True, kept_BK: Tensor | None = None
    ) -> Tensor:
        """See `ImageTextModel`; in training, samples are normed in groups of `normBatchSize`."""
        assert kept_BK is None, "it has no patches that could be left out"
        if self.visual.training and self.norms:
            image_BE = self.norms.in_groups(self.visual, images_BCHW, self.config.vision.norm_batch_size)
        else:
            image_BE = self.visual(images_BCHW)
        return unit(image_BE) if normalize else image_BE


class _Tower(ImageTower):
    """An image tower. It norms by its running statistics in training too, which stay as they are."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual
        self.norms = BatchNorms(visual)

    def train(self, mode: bool = True) -> _Tower:
        """All but BatchNorm."""
        super().train(mode)
        self.norms.use_running()
        return self

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """See `Model`. Running statistics are only read, so that a second pass counts nothing twice."""
        self.visual.set_grad_checkpointing(enabled)  # which open_clip's ResNets pass over

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.visual(images_BCHW)


def initialise(model: AnyModel, generator: torch.Generator) -> None:
    """As open_clip initialises it, which draws from torch's global generator; for the sigmoid loss as SigLIP does."""
    config: OpenClipConfig = model.config
    scale = {"init_logit_scale": SIGMOID_LOGIT_SCALE} if config.logit_bias else {}
    model_cfg: Any = to_open_clip(config)["model_cfg"]
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = open_clip_library().CLIP(**model_cfg, **scale)
    model.load_state_dict(without_counters(fresh.state_dict()))


def to_open_clip(config: OpenClipConfig) -> dict[str, object]:
    """The content of open_clip_config.json, and of our own what open_clip does not know."""
    content = with_vision_cfg(config, _vision_cfg(config) | {"image_size": config.vision.image_size})
    if config.has_batch_norm:
        content["modelchain"] = {"norm_batch_size": config.vision.norm_batch_size}
    return content


def from_open_clip(content: object, where: str) -> OpenClipConfig:
    """The model of an open_clip_config.json, or of one of open_clip's model_configs/*.json.

    Raises UserDataError for an image tower that can't be a stage, a text tower that is no plain transformer, or images
    that are normalised by other statistics than OpenAI's.
    """
    model, vision_cfg = model_and_vision_cfg(content, where)
    custom_text = {
        "custom_text": model.get("custom_text"),
        "multimodal_cfg": None,
    }  # either way, one function
    refused = refused_outside_of_image_tower(model, custom_text)
    if refused:
        raise UserDataError(
            f"{where}: only CLIP models with a plain text transformer can be used; not supported: {', '.join(refused)}"
        )
    given = {key: value for key, value in vision_cfg.items() if key not in _NOT_OF_THE_TOWER}
    if "timm_model_name" in given:
        given = _TIMM_DEFAULTS | given
        if not given["timm_proj_bias"]:
            del given["timm_proj_bias"]
    mlp = given.get("timm_proj") == "mlp"
    if mlp:
        given["timm_proj"] = "linear"
    name = next((name for name, tower in image_towers().items() if tower.vision_cfg == given), None)
    if name is None:
        raise UserDataError(
            f"{where}: vision_cfg describes no image tower that openClipConfig.vision.name may name"
        )
    ours = mapping(mapping(content, where).get("modelchain") or {}, f"{where}: modelchain")
    document = outside_of_image_tower(model)
    document["vision"] = {
        "name": name,
        "image_size": side(vision_cfg.get("image_size", 224)),
        "mlp_projection": mlp,
        "norm_batch_size": ours.get("norm_batch_size", NORM_BATCH),
    }
    try:
        return OpenClipConfig.model_validate(document)
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As we have them, of open_clip's CLIP or CustomTextCLIP."""
    return {name.removeprefix(_TEXT_APART): tensor for name, tensor in without_counters(state).items()}


OPEN_CLIP = Family(
    config=OpenClipConfig,
    build=lambda config, device: OpenClip(config, device=device),
    to_config=to_open_clip,
    from_config=from_open_clip,
    initialise=initialise,
    own_names=own_names,
)
