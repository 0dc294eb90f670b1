"""Each inner optimizer walks exactly where the class of `torch.optim` of the same name does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperopt_cli.optimizers import SGD, Adam, AdamW, InnerOptimizer, RMSprop
from hyperopt_cli.optimizers.base import Params

STEPS = 10
Kind = Callable[..., InnerOptimizer]
# ours, its numbers, torch's, its numbers
RULES: dict[str, tuple[Kind, dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = {
    name: (ours, given, theirs, {k: v for k, v in given.items() if k not in ("beta1", "beta2")} | more)
    for name, ours, given, theirs, more in [
        ("sgd", SGD, {"lr": 0.1}, torch.optim.SGD, {}),
        ("sgd momentum", SGD, {"lr": 0.1, "momentum": 0.9}, torch.optim.SGD, {}),
        ("sgd dampening", SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}, torch.optim.SGD, {}),
        ("sgd nesterov", SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, torch.optim.SGD, {}),
        ("sgd decay", SGD, {"lr": 0.1, "weight_decay": 0.1}, torch.optim.SGD, {}),
        (
            "sgd all",
            SGD,
            {"lr": 0.1, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.1},
            torch.optim.SGD,
            {},
        ),
        (
            "sgd nesterov decay",
            SGD,
            {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
            torch.optim.SGD,
            {},
        ),
        ("adam", Adam, {"lr": 0.1}, torch.optim.Adam, {}),
        (
            "adam all",
            Adam,
            {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
            torch.optim.Adam,
            {"betas": (0.8, 0.95)},
        ),
        ("adamw", AdamW, {"lr": 0.1}, torch.optim.AdamW, {}),
        (
            "adamw all",
            AdamW,
            {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3},
            torch.optim.AdamW,
            {"betas": (0.8, 0.95)},
        ),
        ("rmsprop", RMSprop, {"lr": 0.01}, torch.optim.RMSprop, {}),
        ("rmsprop centered", RMSprop, {"lr": 0.01, "alpha": 0.9, "centered": True}, torch.optim.RMSprop, {}),
        ("rmsprop momentum", RMSprop, {"lr": 0.01, "momentum": 0.9}, torch.optim.RMSprop, {}),
        (
            "rmsprop all",
            RMSprop,
            {"lr": 0.01, "alpha": 0.8, "eps": 1e-3, "weight_decay": 0.1, "momentum": 0.5, "centered": True},
            torch.optim.RMSprop,
            {},
        ),
    ]
}


def start() -> Params:
    generator = torch.Generator().manual_seed(1)
    return {
        "a": torch.randn(3, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(4, generator=generator, dtype=torch.float64),
    }


def loss_of(params: Params) -> Tensor:
    """Neither convex nor symmetric, so that every step has a gradient of its own."""
    return (params["a"] ** 4 / 4 - params["a"] ** 2).sum() + torch.sin(params["b"]).sum() + params["a"].mean() ** 2


def walk_ours(optimizer: InnerOptimizer, hyper: dict[str, Any]) -> list[Params]:
    params = start()
    slots, path = optimizer.slots(params, frozenset(hyper)), []
    for t in range(STEPS):
        leaves = {name: w.detach().requires_grad_() for name, w in params.items()}
        grads = dict(zip(leaves, torch.autograd.grad(loss_of(leaves), list(leaves.values())), strict=True))
        params, slots = optimizer.update(params, slots, grads, hyper, t)
        path.append(params)
    return path


def walk_theirs(kind: type[torch.optim.Optimizer], arguments: dict[str, Any]) -> list[Params]:
    params = {name: w.requires_grad_() for name, w in start().items()}
    optimizer, path = kind(list(params.values()), **arguments), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(params).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        path.append({name: w.detach().clone() for name, w in params.items()})
    return path


def assert_same_path(got: list[Params], want: list[Params]) -> None:
    assert len(got) == len(want) == STEPS
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
def test_walks_where_torch_does_by_its_own_numbers(rule: str) -> None:
    ours, given, theirs, arguments = RULES[rule]
    assert_same_path(walk_ours(ours(**given), {}), walk_theirs(theirs, arguments))


@pytest.mark.parametrize("rule", RULES)
def test_walks_where_torch_does_when_driven(rule: str) -> None:
    ours, given, theirs, arguments = RULES[rule]
    fixed = {name: value for name, value in given.items() if isinstance(value, bool)}
    driven = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items() if name not in fixed}
    assert_same_path(walk_ours(ours(**fixed), driven), walk_theirs(theirs, arguments))


def test_the_comparison_bites() -> None:
    with pytest.raises(AssertionError):
        assert_same_path(walk_ours(SGD(lr=0.1), {}), walk_theirs(torch.optim.SGD, {"lr": 0.1 * (1 + 1e-11)}))


@pytest.mark.parametrize("ours", [SGD, Adam, AdamW, RMSprop])
def test_the_defaults_are_torchs(ours: type[InnerOptimizer]) -> None:
    theirs = getattr(torch.optim, ours.__name__)([torch.zeros(1)]).defaults
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    assert {name: getattr(ours(), name) for name in ours.argument_names()} == {
        name: theirs[name] for name in ours.argument_names()
    }


def test_dampening_without_a_buffer_has_no_effect() -> None:
    want = walk_theirs(torch.optim.SGD, {"lr": 0.1, "dampening": 0.5})
    assert_same_path(walk_ours(SGD(lr=0.1, dampening=0.5), {}), want)


def test_nesterov_refuses_dampening() -> None:
    with pytest.raises(ValueError, match=r"dampening: got 0\.1 with nesterov; .* needs a dampening of 0"):
        SGD(momentum=0.9, dampening=0.1, nesterov=True)


def test_nesterov_refuses_a_driven_dampening() -> None:
    with pytest.raises(ValueError, match="dampening: driven by a hyperparameter"):
        SGD(momentum=0.9, nesterov=True).slots(start(), frozenset({"dampening"}))


@pytest.mark.parametrize("kind", [SGD, RMSprop])
@pytest.mark.parametrize(
    ("momentum", "driven", "kept"), [(0.0, "lr", False), (0.9, "lr", True), (0.0, "momentum", True)]
)
def test_the_momentum_buffer_is_left_out_only_at_a_fixed_zero(
    kind: type[SGD] | type[RMSprop], momentum: float, driven: str, kept: bool
) -> None:
    assert ("momentum_buffer" in kind(momentum=momentum).slots(start(), frozenset({driven}))) is kept


def test_a_mapping_gives_each_parameter_its_own_number() -> None:
    hyper = {"lr": {"a": torch.tensor(0.2, dtype=torch.float64)}}
    got = walk_ours(SGD(lr=0.1), hyper)
    groups_a, groups_b = walk_ours(SGD(lr=0.2), {}), walk_ours(SGD(lr=0.1), {})
    assert torch.equal(got[0]["a"], groups_a[0]["a"])
    assert torch.equal(got[0]["b"], groups_b[0]["b"])


@pytest.mark.parametrize(
    ("ours", "theirs", "arguments"),
    [
        (SGD, torch.optim.SGD, {"lr": -1.0}),
        (SGD, torch.optim.SGD, {"momentum": -0.1}),
        (SGD, torch.optim.SGD, {"weight_decay": -0.1}),
        (Adam, torch.optim.Adam, {"eps": -1.0}),
        (RMSprop, torch.optim.RMSprop, {"alpha": -0.1}),
    ],
)
def test_what_torch_refuses_is_refused(ours: Any, theirs: Any, arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        theirs([torch.zeros(1)], **arguments)
    with pytest.raises(ValueError, match="must be at least 0"):
        ours(**arguments)


def test_a_beta_of_1_and_nesterov_without_momentum_are_refused() -> None:
    with pytest.raises(ValueError, match=r"beta1: got 1\.0; must be at least 0 and below 1"):
        Adam(beta1=1.0)
    with pytest.raises(ValueError, match="nesterov: needs a momentum"):
        SGD(nesterov=True).slots({}, frozenset({"lr"}))


@pytest.mark.parametrize("given", [None, "abc", [0.1]])
def test_what_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"eps: got .*; give a number"):
        Adam(eps=given)
