"""A recipe's large batches go by chunks: the same hypergradient, with dropout and normalisation of each chunk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from hyperopt_cli import Reversible, hypergradient
from hyperopt_cli.data.seeds import derive
from hyperopt_cli.instantiate import Experiment
from hyperopt_cli.problem import Chunked, Hyper
from tests.instantiate.recipes import built

WHOLE: dict[str, Any] = {"call": "digits", "outer_batch_size": 100, "batch_size": 100}
TUNED: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "l2": 0.01, "label_smoothing": 0.1}


def start_of(experiment: Experiment) -> Hyper:
    return experiment.space.natural(experiment.space.initial())


def run(experiment: Experiment, mode: Any) -> Any:
    out = hypergradient(experiment.problem(0), start_of(experiment), mode)
    return out.value, out.grad, out.params


@pytest.mark.parametrize("mode", ["forward", "reverse", Reversible(compile=False)], ids=str)
@pytest.mark.parametrize("chunked", [{"chunk_size": 30}, {"batch_size": "all", "chunk_size": 400}], ids=str)
def test_a_recipe_in_chunks_has_the_hypergradient_of_whole_batches(tmp_path: Path, mode: Any, chunked: Any) -> None:
    size = {key: chunked[key] for key in ("batch_size",) if key in chunked}
    want = run(built(tmp_path, dataset=WHOLE | size, hyperparameters=TUNED, steps=4), mode)
    got = run(built(tmp_path, dataset=WHOLE | chunked, hyperparameters=TUNED, steps=4), mode)
    for x, y in zip(tree_leaves(got), tree_leaves(want), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


def test_dropout_is_drawn_anew_in_each_chunk_and_alike_in_each_replay(tmp_path: Path) -> None:
    experiment = built(
        tmp_path,
        model={"call": "mlp", "hidden": [5], "dropout": 0.5},
        dataset=WHOLE | {"chunk_size": 50},
        hyperparameters={"lr": 0.1},
    )
    problem, model = experiment.problem(3), experiment.make_model(derive(3, "init"))
    params = dict(problem.init)  # type: ignore[arg-type]
    batch = problem.batch(2)
    assert isinstance(batch, Chunked)
    seeds = []
    for i, (chunk, weight) in enumerate(batch.chunks):
        seeds.append(chunk.seed)
        with torch.random.fork_rng():
            torch.manual_seed(derive(derive(3, "step", 2), i))
            outputs = functional_call(model, params, (chunk.inputs,))
        want = functional.cross_entropy(outputs, chunk.targets)
        for _ in range(2):
            torch.testing.assert_close(problem.inner_loss(params, {}, chunk), want, rtol=1e-13, atol=0)
        assert weight == 0.5
    assert len(set(seeds)) == 2


def test_the_training_loss_of_batch_normalisation_is_that_of_the_chunks(tmp_path: Path) -> None:
    model = {"call": "convnet", "widths": [4], "norm": "batch"}
    experiment = built(tmp_path, model=model, dataset=WHOLE | {"chunk_size": 40}, hyperparameters={"lr": 0.1}, steps=2)
    problem, net = experiment.problem(0), experiment.make_model(derive(0, "init"))
    params = dict(problem.init)  # type: ignore[arg-type]
    inputs, targets = (
        torch.cat([getattr(chunk, part) for chunk, _ in problem.batch(0).chunks]) for part in ("inputs", "targets")
    )

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, params, (x,)), y)

    pieces = zip(inputs.split([34, 33, 33]), targets.split([34, 33, 33]), strict=True)
    by_chunks = sum(len(y) / 100 * loss(x, y) for x, y in pieces)
    got = hypergradient(problem, start_of(experiment), "reverse").stats["inner_loss"][0]
    torch.testing.assert_close(got, torch.as_tensor(by_chunks).detach(), rtol=1e-12, atol=0)
    assert abs(float(loss(inputs, targets) - got)) > 1e-4
