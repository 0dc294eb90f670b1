"""What is wrong with a recipe's hyperparameters, optimizer, mode and device, and where it stands."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import RecipeError, UsageError
from hyperopt_cli.instantiate import build, check
from hyperopt_cli.instantiate.build import pick_device
from tests.instantiate.recipes import recipe_of


def refused(folder: Path, **changed: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        check(recipe_of(folder, **changed))
    return str(caught.value)


def test_the_recipe_that_the_others_change_is_good(tmp_path: Path) -> None:
    check(recipe_of(tmp_path))


def test_an_unknown_hyperparameter_is_named_with_its_position_and_what_was_meant(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"lr": 0.1, "momentun": 0.9})
    assert "recipe.yaml:" in said
    assert "hyperparameters.momentun: unknown hyperparameter; did you mean momentum?" in said
    assert "Allowed here: lr, momentum, dampening, weight_decay, label_smoothing, l2, init_scale" in said


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    said = refused(
        tmp_path, hyperparameters={"lr": 0.0, "beta1": 0.9, "l2": {"initial": 1.0, "schedule": {"windows": 9}}}
    )
    assert [part in said for part in ("hyperparameters.lr", "hyperparameters.beta1", "hyperparameters.l2")] == [
        True
    ] * 3


def test_an_argument_that_is_fixed_too_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, optimizer={"name": "sgd", "momentum": 0.5})
    assert "hyperparameters.momentum: fixed under optimizer (0.5) too; keep one of the two" in said


def test_an_argument_of_the_loss_that_is_fixed_too_is_refused(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        loss={"call": "cross_entropy", "label_smoothing": 0.1},
        hyperparameters={"lr": 0.1, "label_smoothing": 0.2},
    )
    assert "hyperparameters.label_smoothing: fixed under loss (0.1) too" in said


def test_more_windows_than_steps_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"lr": {"initial": 0.1, "schedule": {"windows": 7}}})
    assert "hyperparameters.lr.schedule.windows: windows: got 7 over 6 steps; at most one a step" in said


def test_a_log_start_at_0_is_sent_to_identity(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"lr": 0.1, "weight_decay": 0.0})
    assert "hyperparameters.weight_decay: got 0; log starts inside (0, inf)" in said.replace(".initial:", ":")
    assert "transform: identity, bounds: [0, 1]" in said


def test_a_list_of_starts_is_pointed_into(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"lr": {"initial": [0.1, 0.0, 0.2], "schedule": {"windows": 3}}})
    assert "hyperparameters.lr.initial.1: got 0" in said


def test_a_hyperparameter_of_the_loss_has_no_groups(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"label_smoothing": {"initial": 0.1, "per": "layer"}})
    assert "hyperparameters.label_smoothing.per: got layer" in said


def test_init_scale_has_no_schedule(tmp_path: Path) -> None:
    said = refused(tmp_path, hyperparameters={"init_scale": {"initial": 1.0, "schedule": {"windows": 2}}})
    assert "init_scale is read once, before the first step" in said


def test_a_group_cannot_fix_what_the_loss_reads(tmp_path: Path) -> None:
    said = refused(tmp_path, groups=[{"parameters": ["biases"], "label_smoothing": 0.1}])
    assert "groups.0.label_smoothing: unknown hyperparameter" in said


def test_a_pattern_that_names_no_parameter_is_refused_once_the_model_is_there(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, groups=[{"parameters": ["head.*"], "weight_decay": 0.0}])
    with pytest.raises(
        RecipeError, match=r"groups\.0\.parameters: got 'head\.\*', which names no parameter; .* 1\.weight"
    ):
        build(recipe)


def test_an_optimizers_refusal_is_placed(tmp_path: Path) -> None:
    said = refused(tmp_path, optimizer={"name": "sgd", "nesterov": True, "dampening": 0.5}, hyperparameters={"lr": 0.1})
    assert "optimizer: dampening: got 0.5 with nesterov" in said


def test_an_unknown_engine_is_placed(tmp_path: Path) -> None:
    said = refused(tmp_path, mode={"name": "forward", "engine": "forward_over_revers"})
    assert "mode.engine: got 'forward_over_revers'; did you mean forward_over_reverse?" in said
    assert all(name in said for name in ("auto", *ENGINES))


def test_an_engine_that_only_a_benchmark_takes_is_refused_with_what_to_take(tmp_path: Path) -> None:
    said = refused(tmp_path, mode={"name": "forward", "engine": "reverse_over_forward"})
    assert "mode.engine: got 'reverse_over_forward', which bench hvp alone takes; must be one of auto, " in said
    assert said.endswith("auto takes a right one")


def test_a_models_refusal_is_placed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model: mlp raised ValueError: activation = 'rule'"):
        build(recipe_of(tmp_path, model={"call": "mlp", "activation": "rule"}))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="device: got cuda:1; this machine has 1 CUDA devices; use cpu or auto"):
        pick_device("cuda:1")


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
