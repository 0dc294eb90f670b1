"""What is told of the model: which ranks, which link, and how far it is from what was measured."""

import math

import pytest

from hyperopt_cli.bench.costs import Rounds
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.predicting import DRAWN, predictions
from hyperopt_cli.bench.report import Curves, Settings, Table
from hyperopt_cli.bench.scaling import Costs, Link, Work

WORK = Work("columns", steps=10, columns=16, batch=128, parameters=1000)
ALONE, AT_ONCE = Costs(1.0, 1.0, 0.0), Costs(2.0, 1.0, 0.0)
FOUND = Rounds(
    ranks=2,
    alone=[ALONE] * 3,
    at_once=[AT_ONCE, AT_ONCE, Costs(4.0, 1.0, 0.0)],
    link=Link(0.0, math.inf),
    few_s=(1.0, 1.0, 1.0),
    measured_s={1: (170.0, 170.0, 170.0), 2: (100.0, 125.0, 100.0)},
)


def told(settings: Settings | None = None, work: Work = WORK) -> tuple[list[Table], Curves]:
    return predictions("a title", work, FOUND, settings or Settings())


def test_the_same_work_and_as_much_for_each_over_2_8_and_64_ranks() -> None:
    rows = told()[0][-1].rows
    assert [(row["ranks"], row["columns"]) for row in rows] == [
        (2, 16),
        (8, 16),
        (64, 16),
        (2, 32),
        (8, 128),
        (64, 1024),
    ]
    assert [row["predicted_s"] for row in rows] == [100.0, 40.0, None, 180.0, 180.0, 180.0]


def test_throughput_is_over_one_rank_that_is_alone() -> None:
    row = told()[0][-1].rows[1]
    assert row["throughput"] == Ratio(170 / 40, 170 / 60, 170 / 40)
    assert row["efficiency"] == 170 / 40 / 8


def test_what_is_predicted_stands_beside_what_was_measured() -> None:
    rows = told()[0][-1].rows
    assert rows[0]["measured_s"] == 100.0
    assert rows[0]["predicted_over_measured"] == Ratio(1.0, 0.8, 1.2)
    assert all(row["measured_s"] is None and row["predicted_over_measured"] is None for row in rows[1:])


def test_a_link_that_is_given_is_that_of_ranks_that_were_not_measured() -> None:
    rows = told(Settings(latency_s=1.0, bytes_per_s=1e12))[0][-1].rows
    assert rows[0]["messages_s"] == 0.0
    # over 8 ranks 14 latencies for each of 2 sums, and of 13 messages of the agreement
    assert rows[1]["messages_s"] == pytest.approx(15 * 14.0)


def test_the_curves_have_no_point_where_there_is_too_little_to_divide() -> None:
    lines = told()[1].lines
    assert [y is None for y in lines["predicted, K = 16"]] == [ranks > 16 for ranks in DRAWN]
    assert lines["predicted, K = 16 R"][-1] == (10 + 10 * 1024) / 180
    assert lines["measured, K = 16"] == (1.0, 1.7, *[None] * 5)


def test_what_each_divides_has_its_name() -> None:
    tables, curves = told(work=Work("batch", steps=10, columns=16, batch=128, parameters=1000))
    assert list(tables[0].rows[0]) == ["process", "step_s", "example_s", "rest_s"]
    assert tables[-1].rows[2]["batch"] == 128
    assert "predicted, B = 128 R" in curves.lines
