"""The states of a run in the backward sweep, from few that are kept: the schedule of `binomial.py`, carried out.

Where it stands is a place in the schedule, the state in hand and the snapshots: from these another process can go
on.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from hyperopt_cli.dynamics.dynamics import State
from hyperopt_cli.modes.account import Account
from hyperopt_cli.modes.adjoint.binomial import Action, Advance, Keep, Take, Visit, schedule
from hyperopt_cli.modes.adjoint.snapshots import Snapshots
from hyperopt_cli.modes.adjoint.sweep import Backward, PastStates, Steps


class Replayed(PastStates):
    """The run, and the sweep back through its last `num` steps, each from a state that is kept or computed again.

    The run's first T - num steps are taken once and kept nowhere.

    Args:
        steps: of the run.
        account: records every step.
        num: steps that are met again.
        snapshots: where states lie.
        slots: how many it may hold at once.
    """

    def __init__(self, steps: Steps, account: Account, num: int, snapshots: Snapshots, slots: int) -> None:
        self._steps, self._account, self._num, self._snapshots, self.slots = steps, account, num, snapshots, slots
        self._total = steps.dynamics.problem.steps
        self._state: State | None = steps.dynamics.start  # in hand, s_t
        self._t, self._place, self._is_forward, self._at_end = 0, 0, True, False

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` stood."""
        device = self._steps.dynamics.like.device
        self._t, self._place, self._is_forward = state["t"], state["place"], state["is_forward"]
        self._account.counts.add_steps(-state["counted"])
        self._state = None if state["state"] is None else State.from_state_dict(state["state"], device)
        for each in state["snapshots"]:
            self._snapshots.push(State.from_state_dict(each, device))

    def state_dict(self) -> dict[str, Any]:
        """Returns the place in the schedule, the state in hand, and the snapshots.

        At s_T that is s_{T-1}: the last step, which is counted, is taken again.
        """
        return {
            "t": self._t,
            "place": self._place,
            "is_forward": self._is_forward or self._at_end,
            "counted": int(self._at_end),
            "state": None if self._state is None else self._state.state_dict(),
            "snapshots": (state.state_dict() for state in self._snapshots.states()),
        }

    def forward(self, save: Callable[[], None]) -> State:
        """Runs the training to s_T, keeping the states that the schedule says."""
        self._advance(self._total - self._num, save)
        for action in self._actions():
            if isinstance(action, Visit):
                break
            self._carry_out(action, save)
        assert self._state is not None
        end = self._taken(self._state)
        self._is_forward, self._at_end = False, True
        return end

    def backward(self, save: Callable[[], None]) -> Iterator[tuple[int, Backward]]:
        """Yields the last `num` steps, the last one first, each from a state that is kept or computed again."""
        self._at_end = False
        for action in self._actions():
            if not isinstance(action, Visit):
                self._carry_out(action, save)
                continue
            assert self._state is not None
            state, self._state, self._place = self._state, None, self._place + 1
            self._snapshots.ahead()
            t = self._total - self._num + action.at
            backward = self._steps.backward_from(t, state, self._account)
            del state  # so that the sweep alone holds it
            yield t, backward
            del backward  # before what is taken next

    def _actions(self) -> Iterator[Action]:
        return islice(schedule(self._num, self.slots), self._place, None)

    def _carry_out(self, action: Keep | Advance | Take, save: Callable[[], None]) -> None:
        begin = self._total - self._num
        match action:
            case Keep():
                assert self._state is not None
                self._snapshots.push(self._state)
            case Advance(_, to):
                self._advance(begin + to, save)
            case Take(at, last):
                self._state, self._t = self._snapshots.top(), begin + at
                if last:
                    self._snapshots.drop()
        self._place += 1

    def _advance(self, to: int, save: Callable[[], None]) -> None:
        while self._t < to:
            assert self._state is not None
            self._state, self._t = self._taken(self._state), self._t + 1
            save()

    def _taken(self, state: State) -> State:
        """s_t -> s_{t+1}, for the first time or again."""
        state, value = self._steps.train(self._t, state, self._account)
        if self._is_forward:
            self._account.step_done(self._t, value)
        else:
            self._account.progress.step_repeated()
        return state
