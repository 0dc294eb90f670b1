"""A loss that is cut into pieces is the loss of the whole, or is refused before the run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyperopt_cli import Forward, Reverse, hypergradient
from hyperopt_cli.errors import RecipeError
from hyperopt_cli.instantiate import Experiment, build
from tests.instantiate.recipes import recipe_of

CODE = """
import torch
from torch import nn
from torch.nn import functional as F

def drawn(num, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 4, generator=g, dtype=torch.float64)
    y = (x[:, 0] > 0.8).long() + (x[:, 1] > 1.2).long()
    return x, y
def classes(): return drawn(150, 0)
def some_ignored():
    x, y = drawn(150, 0)
    y[::7] = -100
    return x, y
def front_ignored():  # whole pieces of nothing but ignored targets
    x, y = drawn(150, 0)
    y[:70] = 3
    return x, y
def sequences():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 5, 4, generator=g, dtype=torch.float64)
    y = (x[..., 0] > 0).long()
    y[torch.arange(5)[None] > torch.randint(0, 5, (90, 1), generator=g)] = -100
    return x, y
def rare():
    x, y = drawn(3000, 0)
    y = y.clamp(max=1)
    y[::500] = 2  # one in 500
    return x, y
def ignoring_rare(outputs, targets): return F.cross_entropy(outputs, targets, ignore_index=2)
def tail():
    x, y = drawn(3000, 1)[0], torch.zeros(3000, 1, dtype=torch.float64)
    y[:, 0] = x[:, 0]
    y[::500] += 9  # one in 500 is far out
    return x, y
def weighs_the_tail(outputs, targets):
    w = 1 + 100 * (targets > 6).to(outputs)
    return (w * (outputs - targets) ** 2).sum() / w.sum()
def line():
    x, _ = drawn(150, 1)
    return x, x[:, :1] ** 2 + 3
def linear(input_shape): return nn.Linear(4, 4)
def one(input_shape): return nn.Linear(4, 1)
class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
    def forward(self, x):
        return self.head(x).movedim(-1, 1)
def tagger(input_shape): return Tagger()
class Centred(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)
def centred(input_shape): return Centred(4, 4)
def normed(input_shape): return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 4))
W = torch.tensor([1.0, 5.0, 9.0, 1.0], dtype=torch.float64)
def weighted(outputs, targets): return F.cross_entropy(outputs, targets, weight=W.to(outputs))
def ignoring(outputs, targets): return F.cross_entropy(outputs, targets, ignore_index=1)
def summed(outputs, targets): return F.cross_entropy(outputs, targets, reduction="sum")
def plain(outputs, targets): return F.cross_entropy(outputs, targets)
def focal(outputs, targets): return ((1 - torch.exp(-F.cross_entropy(outputs, targets, reduction="none"))) ** 2).mean()
def rms(outputs, targets): return ((outputs - targets) ** 2).mean().sqrt()
def correlation(outputs, targets):
    x, y = outputs - outputs.mean(), targets - targets.mean()
    return 1 - (x * y).sum() / (x.norm() * y.norm())
def worst(outputs, targets): return (outputs - targets).square().max()
def ratio(outputs, targets): return (outputs - targets).square().sum() / targets.square().sum()
def by_size(outputs, targets): return (outputs - targets).square().sum() / 100
def contrast(outputs, targets):
    return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))
def dice(outputs, targets):
    p = outputs.softmax(1)[torch.arange(len(targets)), targets]
    return 1 - 2 * p.sum() / (p.square().sum() + len(targets))
