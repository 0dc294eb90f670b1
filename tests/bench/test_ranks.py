"""`ranks`: what is measured, and that other bits show; never how long it takes."""

import json

import pytest
import torch

from hyperopt_cli.bench import ranks, team
from hyperopt_cli.bench.measuring import Ratio, Samples, Timing
from hyperopt_cli.bench.ranks import Way, measure
from hyperopt_cli.bench.report import Report, Settings
from hyperopt_cli.bench.scaling import Work
from hyperopt_cli.bench.shares import Share
from hyperopt_cli.errors import UsageError
from hyperopt_cli.run_directory.json_files import to_text
from tests.bench.sizes import NETWORKS
from tests.limited import warmed

WORK = Work("columns", steps=3, columns=16, batch=8, parameters=5)


@pytest.fixture(scope="module", params=["columns", "batch"])
def report(request: pytest.FixtureRequest) -> Report:
    """Of processes that have loaded torch already; that they can be started anew, `test_team.py` says."""
    settings = Settings(repeat=2, steps=3, models=("mlp",), columns=(3,), shard=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team, "get_context", lambda method: warmed())
        return measure(settings, NETWORKS)


@pytest.mark.slow
def test_two_ranks_are_measured_against_one_with_one_thread_each(report: Report) -> None:
    (whole,) = report.cases
    assert report.machine["threads"] == 1
    names = [variant.name for variant in whole.variants]
    if report.settings["shard"] == "columns":
        assert names == ["1 rank", "1 rank, chunk_size: 2", "2 ranks, chunk_size: 2", "1 rank, 2 threads"]
        assert whole.variants[2].figures["same_bits"] is True
    else:
        assert names == ["1 rank", "2 ranks", "1 rank, 2 threads"]
    for variant in whole.variants[1:]:
        difference = variant.figures["largest_difference"]
        assert isinstance(difference, float)
        assert difference < 1e-4
    ((row,),) = ([row for row in table.rows if row["measured_s"] is not None] for table in report.tables)
    assert row["ranks"] == 2
    assert whole.variants[0].timing is not None
    assert isinstance(row["measured_s"], float)
    assert row["predicted_s"] == pytest.approx(min(row["measured_s"], whole.variants[0].timing.median_s))
    json.loads(to_text(report.to_json()))


def samples(seconds: list[float], *results: float) -> Samples:
    """With a round for each time, and a rank for each result."""
    shares = tuple(Share(seconds[0], x, {"lr": x}) for x in results)
    return Samples(Timing.of(seconds), 0.0, 0, (shares,) * len(seconds))


def test_of_more_ranks_than_there_are_columns_nothing_is_expected() -> None:
    rows = list(ranks._expected(WORK, {1: 18.0, 2: 10.0}, Settings()))
    assert [(row["ranks"], row["predicted_s"]) for row in rows] == [(2, 10.0), (8, 4.0), (64, None)]
    assert [row["throughput"] for row in rows] == [1.8, 4.5, None]
    assert [row["efficiency"] for row in rows] == [0.9, 4.5 / 8, None]
    assert [row["measured_s"] for row in rows] == [10.0, None, None]


def test_a_link_that_is_given_counts_for_ranks_that_were_not_measured() -> None:
    rows = list(ranks._expected(WORK, {1: 18.0, 2: 10.0}, Settings(latency_s=1.0)))
    assert [row["predicted_s"] for row in rows] == [10.0, 4.0 + 2 * 14.0, None]


ONE = Way(1, 1)
ABLE = {"1 rank": samples([8.0, 9.0, 10.0], 1.0), "1 rank, chunk_size: 8": samples([9.0, 9.9, 9.9], 1.5)}


def test_throughput_is_over_one_process_and_over_one_with_the_same_blocks() -> None:
    figures = ranks._figures(Way(2, 1, 8), samples([5.0, 5.0, 5.0], 1.5, 1.5), ABLE, ONE)
    assert figures["throughput"] == Ratio(1.8, 1.6, 2.0)
    assert figures["throughput_at_equal_chunk_size"] == Ratio(1.98, 1.8, 1.98)
    assert figures["efficiency"] == 0.9
    assert figures["same_bits"] is True
    assert figures["largest_difference"] == 0.5


@pytest.mark.parametrize("results", [(1.5, 1.5 + 2**-52), (1.0, 1.0)])
def test_other_bits_on_one_rank_show(results: tuple[float, float]) -> None:
    assert ranks._figures(Way(2, 1, 8), samples([5.0] * 3, *results), ABLE, ONE)["same_bits"] is False


def test_bits_that_change_from_round_to_round_are_not_the_same() -> None:
    both = samples([5.0] * 3, 1.5, 1.0)
    assert ranks._figures(Way(2, 1, 8), both, {**ABLE, "1 rank, chunk_size: 8": both}, ONE)["same_bits"] is False


def test_efficiency_counts_threads() -> None:
    figures = ranks._figures(Way(1, 4), samples([3.0, 3.0, 3.0], 1.0), ABLE, ONE)
    assert figures["efficiency"] == 0.75
    assert "same_bits" not in figures


def test_every_number_of_ranks_has_one_process_with_its_blocks() -> None:
    names = [way.name for way in ranks._ways(WORK, [1, 2, 3], 2)]
    assert names == [
        "1 rank, 2 threads",
        "1 rank, 2 threads, chunk_size: 8",
        "1 rank, 2 threads, chunk_size: 6",
        "2 ranks, 2 threads, chunk_size: 8",
        "3 ranks, 2 threads, chunk_size: 6",
        "1 rank, 6 threads",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(ranks=(1,)), "ranks: got 1; give a number above it"),
        (Settings(columns=(16, 3), ranks=(4,)), "columns: got 3 for 4 ranks"),
        (Settings(shard="batch", ranks=(4,), models=("mlp", "convnet")), "batch: got 3 for 4 ranks"),
        (Settings(shard="batch", batch=1), "batch: got 1 for 2 ranks"),
        (Settings(device=torch.device("cuda"), ranks=(1000,)), "ranks: got 1000 with"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, said: str
) -> None:
    monkeypatch.setattr(ranks, "team", lambda *given: pytest.fail("it was started"))
    with pytest.raises(UsageError, match=said):
        measure(settings, NETWORKS)
