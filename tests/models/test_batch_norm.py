"""Batch statistics in training, running statistics estimated for the test figure."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hyperopt_cli.models import convnet
from hyperopt_cli.models.batch_norm import estimate_running_statistics, use_batch_statistics


class Inputs(NamedTuple):
    inputs: Tensor


def network() -> nn.Module:
    torch.manual_seed(0)
    return convnet((1, 8, 8), 3, widths=(4, 6), norm="batch", dropout=0.3).double()


def batches() -> list[Inputs]:
    rng = torch.Generator().manual_seed(1)
    return [Inputs(3 * torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=rng) + 1) for n in (8, 8, 5)]


def params_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_no_buffer_is_left_to_move() -> None:
    model = network()
    use_batch_statistics(model)
    assert not list(model.buffers())
    model(batches()[0].inputs)
    assert not list(model.buffers())


def test_training_and_evaluation_mode_use_the_same_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).double()
    use_batch_statistics(model)
    x = batches()[0].inputs
    assert torch.equal(model.train()(x), model.eval()(x))


def test_other_peoples_models_are_covered() -> None:
    from torchvision.models import resnet18

    model = resnet18(num_classes=2)
    use_batch_statistics(model)
    x = torch.randn(2, 3, 32, 32)
    assert not list(model.buffers())
    assert torch.equal(model.train()(x), model.eval()(x))


def test_estimates_equal_torchs_cumulative_average() -> None:
    plain = network().eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    model = network()
    use_batch_statistics(model)
    tested = estimate_running_statistics(model, params_of(model), batches())
    with torch.no_grad():
        for batch in batches():
            plain(batch.inputs)
    expected = dict(plain.eval().named_buffers())
    assert expected.keys() == dict(tested.named_buffers()).keys()
    for name, value in tested.named_buffers():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(tested(batches()[0].inputs), plain(batches()[0].inputs))


def test_the_first_layers_mean_is_the_average_of_batch_means() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).double()
    data = [Inputs(torch.randn(n, 2, dtype=torch.float64)) for n in (4, 3)]
    use_batch_statistics(model)
    buffers = dict(estimate_running_statistics(model, {}, data).named_buffers())
    torch.testing.assert_close(buffers["0.running_mean"], (data[0].inputs.mean(0) + data[1].inputs.mean(0)) / 2)
    torch.testing.assert_close(buffers["0.running_var"], (data[0].inputs.var(0) + data[1].inputs.var(0)) / 2)


@pytest.mark.parametrize("batch_statistics", [True, False])
def test_the_original_stays_untouched(batch_statistics: bool) -> None:
    model = network()
    if batch_statistics:
        use_batch_statistics(model)
    before, training = copy.deepcopy(model.state_dict()), model.training
    moved = {name: value + 1 for name, value in params_of(model).items()}
    tested = estimate_running_statistics(model, moved, batches())
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.training == training
    assert all(torch.equal(value, moved[name]) for name, value in tested.named_parameters())


def test_a_module_that_never_tracked_keeps_using_its_batch() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    use_batch_statistics(model)
    assert not list(estimate_running_statistics(model, {}, []).buffers())


def test_without_batch_normalisation_no_batch_is_read() -> None:
    model = nn.Linear(2, 1)
    tested = estimate_running_statistics(model, {"bias": torch.ones(1)}, iter([]))
    assert tested.get_parameter("bias").item() == 1


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        estimate_running_statistics(network(), {}, [])


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameters \\['weigth'\\]"):
        estimate_running_statistics(nn.Linear(2, 1), {"weigth": torch.ones(1)}, [])
