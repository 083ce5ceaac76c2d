"""open_clip's modules as image towers: its function, files that it loads, statistics that depend on no split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modelchain import cost
from modelchain.errors import ConfigurationError, UserDataError
from modelchain.families import OPEN_CLIP, LockedTower, OpenClipConfig
from modelchain.families.open_clip_adapter import image_towers
from modelchain.families.timm_adapter import timm_models
from modelchain_trainer.distributed.collectives import Group
from modelchain_trainer.model import build_model, load_weights, model_from, save_weights
from modelchain_trainer.model.checkpoint_file import load_checkpoint_file
from modelchain_trainer.model.open_clip_adapter import OpenClip, from_open_clip, image_module, to_open_clip
from tests.open_clip_configurations import stock_configurations
from tests.trainer.ranks import on_ranks
from tools import open_clip_towers

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("open_clip")]  # importing it takes seconds
GO_ON = torch.zeros(())


def config_of(name: str, image_size: int = 32, **vision: Any) -> OpenClipConfig:
    """With a small text tower."""
    return OpenClipConfig.model_validate(
        {
            "embedDim": 12,
            "vision": {"name": name, "imageSize": image_size, **vision},
            "text": {"contextLength": 12, "width": 16, "layers": 2, "heads": 2},
        }
    )


RESNET = config_of("resnet10t", norm_batch_size=4)
CONVNEXT = config_of("convnext_atto", 64)
MLP = config_of("convnext_atto", 64, mlp_projection=True)
OPENAI = config_of("RN50", 224, norm_batch_size=2)
ROTARY = config_of("vit_pe_core_tiny_patch16_384", 384)
PLAIN = config_of("vit_medium_patch16_gap_256", 256)


def named(config: OpenClipConfig) -> str:
    return f"{config.vision.name}{'-mlp' if config.vision.mlp_projection else ''}"


def images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def tokens(count: int) -> Tensor:
    found = torch.zeros(count, 12, dtype=torch.int64)
    found[:, 0], found[:, 4] = 49406, 49407
    found[:, 1:4] = torch.randint(1, 40000, (count, 3), generator=torch.Generator().manual_seed(count))
    return found


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}


def trained(config: OpenClipConfig, steps: int = 2) -> OpenClip:
    """A model whose statistics are no longer those of the start."""
    model = build_model(config, seed=1).train()
    for step in range(steps * bool(model.norms)):
        model.encode_image(images(config.rows_together, config.image_side, seed=step))
        model.end_step(Group(), GO_ON)
    return model.eval()


def stock(config: OpenClipConfig) -> Any:
    """open_clip's own model."""
    from open_clip import CLIP

    return CLIP(**to_open_clip(config)["model_cfg"])  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("config", [RESNET, CONVNEXT, MLP, OPENAI, ROTARY, PLAIN], ids=named)
def test_costs_are_those_that_torch_counts_in_open_clips_model(config: OpenClipConfig) -> None:
    with torch.device("meta"):
        model = stock(config).eval().requires_grad_(False)
        image_BCHW, tokens_BT = torch.empty(1, 3, config.image_side, config.image_side), tokens(1).to("meta")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(image_BCHW)
        model.encode_text(tokens_BT)
    assert counter.get_total_flops() // 2 == cost.forward_macs(config, 1)
    parameters = [parameter.numel() for parameter in model.parameters()]
    assert sum(parameters) == cost.parameters(config)
    assert max(parameters) <= OPEN_CLIP.largest_parameter(config)
    image, text = (OPEN_CLIP.of_tower(config, tower, 1) for tower in LockedTower)
    assert image[0] == sum(parameter.numel() for parameter in model.visual.parameters())
    assert image[1] + text[1] == cost.forward_macs(config, 1)


def test_computed_macs_are_those_that_torch_counts_in_our_model() -> None:
    model = trained(CONVNEXT)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_image(images(2, 64))
        image = counter.get_total_flops() / 2
        model.encode_text(tokens(3)[:, :5])
    assert OPEN_CLIP.computed_macs(CONVNEXT, 2, {5: 3}, 0) == (image, counter.get_total_flops() / 2 - image)


@pytest.mark.parametrize(
    "name", ["RN50", "fastvit_mci0", "vitamin_small_224", "vit_pe_core_tiny_patch16_384"]
)
def test_what_stands_in_the_file_is_counted_in_the_library(name: str) -> None:
    entry = open_clip_towers.entry_of(*open_clip_towers.towers()[name])
    assert entry == json.loads(open_clip_towers.FILE.read_text())[name], "make open-clip-towers"


def test_every_tower_of_open_clips_that_needs_no_hub_is_in_the_file() -> None:
    listed = json.loads(open_clip_towers.FILE.read_text())
    assert {name: (entry["visionCfg"], entry["imageSize"]) for name, entry in listed.items()} == (
        open_clip_towers.towers()
    )
    assert not listed.keys() & timm_models().keys()


