"""The states of a run on the way back, from few that are kept: the schedule of `binomial.py`, carried out.

Where it stands is a place in the schedule, the state in hand and those on the shelf: from these another process can go
on.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.adjoint.binomial import Action, Advance, Keep, Take, Visit, schedule
from hyperopt_cli.modes.adjoint.store import Shelf
from hyperopt_cli.modes.adjoint.sweep import Back, Steps, WayBack, told_of
from hyperopt_cli.modes.base import Account


class Replayed(WayBack):
    """The run, and the way back through its last `num` steps, each from a state that is kept or computed again.

    The run's first T - num steps are taken once and kept nowhere.

    Args:
        steps: of the run.
        account: told of every step.
        num: steps that are met again.
        shelf: where states lie.
        slots: how many it may hold at once.
    """

    def __init__(self, steps: Steps, account: Account, num: int, shelf: Shelf, slots: int) -> None:
        self._steps, self._account, self._num, self._shelf, self.slots = steps, account, num, shelf, slots
        self._total = steps.dynamics.problem.steps
        self._state: State | None = steps.dynamics.start  # in hand, s_t
        self._t, self._place, self._running = 0, 0, True

    def found(self, place: Mapping[str, Any]) -> None:
        """Goes on from where `place` stood."""
        device = self._steps.dynamics.like.device
        self._t, self._place, self._running = place["t"], place["place"], place["running"]
        self._account.uncount(place["counted"])
        self._state = None if place["state"] is None else State.found(place["state"], device)
        for state in place["shelf"]:
            self._shelf.push(State.found(state, device))

    def place(self) -> dict[str, Any]:
        """A place in the schedule, the state in hand, and those on the shelf.

        At s_T that is s_{T-1}: the last step, which is counted, is taken again.
        """
        at_end = self.sweep is None and not self._running
        return {
            "t": self._t,
            "place": self._place,
            "running": self._running or at_end,
            "counted": int(at_end),
            "state": None if self._state is None else self._state.kept(),
            "shelf": (state.kept() for state in self._shelf.states()),
        }

    def end(self) -> State:
        """The run: s_T."""
        self._advance(self._total - self._num)
        for action in self._actions():
            if isinstance(action, Visit):
                break
            self._carry_out(action)
        assert self._state is not None
        end = self._taken(self._state)
        self._running = False
        return end

    def __iter__(self) -> Iterator[tuple[int, Back]]:
        """The last step first."""
        for action in self._actions():
            if not isinstance(action, Visit):
                self._carry_out(action)
                continue
            assert self._state is not None
            state, self._state, self._place = self._state, None, self._place + 1
            self._shelf.ahead()
            t = self._total - self._num + action.at
            back = self._steps.met_again(t, state, self._account)
            del state  # so that the sweep alone holds it
            yield t, back
            del back  # before what is taken next

    def _actions(self) -> Iterator[Action]:
        return islice(schedule(self._num, self.slots), self._place, None)

    def _carry_out(self, action: Keep | Advance | Take) -> None:
        begin = self._total - self._num
        match action:
            case Keep():
                assert self._state is not None
                self._shelf.push(self._state)
            case Advance(_, to):
                self._advance(begin + to)
            case Take(at, last):
                self._state, self._t = self._shelf.top(), begin + at
                if last:
                    self._shelf.drop()
        self._place += 1

    def _advance(self, to: int) -> None:
        while self._t < to:
            assert self._state is not None
            self._state, self._t = self._taken(self._state), self._t + 1
            self._account.offer(self.left)

    def _taken(self, state: State) -> State:
        """s_t -> s_{t+1}, for the first time or again."""
        state, value = self._steps.train(self._t, state, self._account)
        if self._running:
            told_of(self._t, value, self._total, self._account)
        else:
            self._account.step_repeated()
        return state
