"""Against scikit-learn's, on data that no line separates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modelchain_trainer.evaluation.logistic_regression import LinearClassifier, fit

SAMPLES, FEATURES, CLASSES = 400, 12, 5


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    truth = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    noise = torch.randn(SAMPLES, CLASSES, generator=generator, dtype=torch.float64)
    return features, (features @ truth.T + 2 * noise).argmax(dim=1)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-5])
def test_the_optimum_is_scikit_learns(penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = data()
    found = fit(features, labels, CLASSES, penalty)
    other = LogisticRegression(C=1 / (penalty * SAMPLES), tol=1e-8, max_iter=5000)
    other.fit(features.numpy(), labels.numpy())
    assert found.weight.numpy() == pytest.approx(other.coef_, abs=2e-3)
    # All biases may be shifted alike: only their differences count.
    biases = torch.as_tensor(other.intercept_)
    torch.testing.assert_close(found.bias - found.bias.mean(), biases - biases.mean(), atol=2e-3, rtol=0)


def test_the_start_changes_nothing_but_the_way() -> None:
    features, labels = data()
    start = LinearClassifier(
        torch.ones(CLASSES, FEATURES, dtype=torch.float64), torch.zeros(CLASSES).double()
    )
    torch.testing.assert_close(
        fit(features, labels, CLASSES, 0.01, start=start).weight,
        fit(features, labels, CLASSES, 0.01).weight,
        atol=1e-3,
        rtol=0,
    )
