"""What a rank does while it is measured: its share is that of a run, and all shares are the whole."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from hyperopt_cli.bench.shares import Share, hypergradient_of
from hyperopt_cli.bench.task import Task, facts_of
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes import Forward, hypergradient
from hyperopt_cli.ranks.group import ALONE, Ranks
from tests.bench.sizes import NETWORKS
from tests.ranks.processes import on_ranks, raised

TASK = Task("mlp", NETWORKS, "cpu", steps=4, columns=5, batch=7)


def shares(num: int, shard: str, chunk_size: int | None = None) -> list[Share]:
    work = partial(hypergradient_of, task=TASK, chunk_size=chunk_size, threads=1)
    return raised(on_ranks(num, shard, work))  # type: ignore[arg-type]


def test_columns_have_the_bits_of_one_process_with_the_same_blocks() -> None:
    (alone,) = shares(1, "columns", 3)
    assert [(each.value, each.grad) for each in shares(2, "columns", 3)] == [(alone.value, alone.grad)] * 2


def test_batches_of_an_odd_size_agree_with_the_whole() -> None:
    (alone,) = shares(1, "batch")
    for each in shares(2, "batch"):
        assert each.value == pytest.approx(alone.value, rel=1e-6)
        for name, x in each.grad.items():
            torch.testing.assert_close(torch.tensor(x), torch.tensor(alone.grad[name]), rtol=1e-4, atol=1e-7)


def test_one_process_computes_the_hypergradient_of_the_run() -> None:
    share = hypergradient_of(ALONE, TASK, None, 1)
    found = hypergradient(*TASK.run(ALONE, 5, 4), Forward("folded", compile=False))
    assert share.value == float(found.value)
    assert share.grad == {name: x.tolist() for name, x in found.grad.items()}
    assert share.seconds > 0


def test_threads_are_those_asked_for_and_then_as_before() -> None:
    before = torch.get_num_threads()
    hypergradient_of(ALONE, TASK, None, before + 1)
    assert torch.get_num_threads() == before


def test_each_part_has_its_share_of_the_weight_and_they_are_the_batch() -> None:
    chunked = [TASK.divided(Ranks(rank, 3, "batch")).problem for rank in range(3)]
    parts = [list(problem.batch(0).chunks) for problem in chunked]
    assert [weight for ((_, weight),) in parts] == [2 / 7, 2 / 7, 3 / 7]
    whole = TASK.run(ALONE, 5, 4).problem.batch(0)[0]
    assert torch.equal(torch.cat([inputs for (((inputs, _), _),) in parts]), whole)
    assert sum(weight for problem in chunked for _, weight in problem.outer_chunks()) == 1.0


def test_what_ties_examples_together_is_not_divided() -> None:
    tied = replace(TASK, network="wide_resnet", batch=None)
    with pytest.raises(UsageError, match="wide_resnet has BatchNorm2d"):
        facts_of(ALONE, tied, "batch")
    assert facts_of(ALONE, tied, "columns").batch == NETWORKS.image_batch


def test_the_facts_are_those_of_the_network() -> None:
    facts = facts_of(ALONE, TASK, "batch")
    assert facts[1:] == (7, 6 * 5 + 5 + 5 * 4 + 4 + 4 * 10 + 10, 4)
    assert facts.title.startswith("MLP 6-5-4-10")
