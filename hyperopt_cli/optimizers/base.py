"""What an inner optimizer is: a pure update rule over whole dictionaries, with the slots that it keeps.

    s_{t+1} = U(s_t, g_t, lambda_t, t)        s = (w, slots)

Modes derive everything they need from `update` (jvp, vjp); no optimizer holds a formula for a derivative.

A rule is stated once, as ordered couplings of what the state holds,

    x <- f x + h(the others, d)               d = drive(w_t, g_t): the gradient, after L2 decay

`update` is their fold. Reversible mode undoes them in reverse order, in exact arithmetic.
"""

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Real
from operator import attrgetter
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from hyperopt_cli.errors import UsageError

Params = dict[str, Tensor]
Slots = dict[str, Params]
StepHyper = dict[str, Tensor | dict[str, Tensor]]

Share = Annotated[float, "share"]  # an argument in [0, 1), which a recipe tunes by its logit unless it says otherwise
WEIGHTS = "w"  # the name of the parameters among what a coupling sees; slots have theirs


class Arguments(Protocol):
    """A rule's arguments for one parameter: a named tuple of a tensor or a number under the name of each.

    `with_more(arguments, rate=...)` has further names. It is a tuple because `torch.compile` takes one as it is.
    """

    def __getattr__(self, name: str) -> Any:
        """Returns the argument of that name."""

    def _asdict(self) -> dict[str, Any]:
        """Returns all arguments by their names."""


def as_arguments(values: Mapping[str, Any]) -> Arguments:
    """Makes the named tuple of arguments with these names and values."""
    made: Arguments = _kind(tuple(values))(*values.values())
    return made


def with_more(arguments: Arguments, **more: Any) -> Arguments:
    """Returns the same arguments, with those of `more` added or in their place.

    Example:
        >>> with_more(as_arguments({"lr": 0.1, "beta1": 0.9}), rate=0.5)
        Arguments(lr=0.1, beta1=0.9, rate=0.5)
    """
    return as_arguments({**arguments._asdict(), **more})


@lru_cache
def _kind(names: tuple[str, ...]) -> Any:
    """One type for one set of names: a compiled function is compiled anew for another type."""
    return namedtuple("Arguments", names)


class Factor(NamedTuple):
    """The factor f of a coupling.

    Attributes:
        label: what it is called in reports.
        argument: the argument that is moved where f has to be another number.
        of: its value.
        solved: `(arguments, f)` to the value of `argument` at which `of` gives f.
    """

    label: str
    argument: str
    of: Callable[[Arguments], Any]
    solved: Callable[[Arguments, Any], Any]


class Coupling(NamedTuple):
    """One part of an update rule, x <- f x + h(the others, d).

    Attributes:
        name: what is moved: `WEIGHTS` or a slot.
        increment: h, of `{name: tensor}` without x, of d and of the arguments; elementwise unless the optimizer is not.
        factor: f; None: 1.
        radix: bits after the binary point where x is held in fixed point, which takes |x| < 2^(62 - radix); of an
            element that is larger, or turns out to be, fewer.
        least_radix: the fewest.
    """

    name: str
    increment: Callable[[Params, Tensor, Arguments], Tensor]
    factor: Factor | None = None
    radix: int = 52
    least_radix: int = 20


def itself(argument: str) -> Factor:
    """Returns the factor that is an argument of the rule, such as a momentum or a beta."""
    return Factor(argument, argument, attrgetter(argument), lambda arguments, f: f)