def test_open_clip_adapts_every_convolutional_model_that_is_listed_and_no_other() -> None:
    """It projects as many features as timm's num_features says, which MobileNets' heads have not."""
    for name in timm_models():
        with torch.device("meta"):
            visual = image_module(
                {"timm_model_name": name, "timm_pool": "", "timm_proj": "linear"}, 32, 8
            ).eval()
        try:
            fits = visual(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 8)
        except RuntimeError:
            fits = False
        assert fits == (name in image_towers()), name


@pytest.mark.parametrize("config", [RESNET, MLP, OPENAI, ROTARY], ids=named)
def test_open_clip_loads_what_is_published_with_equal_embeddings_and_gradients(
    tmp_path: Path, config: OpenClipConfig
) -> None:
    import open_clip

    ours = trained(config)
    save_weights(ours, config, tmp_path)
    state, found = load_weights(tmp_path, OPEN_CLIP)
    assert found == config
    assert all(torch.equal(state[name], tensor) for name, tensor in ours.state_dict().items())
    theirs: Any = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    read = model_from(state, config).eval()
    pixels, texts = images(2, config.image_side), tokens(2)
    for one in (ours, read, theirs):
        image_BE = one.encode_image(pixels, normalize=True)
        text_BE = one.encode_text(texts, normalize=True)
        torch.testing.assert_close(image_BE, ours.encode_image(pixels), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(text_BE, ours.encode_text(texts), rtol=1e-5, atol=1e-6)
        functional.cross_entropy(one.logit_scale.exp() * image_BE @ text_BE.T, torch.arange(2)).backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        found = gradients[name].grad
        assert found is not None
        assert (found - parameter.grad).norm() <= 1e-3 * parameter.grad.norm() + 1e-5, name


@pytest.mark.parametrize("custom_text", [False, True])
def test_a_checkpoint_of_open_clips_program_is_read(tmp_path: Path, custom_text: bool) -> None:
    from open_clip import CustomTextCLIP

    model_cfg: Any = to_open_clip(RESNET)["model_cfg"]
    theirs: Any = CustomTextCLIP(**model_cfg) if custom_text else stock(RESNET)
    torch.save({"epoch": 1, "state_dict": theirs.state_dict()}, tmp_path / "epoch_1.pt")
    model: Any = model_from(*load_checkpoint_file(tmp_path / "epoch_1.pt", RESNET)).eval()
    theirs.eval()
    assert torch.equal(model.encode_image(images(2), False), theirs.encode_image(images(2)))
    torch.testing.assert_close(model.encode_text(tokens(2), False), theirs.encode_text(tokens(2)))


@pytest.mark.parametrize(
    "name",
    ["vit_relpos_medium_patch16_cls_224", "swin_base_patch4_window7_224", "eva02_base_patch16_clip_224"],
)
def test_tables_that_are_in_no_state_dict_are_computed_anew(name: str) -> None:
    config = config_of(name, 224)
    model = build_model(config, seed=1).eval()
    again = model_from(model.state_dict(), config).eval()
    assert {name for name, _ in model.named_buffers()}, "there are such tables"
    with torch.no_grad():
        assert torch.equal(again.encode_image(images(1, 224)), model.encode_image(images(1, 224)))


@pytest.mark.parametrize("name", ["vit_relpos_medium_patch16_cls_224", "swin_base_patch4_window7_224"])
def test_nothing_is_dropped_at_random_in_training(name: str) -> None:
    """As these models are built by the library they do."""
    config = config_of(name, 224)

    def dropped(model: nn.Module) -> float:
        modules: list[Any] = list(model.modules())
        return sum(getattr(one, "drop_prob", getattr(one, "p", 0)) for one in modules)

    with torch.device("meta"):
        assert dropped(stock(config)) > 0
    assert dropped(OpenClip(config, device="meta")) == 0


def test_a_model_starts_from_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_model(RESNET, seed=7).state_dict()
    torch.rand(3)
    again, other = build_model(RESNET, seed=7).state_dict(), build_model(RESNET, seed=8).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    for name in ("visual.trunk.conv1.0.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        assert not torch.equal(other[name], first[name])
    biased = build_model(RESNET.model_copy(update={"logit_bias": True}), seed=7)
    assert float(biased.logit_scale.exp()) == pytest.approx(10)
    assert biased.logit_bias is not None
    assert float(biased.logit_bias) == -10


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 4), (2, 1), (2, 2)])
def test_statistics_depend_on_neither_ranks_nor_micro_batches(ranks: int, micro_batches: int) -> None:
    pixels = images(16).double()
    alone = build_model(RESNET, seed=1).double().train()
    start = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    expected = alone.encode_image(pixels)
    alone.end_step(Group(), GO_ON)

    def work(group: Group) -> tuple[Tensor, dict[str, Tensor]]:
        model = model_from({name: tensor.clone() for name, tensor in start.items()}, RESNET).train()
        share = pixels.chunk(ranks)[group.rank]
        found = torch.cat([model.encode_image(rows) for rows in share.chunk(micro_batches)])
        model.end_step(group, GO_ON)
        return found.detach(), statistics(model)

    results = on_ranks(ranks, work)
    torch.testing.assert_close(torch.cat([found for found, _ in results]), expected)
    for _, found in results:
        torch.testing.assert_close(found, statistics(alone), rtol=1e-12, atol=1e-12)


