import pytest
import torch
from torch import nn

from modelchain.resolved import ResolvedTraining
from modelchain_trainer.optimizer import AdamW

TRAINING = ResolvedTraining(
    epochs=1, warmup_steps=0, checkpoint_every_steps=1, steps_per_epoch=10, steps=10, weight_decay=0.2
)


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": nn.Parameter(torch.randn(5, 7, generator=generator)),
        "bias": nn.Parameter(torch.randn(33, generator=generator)),
        "scale": nn.Parameter(torch.tensor(2.0)),
        "filters": nn.Parameter(torch.randn(3, 2, 4, 4, generator=generator)),
    }


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in named.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference_step(
    value: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    gradient: torch.Tensor,
    step: int,
    decay: float,
) -> None:
    """Algorithm 2 of arXiv 1711.05101 as open_clip and PyTorch use it, in place, written out."""
    lr, beta1, beta2, epsilon = 1e-2, TRAINING.beta1, TRAINING.beta2, TRAINING.epsilon
    value.mul_(1 - lr * decay)
    mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
    square.mul_(beta2).add_(gradient.square(), alpha=1 - beta2)
    value.sub_(lr * mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + epsilon))


def test_updates_are_adamw_and_only_matrices_and_filters_decay() -> None:
    named = parameters()
    optimizer = AdamW(named.items(), TRAINING)
    expected = {name: parameter.detach().double() for name, parameter in named.items()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    for step in range(1, 6):
        set_gradients(named, step)
        for name, parameter in named.items():
            assert parameter.grad is not None
            decay = 0.2 if name in ("matrix", "filters") else 0.0
            reference_step(expected[name], *moments[name], parameter.grad.double(), step, decay)
        optimizer.step(1e-2)
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def test_restored_state_continues_bit_for_bit() -> None:
    named = parameters()
    optimizer = AdamW(named.items(), TRAINING)
    for step in range(3):
        set_gradients(named, step)
        optimizer.step(1e-3)
    saved = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}

    other = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in named.items()}
    restored = AdamW(other.items(), TRAINING)
    restored.load_state_dict(saved)
    for step in range(3, 6):
        for half, values in ((optimizer, named), (restored, other)):
            set_gradients(values, step)
            half.step(1e-3)
    for name in named:
        assert torch.equal(named[name], other[name])
    for name, tensor in optimizer.state_dict().items():
        assert torch.equal(tensor, restored.state_dict()[name])


def test_state_that_lacks_a_parameter_is_refused() -> None:
    named = parameters()
    optimizer = AdamW(named.items(), TRAINING)
    state = optimizer.state_dict()
    del state["mean.bias"]
    with pytest.raises(KeyError, match=r"mean\.bias"):
        optimizer.load_state_dict(state)


def test_a_skipped_step_changes_nothing() -> None:
    named = parameters()
    optimizer = AdamW(named.items(), TRAINING)
    set_gradients(named, 0)
    optimizer.step(1e-3)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    state = {name: tensor.clone() for name, tensor in optimizer.state_dict().items()}
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step(1e-3, skip=torch.tensor(1.0))
    assert all(torch.equal(named[name], value) for name, value in values.items())
    assert all(torch.equal(optimizer.state_dict()[name], tensor) for name, tensor in state.items())


def test_the_divisor_divides_gradients_before_the_update() -> None:
    named, other = parameters(), parameters()
    divided, plain = AdamW(named.items(), TRAINING), AdamW(other.items(), TRAINING)
    set_gradients(named, 0)
    set_gradients(other, 0)
    for parameter in other.values():
        assert parameter.grad is not None
        parameter.grad /= 4
    divided.step(1e-3, divisor=torch.tensor(4.0))
    plain.step(1e-3)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in divided.state_dict().items())
