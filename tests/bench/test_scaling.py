"""The arithmetic of several ranks against closed forms, written out by hand."""

import math
from dataclasses import replace

import pytest

from hyperopt_cli.bench.scaling import Link, Work, predicted_s

COLUMNS = Work("columns", steps=10, columns=16, batch=128, parameters=1000)
BATCH = replace(COLUMNS, shard="batch")
# 3 seconds whatever is divided, and a quarter for each column or example
OF_COLUMNS = {1: 3 + 16 / 4, 2: 3 + 8 / 4, 3: 3 + 6 / 4}
OF_EXAMPLES = {1: 3 + 128 / 4, 3: 3 + 43 / 4}


@pytest.mark.parametrize(("ranks", "shares"), [(1, 16), (2, 8), (3, 6), (5, 4), (16, 1)])
def test_columns_take_what_the_rank_with_most_of_them_takes(ranks: int, shares: int) -> None:
    assert predicted_s(COLUMNS, ranks, OF_COLUMNS) == pytest.approx(3 + shares / 4)


@pytest.mark.parametrize(("ranks", "shares"), [(1, 128), (3, 43), (64, 2), (128, 1)])
def test_batches_take_what_the_rank_with_most_examples_takes(ranks: int, shares: int) -> None:
    assert predicted_s(BATCH, ranks, OF_EXAMPLES) == pytest.approx(3 + shares / 4)


def test_more_ranks_than_columns_have_no_time() -> None:
    with pytest.raises(AssertionError):
        predicted_s(COLUMNS, 17, OF_COLUMNS)


def test_where_two_are_no_quicker_than_one_more_of_them_are_not_either() -> None:
    assert predicted_s(COLUMNS, 8, {1: 5.0, 2: 6.0}) == 5.0


@pytest.mark.parametrize(
    ("ranks", "seconds"), [(1, 0.0), (2, 2 * 0.5 + 8.0), (4, 6 * 0.5 + 12.0), (8, 14 * 0.5 + 14.0)]
)
def test_a_sum_goes_around_a_ring(ranks: int, seconds: float) -> None:
    assert Link(latency_s=0.5, bytes_per_s=100.0).sum_s(800.0, ranks) == seconds


def test_columns_send_the_hypergradient_twice_whatever_the_steps() -> None:
    link = Link(latency_s=0.0, bytes_per_s=80.0)
    for work in (COLUMNS, replace(COLUMNS, steps=20)):
        sent_s = predicted_s(work, 4, OF_COLUMNS, link) - predicted_s(work, 4, OF_COLUMNS)
        assert sent_s == pytest.approx(2 * 2 * 3 / 4 * 8 * 16 / 80)


def test_batches_send_the_gradient_and_its_tangents_at_every_step() -> None:
    link = Link(latency_s=0.0, bytes_per_s=1e6)
    sent_s = predicted_s(BATCH, 4, OF_EXAMPLES, link) - predicted_s(BATCH, 4, OF_EXAMPLES)
    assert sent_s == pytest.approx(2 * 3 / 4 * 10 * 4 * 17 * 1001 / 1e6)


def test_a_link_is_that_of_ranks_that_were_not_measured() -> None:
    link = Link(latency_s=1.0, bytes_per_s=math.inf)
    assert predicted_s(COLUMNS, 3, OF_COLUMNS, link) == OF_COLUMNS[3]
    assert predicted_s(COLUMNS, 4, OF_COLUMNS, link) == pytest.approx(4 + 2 * 6)
