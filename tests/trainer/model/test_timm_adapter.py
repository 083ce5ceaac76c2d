"""timm's modules as classifiers: the library's function, files that it loads, statistics that depend on no split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modelchain import cost
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.families import TIMM, TimmConfig
from modelchain_trainer.averaging import AveragedModel
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model import build_model, load_weights, model_from, save_weights, timm_adapter
from tests.trainer.ranks import on_ranks
from tools import timm_models

pytestmark = pytest.mark.xdist_group("timm")
RESNET = TimmConfig(name="resnet10t", classes=5, image_size=32, norm_batch_size=4)
CONVNEXT = TimmConfig(name="convnext_atto", classes=5, image_size=64)
GO_ON, SKIP = torch.zeros(()), torch.ones(())


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def statistics(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}


def trained(config: TimmConfig, steps: int = 2) -> Any:
    """A model whose statistics are no longer those of the start."""
    model = build_model(config, seed=1).train()
    for step in range(steps):
        model(images(8, config.image_size, seed=step))
        model.end_step(Group(), GO_ON)
    return model.eval()


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "resnet10t"])
def test_costs_are_those_that_torch_counts_in_timms_model(name: str) -> None:
    import timm

    config = TimmConfig(name=name, classes=1000, image_size=160)
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=1000).eval()
    assert timm_models.entry_of(name) == json.loads(timm_models.FILE.read_text())[name], "make timm-models"
    assert timm_models.macs(model, 160) == cost.forward_macs(config, 1)
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters(config)
    assert max(parameter.numel() for parameter in model.parameters()) <= TIMM.largest_parameter(config)
    assert config.feature_size == model.head_hidden_size


@pytest.mark.slow
def test_every_model_that_is_listed_is_in_the_file() -> None:
    assert tuple(json.loads(timm_models.FILE.read_text())) == timm_models.NAMES


@pytest.mark.slow
@pytest.mark.parametrize("config", [RESNET, CONVNEXT], ids=lambda config: config.name)
def test_timm_loads_what_is_published_with_equal_logits_and_gradients(
    tmp_path: Path, config: TimmConfig
) -> None:
    import timm

    ours = trained(config)
    save_weights(ours, config, tmp_path)
    state, found = load_weights(tmp_path, TIMM)
    assert found == config
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert theirs.pretrained_cfg["input_size"] == [3, config.image_size, config.image_size]
    plain: Any = timm.create_model(config.name, num_classes=config.classes).eval()
    plain.load_state_dict(timm_adapter.published_names(ours.state_dict()), strict=True)
    pixels, labels = images(4, config.image_size), torch.arange(4)
    features, logits = ours(pixels)
    their_features = theirs.forward_head(theirs.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(features, their_features, rtol=1e-4, atol=1e-4)
    losses = []
    for one in (logits, theirs(pixels), plain(pixels)):
        torch.testing.assert_close(one, logits, rtol=1e-4, atol=1e-4)
        losses.append(functional.cross_entropy(one, labels))
        losses[-1].backward()
    gradients = dict(ours.net.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-4, msg=name)
    other: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3)
    assert other.get_classifier().out_features == 3


def test_in_training_one_group_is_normed_as_timm_norms_a_batch() -> None:
    import timm

    ours = build_model(RESNET, seed=1).train()
    theirs: Any = timm.create_model(RESNET.name, num_classes=5)
    theirs.load_state_dict(timm_adapter.published_names(ours.state_dict()), strict=True)
    theirs.train()
    pixels = images(4)
    before = statistics(ours)
    torch.testing.assert_close(ours(pixels)[1], theirs(pixels), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], one) for name, one in statistics(ours).items()), (
        "within a step they stay"
    )
    ours.end_step(Group(), GO_ON)
    for name, tensor in timm_adapter.published_names(statistics(ours)).items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])


def test_a_model_starts_from_its_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(RESNET, seed=7).state_dict()
    torch.rand(3)
    again, other = build_model(RESNET, seed=7).state_dict(), build_model(RESNET, seed=8).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    assert not torch.equal(other["net.conv1.0.weight"], first["net.conv1.0.weight"])
    torch.set_rng_state(before)


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 1), (2, 2)])
def test_statistics_depend_on_neither_ranks_nor_micro_batches(ranks: int, micro_batches: int) -> None:
    pixels = images(16).double()
    alone = build_model(RESNET, seed=1).double().train()
    start = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    expected = alone(pixels)[1]
    alone.end_step(Group(), GO_ON)

    def work(group: Group) -> tuple[Tensor, dict[str, Tensor]]:
        model = model_from({name: tensor.clone() for name, tensor in start.items()}, RESNET).train()
        share = pixels.chunk(ranks)[group.rank]
        logits = torch.cat([model(rows)[1] for rows in share.chunk(micro_batches)])
        model.end_step(group, GO_ON)
        return logits.detach(), statistics(model)

    results = on_ranks(ranks, work)
    torch.testing.assert_close(torch.cat([logits for logits, _ in results]), expected)
    for _, found in results:
        torch.testing.assert_close(found, statistics(alone), rtol=1e-12, atol=1e-12)
        assert all(torch.equal(found[name], one) for name, one in results[0][1].items()), "alike on all ranks"


def test_a_pass_made_again_and_a_skipped_step_leave_the_statistics() -> None:
    once, twice = (build_model(RESNET, seed=1).train() for _ in range(2))
    for model in (once, twice):
        model(images(8))
    with twice.recomputing():
        twice(images(4))
    for model in (once, twice):
        model.end_step(Group(), GO_ON)
    assert all(torch.equal(statistics(twice)[name], one) for name, one in statistics(once).items())
    kept = statistics(once)
    once(images(8, seed=3) * float("nan"))
    once.end_step(Group(), SKIP)
    assert all(torch.equal(kept[name], one) for name, one in statistics(once).items())
    once(images(8, seed=4))
    once.end_step(Group(), GO_ON)
    assert all(one.isfinite().all() for one in statistics(once).values())


def test_samples_that_fill_no_group_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 samples are no multiple of the 4"):
        build_model(RESNET, seed=1).train()(images(6))


def test_the_average_takes_up_statistics_like_weights() -> None:
    model = build_model(RESNET, seed=1).train()
    averaged = AveragedModel(model, 0.5)
    start = statistics(model)
    model(images(8))
    model.end_step(Group(), GO_ON)
    averaged.update(100)
    for name, one in statistics(averaged.model).items():
        torch.testing.assert_close(one, start[name].lerp(statistics(model)[name], 0.5))
    fresh = AveragedModel(build_model(RESNET, seed=2), 0.5)
    fresh.load_state_dict(averaged.state_dict())
    assert all(
        torch.equal(statistics(fresh.model)[name], one) for name, one in statistics(averaged.model).items()
    )


def test_an_image_tower_norms_by_its_running_statistics_in_training_too() -> None:
    model = trained(RESNET)
    tower = model.new_image_tower()
    tower.load_state_dict(model.image_tower().state_dict())
    tower.train()
    before = statistics(tower)
    torch.testing.assert_close(tower(images(3)), model.eval()(images(3))[0])
    assert all(torch.equal(before[name], one) for name, one in statistics(tower).items())


def test_the_tower_of_a_model_with_batch_norm_may_be_computed_again() -> None:
    """For FineTune: its statistics are only read."""
    gradients = []
    for enabled in (False, True):
        tower = trained(RESNET).new_image_tower()
        tower.load_state_dict(trained(RESNET).image_tower().state_dict())
        tower.train()
        tower.set_gradient_checkpointing(enabled)
        before = statistics(tower)
        tower(images(3)).square().sum().backward()
        assert all(torch.equal(before[name], one) for name, one in statistics(tower).items())
        gradients.append({name: p.grad for name, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0]
    assert all(torch.equal(gradients[1][name], one) for name, one in gradients[0].items())


@pytest.mark.parametrize("config", [RESNET, CONVNEXT], ids=lambda config: config.name)
def test_a_teacher_in_bf16_has_its_features_to_rounding(config: TimmConfig) -> None:
    from modelchain.spec import Precision
    from modelchain_trainer.step import freeze

    model = trained(config)
    pixels = images(4, config.image_size)
    exact = model(pixels)[0].detach()
    freeze(model, Precision.BF16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        rounded = model(pixels.bfloat16())[0].float()
    assert functional.cosine_similarity(rounded, exact).min() > 0.999


def test_recomputation_is_timms_where_nothing_is_normed_over_samples() -> None:
    ours = build_model(CONVNEXT, seed=1).train()
    pixels = images(2, 64)
    gradients = []
    for enabled in (False, True):
        ours.set_gradient_checkpointing(enabled)
        ours.zero_grad()
        ours(pixels)[1].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[1][name], one) for name, one in gradients[0].items())
    with pytest.raises(ConfigurationError, match="BatchNorm"):
        build_model(RESNET, seed=1).set_gradient_checkpointing(True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(architecture="resnet10"), "resnet10 can't be a stage; write resnet10t"),
        (lambda c: c.update(model_args={"drop_rate": 0.5}), "without model_args"),
        (lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "normalised as"),
        (lambda c: c["pretrained_cfg"].update(input_size=7), "image_?[sS]ize"),
        (lambda c: c.update(num_classes=9), "has shape"),
        (lambda c: c.pop("pretrained_cfg"), "pretrained_cfg: expected a JSON object"),
    ],
)
def test_other_models_are_refused_by_what_is_wrong(
    tmp_path: Path, change: Callable[[Any], object], says: str
) -> None:
    save_weights(build_model(RESNET, seed=1), RESNET, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserDataError, match=says):
        load_weights(tmp_path, TIMM)


def test_without_the_library_a_stage_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        ConfigurationError, match=r"install timm, .* with pip install 'modelchain\[trainer\]'"
    ):
        build_model(RESNET, seed=1)


def test_a_library_of_another_torch_is_named_with_its_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torchvision fails: operator torchvision::nms does not exist."""
    import sys

    (tmp_path / "timm.py").write_text('raise RuntimeError("operator torchvision::nms\\ndoes not exist")')
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    says = r"\(operator torchvision::nms does not exist\); install timm, and the torchvision of its torch, with pip"
    with pytest.raises(ConfigurationError, match=says):
        build_model(RESNET, seed=1)
