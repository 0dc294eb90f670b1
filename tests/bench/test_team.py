"""Processes that wait for work: what they answer, and what happens where one fails or is gone."""

import os
import signal

import pytest
import torch

from hyperopt_cli.bench import team as teams
from hyperopt_cli.bench.team import team
from hyperopt_cli.errors import RankLostError, UsageError
from hyperopt_cli.ranks.group import Ranks

pytestmark = pytest.mark.slow


def total(ranks: Ranks, x: float) -> float:
    return float(ranks.summed(torch.tensor(x + ranks.rank)))


def threads(ranks: Ranks) -> int:
    return torch.get_num_threads()


def refused(ranks: Ranks) -> None:
    raise UsageError(f"not on rank {ranks.rank}")


def defect(ranks: Ranks) -> None:
    raise ZeroDivisionError("by nothing")


def one_fails(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise UsageError("rank 1 cannot")
    ranks.highest([0.0])


def gone(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_ranks_do_what_they_are_told_until_the_end() -> None:
    with team(2, "columns", threads=1) as both:
        assert both.all(total, 1.0) == [3.0, 3.0]
        assert both.all(threads) == [1, 1]
        with pytest.raises(UsageError, match="not on rank"):
            both.all(refused)
        with pytest.raises(RuntimeError, match=r"(?s)in defect.*by nothing"):
            both.all(defect)
        assert both.all(total, 2.0) == [5.0, 5.0]


def test_one_that_fails_while_another_waits_for_it_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teams, "LONGEST_APART_S", 0.2)
    with pytest.raises(RankLostError, match="waits for another"), team(2, "columns", threads=1) as both:
        both.all(one_fails)


def test_one_that_is_gone_is_missed() -> None:
    with pytest.raises(RankLostError, match="has ended"), team(2, "columns", threads=1) as both:
        both.all(gone)
