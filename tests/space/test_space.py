"""A space: its knobs, what training sees of them, and the hypergradient through it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hyperopt_cli import hypergradient
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.optimizers.base import StepHyper
from hyperopt_cli.problem import Hyper
from hyperopt_cli.space import Grouping, Hyperparameter, Knob, Schedule, Space, Transform
from tests.cases import T, net_problem
from tests.reference import unroll

NAMES = ["a.weight", "a.bias", "b.weight"]
LOG, SHARE = Transform("log"), Transform("logit")


def numbers(*x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64) if len(x) > 1 else torch.tensor(x[0], dtype=torch.float64)


SPACE = Space(
    (
        Hyperparameter(
            "lr",
            Knob(numbers(0.1, 0.2), LOG),
            Schedule("warmup_cosine", T),
            {"warmup": Knob(numbers(0.3), SHARE), "final": Knob(numbers(0.05), LOG, tuned=False)},
            Grouping.per("layer", NAMES),
        ),
        Hyperparameter(
            "weight_decay",
            Knob(numbers(0.01, 0.03, 0.02), LOG),
            Schedule("windows", T, 3),
            grouping=Grouping.per("model", ["a.weight", "b.weight"]),
            fixed={"a.bias": 0.0},
        ),
        Hyperparameter("momentum", Knob(numbers(0.8), SHARE, tuned=False), Schedule("constant", T)),
    )
)


def by_hand(hyper: Hyper, t: int) -> StepHyper:
    """The same mapping, written out."""
    u = torch.tensor((t + 0.5) / T, dtype=torch.float64)
    w = hyper["lr.warmup"]
    shape = u / w if u < w else 0.05 + 0.95 * (1 + torch.cos(torch.pi * (u - w) / (1 - w))) / 2
    decay = hyper["weight_decay"][3 * t // T]
    lr = {"a.weight": hyper["lr"][0] * shape, "a.bias": hyper["lr"][0] * shape, "b.weight": hyper["lr"][1] * shape}
    return {
        "lr": lr,
        "weight_decay": {"a.weight": decay, "b.weight": decay, "a.bias": numbers(0.0)},
        "momentum": numbers(0.8),
    }


def test_tuned_knobs_have_keys_of_their_own() -> None:
    assert list(SPACE.tuned()) == ["lr", "lr.warmup", "weight_decay"]


def test_natural_undoes_initial() -> None:
    natural = SPACE.natural(SPACE.initial())
    for key, knob in SPACE.tuned().items():
        torch.testing.assert_close(natural[key], knob.initial, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_hypergradient_equals_a_plain_unroll_with_the_mapping_written_out(mode: str) -> None:
    hyper = SPACE.natural(SPACE.initial())
    problem = net_problem(SGD(momentum=0.8), SPACE.at)
    value, grad, _ = unroll("sgd", replace(problem, schedule=by_hand), hyper)
    got = hypergradient(problem, hyper, mode)
    torch.testing.assert_close(got.value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.grad, grad, rtol=1e-10, atol=1e-13)


def test_a_fixed_decay_of_0_is_none() -> None:
    """A bias without decay ends where it would if only the weights were decayed."""
    one = Hyperparameter(
        "weight_decay", Knob(numbers(0.1), LOG), Schedule("constant", T), {}, Grouping.per("model", NAMES)
    )
    free = replace(one, grouping=Grouping.per("model", ["a.weight", "b.weight"]), fixed={"a.bias": 0.0})
    first = {}
    for name, hp in {"all": one, "free": free}.items():
        problem = net_problem(SGD(lr=0.1), Space((hp,)).at, steps=1)
        first[name] = hypergradient(problem, {"weight_decay": numbers(0.1)}).params
    start = net_problem(SGD()).init["a.bias"]
    assert torch.equal(first["all"]["a.weight"], first["free"]["a.weight"])
    torch.testing.assert_close(
        first["free"]["a.bias"] - first["all"]["a.bias"], 0.1 * 0.1 * start, rtol=1e-9, atol=1e-15
    )


def test_courses_show_every_step_of_what_training_sees() -> None:
    courses = SPACE.courses(SPACE.natural(SPACE.initial()))
    assert {name: tuple(course.shape) for name, course in courses.items()} == {
        "lr": (T, 2),
        "weight_decay": (T,),
        "momentum": (T,),
    }
    assert courses["weight_decay"].tolist() == pytest.approx([0.01] * 4 + [0.03] * 4 + [0.02] * 4)


def test_what_only_init_reads_is_no_part_of_a_step() -> None:
    space = Space((replace(SPACE.hyperparameters[2], name="init_scale", in_step=False),))
    assert space.at({}, 0) == {}
    assert space.courses({}) == {}
