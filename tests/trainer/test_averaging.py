"""The moving average of the weights, which is evaluated and published in their place."""

from __future__ import annotations

import torch

from tests.trainer.test_step import batch, stage, train_step


def test_the_average_is_that_of_all_weights_so_far_with_a_memory_that_grows() -> None:
    decay = 0.3
    trained, model, _ = train_step(stage(ema_decay=decay), dtype=torch.float64)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(6):
        trained.run(batch(step), step)
        kept = min(decay, (1 + step) / (10 + step))
        assert (kept == decay) == (step >= 3), "both parts of the rule are tested"
        for name, tensor in model.state_dict().items():
            average[name] = kept * average[name] + (1 - kept) * tensor
    published = trained.published.state_dict()
    assert published.keys() == average.keys()
    for name, tensor in average.items():
        assert torch.allclose(published[name], tensor, rtol=1e-12, atol=1e-15), name
        assert not torch.equal(published[name], model.state_dict()[name]), name


def test_without_a_decay_the_model_itself_is_published() -> None:
    trained, model, _ = train_step(stage())
    assert trained.published is model


def test_averaging_changes_nothing_of_the_training_and_resumes_bit_for_bit() -> None:
    plain, model, _ = train_step(stage())
    averaged, same, _ = train_step(stage(ema_decay=0.9))
    for step in range(4):
        assert plain.run(batch(step), step).read() == averaged.run(batch(step), step).read()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    resumed, again, _ = train_step(stage(ema_decay=0.9))
    again.load_state_dict(same.state_dict())
    resumed.load_state_dict(averaged.state_dict())
    for one in (averaged, resumed):
        one.run(batch(4), 4)
    for name, tensor in averaged.published.state_dict().items():
        assert torch.equal(resumed.published.state_dict()[name], tensor), name