@dataclass(frozen=True)
class InnerOptimizer:
    """Base of every inner optimizer; subclass it (as a frozen dataclass) for your own.

    A subclass states `couplings`, or overrides `update` (it then runs in every mode but reversible).

    The dataclass's fields that are numbers, annotated `float` or `Share`, are the arguments which a key of `hyper` of
    the same name drives; the constructor's value is the default for what `hyper` leaves out.

    Attributes:
        elementwise: `update`, `gradient_at` and `result` treat every element of every parameter alike. They are then
            called with all parameters laid end to end as one vector under one name, which costs a few large operations
            instead of many small ones.
        taken_from_1: arguments x of which the rule uses 1 - x, so that float32 would lose digits near 1.
        rates: learning rates that a scan begins with, a decade apart.
    """

    elementwise: ClassVar[bool] = False
    taken_from_1: ClassVar[tuple[str, ...]] = ()
    rates: ClassVar[tuple[float, ...]] = (1e-3, 1e-2, 1e-1, 1.0)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a rule that states nothing."""
        super().__init_subclass__(**kwargs)
        if cls.update is InnerOptimizer.update and cls.couplings is InnerOptimizer.couplings:
            raise TypeError(f"{cls.__name__}: states no rule; define couplings, or update")

    def __post_init__(self) -> None:
        """Refuses what `torch.optim` refuses.

        Raises:
            TypeError: what should be a number is none.
            ValueError: a number below 0, or a decay outside [0, 1).
        """
        for name in self.argument_names():
            value = getattr(self, name)
            is_number = isinstance(value, Real | Tensor)
            if not is_number:
                raise TypeError(f"{name}: got {value!r}; give a number")
            if name in self.taken_from_1 and not 0 <= value < 1:
                raise ValueError(f"{name}: got {value}; must be at least 0 and below 1")
            if name != "dampening" and not value >= 0:
                raise ValueError(f"{name}: got {value}; must be at least 0")

    @classmethod
    def argument_names(cls) -> tuple[str, ...]:
        """Returns the names of the arguments that a key of `hyper` may drive."""
        return tuple(_arguments_of(cls))  # type: ignore[arg-type]

    @classmethod
    def shares(cls) -> tuple[str, ...]:
        """Returns the names of the arguments that lie in [0, 1)."""
        return tuple(name for name, is_share in _arguments_of(cls).items() if is_share)  # type: ignore[arg-type]

    def slots(self, params: Params, driven: frozenset[str]) -> Slots:
        """Makes the slots at t = 0, each a dictionary like `params`.

        Args:
            params: w_0.
            driven: the arguments that `hyper` drives; a slot may be left out only where none of them could need it.
        """
        return {}

    def couplings(self, slots: Collection[str]) -> tuple[Coupling, ...]:
        """Returns the rule, in the order in which it is applied; empty for a rule that overrides `update`.

        Args:
            slots: the names of the slots that are kept.
        """
        return ()

    def coefficients(self, arguments: Arguments, step: int) -> Arguments:
        """Adds, by `with_more`, what follows from the arguments and t for all elements alike: bias corrections."""
        return arguments

    def drive(self, w: Tensor, gradient: Tensor, arguments: Arguments) -> Tensor:
        """Returns d, what the couplings see of the gradient: the gradient itself, unless it is overridden."""
        return gradient

    def update(self, params: Params, slots: Slots, grads: Params, hyper: StepHyper, step: int) -> tuple[Params, Slots]:
        """Returns w_{t+1} and the slots at t + 1: the fold of the couplings.

        Pure and free of branches on the value of a hyperparameter: `momentum == 0` must stay differentiable. Read
        arguments by `self.arguments(hyper, name, w)`.

        Args:
            params: w_t.
            slots: as `slots` made them, or the last `update`.
            grads: g_t, like `params`.
            hyper: lambda_t, per name a scalar tensor or a mapping from parameter name to a tensor that broadcasts.
            step: t, from 0; a float64 tensor [] where the whole step is compiled, so that it is the same at every t.

        Raises:
            UsageError: a coupling moves or reads what there is not, or adds no tensor.
        """
        new: Slots = {name: {} for name in (WEIGHTS, *slots)}
        couplings = self.couplings(slots)
        for name, w in params.items():
            a = self.coefficients(self.arguments(hyper, name, w), step)
            d = self.drive(w, grads[name], a)
            x = {WEIGHTS: w, **{slot: held[name] for slot, held in slots.items()}}
            for coupling in couplings:
                moved = self.increment_of(coupling, x, d, a)
                kept = x[coupling.name] if coupling.factor is None else coupling.factor.of(a) * x[coupling.name]
                x[coupling.name] = kept + moved
            for part, value in x.items():
                new[part][name] = value
        return new.pop(WEIGHTS), new

    def increment_of(self, coupling: Coupling, x: Params, d: Tensor, arguments: Arguments) -> Tensor:
        """Evaluates h of a coupling, which does not see what it moves.

        Args:
            coupling: of this rule.
            x: everything that the state holds of one parameter.
            d: the gradient, driven.
            arguments: for this parameter.

        Raises:
            UsageError: it moves or reads what there is not, or adds no tensor.
        """
        if coupling.name not in x:
            raise self._refused(coupling, f"moves what there is not; the state holds {', '.join(x)}")
        others = {name: value for name, value in x.items() if name != coupling.name}
        try:
            h = coupling.increment(others, d, arguments)
        except KeyError as error:
            seen = ", ".join(others) or "nothing"
            raise self._refused(coupling, f"reads {error}; it sees {seen}, not itself") from None
        if not isinstance(h, Tensor):
            raise self._refused(coupling, f"adds a {type(h).__name__}; return the tensor that is added")
        return h

    def _refused(self, coupling: Coupling, what: str) -> UsageError:
        return UsageError(f"{type(self).__name__}: the coupling of {coupling.name!r} {what}")

    def gradient_at(self, params: Params, slots: Slots, hyper: StepHyper, step: int) -> Params:
        """Returns P(s_t, lambda_t), the point at which the gradient is taken: w_t itself for nearly every rule.

        Args:
            params: w_t.
            slots: those at t.
            hyper: lambda_t, as for `update`.
            step: t.
        """
        return params

    def result(self, params: Params, slots: Slots) -> Params:
        """Returns R(s_T), what the run yields: w_T itself for nearly every rule."""
        return params

    def arguments(self, hyper: StepHyper, name: str, like: Tensor) -> Arguments:
        """Returns every argument for the parameter `name`: a tensor where `hyper` drives it, else a number."""
        chosen = {}
        for argument in self.argument_names():
            value = hyper.get(argument, getattr(self, argument))
            if isinstance(value, Mapping):
                value = value.get(name, getattr(self, argument))
            chosen[argument] = _fitting(value, like) if isinstance(value, Tensor) else float(value)
        return as_arguments(chosen)


@lru_cache  # it is asked for every parameter at every step
def _arguments_of(optimizer: Any) -> dict[str, bool]:
    """Returns whether each argument of a rule is a `Share`; with postponed annotations a field's is text."""
    found = {}
    for field in fields(optimizer):
        last = field.type.rpartition(".")[2] if isinstance(field.type, str) else field.type
        if last in (float, "float", Share, "Share"):
            found[field.name] = last in (Share, "Share")
    return found


def _fitting(value: Tensor, like: Tensor) -> Tensor:
    """A scalar keeps its precision, which promotes nothing; anything larger takes the parameter's dtype."""
    if value.ndim == 0:
        return value
    return value.reshape(()) if value.numel() == 1 else value.to(like)


def zeros(params: Params) -> Params:
    """Makes a slot of zeros, like the parameters."""
    return {name: torch.zeros_like(w) for name, w in params.items()}


def decayed(gradient: Tensor, weight_decay: Tensor | float, w: Tensor) -> Tensor:
    """Returns `g + weight_decay w`; a constant 0 that no hyperparameter drives costs nothing."""
    if isinstance(weight_decay, float) and weight_decay == 0.0:
        return gradient
    return gradient + weight_decay * w


def sqrt(v: Tensor) -> Tensor:
    """Takes the square root of `v >= 0` whose derivative at 0 is 0.

    A second moment of exactly 0 belongs to a coordinate whose gradient was 0 throughout (a dead unit, a padded
    embedding). The root's own derivative is infinite there; what it multiplies is 0, and the product is meant to be 0.
    Below 0 the root is NaN.
    """
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())
