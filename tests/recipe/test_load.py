"""Good recipes, overrides that fit, and what a loaded recipe offers."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hyperopt_cli.errors import Issue, RecipeError
from hyperopt_cli.recipe import Recipe, load, shipped
from tests.recipe.texts import GOOD, without, written


def good(folder: Path, *overrides: str) -> Recipe:
    return load(written(folder, GOOD), overrides)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    recipe = good(tmp_path)
    assert (recipe.loss.call, recipe.mode.name, recipe.mode.arguments) == (
        "cross_entropy",
        "auto",
        {"memory": "2GiB"},
    )
    assert (recipe.outer.optimizer, recipe.outer.lr, recipe.outer.steps) == ("auto", None, 10)
    by_adam = good(tmp_path, "outer.optimizer=adam").outer
    assert (by_adam.lr, by_adam.momentum, by_adam.on_nonfinite) == (0.05, None, "backtrack")
    assert recipe.dataset is not None
    assert (recipe.dataset.batch_size, recipe.dataset.outer_batch_size) == (32, 1000)


def test_a_number_is_short_for_initial(tmp_path: Path) -> None:
    momentum = good(tmp_path).hyperparameters["momentum"]
    assert (momentum.initial, momentum.tuned, momentum.schedule.kind) == (0.9, True, "constant")


def test_a_value_is_not_tuned(tmp_path: Path) -> None:
    assert not good(tmp_path).hyperparameters["l2"].anything_tuned


@pytest.mark.parametrize(
    ("schedule", "kind", "count", "parameters", "milestones"),
    [
        ("constant", "constant", None, {}, ()),
        ("{windows: 7}", "windows", 7, {}, ()),
        ("{knots: 2}", "knots", 2, {}, ()),
        ("per_step", "per_step", None, {}, ()),
        ("warmup_cosine", "warmup_cosine", None, {"warmup": False, "final": False}, ()),
        ("{exponential: }", "exponential", None, {"final": False}, ()),
        (
            "{one_cycle: {warmup: 0.3, final: {value: 0}}}",
            "one_cycle",
            None,
            {"warmup": True, "initial": False, "final": False},
            (),
        ),
        ("{step_decay: {milestones: [0.2, 0.75]}}", "step_decay", None, {"factor": False}, (0.2, 0.75)),
    ],
)
def test_schedules_have_one_form(
    tmp_path: Path,
    schedule: str,
    kind: str,
    count: int | None,
    parameters: dict[str, bool],
    milestones: tuple[float, ...],
) -> None:
    parsed = good(tmp_path, f"hyperparameters.lr.schedule={schedule}").hyperparameters["lr"].schedule
    tuned = {name: parameter.tuned for name, parameter in parsed.parameters.items()}
    assert (parsed.kind, parsed.count, tuned, parsed.milestones) == (kind, count, parameters, milestones)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("steps=5", "steps", 5),
        ("outer={optimizer: adam, lr: 1e-2}", "outer.lr", 0.01),
        ("outer={optimizer: sgd}", "outer.momentum", 0.0),
        ("hyperparameters.lr.initial=2", "hyperparameters.lr.initial", 2.0),
        ("hyperparameters.momentum.transform=logit", "hyperparameters.momentum.initial", 0.9),
        ("hyperparameters.lr.value=0.5", "hyperparameters.lr", {"value": 0.5, "schedule": {"windows": 2}}),
        ("hyperparameters.lr.schedule.knots=3", "hyperparameters.lr.schedule", {"knots": 3}),
        (
            "hyperparameters.lr.schedule.one_cycle.final.value=0",
            "hyperparameters.lr.schedule.one_cycle.final.value",
            0.0,
        ),
        ("mode=reverse", "mode", {"name": "reverse"}),
        (
            "mode={name: forward, columns_at_once: 4}",
            "mode",
            {"name": "forward", "engine": "auto", "columns_at_once": 4},
        ),
        ("loss=mse", "loss.call", "mse"),
        ("loss.label_smoothing=0.1", "loss", {"call": "cross_entropy", "label_smoothing": 0.1}),
        ("model.hidden.0=3", "model.hidden", [3]),
        ("optimizer.name=rmsprop", "optimizer.name", "rmsprop"),
        ("optimizer={call: SGD}", "optimizer.call", "SGD"),
        ("dataset.batch_size=7", "dataset.batch_size", 7),
        ("groups=[{parameters: [norms, '*.bias'], l2: 0}]", "groups.0.l2", 0.0),
        ("device=cuda:1", "device", "cuda:1"),
    ],
)
def test_an_override_is_set(tmp_path: Path, override: str, path: str, value: object) -> None:
    text = GOOD.replace(", nesterov: false", "")
    found: object = load(written(tmp_path, text), [override]).model_dump(mode="json")
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]  # type: ignore[index]
    assert found == value if not isinstance(value, dict) else value.items() <= found.items()  # type: ignore[attr-defined]


def test_later_overrides_win(tmp_path: Path) -> None:
    assert good(tmp_path, "steps=5", "steps=6").steps == 6


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("hyperparameters.lr.schedule=warmup_cosine", "outer.optimizer=sgd", "mode=reverse"),
        ("hyperparameters.lr.schedule={step_decay: {milestones: [0.5], factor: {value: 0.1}}}", "loss=mse"),
        ("hyperparameters.lr.initial=[1, 2]", "groups=[{parameters: [norms], l2: 0}]", "mode.memory=2000"),
        ("model={call: torch.nn.Sequential}", "device=cpu"),
        ("model={call: torchvision.models.resnet18, weights: null, odd: '0o17'}",),
    ],
)
def test_the_resolved_recipe_loads_to_an_equal_one(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    recipe = good(tmp_path, *overrides)
    again = load(written(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


def test_a_dump_is_plain_data(tmp_path: Path) -> None:
    assert yaml.safe_load(yaml.safe_dump(good(tmp_path).model_dump(mode="json")))["steps"] == 20


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        good(tmp_path).steps = 3


def test_the_loss_output_needs_no_data_set(tmp_path: Path) -> None:
    text = without("dataset", "model") + "loss: output\nmodel: {call: quadratic, eigenvalues: [1], start: [1]}\n"
    assert load(written(tmp_path, text)).dataset is None


def test_a_tuned_argument_of_the_loss_need_not_be_given(tmp_path: Path) -> None:
    recipe = good(tmp_path, "loss={call: torch.nn.functional.gaussian_nll_loss}", "hyperparameters.var=1")
    assert recipe.loss.arguments == {}


def test_later_stages_find_the_position(tmp_path: Path) -> None:
    recipe = load(written(tmp_path, GOOD), ["outer.optimizer=sign", "outer.lr=1"])
    paths: list[tuple[str | int, ...]] = [("hyperparameters", "lr", "bounds"), ("outer", "lr"), ("seed",)]
    path = tmp_path / "recipe.yaml"
    assert [recipe.locate(key) for key in paths] == [f"{path}:6:7", "command line", f"{path}:1:1"]
    error = recipe.located(RecipeError([Issue(("steps",), "too many"), Issue((), "odd", "here")]))
    assert [issue.where for issue in error.issues] == ["here", f"{path}:4:8"]  # as the file has them


def test_a_shipped_recipe_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, GOOD)
    monkeypatch.setattr(import_module("hyperopt_cli.recipe.load"), "shipped", lambda: {"tiny": path})
    assert load("tiny") == load("tiny.yaml") == load(path)


def test_recipes_ship_from_a_checkout_and_from_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "hyperopt_cli"
    monkeypatch.setattr(import_module("hyperopt_cli.recipe.shipped"), "_PACKAGE", package)
    assert shipped() == {}
    for folder in (tmp_path / "recipes", package / "recipes"):
        folder.mkdir(parents=True)
        (folder / "tiny.yaml").write_text(GOOD)
        assert shipped() == {"tiny": folder / "tiny.yaml"}


_KEYS = st.sampled_from(
    [
        "steps",
        "seed",
        "mode",
        "loss",
        "outer.lr",
        "groups",
        "groups.0",
        "hyperparameters",
        "hyperparameters.lr",
        "hyperparameters.lr.initial",
        "hyperparameters.lr.schedule",
        "hyperparameters.lr.bounds",
        "hyperparameters.x.y",
        "model",
        "device",
        "dataset.call",
    ]
)
_VALUES = st.text() | st.sampled_from(
    ["[1, 2]", "{a: 1}", "", "-1", "1e400", "9" * 400, ".nan", "{windows: 2}", "{exponential: 3}", "[{a: *x}]", "cpu:9"]
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=st.text() | st.builds("{}={}".format, _KEYS | st.text(), _VALUES))
def test_any_override_gives_a_recipe_or_a_recipe_error(tmp_path: Path, override: str) -> None:
    try:
        outcome: Recipe | RecipeError = good(tmp_path, override)
    except RecipeError as error:
        outcome = error
    assert isinstance(outcome, Recipe) or str(outcome).encode()


def test_the_former_name_of_columns_at_once_is_accepted_and_said(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match=r"mode.chunk_size is called mode.columns_at_once now"):
        old = good(tmp_path, "mode={name: forward, chunk_size: 4}")
    assert old == good(tmp_path, "mode={name: forward, columns_at_once: 4}")
    assert good(tmp_path, "mode={name: forward, chunk_size: null}") == good(tmp_path, "mode=forward")
    with pytest.raises(RecipeError, match=r"mode.chunk_size: it is the former name of columns_at_once; give one"):
        good(tmp_path, "mode={name: forward, chunk_size: 4, columns_at_once: 4}")
