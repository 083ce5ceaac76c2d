from __future__ import annotations

import torch

from modelchain.catalogue import find
from modelchain.cost import parameters
from modelchain.families import ModelConfig
from modelchain_trainer.model import build_model, model_from
from modelchain_trainer.model.build import initial_tensor, parameter_shapes


def test_the_same_seed_gives_the_same_model_whatever_torch_drew_before(tiny: ModelConfig) -> None:
    first = build_model(tiny, seed=5).state_dict()
    torch.manual_seed(99)
    torch.randn(7)
    state = torch.get_rng_state()
    second = build_model(tiny, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator must be left alone"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_another_model(tiny: ModelConfig) -> None:
    first, second = (build_model(tiny, seed=seed).state_dict() for seed in (5, 6))
    random = [name for name in first if first[name].unique().numel() > 1]
    assert len(random) > 10
    assert not any(torch.equal(first[name], second[name]) for name in random)


def test_no_two_tensors_share_their_numbers(tiny: ModelConfig) -> None:
    random = [
        tensor for tensor in build_model(tiny, seed=5).state_dict().values() if tensor.unique().numel() > 1
    ]
    ratios = {float(tensor.flatten()[0] / tensor.flatten()[1]) for tensor in random}
    assert len(ratios) == len(random) > 10


def test_a_tensor_does_not_depend_on_those_made_before_it(tiny: ModelConfig) -> None:
    state = build_model(tiny, seed=5).state_dict()
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    assert torch.equal(initial_tensor(name, state[name].shape, tiny, seed=5), state[name])


def test_shapes_are_known_without_allocating_the_model() -> None:
    shapes = parameter_shapes(find("ViT-L-16"))
    assert shapes["visual.transformer.resblocks.23.mlp.c_fc.weight"] == (4096, 1024)
    assert shapes["text_projection"] == (768, 512)
    assert shapes["logit_scale"] == ()
    assert sum(shape.numel() for shape in shapes.values()) == parameters(find("ViT-L-16"))


def test_a_model_from_tensors_uses_them_without_a_copy(tiny: ModelConfig) -> None:
    state = build_model(tiny, seed=5).state_dict()
    model = model_from(state, tiny)
    assert model.text_projection.data_ptr() == state["text_projection"].data_ptr()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())
