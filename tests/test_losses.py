"""Losses against `torch.nn.functional`, and their derivatives in what may be tuned."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperopt_cli.losses import cross_entropy, mse, output


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_torchs(logits: Tensor, smoothing: float) -> None:
    want = functional.cross_entropy(logits, TARGETS, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, TARGETS, smoothing), want, rtol=1e-13, atol=0)


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    assert float(cross_entropy(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))) == 2e4


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_derivative_in_label_smoothing_equals_central_differences(logits: Tensor, smoothing: float) -> None:
    leaf = torch.tensor(smoothing, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(cross_entropy(logits, TARGETS, leaf), leaf)
    sides = [cross_entropy(logits, TARGETS, smoothing + step) for step in (1e-5, -1e-5)]
    torch.testing.assert_close(got, (sides[0] - sides[1]) / 2e-5, rtol=1e-8, atol=1e-9)


def test_mse_is_torchs() -> None:
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0])
    assert torch.equal(mse(outputs, targets), functional.mse_loss(outputs, targets))


def test_mse_takes_a_column_as_a_vector_and_does_not_broadcast_it() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0.0, 2.0, 1.0])
    assert float(mse(outputs, targets)) == pytest.approx(10 / 3)


def test_mse_refuses_shapes_that_do_not_pair_up() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        mse(torch.zeros(3, 2), torch.zeros(3))


def test_output_is_the_mean_of_what_the_model_returns() -> None:
    assert float(output(torch.tensor([1.0, 3.0]))) == 2.0
    assert float(output(torch.tensor(5.0), None)) == 5.0
