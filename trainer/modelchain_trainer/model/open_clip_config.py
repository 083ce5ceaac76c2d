"""open_clip_config.json: a model configuration and its preprocessing, as open_clip writes and reads them.

open_clip's dictionaries have many keys. Those that describe a CLIP of two plain transformers are read; a key
that would change the function (a ResNet, a Hugging Face text tower, layer scale, another tokenizer ...) is
refused by its name, unless it holds the value that means "off".
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from modelchain.block import first_problem
from modelchain.errors import UserDataError
from modelchain.families import DualEncoderConfig, ModelConfig, Pooling, VisionSpec

SIGMOID_LOGIT_BIAS = -10.0  # SigLIP, arXiv 2303.15343, section 3.2

# The image statistics of OpenAI's CLIP, which the data pipeline applies.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STANDARD_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

_MODEL_KEYS = {"embed_dim": "embed_dim", "quick_gelu": "quick_gelu"}
_VISION_KEYS = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
_VISION_OPTIONAL = ("pool_type", "final_ln_after_pool", "no_ln_pre", "ls_init_value")
_POOLING: Mapping[object, Pooling] = {"tok": Pooling.CLASS_TOKEN, "avg": Pooling.AVERAGE}
_TEXT_KEYS = ("context_length", "vocab_size", "width", "layers", "heads", "mlp_ratio")

# open_clip's own defaults where they are not ours (ours are not assumed to follow its).
_VISION_DEFAULTS = {"layers": 12, "width": 768}
_TEXT_DEFAULTS = {"layers": 12, "width": 512, "heads": 8}

# Keys that change nothing at any value (initialisation, what a forward pass returns), and those that change
# nothing at these values. Anything else is refused.
_HARMLESS = frozenset(
    {"init_logit_scale", "nonscalar_logit_scale", "output_dict", "output_tokens", "cast_dtype"}
)
_MODEL_OFF: Mapping[str, object] = {"custom_text": False, "multimodal_cfg": None}
_BLOCK_OFF: Mapping[str, object] = {
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": "default",
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "final_ln_after_pool": False,
}
_VISION_OFF: Mapping[str, object] = {
    **_BLOCK_OFF,
    "patch_dropout": 0.0,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "timm_model_name": None,
}
_TEXT_OFF: Mapping[str, object] = {
    **_BLOCK_OFF,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "tokenizer_mode": None,
    "tokenizer_kwargs": None,
    "embed_cls": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "proj_type": "linear",
}
# Settings of parts that the keys above switch off: without effect as long as those are off.
_UNUSED = frozenset(
    {
        "attn_pooler_queries",
        "attn_pooler_heads",
        "timm_model_pretrained",
        "timm_pool",
        "timm_proj",
        "timm_proj_bias",
        "timm_drop",
        "timm_drop_path",
        "pad_id",
        "eos_id",
        "hf_model_pretrained",
        "hf_proj_type",
        "hf_pooler_type",
    }
)


def to_open_clip(config: ModelConfig) -> dict[str, object]:
    """The content of open_clip_config.json for a model of ours."""
    vision = {key: getattr(config.vision, key) for key in _VISION_KEYS} | _optional(config.vision)
    return with_vision_cfg(config, vision)


def with_vision_cfg(config: DualEncoderConfig, vision_cfg: Mapping[str, object]) -> dict[str, object]:
    """The content of open_clip_config.json for a model with that image tower."""
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.quick_gelu,
            **({"init_logit_bias": SIGMOID_LOGIT_BIAS} if config.logit_bias else {}),
            "vision_cfg": vision_cfg,
            "text_cfg": {key: getattr(config.text, key) for key in _TEXT_KEYS}
            | ({} if config.text.causal else {"no_causal_mask": True}),
        },
        "preprocess_cfg": {
            "mean": list(MEAN),
            "std": list(STANDARD_DEVIATION),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def _optional(vision: VisionSpec) -> dict[str, object]:
    """Settings that are left out where they are open_clip's defaults."""
    settings: dict[str, object] = {}
    if vision.pooling is Pooling.AVERAGE:
        settings |= {"pool_type": "avg", "final_ln_after_pool": vision.norm_after_pooling}
    if not vision.input_norm:
        settings["no_ln_pre"] = True
    if vision.layer_scale is not None:
        settings["ls_init_value"] = vision.layer_scale
    return settings


