"""Groups: which parameters share a value, and which take a number of their own."""

import pytest
import torch
from torch import nn

from hyperopt_cli.space import Grouping, select

NAMES = ["stem.weight", "stem.bias", "norm.weight", "norm.bias", "scale"]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.pool = nn.BatchNorm1d(4)


@pytest.mark.parametrize(
    ("unit", "labels"),
    [("model", ("",)), ("layer", ("stem", "norm", "")), ("tensor", tuple(NAMES))],
)
def test_labels_are_in_the_models_order(unit: str, labels: tuple[str, ...]) -> None:
    assert Grouping.per(unit, NAMES).labels == labels


def test_one_value_for_the_model_has_no_size() -> None:
    assert [Grouping.per(unit, NAMES).size for unit in ("model", "layer", "tensor")] == [None, 3, 5]


def test_a_value_is_spread_over_the_parameters_of_its_group() -> None:
    spread = Grouping.per("layer", NAMES).spread(torch.tensor([1.0, 2.0, 3.0]), {})
    assert isinstance(spread, dict)
    assert {name: float(x) for name, x in spread.items()} == dict(zip(NAMES, [1, 1, 2, 2, 3], strict=True))


def test_one_value_for_all_stays_a_tensor() -> None:
    value = torch.tensor(0.5)
    assert Grouping.per("model", NAMES).spread(value, {}) is value


def test_a_fixed_parameter_takes_its_own_number() -> None:
    free = [name for name in NAMES if name != "norm.bias"]
    spread = Grouping.per("model", free).spread(torch.tensor(0.5), {"norm.bias": 0.0})
    assert isinstance(spread, dict)
    assert {name: float(x) for name, x in spread.items()} == dict.fromkeys(free, 0.5) | {"norm.bias": 0.0}


def test_norms_are_the_parameters_of_every_normalisation_layer() -> None:
    assert select(Model(), ["norms"]) == ["norm.weight", "norm.bias", "pool.weight", "pool.bias"]


def test_biases_are_named_so() -> None:
    assert select(Model(), ["biases"]) == [
        "stem.bias",
        "norm.bias",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "pool.bias",
    ]


def test_globs_reach_over_dots_and_patterns_add_up_in_the_models_order() -> None:
    assert select(Model(), ["attention.*weight", "stem.weight"]) == [
        "stem.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    ]


def test_a_pattern_that_names_nothing_is_refused_with_the_models_names() -> None:
    with pytest.raises(ValueError, match=r"got 'haed\.\*', which names no parameter; the model has stem\.weight, "):
        select(Model(), ["biases", "haed.*"])


@pytest.mark.parametrize("word", ["norms", "biases"])
def test_a_model_may_have_no_norms_and_no_biases(word: str) -> None:
    assert select(nn.Linear(2, 2, bias=False), [word]) == []
