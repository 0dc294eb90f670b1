"""Is dE/dw and dE/dlambda that of the validation loss? Central differences of E say so.

| candidate | taken where |
|---|---|
| autograd | differences of E confirm it, or E rounds on its way (see below) |
| program | they confirm this one instead: statistics under `no_grad`, a detach, a hook, a Function of one's own |

Through a rounding E is constant nearly everywhere, and its derivative of no use. Where autograd's differs from it, and
is that of the same operators with the derivative of nothing for what rounds (a straight-through estimator), it is a
surrogate that was wished for: it is taken, and said to be one.

Where autograd is cut elsewhere too, an estimator shows by a detach: it is added to a term whose derivative it would
cancel otherwise. The operators with that detach are taken then. Of an estimator that a Function of one's own makes
nothing is known there: the derivative of E is taken, in which what rounds is constant, and that is said.

One chunk of each kind is examined, and in every later run one that is drawn by seed, if that can be afforded.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from hyperopt_cli.checks.differences import differenced, norm, reach
from hyperopt_cli.checks.flow import Cuts
from hyperopt_cli.checks.replayed import check_equal
from hyperopt_cli.checks.truth import LOW, PROGRAM, RIGHT, SLACK
from hyperopt_cli.dynamics.kinds import Kind, kind_of, may_be_cut, own_functions
from hyperopt_cli.errors import UsageError, first_line
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.program.derivative import Estimator, straight_through, with_pullback
from hyperopt_cli.program.raised import Raised, raised
from hyperopt_cli.program.record import Program, recorded

AUTOGRAD = "autograd"
SURROGATE = "surrogate: the validation loss rounds, and its straight-through estimator is taken"
CONSTANT = "the validation loss rounds: its derivative, in which that is constant, is taken, and no estimator"
NOT_JUDGED = "not judged: differences of the validation loss do not count (kinks, rounding)"
SEED = 30
DETACHED: Estimator = "detached"

Objective = Callable[..., Tensor]  # of tensors, to E [] or the term of one chunk


class OuterRuling(NamedTuple):
    """What is taken for one kind of chunk, and a note for the user."""

    candidate: str
    note: str | None
    estimator: Estimator | None = None  # of the program


class OuterJudge:
    """Takes the gradient of the outer objective, each chunk by the candidate that was found right for its kind.

    Attributes:
        examines: whether anything is examined; else autograd is taken, whatever that gives.
    """

    def __init__(self) -> None:
        self.examines, self._again, self._runs = True, False, 0
        self._rulings: dict[Kind, OuterRuling] = {}

    def begin(self, examines: bool, again: bool) -> None:
        """Begins a run.

        Args:
            examines: whether anything is examined.
            again: whether a chunk of a kind that is known may be.
        """
        self.examines, self._again = examines, again and bool(self._rulings)
        self._runs += 1

    def drawn(self, num: int) -> int | None:
        """Returns which chunk of this run is examined whatever its kind, if any."""
        if not self._again or not num:
            return None
        return int(torch.randint(num, (), generator=torch.Generator().manual_seed(self._runs)))

    def forget(self) -> None:
        """Forgets all that is known, for another problem."""
        self._rulings.clear()

    @property
    def notes(self) -> list[str]:
        """What the user has to be told of the hypergradient."""
        return sorted({ruling.note for ruling in self._rulings.values() if ruling.note is not None})

    def gradient(
        self, objective: Objective, leaves: Sequence[Tensor], again: bool = False
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Returns E and its derivatives in `leaves`.

        Args:
            objective: E as a function of tensors like the leaves.
            leaves: w and lambda, that require gradients.
            again: it is examined though its kind is known.

        Raises:
            UsageError: no candidate is right.
        """
        with torch.enable_grad():
            value = objective(*leaves)
        if not self.examines:
            return value.detach(), _gradient(value, leaves)
        kind = kind_of(value)
        known = self._rulings.get(kind)
        if known is None or again:  # a GPU is waited for here alone
            if not bool(value.isfinite()):  # the run itself says what is not
                return value.detach(), _gradient(value, leaves)
            try:
                ruling = _ruled(objective, [x.detach() for x in leaves], kind)
            except UsageError:
                with torch.enable_grad():  # a draw without a seed is the likelier reason
                    check_equal("outer_loss", [value], [objective(*leaves)])
                raise
            if known is None or known.candidate != PROGRAM or ruling.note == SURROGATE:  # not seen where E was flat
                self._rulings[kind] = ruling
            with torch.enable_grad():
                check_equal("outer_loss", [value], [objective(*leaves)])
        ruling = self._rulings[kind]
        if ruling.candidate == PROGRAM:
            return value.detach(), by_program(objective, leaves, ruling.estimator)[1]
        return value.detach(), _gradient(value, leaves)


