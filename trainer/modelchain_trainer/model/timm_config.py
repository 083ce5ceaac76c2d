"""A classifier as timm writes and reads it: config.json, and the names of parameters in model.safetensors.

`timm.create_model("local-dir:FOLDER")` loads such a folder. Only plain vision transformers are read back: a
setting that would change the function is refused by its name.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from modelchain.block import first_problem
from modelchain.errors import UserDataError
from modelchain.families import ClassifierConfig, Pooling, VisionSpec
from modelchain_trainer.model.open_clip_config import MEAN, STANDARD_DEVIATION, mapping

ARCHITECTURE = "vit_base_patch16_224"  # the plain one; its sizes are overridden by model_args
_ARGUMENTS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
_OPTIONAL = ("global_pool", "fc_norm", "class_token", "init_values")
_POOLING = {"token": Pooling.CLASS_TOKEN, "avg": Pooling.AVERAGE}
_OWN = {  # our names below blocks, and timm's
    "ln_1.": "norm1.",
    "ls_1.": "ls1.",
    "ls_2.": "ls2.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_OUTSIDE = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.": "patch_embed.proj.",
    "ln_post.": "norm.",
    "fc_norm.": "fc_norm.",
    "head.": "head.",
}
_BLOCKS, _TIMM_BLOCKS = "transformer.resblocks.", "blocks."


def to_timm(config: ClassifierConfig) -> dict[str, object]:
    """The content of config.json."""
    vision = config.vision
    return {
        "architecture": ARCHITECTURE,
        "num_classes": config.classes,
        "num_features": vision.width,
        "model_args": {
            "img_size": vision.image_size,
            "patch_size": vision.patch_size,
            "embed_dim": vision.width,
            "depth": vision.layers,
            "num_heads": vision.width // vision.head_width,
            "mlp_ratio": vision.mlp_ratio,
            **_optional(vision),
        },
        "pretrained_cfg": {
            **pixels(vision.image_size),
            "num_classes": config.classes,
            "classifier": "head",
            "first_conv": "patch_embed.proj",
        },
    }


def pixels(image_size: int) -> dict[str, object]:
    """How images come to a model, as its pretrained_cfg says."""
    return {
        "input_size": [3, image_size, image_size],
        "mean": list(MEAN),
        "std": list(STANDARD_DEVIATION),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
    }


def _optional(vision: VisionSpec) -> dict[str, object]:
    """Arguments that are left out where they are timm's defaults."""
    arguments: dict[str, object] = {}
    if vision.pooling is Pooling.AVERAGE:
        arguments |= {"global_pool": "avg", "fc_norm": vision.norm_after_pooling}
    if not vision.class_token:
        arguments["class_token"] = False
    if vision.layer_scale is not None:
        arguments["init_values"] = vision.layer_scale
    return arguments


def from_timm(content: object, where: str) -> ClassifierConfig:
    """The model of a config.json. Raises UserDataError for any but a plain vision transformer, or for images that
    are normalised by other statistics than OpenAI's.
    """
    whole = mapping(content, where)
    arguments = mapping(whole.get("model_args"), f"{where}: model_args")
    unknown = sorted(set(arguments) - {*_ARGUMENTS, *_OPTIONAL})
    missing = sorted(set(_ARGUMENTS) - set(arguments))
    if whole.get("architecture") != ARCHITECTURE or unknown:
        named = ", ".join(unknown) or f"architecture {whole.get('architecture')}"
        raise UserDataError(
            f"{where}: only plain vision transformers ({ARCHITECTURE} with its sizes as model_args) can be used; "
            f"not supported: {named}"
        )
    if missing:
        raise UserDataError(f"{where}: model_args.{missing[0]} is missing")
    check_pixels(mapping(whole.get("pretrained_cfg"), f"{where}: pretrained_cfg"), where)
    width, heads = arguments["embed_dim"], arguments["num_heads"]
    if not (isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0):
        raise UserDataError(f"{where}: {heads} heads do not divide a width of {width}")
    pool = arguments.get("global_pool", "token")
    if not isinstance(pool, str) or pool not in _POOLING:
        raise UserDataError(
            f"{where}: model_args.global_pool {pool!r} is not supported, only {' and '.join(_POOLING)}"
        )
    document = {
        "classes": whole.get("num_classes"),
        "vision": {
            "image_size": arguments["img_size"],
            "patch_size": arguments["patch_size"],
            "width": width,
            "layers": arguments["depth"],
            "head_width": width // heads,
            "mlp_ratio": arguments["mlp_ratio"],
            "pooling": _POOLING[pool],
            "norm_after_pooling": arguments.get("fc_norm", pool == "avg"),
            "class_token": arguments.get("class_token", True),
            "layer_scale": arguments.get("init_values"),
        },
    }
    try:
        return ClassifierConfig.model_validate(document)
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None


def check_pixels(images: Mapping[str, object], where: str) -> None:
    """Raises UserDataError for a pretrained_cfg of images that are normalised by other statistics than ours."""
    for key, ours in (("mean", MEAN), ("std", STANDARD_DEVIATION)):
        if images.get(key) != list(ours):
            raise UserDataError(
                f"{where}: pretrained_cfg.{key} is {images.get(key)}; only models trained on images normalised as "
                f"OpenAI's CLIP ({list(ours)}) can be used"
            )


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under timm's names; there the class token and the positions have a batch of one."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_BLOCKS):
            number, _, leaf = name.removeprefix(_BLOCKS).partition(".")
            renamed[f"{_TIMM_BLOCKS}{number}.{_translated(leaf, _OWN)}"] = tensor
        else:
            shape = {"class_embedding": (1, 1, -1), "positional_embedding": (1, *tensor.shape)}.get(name)
            renamed[_translated(name, _OUTSIDE)] = tensor if shape is None else tensor.reshape(shape)
    return renamed


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters under our names. What timm's names do not cover is left as it is, to be refused by it."""
    own, outside = ({timm: ours for ours, timm in table.items()} for table in (_OWN, _OUTSIDE))
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_TIMM_BLOCKS):
            number, _, leaf = name.removeprefix(_TIMM_BLOCKS).partition(".")
            renamed[f"{_BLOCKS}{number}.{_translated(leaf, own)}"] = tensor
        else:
            drop = {"cls_token": 2, "pos_embed": 1}.get(name, 0)
            fits = tensor.shape[:drop] == (1,) * drop
            renamed[_translated(name, outside)] = tensor.reshape(tensor.shape[drop:]) if fits else tensor
    return renamed


def _translated(name: str, names: Mapping[str, str]) -> str:
    for one, other in names.items():
        if name.startswith(one):
            return other + name.removeprefix(one)
    return name