def from_open_clip(content: object, where: str) -> ModelConfig:
    """The model of an open_clip_config.json, or of one of open_clip's model_configs/*.json.

    `where` names the file in messages. Raises UserDataError if this is no plain ViT and text CLIP, or if its
    images are normalised by other statistics than OpenAI's.
    """
    model, vision = model_and_vision_cfg(content, where)
    refused = [
        *refused_outside_of_image_tower(model),
        *_refused("vision_cfg.", vision, {*_VISION_KEYS, *_VISION_OPTIONAL}, _VISION_OFF),
    ]
    if isinstance(vision.get("layers"), list):
        refused.append("vision_cfg.layers (a ResNet)")
    pool = vision.get("pool_type", "tok")
    if not isinstance(pool, str) or pool not in _POOLING:
        refused.append(f"vision_cfg.pool_type={_short(pool)}")
    if refused:
        raise UserDataError(
            f"{where}: only CLIP models of a plain vision and a plain text transformer can be used; "
            f"not supported: {', '.join(refused)}"
        )
    document = outside_of_image_tower(model)
    document["vision"] = _VISION_DEFAULTS | {key: side(vision[key]) for key in _VISION_KEYS if key in vision}
    document["vision"] |= {
        "pooling": _POOLING.get(pool),
        # Of one token it is the same, before and after.
        "norm_after_pooling": pool == "avg" and bool(vision.get("final_ln_after_pool")),
        "input_norm": not vision.get("no_ln_pre"),
        "layer_scale": vision.get("ls_init_value"),
    }
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        raise UserDataError(f"{where}: {first_problem(error)}") from None


def model_and_vision_cfg(content: object, where: str) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The model_cfg and the vision_cfg in it, of an open_clip_config.json or a file of open_clip's model_configs.

    Raises UserDataError where a part is missing, or images are normalised by other statistics than OpenAI's.
    """
    whole = mapping(content, where)
    if "model_cfg" in whole:
        _check_preprocessing(mapping(whole.get("preprocess_cfg") or {}, f"{where}: preprocess_cfg"), where)
        model = mapping(whole["model_cfg"], f"{where}: model_cfg")
    else:
        model = whole
    for part in ("vision_cfg", "text_cfg"):
        if part not in model:
            raise UserDataError(f"{where}: {part} is missing; this is no configuration of open_clip's")
    mapping(model["text_cfg"], f"{where}: text_cfg")
    return model, mapping(model["vision_cfg"], f"{where}: vision_cfg")


def refused_outside_of_image_tower(
    model: Mapping[str, object], off: Mapping[str, object] = _MODEL_OFF
) -> list[str]:
    """The keys but for vision_cfg that would change the function, as "key=value"; not at the values of `off`."""
    text = mapping(model["text_cfg"], "text_cfg")
    return [
        *_refused("", model, {*_MODEL_KEYS, "init_logit_bias", "vision_cfg", "text_cfg"}, off),
        *_refused("text_cfg.", text, {*_TEXT_KEYS, "no_causal_mask"}, _TEXT_OFF),
    ]


def outside_of_image_tower(model: Mapping[str, object]) -> dict[str, object]:
    """The fields of a DualEncoderConfig."""
    text = mapping(model["text_cfg"], "text_cfg")
    return {
        **{key: model[key] for key in _MODEL_KEYS if key in model},
        "logit_bias": model.get("init_logit_bias") is not None,
        "text": _TEXT_DEFAULTS
        | {key: text[key] for key in _TEXT_KEYS if key in text}
        | {"causal": not text.get("no_causal_mask")},
    }


def _refused(
    prefix: str, given: Mapping[str, object], read: set[str], off: Mapping[str, object]
) -> list[str]:
    """The keys that would change the function, as "prefix.key=value"."""
    return [
        f"{prefix}{key}={_short(value)}"
        for key, value in given.items()
        if key not in read | _HARMLESS | _UNUSED and not (key in off and (value is None or value == off[key]))
    ]


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return "{...}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def side(value: object) -> object:
    """[224, 224] -> 224: open_clip allows both."""
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return value[0]
    return value


def _check_preprocessing(given: Mapping[str, object], where: str) -> None:
    for key, ours in (("mean", MEAN), ("std", STANDARD_DEVIATION)):
        value = given.get(key)
        if value is not None and (not isinstance(value, list) or tuple(value) != ours):
            raise UserDataError(
                f"{where}: preprocess_cfg.{key} is {_short(value)}; only models trained on images normalised "
                f"as OpenAI's CLIP ({list(ours)}) can be used"
            )


def mapping(value: object, where: str) -> Mapping[str, object]:
    """Raises UserDataError where it is none."""
    if not isinstance(value, Mapping):
        raise UserDataError(f"{where}: expected a JSON object")
    return value