def _gradient(value: Tensor, leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    """Zero where there is no graph."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in leaves]
    return torch.autograd.grad(value, leaves, materialize_grads=True)


def by_autograd(objective: Objective, at: Sequence[Tensor]) -> list[Tensor]:
    """Returns autograd's derivatives of E at a point, like `at`."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in at]
        return list(_gradient(objective(*leaves), leaves))


def by_program(
    objective: Objective, at: Sequence[Tensor], estimator: Estimator | None = None
) -> tuple[Program, list[Tensor]]:
    """Writes E down as a list of operators, and takes its gradient, by an estimator where rounding is to have one."""
    inputs = [x.detach().requires_grad_() for x in at]
    with torch.enable_grad():  # E may differentiate inside
        program, _ = recorded(lambda *flat: [objective(*flat)], inputs)
    return program, _pulled_back(program, inputs, estimator)


def _pulled_back(program: Program, at: Sequence[Tensor], estimator: Estimator | None) -> list[Tensor]:
    function = None if estimator is None else straight_through(program, estimator)
    return with_pullback(program, at, function)([torch.ones((), dtype=at[0].dtype).to(at[0])])


def _ruled(objective: Objective, at: list[Tensor], kind: Kind) -> OuterRuling:
    """Compares both candidates with differences, in float64; where that cannot be, with each other.

    Raises:
        UsageError: neither is right.
    """
    exact = all(x.dtype == torch.float64 for x in at)
    high = raised(at)
    cuts = Cuts(lambda *leaves: [objective(*leaves)], at)
    if cuts.uses_numbers:
        raise UsageError(
            "outer_loss: its gradient is not that of its value: it depends on a number that leaves torch and comes "
            "back (item(), float(), numpy()), which has no derivative; keep it a tensor"
        )
    is_cut = cuts.is_cut or may_be_cut(kind)
    try:
        with nullcontext() if exact else Raised():
            return _of_candidates(objective, high, kind, is_cut, RIGHT)
    except UsageError:
        raise
    except Exception as error:
        if is_lacking(error):
            return OuterRuling(AUTOGRAD, "the gradient of the validation loss is not judged: no memory for it")
        if exact:
            raise
    return _of_candidates(objective, at, kind, is_cut, LOW)  # it refuses a mixture with its own constants


def _of_candidates(objective: Objective, at: list[Tensor], kind: Kind, is_cut: bool, near: float) -> OuterRuling:
    drawn = torch.Generator().manual_seed(SEED)
    scale = reach(at) * sum(x.numel() for x in at) ** -0.5
    direction = [scale * torch.randn(x.shape, generator=drawn, dtype=torch.float64).to(x.device) for x in at]
    direction = [v.to(x) for v, x in zip(direction, at, strict=True)]

    def value_at(*flat: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            return [objective(*(x.detach().requires_grad_() for x in flat)).detach()]

    difference = differenced(value_at, at, direction)
    plain = by_autograd(objective, at)

    def off(gradient: list[Tensor]) -> float:
        assert difference is not None
        along = float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))
        # of the size that a derivative along a random direction has
        size = max(difference.size, norm(gradient) * norm(direction) * float(sum(x.numel() for x in at)) ** -0.5)
        away = abs(along - float(difference.value[0]))
        return 0.0 if away <= SLACK * difference.error or size == 0 else away / size

    def is_near(one: list[Tensor], other: list[Tensor]) -> bool:
        return norm([x - y for x, y in zip(one, other, strict=True)]) <= near * norm(other)

    confirmed = difference is not None and off(plain) <= near
    if confirmed and not is_cut:
        return OuterRuling(AUTOGRAD, None)
    try:
        program, other = by_program(objective, at)
    except UsageError as error:
        return (
            OuterRuling(AUTOGRAD, None) if confirmed else _without_program(difference is None, first_line(error), kind)
        )
    estimated = {way: _pulled_back(program, at, way) for way in get_args(Estimator)}
    rounding = [way for way, gradient in estimated.items() if not is_near(other, gradient)]
    is_estimated = DETACHED in rounding or bool(own_functions(kind))  # else what was rounded is detached by accident
    if is_estimated and any(is_near(plain, estimated[way]) for way in rounding):
        return OuterRuling(AUTOGRAD, SURROGATE)
    if confirmed:  # cut, it may be right here and wrong elsewhere
        return OuterRuling(PROGRAM if off(other) <= near else AUTOGRAD, None)
    if DETACHED in rounding and (difference is None or off(other) <= near):
        return OuterRuling(PROGRAM, SURROGATE, DETACHED)
    if difference is None and is_near(plain, other):
        return OuterRuling(PROGRAM if is_cut else AUTOGRAD, NOT_JUDGED)
    if difference is not None and off(other) <= near:
        return OuterRuling(PROGRAM, CONSTANT if rounding else None)
    if difference is None:
        return _without_program(False, "its derivative as a list of operators is another one", kind)
    return _without_program(False, "its derivative as a list of operators is off too", kind)


def _without_program(not_judged: bool, reason: str, kind: Kind) -> OuterRuling:
    if not_judged:
        return OuterRuling(AUTOGRAD, f"the gradient of the validation loss is not judged ({reason})")
    raise UsageError(
        f"outer_loss: its gradient is not confirmed by central differences ({reason}){own_functions(kind)}. "
        "What leaves torch and comes back (item(), numpy()) has no derivative: write it with torch's differentiable "
        "operators"
    )
