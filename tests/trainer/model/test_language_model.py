"""The language model: its function and files are those of GPT-2 in transformers; documents do not see each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modelchain.cost import forward_macs, parameters
from modelchain.errors import UserDataError
from modelchain.families import LANGUAGE_MODEL, Activation, LanguageModelConfig
from modelchain.resolved import ResolvedExpansion
from modelchain_trainer.expansion import expand
from modelchain_trainer.model import build_model, load_weights, model_from, save_weights
from tests.trainer.expansion.families import language_model, trained

CONFIG = language_model(context=16)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, CONFIG.vocabulary_size, shape, generator=torch.Generator().manual_seed(seed))


def gpt2(folder: Path) -> Any:
    """The folder's model, as stock transformers loads it."""
    transformers = pytest.importorskip("transformers")
    model, report = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval().double()


@pytest.mark.parametrize("activation", Activation)
def test_transformers_loads_every_stage_of_a_chain_with_equal_logits(
    tmp_path: Path, activation: Activation
) -> None:
    small_config = CONFIG.model_copy(update={"activation": activation})
    large_config = small_config.model_copy(update={"width": 40, "layers": 3, "heads": 5})
    small = trained(small_config)
    large = model_from(
        expand(small.state_dict(), small_config, large_config, ResolvedExpansion(), seed=0), large_config
    )
    for model in (small, large):
        folder = tmp_path / str(model.config.width)
        save_weights(model.float(), model.config, folder)
        theirs = gpt2(folder)
        ids = tokens(3, 16)
        with torch.no_grad():
            torch.testing.assert_close(theirs(ids).logits, model.double().predict(ids), rtol=0, atol=1e-10)


def test_weights_written_by_transformers_are_read_back(tmp_path: Path) -> None:
    model = trained(CONFIG, dtype=torch.float32)
    save_weights(model, CONFIG, tmp_path / "ours")
    gpt2(tmp_path / "ours").float().save_pretrained(tmp_path / "theirs")
    state, config = load_weights(tmp_path / "theirs", LANGUAGE_MODEL)
    assert config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model_type", "llama", "only GPT-2 models can be used"),
        ("activation_function", "relu", "only gelu, gelu_new, gelu_pytorch_tanh can be used"),
        ("layer_norm_epsilon", 1e-6, "layer_norm_epsilon is 1e-06"),
        ("scale_attn_by_inverse_layer_idx", True, "only models with False can be used"),
        ("n_head", None, "heads"),
    ],
)
def test_a_model_of_another_function_is_refused_by_its_name(
    tmp_path: Path, key: str, value: object, says: str
) -> None:
    save_weights(build_model(CONFIG, seed=0), CONFIG, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserDataError, match=r"config\.json") as raised:
        load_weights(tmp_path, LANGUAGE_MODEL)
    assert says in str(raised.value)


def test_a_packed_document_has_the_logits_that_it_has_alone() -> None:
    model = trained(CONFIG)
    first, second, third = tokens(5, seed=1), tokens(3, seed=2), tokens(6, seed=3)
    parts = (first, second, third)
    positions = torch.cat([torch.arange(len(part)) for part in parts])
    with torch.no_grad():
        found = model.predict(torch.cat(parts)[None], positions[None])[0]
        alone = [model.predict(part[None])[0] for part in parts]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-12)


def test_parameters_and_macs_are_those_of_the_plan() -> None:
    model = build_model(CONFIG, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(CONFIG)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.predict(tokens(1, CONFIG.context_length))
    assert counter.get_total_flops() == 2 * forward_macs(CONFIG, 1)


def test_a_new_model_says_nothing_of_any_token() -> None:
    """Its loss is the logarithm of the vocabulary, as GPT-2's."""
    config = LanguageModelConfig(context_length=16, vocabulary_size=257, width=64, layers=4, heads=4)
    model = build_model(config, seed=0)
    ids = torch.randint(257, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model.predict(ids).flatten(0, 1), ids.roll(-1, 1).flatten())
    assert abs(float(loss) - 5.549) < 0.1
