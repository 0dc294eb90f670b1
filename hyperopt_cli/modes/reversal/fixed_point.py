"""A run's state in exact arithmetic: the couplings of the update rule applied, and undone bit for bit.

    x <- f x + h(the others, d)       X <- X n/d + round(2^radix h), f = n/d, on integers
    undone                            X <- (X - round(2^radix h)) d/n

h is computed from the others as they stand at that moment, which is the same in both directions: the couplings are
undone last first. Up to and including the first that moves w they have no gradient in them; then w_t is there, and with
it the gradient that the rest need.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.modes.reversal.factors import Factors
from hyperopt_cli.modes.reversal.kernels import Kernels
from hyperopt_cli.modes.reversal.radix import Radixes, parts
from hyperopt_cli.optimizers.base import WEIGHTS, Arguments, Coupling, Params, StepHyper
from hyperopt_cli.optimizers.exact import Rational, Store, encode

Numbers = dict[str, Tensor]


class Peak(NamedTuple):
    """The largest size that a number, its product or its increment took in a step, in units of 2^-radix: float64 []."""

    name: str
    size: Tensor


class FixedPoint:
    """The state s_t, held as integers.

    Attributes:
        numbers: per parameter (as the state is held), w and the slots: int64.
        stores: per parameter, what the multiplications kept.
        radixes: bits after the binary point, of w and every slot.
        t: the step that w stands at.
        whole: whether the slots do too.
    """

    def __init__(self, dynamics: Dynamics, factors: Factors, radixes: Radixes, kernels: Kernels) -> None:
        self._dynamics, self._factors, self._kernels = dynamics, factors, kernels
        self.radixes, self.t, self.whole = radixes, 0, True
        start = dynamics.start
        self.numbers: dict[str, Numbers] = {
            name: {part: encode(held[name], self.radixes[part][name]) for part, held in parts(start).items()}
            for name in start.params
        }
        self.stores = {name: Store(torch.zeros_like(held[WEIGHTS])) for name, held in self.numbers.items()}
        self._weights: Params | None = None  # decoded

    def advance(self, grads: Params, step_hyper: StepHyper, t: int) -> list[Peak]:
        """Takes s_t to s_{t+1}, and returns the sizes that have to be watched."""
        peaks = []
        for name, x in self.numbers.items():
            a = self._arguments(name, step_hyper, t)
            d = self._driven(name, grads, a)
            for i, (coupling, by) in enumerate(self._couplings(t, name)):
                h, size = self._increment(name, coupling, x, d if i < self._first else None, a)
                if by is not None and by.size > 1:  # the product itself could wrap
                    size = torch.maximum(size, by.size * x[coupling.name].double().abs().amax())
                kept = x[coupling.name] if by is None else self._multiplied(name, x[coupling.name], by)
                x[coupling.name], landed = self._kernels.add(kept, h)
                peaks.append(Peak(coupling.name, torch.maximum(size, landed)))
        self._weights, self.t = None, t + 1
        return peaks

    def undo_weights(self, step_hyper: StepHyper, t: int) -> Params:
        """Undoes the couplings without a gradient in them, and returns w_t, held like the state."""
        for name, x in self.numbers.items():
            a = self._arguments(name, step_hyper, t)
            self._undo(name, x, self._couplings(t, name)[self._first :], None, a)
        self._weights, self.t, self.whole = None, t, False
        return self.weights()

    def undo_rest(self, grads: Params, step_hyper: StepHyper, t: int) -> State:
        """Undoes the other couplings, and returns s_t."""
        for name, x in self.numbers.items():
            a = self._arguments(name, step_hyper, t)
            self._undo(name, x, self._couplings(t, name)[: self._first], self._driven(name, grads, a), a)
        self.whole = True
        return self.state()

    def state_dict(self) -> dict[str, Any]:
        """Returns everything, for a checkpoint, at a moment when the state is whole."""
        stores = {name: store.state_dict() for name, store in self.stores.items()}
        return {"numbers": self.numbers, "stores": stores, "radixes": self.radixes, "t": self.t}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads what `state_dict` returned; the radixes were given when this was made."""
        device = self._dynamics.like.device
        self.numbers = {
            name: {part: x.to(device) for part, x in numbers.items()} for name, numbers in state["numbers"].items()
        }
        self.stores = {name: Store.from_state_dict(store, device) for name, store in state["stores"].items()}
        self.t, self.whole, self._weights = state["t"], True, None

    def weights(self) -> Params:
        """Returns w in the parameters' dtype, held like the state."""
        if self._weights is None:
            self._weights = self._decoded(WEIGHTS)
        return self._weights

    def state(self) -> State:
        """Returns the state in the parameters' dtype."""
        return State(self.weights(), {slot: self._decoded(slot) for slot in self._dynamics.start.slots})

    def fingerprint(self) -> Tensor:
        """Returns a sum over w that a single wrong bit changes, int64 []."""
        return torch.stack([x[WEIGHTS].sum() for x in self.numbers.values()]).sum()

    def num_wrong(self) -> int:
        """Counts the numbers that differ from the start state's, and what is left in the stores."""
        start = FixedPoint(self._dynamics, self._factors, self.radixes, self._kernels)
        pairs = [(x[part], start.numbers[name][part]) for name, x in self.numbers.items() for part in x]
        left = sum(int(store.remainders.count_nonzero()) for store in self.stores.values() if not store.is_empty)
        return sum(int((x != y).sum()) for x, y in pairs) + left

    def bits(self) -> float:
        """Returns the bits that are stored, a parameter."""
        sizes = [store.remainders.numel() for store in self.stores.values()]
        return sum(s.bits() * size for s, size in zip(self.stores.values(), sizes, strict=True)) / sum(sizes)

    @property
    def _first(self) -> int:
        return [coupling.name for coupling in self._factors.couplings].index(WEIGHTS)

    def _decoded(self, part: str) -> Params:
        dtype = self._dynamics.start.params
        radix, kernel = self.radixes[part], self._kernels.decode
        return {name: kernel(x[part], radix[name], dtype[name].dtype) for name, x in self.numbers.items()}

    def _couplings(self, t: int, name: str) -> list[tuple[Coupling, Rational | None]]:
        by = self._factors.at(t)
        pairs = zip(self._factors.couplings, by, strict=True)
        return [(coupling, None if factor is None else factor[name]) for coupling, factor in pairs]

    def _arguments(self, name: str, step_hyper: StepHyper, t: int) -> Arguments:
        optimizer, like = self._dynamics.problem.optimizer, self._dynamics.start.params[name]
        arguments = optimizer.arguments(self._dynamics.arguments(step_hyper), name, like)
        return optimizer.coefficients(arguments, t)

    def _driven(self, name: str, grads: Params, arguments: Arguments) -> Tensor:
        return self._dynamics.problem.optimizer.drive(self.weights()[name], grads[name], arguments)

    def _increment(
        self, name: str, coupling: Coupling, x: Numbers, d: Tensor | None, arguments: Arguments
    ) -> tuple[Tensor, Tensor]:
        others = {part: held for part, held in x.items() if part != coupling.name}
        radixes = {part: radix[name] for part, radix in self.radixes.items()}
        d = self._dynamics.start.params[name].new_empty(0) if d is None else d
        return self._kernels.increment(coupling, radixes, others, d, arguments)

    def _multiplied(self, name: str, x: Tensor, by: Rational) -> Tensor:
        return self.stores[name].multiply(x, by, self._kernels.multiply)

    def _undo(
        self,
        name: str,
        x: Numbers,
        couplings: Sequence[tuple[Coupling, Rational | None]],
        d: Tensor | None,
        a: Arguments,
    ) -> None:
        for coupling, by in reversed(couplings):
            h, _ = self._increment(name, coupling, x, d, a)
            kept = x[coupling.name] - h
            x[coupling.name] = kept if by is None else self.stores[name].divide(kept, by, self._kernels.divide)
