"""`checkpointing`: counts, prediction and memory, against what can be said by hand."""

from functools import lru_cache
from types import SimpleNamespace

import pytest

from hyperopt_cli.bench.checkpointing import ALL, TRAINING, Outcome, measure, predicted_s
from hyperopt_cli.bench.measuring import Ratio
from hyperopt_cli.bench.report import Report, Settings, Variant
from tests.bench.sizes import CHECKPOINTING

STEPS = 9
STATE_BYTES = 2 * 4 * (6 * 4 + 4 + 4 * 10 + 10)  # w and the momentum of a 6-4-10 network, float32


@pytest.fixture(scope="module")
def report() -> Report:
    return measure(Settings(repeat=2, steps=STEPS), CHECKPOINTING)


def by_name(report: Report) -> dict[str, Variant]:
    (case,) = report.cases
    return {variant.name: variant for variant in case.variants}


@lru_cache
def fewest_steps(steps: int, slots: int) -> int:
    """Steps to visit every state but the last, last one first: the dynamic programme."""
    if steps <= 1:
        return 0
    if slots == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest_steps(steps - m, slots - 1) + fewest_steps(m, slots) for m in range(1, steps))


def test_every_number_of_slots_and_plain_training_are_there(report: Report) -> None:
    assert list(by_name(report)) == [TRAINING, ALL, "reverse, slots: 3", "reverse, slots: 1"]
    assert report.cases[0].reference == ALL
    assert all(variant.timing is not None for variant in by_name(report).values())


def test_the_steps_are_the_fewest_possible(report: Report) -> None:
    for slots in (3, 1):
        figures = by_name(report)[f"reverse, slots: {slots}"].figures
        assert figures["num_steps"] == fewest_steps(STEPS, slots) + 1
        assert figures["num_hvps"] == STEPS
    assert by_name(report)[ALL].figures["num_steps"] == STEPS


def test_few_slots_give_the_bits_of_all(report: Report) -> None:
    assert all(variant.figures["same_bits"] for name, variant in by_name(report).items() if name != TRAINING)


def test_the_states_that_are_held(report: Report) -> None:
    held = {name: variant.figures.get("states_bytes") for name, variant in by_name(report).items()}
    assert held == {
        TRAINING: None,
        ALL: STEPS * STATE_BYTES,
        "reverse, slots: 3": 4 * STATE_BYTES,
        "reverse, slots: 1": 2 * STATE_BYTES,
    }
    assert by_name(report)["reverse, slots: 3"].figures["share_of_states"] == 4 / STEPS


def test_the_ratio_is_of_what_was_measured_and_what_was_predicted(report: Report) -> None:
    for name, variant in by_name(report).items():
        if name == TRAINING:
            continue
        ratio, predicted = variant.figures["measured_over_predicted"], variant.figures["predicted_s"]
        assert isinstance(ratio, Ratio)
        assert isinstance(predicted, float)
        assert variant.timing is not None
        assert ratio.of_medians == pytest.approx(variant.timing.median_s / predicted)
        assert ratio.low <= ratio.high


def test_the_prediction_is_steps_and_adjoints_at_their_measured_cost() -> None:
    all_kept = SimpleNamespace(stats={"num_steps": 10, "num_hvps": 10})
    few = SimpleNamespace(stats={"num_steps": 25, "num_hvps": 10})
    # a step takes 2 / 10 s, an adjoint step 7 / 10 s
    said = predicted_s(Outcome(few, 99.0), 2.0, Outcome(all_kept, 7.0))  # type: ignore[arg-type]
    assert said == pytest.approx(25 * 0.2 + 10 * 0.7)
