"""`tangents`: what is timed, and the arithmetic of a column's cost; never how long it takes."""

import json

import pytest
import torch

from hyperopt_cli.bench import tangents
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.report import Report, Settings
from hyperopt_cli.bench.tangents import GRADIENT, measure, tuned
from hyperopt_cli.bench.variants import LOOP, by_engine
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes import Forward, hypergradient
from hyperopt_cli.run_directory.json_files import to_text
from tests.bench.sizes import NETWORKS, RATE
from tests.bench.wrong import doubled


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(Settings(repeat=2, steps=2, models=("mlp",), columns=(1, 4)), NETWORKS, RATE)


def test_every_engine_at_every_k(report: Report) -> None:
    assert [case.title.split("float32, ")[1] for case in report.cases] == ["K = 1, T = 2", "K = 4, T = 2"]
    for case in report.cases:
        assert case.reference == GRADIENT
        assert [variant.name for variant in case.variants] == [GRADIENT, *by_engine()]
        assert {name.split(",")[0] for name in by_engine()} == set(ENGINES)


def test_a_columns_cost_is_what_a_step_takes_beyond_a_gradient(report: Report) -> None:
    for num_columns, case in zip((1, 4), report.cases, strict=True):
        by_name = {variant.name: variant for variant in case.ran}
        base, loop = by_name[GRADIENT].timing, by_name[LOOP].timing
        assert base is not None
        assert loop is not None
        for name, variant in by_name.items():
            if name == GRADIENT:
                continue
            assert variant.timing is not None
            pairs = list(zip(variant.timing.rounds_s, base.rounds_s, strict=True))
            column, share = variant.figures["column_over_gradient"], variant.figures["share_of_rate"]
            assert isinstance(column, Ratio)
            assert isinstance(share, Ratio)
            ratios = [(t - g) / num_columns / g for t, g in pairs]
            assert (column.low, column.high) == pytest.approx((min(ratios), max(ratios)))
            assert share.of_medians > 0
            assert (variant.figures["column_over_loop"] is None) is (name == LOOP)


def test_engines_agree(report: Report) -> None:
    for case in report.cases:
        for variant in case.ran:
            difference = variant.figures.get("largest_difference")
            assert difference is None or (isinstance(difference, float) and difference < 1e-5)


def test_the_curves_hold_every_k_and_the_floor(report: Report) -> None:
    cost, share = report.curves
    assert "least number of operations: 1.75" in cost.title  # 6-5-4-10: (2 x 30 + 6 x 60) / (2 x 30 + 3 x 60)
    assert list(share.lines) == [GRADIENT, *cost.lines]
    for curves in report.curves:
        assert (curves.over, curves.at) == ("K", (1, 4))
    for name, line in cost.lines.items():
        for case, y in zip(report.cases, line, strict=True):
            (variant,) = (each for each in case.variants if each.name == name)
            figure = variant.figures.get("column_over_gradient")
            assert y == (figure.of_medians if isinstance(figure, Ratio) else None)
    json.loads(to_text(report.to_json()))


def test_a_wrong_engine_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "wrong", doubled)
    monkeypatch.setattr(tangents, "by_engine", lambda asked: {name: Forward(engine=name) for name in (LOOP, "wrong")})
    (case,) = measure(Settings(repeat=1, steps=4, models=("mlp",), columns=(3,)), NETWORKS, RATE).cases
    assert [variant.name for variant in case.ran] == [GRADIENT, LOOP]
    assert "wrong: off by 0.5 of central differences" in str(case.variants[-1].reason)


@pytest.mark.parametrize(("num_columns", "names"), [(1, ["lr"]), (2, ["lr", "momentum"]), (8, list("lmw"))])
def test_k_columns_are_tuned_and_carried_from_the_first_step_on(num_columns: int, names: list[str]) -> None:
    hyper, num_rates = tuned(num_columns)
    assert sum(value.numel() for value in hyper.values()) == num_columns
    assert num_rates == hyper["lr"].numel()
    assert [name[0] for name in hyper] == [name[0] for name in names]
    network = tangents.ready(
        tangents.networks(NETWORKS, torch.device("cpu"))["mlp"], 1, None, NETWORKS, torch.device("cpu")
    )
    stats = hypergradient(*tangents.workload(network, num_columns, 3), Forward(engine=LOOP)).stats
    assert stats["num_hvps"] == 3 * num_columns


def test_what_has_no_room_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tangents, "by_engine", lambda asked: {LOOP: Forward(engine=LOOP)})
    monkeypatch.setattr("hyperopt_cli.bench.stopwatch.available_bytes", lambda device: 2000)
    monkeypatch.setattr("hyperopt_cli.bench.measuring._taken_bytes", lambda call, device: 900)
    settings = Settings(repeat=1, steps=2, models=("mlp",), columns=(1, 2, 4))
    reasons = [{v.name: v.reason for v in case.variants}[LOOP] for case in measure(settings, NETWORKS, RATE).cases]
    # a column takes 900 at K = 1 and 450 at K = 2: 1,800 of 2,000 is more than is spared for it
    assert reasons[0] is None
    assert all("are free" in str(reason) for reason in reasons[1:])


def test_one_step_is_not_enough() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        measure(Settings(steps=1), NETWORKS, RATE)
