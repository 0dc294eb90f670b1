"""The order of rounds, and the arithmetic of medians, spreads and ratios."""

import time

import pytest
import torch

from hyperopt_cli.bench.measuring import Ratio, Refused, Timing, interleaved, timed
from hyperopt_cli.bench.report import Settings, compared
from hyperopt_cli.errors import UsageError, VerificationError

CPU = torch.device("cpu")
MIB = 2**20


def ignore(said: str) -> None:
    del said


def test_a_timing_has_the_median_and_the_extremes() -> None:
    assert Timing.of([3.0, 1.0, 2.0, 10.0]) == Timing(2.5, 1.0, 10.0, (3.0, 1.0, 2.0, 10.0))


def test_a_ratio_is_of_medians_and_its_spread_is_of_rounds() -> None:
    assert Ratio.of([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == Ratio(4.0 / 3.0, 1.0, 3.0)


def test_a_ratio_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="zip"):
        Ratio.of([1.0], [1.0, 2.0])


def test_variants_take_turns_after_a_warm_up_and_a_look_at_the_memory() -> None:
    called: list[str] = []
    interleaved({name: lambda name=name: called.append(name) for name in "abc"}, 3, CPU, ignore)  # type: ignore[misc]
    assert "".join(called) == "abc" + "abc" + "abcabcabc"


def test_results_are_those_of_the_rounds_in_their_order() -> None:
    count = iter(range(100))
    samples = interleaved({"a": lambda: next(count)}, 3, CPU, ignore)["a"]
    assert not isinstance(samples, Refused)
    assert samples.results == (2, 3, 4)
    assert len(samples.timing.rounds_s) == 3


def test_a_variant_that_refuses_is_called_once_and_says_why() -> None:
    called = []

    def refuse() -> None:
        called.append(1)
        raise UsageError("no compiler here")

    samples = interleaved({"a": ignore_nothing, "b": refuse}, 2, CPU, ignore)
    assert samples["b"] == Refused("no compiler here")
    assert len(called) == 1
    assert list(samples) == ["a", "b"]


def ignore_nothing() -> None:
    pass


def test_any_other_error_ends_the_benchmark() -> None:
    def fail() -> None:
        raise VerificationError("wrong")

    with pytest.raises(VerificationError, match="wrong"):
        interleaved({"a": fail}, 1, CPU, ignore)


def test_a_call_takes_at_least_as_long_as_it_sleeps() -> None:
    seconds, result = timed(lambda: time.sleep(0.02) or "done", CPU)
    assert seconds >= 0.02
    assert result == "done"


def test_the_memory_is_that_of_a_call_beyond_what_was_held() -> None:
    held = torch.ones(48 * MIB, dtype=torch.uint8)

    def small() -> None:
        torch.ones(MIB, dtype=torch.uint8)

    def large() -> None:
        torch.ones(64 * MIB, dtype=torch.uint8)

    samples = interleaved({"large": large, "small": small}, 1, CPU, ignore)
    taken = {name: shown.taken_bytes for name, shown in samples.items() if not isinstance(shown, Refused)}
    assert 60 * MIB < taken["large"] < 80 * MIB
    assert taken["small"] < 16 * MIB
    assert held.all()


def test_progress_names_variant_and_round() -> None:
    said: list[str] = []
    interleaved({"a": ignore_nothing}, 2, CPU, said.append)
    assert said == ["a: warming up", "a: round 1 of 2", "a: round 2 of 2"]


def test_a_case_compares_with_its_reference_and_keeps_what_refused() -> None:
    def refuse() -> None:
        raise UsageError("not here")

    samples = interleaved({"a": ignore_nothing, "b": ignore_nothing, "c": refuse}, 3, CPU, ignore)
    case = compared("title", samples, "a", lambda name, shown: {"rounds": len(shown.results)})
    a, b, c = case.variants
    assert a.over_reference is None
    assert a.timing is not None
    assert b.timing is not None
    assert b.over_reference is not None
    assert b.over_reference.of_medians == b.timing.median_s / a.timing.median_s
    assert (c.timing, c.over_reference, c.reason, c.figures) == (None, None, "not here", {})
    assert a.figures == b.figures == {"rounds": 3}


@pytest.mark.parametrize("wrong", [{"repeat": 0}, {"steps": 0}])
def test_nothing_can_be_measured_no_times(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got 0"):
        Settings(**wrong)  # type: ignore[arg-type]
