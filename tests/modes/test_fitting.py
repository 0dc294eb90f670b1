"""Which mode is taken where memory was lacking, and how a lack of it is recognised."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hyperopt_cli import Forward, Reverse, Reversible, hypergradient
from hyperopt_cli.checks import choice
from hyperopt_cli.errors import NoMemoryError, UsageError
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.modes import Measurements, Mode
from hyperopt_cli.modes.auto import Auto, Choice
from hyperopt_cli.modes.base import mode_from_state_dict
from hyperopt_cli.modes.fitting import in_short, smaller
from hyperopt_cli.optimizers import SGD
from hyperopt_cli.ranks.group import Ranks
from tests.cases import net_problem, scalar

K = 5
PROBLEM = net_problem(SGD(momentum=0.9))
HYPER = {"lr": torch.full((), 0.1, dtype=torch.float64), "l2": torch.full((K - 1,), 0.1, dtype=torch.float64)}
ALL: dict[str, tuple[Mode, list[Any]]] = {
    "all columns": (Forward(), [3, 2, 1]),
    "more columns than there are": (Forward(columns_at_once=50), [3, 2, 1]),
    "some columns": (Forward(columns_at_once=2, engine="folded"), [1]),
    "all states": (Reverse(), [6, 3, 1]),
    "all states by name": (Reverse(slots="all"), [6, 3, 1]),
    "more slots than steps": (Reverse(slots=100), [6, 3, 1]),
    "some slots": (Reverse(slots=5), [2, 1]),
    "the states of a window": (Reverse(window=4), [2, 1]),
    "slots that lie apart": (
        Reverse(slots={"device": 2, "host": 4, "disk": 3}),
        [{"device": 1, "host": 2, "disk": 3}, {"device": 0, "host": 1, "disk": 3}, {"device": 0, "host": 0, "disk": 3}],
    ),
    "one column": (Forward(columns_at_once=1), []),
    "one slot": (Reverse(slots=1), []),
    "a line": (Reverse(path="linear"), []),
    "no states": (Reversible(), []),
    "no plan yet": (Auto(), []),
}


@pytest.mark.parametrize("case", ALL)
def test_each_is_half_of_the_one_before_and_nothing_else_changes(case: str) -> None:
    mode, wanted = ALL[case]
    got: list[Any] = []
    while (less := mode.smaller(PROBLEM, HYPER, Measurements())) is not None:
        name = "columns_at_once" if isinstance(mode, Forward) else "slots"
        before, after = mode.state_dict()["arguments"], less.state_dict()["arguments"]
        assert type(less) is type(mode)
        assert {key for key in before if before[key] != after[key]} == {name}
        got.append(after[name])
        mode = less
    assert got == wanted


@pytest.mark.parametrize("mode", [Forward(), Forward(columns_at_once=3)], ids=repr)
def test_each_column_is_carried_once_by_ranks_of_which_one_has_a_larger_block(mode: Forward) -> None:
    ranks = [Ranks(rank, 2, "columns") for rank in range(2)]
    smaller = [mode.smaller(PROBLEM, HYPER, Measurements(), each) for each in ranks]
    assert smaller == [Forward(columns_at_once=2)] * 2
    blocks = [block for less, each in zip(smaller, ranks, strict=True) for block in less.columns(HYPER, each).blocks]
    assert sorted(column for block in blocks for column in block) == list(range(K))


def test_of_auto_slots_half_of_those_that_fit_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperopt_cli.modes.reverse.measured_slots", lambda dynamics, hyper, most, judge: 9)
    assert smaller(Reverse(slots="auto"), PROBLEM, HYPER, "", Measurements()).mode == Reverse(slots=4)


def chosen_as(monkeypatch: pytest.MonkeyPatch, mode: Mode) -> Measurements:
    """Those of an auto that has chosen `mode`, and has run it."""
    monkeypatch.setattr("hyperopt_cli.modes.auto.choice", lambda *given: Choice(mode, "for a test"))
    known = Measurements()
    hypergradient(PROBLEM, {"lr": scalar(0.1)}, Auto(), measurements=known)
    return known


def test_auto_makes_what_it_has_chosen_smaller_and_plans_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    hyper, known = {"lr": scalar(0.1)}, chosen_as(monkeypatch, Reverse())
    assert Auto().chosen(known) == Reverse()
    less, said = smaller(Auto(), PROBLEM, hyper, "no memory left", known)
    assert said == "reverse ran out of memory (no memory left); reverse:slots=6 takes its place"
    again = Measurements()
    again.load_state_dict(known.state_dict())
    monkeypatch.setattr("hyperopt_cli.modes.auto.choice", None)
    for each in (known, again):
        stats = hypergradient(PROBLEM, hyper, less, measurements=each).stats
        assert (stats["mode"], stats["slots"]) == ("reverse:slots=6", 6)
        assert stats["plan"].endswith("made smaller, since it ran out of memory")


def test_where_nothing_gets_smaller_the_modes_that_fit_are_named() -> None:
    with pytest.raises(NoMemoryError) as raised:
        smaller(Reversible(), PROBLEM, {"lr": scalar(0.1)}, "can't allocate 3 bytes", Measurements())
    message = str(raised.value)
    assert message.startswith("mode: reversible ran out of memory (can't allocate 3 bytes), and can't do with less; ")
    assert "forward (" in message
    assert "reverse:slots=2 (" in message
    assert message.count("reversible") == 1  # it is not recommended to those who come from there
    assert "a device with more memory" in message
    assert raised.value.exit_code == 2


def test_where_no_mode_fits_it_is_said_what_each_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperopt_cli.memory.available_bytes", lambda device: -(2**50))
    needs = r"forward needs [0-9.]+ [MG]iB, reverse needs [0-9.]+ [MG]iB"
    with pytest.raises(NoMemoryError, match=rf"and can't do with less; mode: none fits into .*: {needs}"):
        smaller(Reversible(), PROBLEM, {"lr": scalar(0.1)}, "no memory left", Measurements())


def test_where_no_engine_is_left_for_lack_of_memory_fewer_columns_are_a_way_out() -> None:
    examination: Any = SimpleNamespace(t=0, constructs="")
    lacking = {"folded": "would need about 5 MiB, 1 MiB are free", "dense": "failed (...)"}
    of_memory = choice._nothing_left(lacking, examination)
    of_operators = choice._nothing_left({"folded": "has no forward derivative"}, examination)
    assert (type(of_memory), type(of_operators)) == (NoMemoryError, UsageError)
    assert is_lacking(of_memory)


LACKS: dict[str, BaseException] = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1"),
    "a CUDA call": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Windows": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
    "the system": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("case", LACKS)
def test_a_lack_of_memory_is_recognised(case: str) -> None:
    assert is_lacking(LACKS[case])
    assert in_short(LACKS[case])
    assert "\n" not in in_short(LACKS[case])


def test_what_torch_says_where_the_host_has_no_memory_left_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**55)
    assert is_lacking(raised.value)
    assert in_short(raised.value) == f"can't allocate memory: you tried to allocate {2**57} bytes"


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("out of memory"), OSError(errno.EIO, "disk")])
def test_anything_else_is_not(error: Exception) -> None:
    assert not is_lacking(error)


def test_a_mode_is_described_and_made_again() -> None:
    for mode in (Forward(engine="folded", columns_at_once=2), Reverse(slots={"disk": 3}), Reversible(radix={"w": 40})):
        assert mode_from_state_dict(mode.state_dict()) == mode