def float32_inside(outputs, targets): return (outputs.float() - targets.float()).square().mean()
"""
COMMON: dict[str, Any] = {
    "steps": 3,
    "hyperparameters": {"lr": {"initial": 0.05}, "momentum": 0.5},
    "mode": "forward",
}
CE = "torch.nn.functional.cross_entropy"
WEIGHT = [1.0, 5.0, 9.0, 1.0]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """Builds the recipe of a loss, a data set and a model of the module above."""
    (tmp_path / "cut_parts.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cut_parts", raising=False)

    def made(loss: Any, data: str = "classes", model: str = "linear", **dataset: Any) -> Experiment:
        if isinstance(loss, str) and loss.startswith("own."):
            loss = {"call": loss.replace("own", "cut_parts")}
        changed = {
            **COMMON,
            "precision": "float32" if "float32" in str(loss) else "float64",
            "model": {"call": f"cut_parts.{model}"},
            "dataset": {"call": f"cut_parts.{data}", "batch_size": 30, "validation_fraction": 0.4, **dataset},
            "loss": loss,
        }
        return build(recipe_of(tmp_path, ("cut_parts",), **changed), ("cut_parts",))

    return made


EXACT = [
    ({"call": "cross_entropy", "weight": WEIGHT}, "classes", "linear"),
    ({"call": CE, "weight": WEIGHT}, "classes", "linear"),
    ({"call": "torch.nn.CrossEntropyLoss", "weight": WEIGHT}, "classes", "linear"),
    ({"call": CE, "weight": WEIGHT, "label_smoothing": 0.2}, "classes", "linear"),
    ({"call": CE, "ignore_index": 1}, "classes", "linear"),
    ({"call": "cross_entropy", "ignore_index": 1, "weight": WEIGHT}, "classes", "linear"),
    ({"call": CE}, "some_ignored", "linear"),
    ({"call": "torch.nn.NLLLoss", "ignore_index": 0}, "classes", "linear"),
    ({"call": CE, "reduction": "sum"}, "classes", "linear"),
    ({"call": "torch.nn.CrossEntropyLoss", "reduction": "sum", "weight": WEIGHT}, "classes", "linear"),
    ({"call": "torch.nn.MSELoss", "reduction": "sum"}, "line", "one"),
    ({"call": CE, "ignore_index": 3}, "front_ignored", "linear"),
    ({"call": CE}, "sequences", "tagger"),
    ({"call": "torch.nn.functional.nll_loss", "weight": [1.0, 2.0, 7.0]}, "sequences", "tagger"),
    ("cross_entropy", "classes", "linear"),
    ("own.plain", "classes", "linear"),
    ("own.focal", "classes", "linear"),
    ("own.float32_inside", "line", "one"),  # in a run of float32: engines refuse it in float64
]


@pytest.mark.parametrize(("loss", "data", "model"), EXACT, ids=str)
def test_the_validation_loss_in_chunks_is_that_of_the_whole(make: Any, loss: Any, data: str, model: str) -> None:
    whole, cut = (make(loss, data, model, outer_batch_size=size) for size in ("all", 7))
    assert len(whole.data.validation) == 1
    assert len(cut.data.validation) > 1
    same(whole, cut)
    assert_loss_is_torchs(whole, loss)


@pytest.mark.parametrize(("loss", "data", "model"), EXACT, ids=str)
def test_a_training_batch_in_chunks_is_that_of_the_whole(make: Any, loss: Any, data: str, model: str) -> None:
    same(make(loss, data, model), make(loss, data, model, chunk_size=8))


def same(whole: Experiment, cut: Experiment) -> None:
    hyper = whole.space.natural(whole.space.initial())
    want = hypergradient(whole.problem(0), hyper, Forward(compile=False))
    for mode in (Forward(compile=False), Reverse(compile=False)):
        got = hypergradient(cut.problem(0), hyper, mode)
        tolerance = 1e-5 if want.value.dtype == torch.float32 else 1e-10
        torch.testing.assert_close(got.value, want.value, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got.grad, want.grad, rtol=tolerance, atol=tolerance)
    assert float(want.grad["lr"]) != 0.0


def test_batch_normalisation_and_draws_belong_to_the_piece(make: Any) -> None:
    make("own.plain", "classes", "normed", outer_batch_size=7, chunk_size=8)


def assert_loss_is_torchs(experiment: Experiment, loss: Any) -> None:
    """Torch's function of all validation examples at once, by the arguments of the recipe."""
    if not isinstance(loss, dict) or (
        "CrossEntropyLoss" not in loss["call"] and loss["call"] not in ("cross_entropy", CE)
    ):
        return
    arguments = {name: x for name, x in loss.items() if name != "call"}
    if "weight" in arguments:
        arguments["weight"] = torch.tensor(arguments["weight"], dtype=torch.float64)
    problem, (batch, _) = experiment.problem(0), experiment.data.validation[0]  # type: ignore[union-attr]
    model = experiment.make_model(0)
    params = {name: w.detach() for name, w in model.named_parameters()}
    outputs = torch.func.functional_call(model, params, (batch.inputs,))
    want = functional.cross_entropy(outputs, batch.targets, **arguments)
    torch.testing.assert_close(problem.validation_loss(params, {}, batch), want, rtol=1e-12, atol=0)


REFUSED = [
    ("own.weighted", "classes", "linear"),
    ("own.ignoring", "classes", "linear"),
    ("own.summed", "classes", "linear"),
    ("own.plain", "some_ignored", "linear"),
    ("own.ignoring_rare", "rare", "linear"),
    ("own.contrast", "classes", "linear"),
    ("own.dice", "classes", "linear"),
    ("own.plain", "classes", "centred"),
    ("own.rms", "line", "one"),
    ("own.correlation", "line", "one"),
    ("own.worst", "line", "one"),
    ("own.ratio", "line", "one"),
    ("own.by_size", "line", "one"),
    ("own.weighs_the_tail", "tail", "one"),
]


@pytest.mark.parametrize(("loss", "data", "model"), REFUSED)
@pytest.mark.parametrize(
    ("key", "size", "remedy"),
    [("outer_batch_size", 20, "outer_batch_size: all"), ("chunk_size", 10, "Leave dataset.chunk_size out")],
)
def test_what_does_not_add_up_is_refused_with_the_key_to_set(
    make: Any, loss: str, data: str, model: str, key: str, size: int, remedy: str
) -> None:
    with pytest.raises(RecipeError, match=rf"dataset\.{key}: the loss is cut into pieces that do not add up") as told:
        make(loss, data, model, **{key: size})
    assert remedy in str(told.value)
    make(loss, data, model, outer_batch_size="all")


def test_a_cut_test_split_is_asked_too(make: Any, tmp_path: Path) -> None:
    with (tmp_path / "cut_parts.py").open("a", encoding="utf-8") as file:
        file.write(
            "def with_test():\n    return torch.utils.data.TensorDataset(*drawn(60, 0)), "
            "torch.utils.data.TensorDataset(*drawn(200, 5))\n"
        )
    with pytest.raises(RecipeError, match="outer_batch_size"):
        make("own.weighted", "with_test", outer_batch_size=100)
    figures = [make({"call": CE, "weight": WEIGHT}, "with_test", outer_batch_size=size) for size in (30, "all")]
    found = []
    for experiment in figures:
        params = {name: w.detach() for name, w in experiment.make_model(0).named_parameters()}
        found.append(experiment.test(params, 0))
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-12)
    assert found[0].accuracy == found[1].accuracy


def test_shares_of_pieces_are_those_of_the_weights() -> None:
    from hyperopt_cli.data.shares import Shares

    pieces: list[Tensor] = [torch.arange(2), torch.arange(2, 5)]
    assert Shares()(pieces) == [0.4, 0.6]
    assert Shares(summed=True)(pieces) == [1.0, 1.0]
    assert Shares(torch.tensor([1.0, 0, 0, 3, 0]))(pieces) == [0.25, 0.75]
