"""`modes`: every mode agrees with the plain ones, and a wrong engine does not."""

from pathlib import Path

import pytest
import torch

from hyperopt_cli.bench import modes
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.modes import LOOP, UNROLL, measure
from hyperopt_cli.bench.problems import mnist_batches
from hyperopt_cli.bench.report import Report, Settings, Variant
from hyperopt_cli.bench.variants import by_engine
from hyperopt_cli.data import InMemory, Splits
from hyperopt_cli.engines import ENGINES, Engine
from hyperopt_cli.modes import Forward
from tests.bench.sizes import MODES
from tests.bench.wrong import doubled, lopsided

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(Settings(repeat=1), MODES)


def test_two_schedules_and_all_modes(report: Report) -> None:
    assert [case.title for case in report.cases] == [
        "MLP 6-4-10, batch 5, T = 6, random data, rates in windows, K = 5",
        "MLP 6-4-10, batch 5, T = 6, random data, all rates at every step, K = 5",
    ]
    for case in report.cases:
        names = [variant.name for variant in case.variants]
        assert names[:3] == [UNROLL, LOOP, "forward, auto"]
        assert {f"forward, {name}" for name in by_engine()} <= set(names)
        assert {"reverse", "reverse, slots: 2", "reversible"} <= set(names)
        assert case.reference == UNROLL


def test_all_agree_with_the_unroll(report: Report) -> None:
    for case in report.cases:
        for variant in case.ran:
            difference = variant.figures["largest_difference"]
            if variant.name == UNROLL:
                assert difference is None
            else:
                assert isinstance(difference, float)
                assert difference < 1e-4, variant.name


def test_ratios_to_the_loop_and_memory_to_the_unroll(report: Report) -> None:
    for case in report.cases:
        by_name = {variant.name: variant for variant in case.ran}
        loop = by_name[LOOP].timing
        assert loop is not None
        assert by_name[LOOP].figures["over_loop"] is None
        for name, variant in by_name.items():
            assert variant.timing is not None
            over = variant.figures["over_loop"]
            if name != LOOP:
                assert isinstance(over, Ratio)
                assert over.of_medians == pytest.approx(variant.timing.median_s / loop.median_s)
            base = by_name[UNROLL].figures["taken_bytes"]
            assert isinstance(base, int)
            if base:
                assert variant.figures["memory_over_unroll"] == variant.figures["taken_bytes"] / base  # type: ignore[operator]


def wrong_variants(monkeypatch: pytest.MonkeyPatch, engine: object) -> list[Variant]:
    monkeypatch.setitem(ENGINES, "wrong", engine)  # type: ignore[misc]
    monkeypatch.setattr(modes, "_modes", lambda *given: {"forward, wrong": Forward(engine="wrong")})
    cases = measure(Settings(repeat=1), MODES).cases
    return [variant for case in cases for variant in case.variants if "wrong" in variant.name.split(", ")]


@pytest.mark.parametrize(
    ("engine", "said"), [(doubled, "off by 0.5 of central differences"), (lopsided, "of central differences")]
)
def test_an_engine_whose_products_are_wrong_is_refused(
    engine: Engine, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = wrong_variants(monkeypatch, engine)
    assert found
    assert all(variant.timing is None and said in str(variant.reason) for variant in found)


def test_mnist_is_read_from_the_folder_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = torch.randint(256, (30, 1, 28, 28), dtype=torch.uint8)
    asked = []

    def fake(root: str) -> Splits:
        asked.append(root)
        return Splits(InMemory(pictures, torch.arange(30) % 10), None, (1, 28, 28), 10)

    monkeypatch.setattr("hyperopt_cli.bench.problems.mnist", fake)
    batches = mnist_batches(Path("there"), 5, CPU, 4)
    assert asked == ["there"]
    assert batches.inputs.shape == (5, 5, 784)
    assert batches.targets.shape == (5, 5)
    assert 0 <= batches.inputs.min() < batches.inputs.max() == 1
    # each example with its own target
    found = zip(batches.inputs.flatten(0, 1), batches.targets.flatten(), strict=True)
    seen = {tuple((255 * x).round().int().tolist()): int(y) for x, y in found}
    expected = {tuple(x.flatten().tolist()): i % 10 for i, x in enumerate(pictures)}
    assert all(expected[x] == y for x, y in seen.items())


def test_on_mnist_the_title_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        modes, "mnist_batches", lambda root, batch, device, num: modes.drawn((784,), batch, device, num)
    )
    monkeypatch.setattr(modes, "_modes", lambda *given: {})
    report = measure(Settings(repeat=1, steps=2, data=Path("there")), MODES)
    assert report.cases[0].title.startswith("MLP 784-4-10, batch 5, T = 2, MNIST, ")
    assert report.settings["data"] == "MNIST"
