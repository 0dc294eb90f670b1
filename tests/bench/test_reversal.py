"""`reversal`: what is reported, at sizes that take no time; never how long it takes."""

import json
from math import log2

import pytest

from hyperopt_cli.bench.report import Report, Settings
from hyperopt_cli.bench.reversal import ALL, IN_COMPILED, IN_EAGER, measure
from hyperopt_cli.modes.reversal import kernels
from hyperopt_cli.run_directory.json_files import to_text
from tests.bench.sizes import REVERSAL


@pytest.fixture(scope="module")
def report() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "cannot_compile", lambda: "no C++ compiler was found")
        return measure(Settings(repeat=2, steps=3), REVERSAL)


def test_two_networks_and_two_optimizers_in_three_variants(report: Report) -> None:
    titles = [case.title for case in report.cases]
    assert [title.split(",")[-1].strip() for title in titles] == ["heavy ball", "Adam", "heavy ball"]
    assert titles[0].startswith("MLP 6-4-10, batch 5, T = 3")
    assert titles[2].startswith("convnet with GroupNorm, 8 x 8, batch 2, T = 3")
    for case in report.cases:
        assert [variant.name for variant in case.variants] == [ALL, IN_EAGER, IN_COMPILED]
        assert case.reference == ALL


def test_without_a_compiler_the_compiled_variant_says_why(report: Report) -> None:
    for case in report.cases:
        compiled = case.variants[2]
        assert compiled.timing is None
        assert compiled.reason is not None
        assert "no C++ compiler was found" in compiled.reason


def test_ratios_are_of_the_medians_and_rounds_of_the_same_run(report: Report) -> None:
    for case in report.cases:
        base, eager, _ = case.variants
        assert base.timing is not None
        assert eager.timing is not None
        assert eager.over_reference is not None
        assert eager.over_reference.of_medians == pytest.approx(eager.timing.median_s / base.timing.median_s)
        each = [a / b for a, b in zip(eager.timing.rounds_s, base.timing.rounds_s, strict=True)]
        assert (eager.over_reference.low, eager.over_reference.high) == (min(each), max(each))
        assert len(each) == 2


def test_the_variants_differentiate_the_same_run(report: Report) -> None:
    for case in report.cases:
        assert case.variants[0].figures["largest_difference"] is None
        difference = case.variants[1].figures["largest_difference"]
        assert isinstance(difference, float)
        assert difference < 1e-3


def test_time_is_split_and_memory_and_bits_are_there(report: Report) -> None:
    base, eager, _ = report.cases[0].variants
    assert list(base.split_s) == ["training", "adjoint"]
    assert list(eager.split_s) == ["training", "arithmetic there", "arithmetic back", "adjoint"]
    assert base.figures["bits_per_parameter_step"] is None
    bits = eager.figures["bits_per_parameter_step"]
    assert isinstance(bits, float)
    assert 0 < bits < 1
    for variant in (base, eager):
        peak, taken = variant.figures["peak_bytes"], variant.figures["taken_bytes"]
        assert isinstance(peak, int)
        assert isinstance(taken, int)
        assert peak > taken >= 0


def test_the_store_of_every_rule(report: Report) -> None:
    (table,) = report.tables
    rows = {str(row["optimizer"]): row for row in table.rows}
    assert list(rows) == ["heavy ball, momentum 0.9", "heavy ball, momentum 0.98", "Adam", "AdamW"]
    assert [row["bytes_per_parameter"] for row in rows.values()] == [24, 25, 33, 33]
    assert [row["bytes_per_parameter_of_all_states"] for row in rows.values()] == [1600, 1600, 2400, 2400]
    lost = [log2(10 / 9), log2(50 / 49), *[log2(10 / 9) + log2(1000 / 999)] * 2]  # in a multiplication by n/d
    for row, each in zip(rows.values(), lost, strict=True):
        bits = row["bits_per_parameter_step"]
        assert isinstance(bits, float)
        assert 0.7 * each < bits < 1.05 * each


def test_the_report_is_json(report: Report) -> None:
    read = json.loads(to_text(report.to_json()))
    assert read["benchmark"] == "reversal"
    assert read["settings"]["repeat"] == 2
    assert read["settings"]["steps"] == 3
    assert read["machine"]["cpu"]
    assert read["cases"][0]["variants"][0]["timing"]["median_s"] > 0
    assert read["cases"][0]["variants"][2]["timing"] is None


@pytest.mark.slow
def test_where_torch_can_compile_it_is_timed_apart_from_the_compiling() -> None:
    if (reason := kernels.cannot_compile()) is not None:
        pytest.skip(reason)
    report = measure(Settings(repeat=1, steps=3), REVERSAL)
    compiled = report.cases[0].variants[2]
    assert compiled.reason is None
    assert compiled.timing is not None
    seconds, difference = compiled.figures["compilation_s"], compiled.figures["largest_difference"]
    assert isinstance(seconds, float)
    assert seconds > compiled.timing.median_s
    assert isinstance(difference, float)
    assert difference < 1e-3
