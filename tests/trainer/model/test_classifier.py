"""A classifier is timm's vision transformer: same function, same gradients, and files that timm loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from modelchain import cost
from modelchain.errors import UserDataError
from modelchain.families import CLASSIFIER, ClassifierConfig, Pooling, VisionSpec, family_of
from modelchain_trainer.model import build_model, load_weights, model_from, save_weights
from modelchain_trainer.model.timm_config import own_names, timm_names
from tests.trainer.expansion.families import CLASSIFIER_TOWERS, classifier, trained

CONFIG = classifier(width=48, layers=3, classes=7, ratio=3.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(trained(CONFIG, dtype=torch.float32), CONFIG, tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.xdist_group("timm")
@pytest.mark.parametrize("tower", CLASSIFIER_TOWERS, ids=str)
def test_timm_loads_what_is_published_with_equal_logits_and_gradients(
    tmp_path: Path, tower: dict[str, Any]
) -> None:
    import timm

    config = classifier(width=48, layers=3, classes=7, ratio=3.0, tower=tower)
    ours = trained(config, dtype=torch.float32)
    save_weights(ours, config, tmp_path)
    assert load_weights(tmp_path, CLASSIFIER)[1] == config
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    side = config.vision.image_size
    assert theirs.pretrained_cfg["input_size"] == [3, side, side]
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(5)
    logits = [ours(images)[1], theirs(images)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    for one in logits:
        functional.cross_entropy(one, labels).backward()
    gradients = timm_names({name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("pooling", Pooling)
def test_computed_macs_are_those_that_torch_counts_in_our_model(pooling: Pooling) -> None:
    vision = VisionSpec(width=32, layers=3, head_width=16, image_size=16, patch_size=4, pooling=pooling)
    config = ClassifierConfig(classes=10, vision=vision)
    model = build_model(config, seed=0)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.zeros(2, 3, 16, 16), torch.arange(8).expand(2, 8))
    assert (0, counter.get_total_flops() / 2) == family_of(config).computed_macs(config, 2, {}, 0.5)


@pytest.mark.slow
@pytest.mark.xdist_group("timm")
def test_macs_and_parameters_are_those_that_torch_counts_in_timms_model() -> None:
    from timm.models.vision_transformer import VisionTransformer

    config = ClassifierConfig(
        classes=100, vision=VisionSpec(width=192, layers=5, image_size=64, patch_size=8)
    )
    with torch.device("meta"):
        model = VisionTransformer(
            img_size=64, patch_size=8, embed_dim=192, depth=5, num_heads=3, num_classes=100
        )
        images = torch.empty(1, 3, 64, 64)
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(images)
    assert counter.get_total_flops() / 2 == cost.forward_macs(config, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters(config)


def test_what_is_published_reads_back_bit_for_bit(folder: Path) -> None:
    state, config = load_weights(folder, CLASSIFIER)
    assert config == CONFIG
    before = trained(CONFIG, dtype=torch.float32).state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


def test_names_travel_both_ways() -> None:
    state = build_model(CONFIG, seed=0).state_dict()
    back = own_names(timm_names(state))
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model_args"].update(qk_norm=True), "not supported: qk_norm"),
        (lambda c: c.update(architecture="resnet50"), "not supported: architecture resnet50"),
        (lambda c: c["model_args"].pop("depth"), "model_args.depth is missing"),
        (lambda c: c["model_args"].update(num_heads=5), "5 heads do not divide a width of 48"),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "normalised as"),
        (lambda c: c.update(num_classes=1), "classes: "),
        (lambda c: c.update(num_classes=9), r"head.bias has shape \[7\]|head.weight has shape \[7, 48\]"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(
    folder: Path, change: Callable[[Any], object], says: str
) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserDataError, match=says):
        load_weights(folder, CLASSIFIER)


def test_a_tensor_too_many_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"fc_norm.weight": torch.ones(48)}, path)
    with pytest.raises(UserDataError, match=r"fc_norm\.weight is not part of a model as config\.json"):
        load_weights(folder, CLASSIFIER)


def test_a_model_is_made_of_given_tensors_without_a_copy() -> None:
    state = build_model(CONFIG, seed=0).state_dict()
    model = model_from(state, CONFIG)
    assert model.head.weight.data_ptr() == state["head.weight"].data_ptr()