def test_a_locked_image_tower_keeps_its_statistics_and_norms_by_them() -> None:
    model = trained(RESNET)
    before, expected = statistics(model), model.encode_image(images(3))
    model.lock(LockedTower.IMAGE)
    model.train()
    torch.testing.assert_close(model.encode_image(images(3)), expected)
    model.end_step(Group(), GO_ON)
    assert all(torch.equal(before[name], one) for name, one in statistics(model).items())
    assert not any(parameter.requires_grad for parameter in model.visual.parameters())
    assert all(parameter.requires_grad for parameter in model.transformer.parameters())


def test_an_image_tower_norms_by_its_running_statistics_in_training_too() -> None:
    model = trained(RESNET)
    tower = model.new_image_tower()
    tower.load_state_dict(model.image_tower().state_dict())
    tower.train()
    before = statistics(tower)
    torch.testing.assert_close(tower(images(3)), model.encode_image(images(3), False))
    assert all(torch.equal(before[name], one) for name, one in statistics(tower).items())


@pytest.mark.parametrize("config", [RESNET, CONVNEXT, ROTARY], ids=named)
def test_a_teacher_in_bf16_has_its_embeddings_to_rounding(config: OpenClipConfig) -> None:
    from modelchain.spec import Precision
    from modelchain_trainer.step import freeze

    model = trained(config)
    pixels = images(2, config.image_side)
    with torch.no_grad():
        exact = model.encode_image(pixels), model.encode_text(tokens(2))
        freeze(model, Precision.BF16)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.encode_image(pixels), model.encode_text(tokens(2))
    for a, b in zip(rounded, exact, strict=True):
        assert functional.cosine_similarity(a, b).min() > 0.998


def test_recomputation_changes_no_gradient_and_is_refused_with_batch_norm() -> None:
    ours = build_model(CONVNEXT, seed=1).train()
    gradients = []
    for enabled in (False, True):
        ours.set_gradient_checkpointing(enabled)
        ours.zero_grad()
        (ours.encode_image(images(2, 64)) * ours.encode_text(tokens(2))).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[1][name], one) for name, one in gradients[0].items())
    for config in (RESNET, OPENAI):
        with pytest.raises(ConfigurationError, match="has BatchNorm"):
            build_model(config, seed=1).set_gradient_checkpointing(True)


def _document(**changes: Any) -> dict[str, Any]:
    content: Any = to_open_clip(RESNET)
    for path, value in changes.items():
        part, _, key = path.rpartition("__")
        {"": content, "model": content["model_cfg"]}.get(part, content["model_cfg"].get(f"{part}_cfg"))[
            key
        ] = value
    return content


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision__timm_model_name": "resnet10"}, "no image tower that openClipConfig.vision.name may name"),
        ({"vision__timm_pool": "rot_attn"}, "no image tower"),
        ({"vision__timm_proj_bias": True}, "no image tower"),
        ({"vision__act_kwargs": {}}, "no image tower"),
        ({"vision__image_size": "large"}, "image_?[sS]ize"),
        ({"text__hf_model_name": "roberta-base"}, "text_cfg.hf_model_name"),
        ({"model__multimodal_cfg": {}}, "multimodal_cfg"),
        ({"preprocess_cfg": {"mean": [0, 0, 0]}}, "preprocess_cfg.mean"),
        ({"modelchain": 3}, "modelchain: expected a JSON object"),
    ],
    ids=str,
)
def test_other_models_are_refused_by_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserDataError, match=says) as caught:
        from_open_clip(_document(**changes), "c.json")
    assert str(caught.value).startswith("c.json")


@pytest.mark.parametrize(
    "changes",
    [{"model__custom_text": True}, {"vision__timm_drop_path": 0.1}, {"vision__timm_proj_bias": False}],
    ids=str,
)
def test_a_key_that_changes_no_embedding_is_no_hindrance(changes: dict[str, Any]) -> None:
    assert from_open_clip(_document(**changes), "c.json") == RESNET


def test_a_vision_transformer_of_open_clips_own_is_another_family() -> None:
    with pytest.raises(UserDataError, match="no image tower"):
        from_open_clip(stock_configurations()["ViT-B-16"], "c.json")


def test_without_the_library_a_stage_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        ConfigurationError, match=r"install open_clip_torch, .* with pip install 'modelchain\[trainer\]'"
    ):
        build_model(RESNET, seed=1)


def test_samples_that_fill_no_group_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="6 samples are no multiple of the 4"):
        build_model(RESNET, seed=1).train().encode_image(images(6))
