"""The model of several ranks against closed forms, written out by hand."""

import math
from dataclasses import replace

import pytest

from hyperopt_cli.bench.scaling import Costs, Link, Work, predicted
from hyperopt_cli.commands.agreement import EVERY_S

COSTS = Costs(step_s=0.5, share_s=0.25, rest_s=3.0)
FREE = Link(latency_s=0.0, bytes_per_s=math.inf)
COLUMNS = Work("columns", steps=10, columns=16, batch=128, parameters=1000)
BATCH = replace(COLUMNS, shard="batch")


@pytest.mark.parametrize(("ranks", "shares"), [(1, 16), (2, 8), (3, 6), (5, 4), (16, 1)])
def test_columns_take_what_the_rank_with_most_of_them_takes(ranks: int, shares: int) -> None:
    assert predicted(COLUMNS, ranks, COSTS, FREE) == (10 * (0.5 + shares * 0.25) + 3.0, 0.0)


@pytest.mark.parametrize(("ranks", "shares"), [(1, 128), (3, 43), (64, 2), (128, 1)])
def test_batches_take_what_the_rank_with_most_examples_takes(ranks: int, shares: int) -> None:
    assert predicted(BATCH, ranks, COSTS, FREE).seconds == 10 * (0.5 + shares * 0.25) + 3.0


def test_more_ranks_than_columns_have_no_time() -> None:
    with pytest.raises(AssertionError):
        predicted(COLUMNS, 17, COSTS, FREE)


@pytest.mark.parametrize(
    ("ranks", "seconds"), [(1, 0.0), (2, 2 * 0.5 + 8.0), (4, 6 * 0.5 + 12.0), (8, 14 * 0.5 + 14.0)]
)
def test_a_sum_goes_around_a_ring(ranks: int, seconds: float) -> None:
    assert Link(latency_s=0.5, bytes_per_s=100.0).sum_s(800.0, ranks) == seconds


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_a_link_is_found_from_its_own_messages(ranks: int) -> None:
    link = Link(latency_s=3e-5, bytes_per_s=2e9)
    few_s = link.sum_s(0, ranks)
    found = Link.of(ranks, few_s, 1e7, link.sum_s(1e7, ranks))
    assert found == pytest.approx(link)


def test_a_large_message_that_takes_no_longer_than_a_small_one_is_all_latency() -> None:
    assert Link.of(2, 0.002, 1e6, 0.001) == Link(0.001, math.inf)


def test_costs_are_found_from_steps_of_two_sizes() -> None:
    assert Costs.of((2, 128), (0.5 + 2 * 0.25, 0.5 + 128 * 0.25), 3.0) == COSTS
    assert Costs.of((1, 16), (1.0, 0.5), 0.0) == (1.0, 0.0, 0.0)  # noise: nothing is negative


def test_columns_send_the_hypergradient_and_no_more_at_more_steps() -> None:
    link = Link(latency_s=0.0, bytes_per_s=80.0)
    # over 2 ranks 8 x 16 bytes twice, and 40 at each step, which takes longer than 1/4 s, and thrice in any case
    assert predicted(COLUMNS, 2, COSTS, link).messages_s == pytest.approx(2 * 8 * 16 / 80 + 13 * 40 / 80)
    longer = predicted(replace(COLUMNS, steps=20), 2, COSTS, link).messages_s
    assert longer == pytest.approx(2 * 8 * 16 / 80 + 23 * 40 / 80)


def test_batches_send_the_gradient_and_its_tangents_at_every_step() -> None:
    link = Link(latency_s=0.0, bytes_per_s=1e6)
    every_step, at_the_end, asked = 4 * 17 * 1001, 4 * 1001 + 8 * 16, 13 * 40
    sent = 2 * 3 / 4 * (10 * every_step + at_the_end + asked)
    assert predicted(BATCH, 4, COSTS, link).messages_s == pytest.approx(sent / 1e6)
    assert predicted(BATCH, 4, COSTS, link).seconds == pytest.approx(10 * (0.5 + 32 * 0.25) + 3.0 + sent / 1e6)


def test_short_steps_are_asked_four_times_a_second() -> None:
    quick, link = Costs(step_s=0.001, share_s=0.0, rest_s=0.0), Link(latency_s=1e-6, bytes_per_s=math.inf)
    told = predicted(replace(COLUMNS, steps=100_000), 2, quick, link).messages_s
    assert told == pytest.approx((2 + 3 + 100 / EVERY_S) * 2e-6, rel=1e-3)
