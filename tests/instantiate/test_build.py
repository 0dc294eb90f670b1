"""A recipe becomes the training run that it describes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from hyperopt_cli import hypergradient
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.models import mlp
from hyperopt_cli.optimizers import SGD, AdamW
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper
from tests.instantiate.recipes import built
from tests.reference import unroll

BOTH = pytest.mark.parametrize("mode", ["forward", "reverse"])
LAYERS = ["1.weight", "1.bias", "3.weight", "3.bias"]


def start_of(experiment: Experiment) -> Hyper:
    return experiment.space.natural(experiment.space.initial())


def test_momenta_and_shares_are_tuned_by_logit_and_the_rest_by_log(tmp_path: Path) -> None:
    """As the fields of the optimizer and the arguments of the loss say; the name alone says nothing."""
    wanted = {"lr": "log", "weight_decay": "log", "l2": "log", "label_smoothing": "logit"}
    for optimizer, further in {
        "sgd": {"momentum": "logit", "dampening": "logit"},
        "adam": {"beta1": "logit", "beta2": "logit", "eps": "log"},
        "adamw": {"beta1": "logit", "beta2": "logit", "eps": "log"},
        "rmsprop": {"alpha": "logit", "momentum": "logit", "eps": "log"},
    }.items():
        names = wanted | further
        experiment = built(tmp_path, optimizer={"name": optimizer}, hyperparameters=dict.fromkeys(names, 0.1))
        assert {name: knob.transform.name for name, knob in experiment.space.tuned().items()} == names
    own = tmp_path / "of_ones_own.py"
    own.write_text(
        "from dataclasses import dataclass\n"
        "from hyperopt_cli.optimizers import SGD, Share\n"
        "@dataclass(frozen=True)\n"
        "class Own(SGD):\n"
        "    momentum: float = 0.0\n"
        "    nudge: Share = 0.0\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        hyperparameters = dict.fromkeys(("momentum", "nudge", "dampening"), 0.1)
        called = {"call": "of_ones_own.Own"}
        tuned = built(tmp_path, ("of_ones_own",), optimizer=called, hyperparameters=hyperparameters).space.tuned()
    assert {name: knob.transform.name for name, knob in tuned.items()} == {
        "momentum": "log",
        "nudge": "logit",
        "dampening": "logit",
    }


def test_every_tuned_knob_is_a_key_of_hyper(tmp_path: Path) -> None:
    schedule = {"warmup_cosine": {"warmup": 0.2, "final": {"value": 0.0}}}
    experiment = built(
        tmp_path, hyperparameters={"lr": {"initial": 0.1, "schedule": schedule}, "momentum": {"value": 0.9}, "l2": 1e-3}
    )
    assert {key: x.item() for key, x in start_of(experiment).items()} == pytest.approx(
        {"lr": 0.1, "lr.warmup": 0.2, "l2": 1e-3}
    )


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        ({"initial": 0.1}, ()),
        ({"initial": 0.1, "per": "layer"}, (2,)),
        ({"initial": 0.1, "per": "tensor"}, (4,)),
        ({"initial": 0.1, "per": "layer", "schedule": {"windows": 3}}, (3, 2)),
        ({"initial": [0.1, 0.2], "per": "layer", "schedule": {"knots": 2}}, (2, 2)),
        ({"initial": 0.1, "per": "tensor", "schedule": "per_step"}, (6, 4)),
    ],
)
def test_values_are_laid_out_by_time_then_group(tmp_path: Path, entry: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert start_of(built(tmp_path, hyperparameters={"lr": entry}))["lr"].shape == shape


def test_a_groups_fixed_value_stands_in_lambda_t(tmp_path: Path) -> None:
    experiment = built(
        tmp_path,
        optimizer={"name": "adamw"},
        hyperparameters={"lr": 0.1, "weight_decay": {"initial": 0.2, "per": "layer"}},
        groups=[{"parameters": ["biases"], "weight_decay": 0.0, "lr": 0.05}],
    )
    now = experiment.space.at(start_of(experiment), 0)
    assert values(now["weight_decay"]) == pytest.approx(dict(zip(LAYERS, [0.2, 0, 0.2, 0], strict=True)))
    assert values(now["lr"]) == pytest.approx(dict(zip(LAYERS, [0.1, 0.05, 0.1, 0.05], strict=True)))


def test_what_only_a_group_fixes_is_the_optimizers_default_elsewhere(tmp_path: Path) -> None:
    experiment = built(
        tmp_path,
        optimizer={"name": "adamw"},
        hyperparameters={"lr": 0.1},
        groups=[{"parameters": ["biases"], "weight_decay": 0.0}],
    )
    now = experiment.space.at(start_of(experiment), 0)
    assert values(now["weight_decay"]) == pytest.approx(dict(zip(LAYERS, [AdamW().weight_decay, 0] * 2, strict=True)))


def values(entry: Tensor | dict[str, Tensor]) -> dict[str, float]:
    assert isinstance(entry, dict)
    return {name: float(x) for name, x in entry.items()}


EVERYTHING: dict[str, Any] = {
    "hyperparameters": {
        "lr": {"initial": [0.1, 0.2, 0.3], "schedule": {"windows": 3}},
        "momentum": 0.8,
        "weight_decay": {"initial": 0.01, "per": "layer"},
        "l2": 0.02,
        "label_smoothing": 0.1,
        "init_scale": 1.3,
    },
    "groups": [{"parameters": ["biases"], "weight_decay": 0.0, "l2": 0.0}],
}


@BOTH
def test_the_hypergradient_equals_an_unroll_of_the_run_written_out(tmp_path: Path, mode: str) -> None:
    experiment = built(tmp_path, **EVERYTHING)
    problem, hyper = experiment.problem(3), start_of(experiment)
    model = experiment.make_model(derive(3, "init"))
    first = {name: w.detach() for name, w in model.named_parameters()}

    def init(h: Hyper) -> Params:
        return {name: w * h["init_scale"] if name.endswith("weight") else w + 0.0 for name, w in first.items()}

    def schedule(h: Hyper, t: int) -> StepHyper:
        decay = {"1.weight": h["weight_decay"][0], "3.weight": h["weight_decay"][1]}
        return {**h, "lr": h["lr"][t // 2], "weight_decay": decay}

    def inner(params: Params, h: Any, batch: Any) -> Tensor:
        log_p = functional.log_softmax(functional_call(model, params, (batch.inputs,)), dim=1)
        smooth = functional.one_hot(batch.targets, 10) * (1 - h["label_smoothing"]) + h["label_smoothing"] / 10
        penalty = params["1.weight"].square().sum() + params["3.weight"].square().sum()
        loss: Tensor = h["l2"] / 2 * penalty - (smooth * log_p).sum(dim=1).mean()
        return loss

    def outer(params: Params, h: Hyper, batch: Any) -> Tensor:
        return functional.cross_entropy(functional_call(model, params, (batch.inputs,)), batch.targets)

    by_hand = replace(problem, init=init, schedule=schedule, inner_loss=inner, outer_loss=outer)
    value, grad, params = unroll("sgd", by_hand, hyper)
    got = hypergradient(problem, hyper, mode)
    assert list(got.grad) == list(EVERYTHING["hyperparameters"])
    torch.testing.assert_close(got.value, value, rtol=1e-11, atol=0)
    torch.testing.assert_close(got.grad, grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.params, params, rtol=1e-10, atol=1e-13)


def test_the_problem_carries_the_recipes_horizon_and_rule(tmp_path: Path) -> None:
    problem = built(tmp_path, optimizer={"name": "sgd", "nesterov": True}).problem(0)
    assert problem.steps == 6
    assert problem.optimizer == SGD(nesterov=True)


def test_a_seed_decides_the_start_and_the_batches(tmp_path: Path) -> None:
    experiment = built(tmp_path)
    one, again, other = (experiment.problem(seed) for seed in (1, 1, 2))
    starts = [dict(problem.init)["1.weight"] for problem in (one, again, other)]  # type: ignore[arg-type]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert torch.equal(one.batch(3).inputs, again.batch(3).inputs)
    assert not torch.equal(one.batch(3).inputs, other.batch(3).inputs)


def test_building_and_running_leave_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    experiment = built(tmp_path, model={"call": "mlp", "hidden": [5], "dropout": 0.3})
    hypergradient(experiment.problem(0), start_of(experiment), "reverse")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_outer_loss_sees_no_dropout(tmp_path: Path) -> None:
    experiment = built(tmp_path, model={"call": "mlp", "hidden": [5], "dropout": 0.5})
    problem = experiment.problem(0)
    params: Params = dict(problem.init)  # type: ignore[arg-type]
    chunks = problem.outer_batches
    assert chunks is not None
    batch, _ = chunks[0]
    plain = mlp((1, 8, 8), 10, hidden=(5,), dropout=0.5).double().eval()
    want = functional.cross_entropy(functional_call(plain, params, (batch.inputs,)), batch.targets)
    torch.testing.assert_close(problem.outer_loss(params, {}, batch), want, rtol=1e-12, atol=0)


def test_a_loss_that_needs_no_data_is_run_without_any(tmp_path: Path) -> None:
    experiment = built(
        tmp_path,
        model={"call": "quadratic", "eigenvalues": [2.0], "start": [1.0]},
        dataset=None,
        loss="output",
        hyperparameters={"lr": 0.1},
    )
    got = hypergradient(experiment.problem(0), start_of(experiment))
    assert float(got.value) == pytest.approx((1 - 0.2) ** 12)
    assert float(got.grad["lr"]) == pytest.approx(-6 * 4 * (1 - 0.2) ** 11)
    assert experiment.test(got.params, 0) is None


def test_the_test_figures_with_batch_norm_are_those_of_running_statistics(tmp_path: Path) -> None:
    experiment = built(tmp_path, model={"call": "convnet", "widths": [4], "norm": "batch"}, steps=3)
    params = hypergradient(experiment.problem(0), start_of(experiment), "reverse").params
    data, model = experiment.data, torch.nn.Sequential(*experiment.make_model(0).children())
    assert data is not None
    assert data.test is not None
    for name, w in model.named_parameters():
        w.data.copy_(params[name])
    norm = model[1]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    convolved = [model[0](batch.inputs) for batch, _ in data.train_chunks]
    norm.running_mean = torch.stack([x.mean(dim=(0, 2, 3)) for x in convolved]).mean(dim=0).detach()
    norm.running_var = torch.stack([x.transpose(0, 1).flatten(1).var(dim=1) for x in convolved]).mean(dim=0).detach()
    model.eval()
    inputs, targets = (torch.cat([getattr(batch, part) for batch, _ in data.test]) for part in ("inputs", "targets"))
    outputs = model(inputs).detach()
    figures = experiment.test(params, 0)
    assert figures is not None
    assert figures.loss == pytest.approx(float(functional.cross_entropy(outputs, targets)), rel=1e-10)
    assert figures.accuracy == pytest.approx(float((outputs.argmax(dim=1) == targets).double().mean()))
