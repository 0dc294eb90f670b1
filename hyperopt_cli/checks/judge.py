"""Which derivative of the training gradient a sweep takes back through a step: the one that differences confirm.

| candidate | what it is |
|---|---|
| double backward | autograd's derivative of the gradient's graph: cheap, and wrong where autograd is cut |
| program | that of the gradient as a list of operators (`program/`): a detach, a hook, a backward are what they do |

The first that central differences of the training gradient confirm (`truth.py`) is taken, for all steps of that kind
(`dynamics/kinds.py`). What differences contradict is refused. What they cannot judge goes on where the two agree, and
is marked.

Steps that are examined: step 0, every step of a kind that was not met before, and a few drawn by seed. There the batch
and the gradient are taken twice as well (`replayed.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from hyperopt_cli.checks.differences import norm
from hyperopt_cli.checks.outer import OuterJudge
from hyperopt_cli.checks.replayed import check_step, due_term, terms
from hyperopt_cli.checks.rule import Rules, check_rule, not_judged
from hyperopt_cli.checks.truth import GROSS, PROGRAM, Truth, cuts_of
from hyperopt_cli.checks.watch import Watch
from hyperopt_cli.dynamics.chunked_loss import Loss
from hyperopt_cli.dynamics.derivatives import (
    Pullback,
    by_double_backward,
    evaluated,
    gradient_and_pullback,
    pullback_of,
)
from hyperopt_cli.dynamics.dynamics import Dynamics, State
from hyperopt_cli.dynamics.kinds import Kind, constructs_of, kind_of, may_be_cut, nodes_of
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.forward_faults import double_backward_fault
from hyperopt_cli.engines.program import gradient_as_program
from hyperopt_cli.errors import UsageError, first_line
from hyperopt_cli.memory import is_lacking
from hyperopt_cli.optimizers.base import Params, StepHyper
from hyperopt_cli.problem import Hyper
from hyperopt_cli.program.derivative import with_pullback

DOUBLE_BACKWARD = "double backward"

BY_PROGRAM = (
    "the training gradient is differentiated as a list of operators, for a double backward is not its derivative"
)
NOT_JUDGED = (
    "not judged: differences cannot tell whether the training gradient is differentiated rightly (kinks, rounding); "
    "two ways of different construction agree"
)


class Ruling(NamedTuple):
    """What is taken at steps of one kind.

    Attributes:
        candidate: its name.
        judged: whether differences confirm it.
        reasons: why others are not taken, by name.
    """

    candidate: str
    judged: bool
    reasons: Mapping[str, str]


def by_program(loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params, Pullback]:
    """Returns L, g and the pullback by the list of operators that the gradient comes to."""
    program, inputs, value, g = gradient_as_program(loss, params, hyper)
    program.outputs.pop(0)  # L, whose derivative is known
    pull, spec = with_pullback(program, inputs), tree_flatten(hyper)[1]

    def pullback(u: Params) -> tuple[Params, StepHyper]:
        adjoints = pull([u[name] for name in g])
        return dict(zip(g, adjoints, strict=False)), tree_unflatten(adjoints[len(g) :], spec)

    return value, g, pullback


CANDIDATES = {DOUBLE_BACKWARD: by_double_backward, PROGRAM: by_program}


class Judge:
    """Takes the pullbacks of a run, each by the candidate that was found right for its kind."""

    def __init__(self) -> None:
        self.watch, self.outer = Watch(), OuterJudge()
        self._rulings: dict[Kind, Ruling] = {}
        self._rules: dict[str, Rules] = {}
        self._presumes = False

    def watching(self, dynamics: Dynamics, hyper: Hyper, examines: bool) -> Dynamics:
        """Begins a run: returns the same dynamics, watched, with right derivatives of what is cheap.

        Args:
            dynamics: of the run.
            hyper: lambda.
            examines: whether anything is examined.

        Raises:
            UsageError: `init`, the schedule or the update rule has a derivative that is not that of its value.
        """
        if self.watch.begin(dynamics.problem, examines) or self._presumes:
            self._rulings.clear()
            self._rules.clear()
            self.outer.forget()
        self._presumes = not examines
        self.outer.begin(examines, self.watch.affords)
        if examines:
            dynamics = replace(dynamics, as_operators=check_rule(dynamics, hyper, "vjp", self._rules).as_operators)
        else:
            self._presume(dynamics.watched_by(None), hyper)
        return dynamics.watched_by(self.watch)

    def _presume(self, dynamics: Dynamics, hyper: Hyper) -> None:
        """Where only a price is asked: what is cut at step 0, or has no double backward, will be taken as a program."""
        step_hyper = dynamics.hyper_at(hyper, 0)
        params = dynamics.layout.unpack(dynamics.point(dynamics.start, step_hyper, 0))
        loss = next(terms(dynamics.loss_at(0)))
        value = value_at(loss, params, step_hyper)
        try:
            is_cut = may_be_cut(kind_of(value)) or cuts_of(loss, params, step_hyper).is_cut
            if not is_cut:
                by_double_backward(loss, params, step_hyper)[2](params)
        except Exception as error:
            if is_lacking(error):
                raise
            is_cut = True
        ruling = Ruling(PROGRAM if is_cut else DOUBLE_BACKWARD, True, {})
        self._rule(kinds_at(value, loss, params, step_hyper), ruling)

    @property
    def notes(self) -> list[str]:
        """What the user has to be told of the hypergradient."""
        notes = [*self.outer.notes, *not_judged(self._rules)]
        if self.takes_programs:
            notes.append(BY_PROGRAM)
        if not all(ruling.judged for ruling in self._rulings.values()):
            notes.append(NOT_JUDGED)
        return notes

    @property
    def takes_programs(self) -> bool:
        """Whether a double backward is wrong at steps of some kind."""
        return any(ruling.candidate == PROGRAM for ruling in self._rulings.values())

    def look(self, dynamics: Dynamics, t: int, state: State, hyper: StepHyper, unseen: bool = False) -> bool:
        """Examines a step of the run, taken from `state`, where that is due, and says whether it was.

        Args:
            dynamics: of the run.
            t: the step.
            state: s_t.
            hyper: lambda_t.
            unseen: the step was taken compiled, so that nobody knows its kind.

        Raises:
            UsageError: no candidate is right there.
            NonDeterministicError: taken twice, it gives two results.
        """
        new = self.watch.taken(t, set(self._rulings), unseen and not self._rulings)
        if new is None:
            return False
        with self.watch.clocked():
            self._look(dynamics, t, state, hyper, new)
        return True

    def _look(self, dynamics: Dynamics, t: int, state: State, hyper: StepHyper, new: set[Kind]) -> None:
        params = dynamics.layout.unpack(dynamics.point(state, hyper, t))
        unwatched = dynamics.watched_by(None)
        check_step(unwatched, params, hyper, t)
        rest, loss = set(new), unwatched.loss_at(t)
        due = due_term(loss, self.watch.looks)
        for i, term in enumerate(terms(loss)):
            if i != due and not rest:
                continue
            value = value_at(term, params, hyper)
            kinds = kinds_at(value, term, params, hyper)
            if i == due or kinds & rest:
                self._rule(kinds, self._examined(term, params, hyper, t, value))
            rest -= kinds

    def pullback(self, loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params, Pullback]:
        """Returns L, g, and `u -> (H u, (d2L/dw dlambda)^T u)` of a step, or of a sum over chunks; once."""
        return gradient_and_pullback(loss, params, hyper, self._of_one)

    def _of_one(self, loss: Loss, params: Params, hyper: StepHyper) -> tuple[Tensor, Params, Pullback]:
        if self._rulings and all(ruling.candidate == PROGRAM for ruling in self._rulings.values()):
            return by_program(loss, params, hyper)
        value, leaves = evaluated(loss, params, hyper)
        kind = kind_of(value)
        known = set(self._rulings)
        if kind not in known and self.watch.examines and self.watch.worth({kind}, known):  # the sweep of a left run
            self._rule({kind}, self._examined(loss, params, hyper, None, value))
        ruling = self._rulings.get(kind)
        if self.takes_programs if ruling is None else ruling.candidate == PROGRAM:
            del value, leaves
            return by_program(loss, params, hyper)
        return pullback_of(value, leaves, params, hyper)

    def _rule(self, kinds: set[Kind], ruling: Ruling) -> None:
        """A program that was needed once stays: what is cut at some steps alone may show no other graph."""
        for kind in kinds:
            known = self._rulings.get(kind)
            if known is None or known.candidate != PROGRAM:
                self._rulings[kind] = ruling

    def _examined(self, loss: Loss, params: Params, hyper: StepHyper, t: int | None, value: Tensor) -> Ruling:
        try:
            return ruled(Truth.at(loss, params, hyper, t or 0), t, value)
        except Exception as error:
            if not is_lacking(error):
                raise
            return Ruling(DOUBLE_BACKWARD, False, {"differences": "do not fit into the memory"})


def ruled(truth: Truth, t: int | None, value: Tensor) -> Ruling:
    """Returns the first candidate that is right at a step.

    `value` is the loss with its graph; t is None at a step that is met in the backward sweep.

    Raises:
        UsageError: none is.
    """
    if not all(bool(g.isfinite().all()) for g in truth.gradient.values()):
        return Ruling(DOUBLE_BACKWARD, False, {})  # the run itself says where it diverges
    reasons: dict[str, str] = {}
    products: dict[str, list[Tensor]] = {}
    alongs: dict[str, list[float]] = {}
    kind = kind_of(value)
    faults = sorted({fault for node in nodes_of(value) if (fault := double_backward_fault(node)) is not None})
    where = "a step that was met in the backward sweep" if t is None else f"step {t}"
    truth.check_numbers(where)
    # cut, it may be right here and wrong at the next step: a factor that is 0, a clipping that is idle
    is_cut = truth.cuts.is_cut or may_be_cut(kind)
    first, second = (PROGRAM, DOUBLE_BACKWARD) if is_cut else (DOUBLE_BACKWARD, PROGRAM)
    for name in (first, second):
        pull = CANDIDATES[name]
        if name == DOUBLE_BACKWARD and faults:
            reasons[name] = "; ".join(faults)
            continue
        try:
            along, adjoints = truth.pulled(pull)
        except Exception as error:
            if is_lacking(error):
                raise
            reasons[name] = first_line(error)
            continue
        if (error_of := truth.error_of_pull(along)) > truth.near:
            reasons[name] = f"off by {error_of:.2g} of central differences of the training gradient"
            continue
        products[name], alongs[name] = adjoints, along
        if not truth.judges:
            continue
        if _is_gross(truth, pull) and not all(_is_gross(truth, other) for other in CANDIDATES.values()):
            reasons[name] = "right in float64, and not in the precision of the run"
        else:
            return Ruling(name, True, reasons)
    if products and not truth.judges:
        if len(products) == len(CANDIDATES) and agree([products[first]], [products[second]], truth.near):
            return Ruling(first, False, reasons)
        if (right := _third(truth, {name: alongs[name] for name in products}, is_cut)) is not None:
            return Ruling(right, False, reasons)
        reasons |= dict.fromkeys(products, "the only one to say so, and differences cannot judge (kinks, rounding)")
    what = f"the derivative of the training gradient at {where}"
    raise UsageError(refusal(what, reasons, constructs_of(value, truth.is_exact)))


def _third(truth: Truth, alongs: Mapping[str, list[float]], is_cut: bool) -> str | None:
    """The candidate that gives `u.(J v)` and `u.(M mu)` of tangents taken forward: a third construction."""
    for engine in ("folded",) if is_cut else ("forward_over_reverse_loop", "folded"):
        try:
            products, _ = truth.pushed(ENGINES[engine], 1)
        except Exception as error:
            if is_lacking(error):
                raise
            continue
        u = list(truth.u.values())
        wanted = [sum(float((a * x).sum()) for a, x in zip(u, product, strict=True)) for product in products]
        for name, found in alongs.items():
            if all(
                abs(x - y) <= truth.near * norm(product) for x, y, product in zip(found, wanted, products, strict=True)
            ):
                return name
    return None


def agree(one: list[list[Tensor]], other: list[list[Tensor]], near: float) -> bool:
    """Returns whether products that were taken by two constructions are equal, along each direction."""
    return all(
        norm([x - y for x, y in zip(a, b, strict=True)]) <= near * norm(b) for a, b in zip(one, other, strict=True)
    )


def refusal(what: str, reasons: Mapping[str, str], constructs: str) -> str:
    """Says why no candidate is right, and which constructs of the loss may be the reason."""
    tried = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return (
        f"inner_loss: {what} would be silently wrong by every way to take it ({tried}){constructs}. What "
        "leaves torch and comes back (item(), numpy()) has no derivative, nor has an operator that is named here: "
        "write it with torch's differentiable operators"
    )


def _is_gross(truth: Truth, pull: Callable[..., Any]) -> bool:
    """Whether a pullback is far off in the run's own precision."""
    if truth.is_exact:
        return False
    try:
        return truth.error_of_pull(truth.pulled(pull, own=True)[0], own=True) > GROSS
    except RuntimeError as error:
        if is_lacking(error):
            raise
        return True


def value_at(loss: Loss, params: Params, hyper: StepHyper) -> Tensor:
    """Evaluates L at a point, with its graph in w."""
    with torch.enable_grad():
        return loss({name: p.detach().requires_grad_() for name, p in params.items()}, hyper)


def kinds_at(value: Tensor, loss: Loss, params: Params, hyper: StepHyper) -> set[Kind]:
    """Returns the kinds that a step is met as: with a graph in w alone, or in lambda too.

    Args:
        value: L with its graph in w.
        loss: L, evaluated once more with a graph in w and lambda.
        params: w.
        hyper: lambda_t.
    """
    return {kind_of(value), kind_of(evaluated(loss, params, hyper)[0])}
