"""Engines at one step of a run, against central differences of the training gradient (`checks/truth.py`).

An engine is right where its tangents are those that differences show, in float64, and its gradient is that of training;
in the run's own precision only what no rounding explains counts against it. What differences cannot judge is right
where an engine of another construction gives the same.
"""

from functools import cached_property

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.checks.judge import agree, kinds_at, value_at
from hyperopt_cli.checks.replayed import terms
from hyperopt_cli.checks.setting import Setting
from hyperopt_cli.checks.truth import GROSS, Truth
from hyperopt_cli.dynamics.kinds import Kind, constructs_of, has_hook, kind_of, may_be_cut, nodes_of
from hyperopt_cli.engines import ENGINES
from hyperopt_cli.engines.forward_faults import double_backward_fault, forward_fault
from hyperopt_cli.errors import NoMemoryError, UsageError, first_line
from hyperopt_cli.memory import available_bytes, is_lacking, taken_by
from hyperopt_cli.registry import ENGINES as REGISTERED

SHARE_OF_MEMORY = 0.9
NUM_COLUMNS = 2
# Reasons for which fewer columns at once are a way out.
DOES_NOT_FIT, WOULD_NEED = "does not fit into the memory", "would need about"
# One engine of each construction: what differences cannot judge has to be the same by two of them.
CONSTRUCTIONS = {
    loop: tuple(name for name in ENGINES if REGISTERED[name].construction == REGISTERED[loop].construction)
    for loop in ("reverse_over_reverse_loop", "forward_over_reverse_loop", "program_loop")
}


# Those that differentiate what runs below autograd; autograd's own derivatives, forward ones too, stop at a detach.
BELOW_AUTOGRAD = {"folded": ("folded",), "program_loop": CONSTRUCTIONS["program_loop"]}
CUT = "autograd is cut (a detach, a no_grad, a hook, a Function of one's own), which this engine does not see"


class Examination:
    """What the engines do at one step of a run.

    Attributes:
        t: which.
        reasons: why engines are not right, by name, of those that were tried.
        errors: relative errors in float64, by name.
        not_judged: engines that go on without differences.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting._replace(loss=next(terms(setting.loss)))
        self.t = setting.t
        self.reasons: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.not_judged: set[str] = set()
        self._products: dict[str, list[list[Tensor]] | None] = {}

    @cached_property
    def truth(self) -> Truth:
        """What differences show at the step; it is made when it is first asked for."""
        setting = self._setting
        return Truth.at(setting.loss, setting.params, setting.hyper, setting.t)

    @cached_property
    def kind(self) -> Kind:
        """The kind of the step."""
        return kind_of(self._value)

    @property
    def constructs(self) -> str:
        """What a refusal names of the constructs that are on the way."""
        return constructs_of(self._value, all(w.dtype == torch.float64 for w in self._setting.params.values()))

    @cached_property
    def kinds(self) -> set[Kind]:
        """All kinds that engines meet the step as."""
        setting = self._setting
        return kinds_at(self._value, setting.loss, setting.params, setting.hyper)

    @cached_property
    def _is_cut(self) -> bool:
        return self.truth.cuts.is_cut or may_be_cut(self.kind)

    @cached_property
    def _value(self) -> Tensor:
        return value_at(self._setting.loss, self._setting.params, self._setting.hyper)

    def passes(self, name: str, is_given: bool = False) -> bool:
        """Returns whether the engine runs, fits and is right; one set by hand may take the memory it needs."""
        if name not in self.errors and name not in self.reasons and name not in self.not_judged:
            self._check_numbers()
            reason = self._reason(name, is_given)
            if reason is not None:
                self.reasons[name] = reason
        return name not in self.reasons

    def _check_numbers(self) -> None:
        """Raises `UsageError` where no engine has a derivative; where training itself fails, the run says so."""
        try:
            truth = self.truth
        except Exception as error:
            reason_of(error)
            return
        truth.check_numbers(f"step {self.t}")

    def _reason(self, name: str, is_given: bool) -> str | None:
        try:
            too_large = None if is_given else self._too_large(name)
            return self._faulty(name) or too_large or self._wrong(name) or self._blind(name, is_given)
        except Exception as error:
            return reason_of(error)

    def _faulty(self, name: str) -> str | None:
        """What torch is known to take wrongly, though it may be right at this point."""
        if name in CONSTRUCTIONS["reverse_over_reverse_loop"]:
            found = {double_backward_fault(node) for node in nodes_of(self._value)}
        elif name != "folded":  # which has rules of its own, and refuses by itself
            found = {forward_fault(node) for node in nodes_of(self._value)}
        else:
            return None
        faults = sorted(fault for fault in found if fault is not None)
        return f"torch has a derivative of the loss wrong, {', '.join(faults)}" if faults else None

    def _blind(self, name: str, is_given: bool) -> str | None:
        """It may be right here and wrong at the next step; a Function of a user's own may well have its derivatives."""
        is_cut = self.truth.cuts.is_cut or has_hook(self.kind) if is_given else self._is_cut
        return CUT if is_cut and not any(name in same for same in BELOW_AUTOGRAD.values()) else None

    def _too_large(self, name: str) -> str | None:
        """Two columns, never more at once than in the run, tell what all of them would take."""
        setting, engine = self._setting, ENGINES[name]
        num = min(NUM_COLUMNS, setting.num_columns)
        rows = tree_map(lambda x: torch.stack([x] * num), (self.truth.v, setting.hyper))
        device = next(iter(setting.params.values())).device
        room = available_bytes(device)
        taken = taken_by(lambda: setting.tangents(engine, *rows), device)
        growth = 1.0 if name.endswith("_loop") else setting.num_columns / num
        if taken * growth > SHARE_OF_MEMORY * room:
            return f"{WOULD_NEED} {_mebibytes(taken * growth)}, {_mebibytes(room)} are free"
        return None

    def _wrong(self, name: str) -> str | None:
        products, grads = self.truth.pushed(ENGINES[name], self._setting.num_columns)
        if self._has_diverged():
            self.not_judged.add(name)
            return None
        if (strayed := self.truth.strayed(grads)) > self.truth.near:
            return (
                f"its gradient differs from that of plain training by {strayed:.2g} of its size: it draws other "
                "random numbers (dropout inside of attention, for one)"
            )
        error = self.truth.error_of_push(products)
        if not error <= self.truth.near:
            return f"off by {error:.2g} of central differences of the training gradient"
        if not self.truth.judges:
            return self._alone(name, products)
        self.errors[name] = error
        if self._is_gross(name) and not all(map(self._is_gross, BELOW_AUTOGRAD if self._is_cut else CONSTRUCTIONS)):
            return "right in float64, and not in the precision of the run"
        return None

    def _alone(self, name: str, products: list[list[Tensor]]) -> str | None:
        """Compares with engines of other constructions, where differences cannot judge."""
        for other, same in (BELOW_AUTOGRAD if self._is_cut else CONSTRUCTIONS).items():
            if name in same or name == other:
                continue
            if other not in self._products:
                self._products[other] = self._product(other)
            known = self._products[other]
            if known is not None and agree(products, known, self.truth.near):
                self.not_judged.add(name)
                return None
        return "no engine of another construction gives the same, and differences cannot judge (kinks, rounding)"

    def is_finite(self, name: str) -> bool:
        """Returns whether the engine's tangents along drawn directions are finite; a run's may be too large for any."""
        products = self._product(name) or []
        return bool(products) and all(bool(x.isfinite().all()) for column in products for x in column)

    def _product(self, name: str) -> list[list[Tensor]] | None:
        try:
            return self.truth.pushed(ENGINES[name], 1)[0]
        except Exception as error:
            reason_of(error)
            return None

    def _is_gross(self, name: str) -> bool:
        """Whether an engine is far off in the run's own precision."""
        if self.truth.is_exact:
            return False
        try:
            products, _ = self.truth.pushed(ENGINES[name], self._setting.num_columns, own=True)
            return self.truth.error_of_push(products, own=True) > GROSS
        except Exception as error:
            reason_of(error)
            return True

    def _has_diverged(self) -> bool:
        """An engine that has left the finite numbers is left to the run, which says where."""
        return not all(bool(g.isfinite().all()) for g in self.truth.gradient.values())


def check_given(name: str, examination: Examination) -> None:
    """Refuses an engine that was set by hand and is not right.

    Raises:
        NoMemoryError: it takes more memory than there is.
        UsageError: it is not right.
    """
    if examination.passes(name, is_given=True):
        return
    reason = examination.reasons[name]
    if reason.startswith("engine "):  # its own refusal, with a way out
        raise UsageError(reason)
    if is_of_memory(reason):
        raise NoMemoryError(f"engine {name}: {reason}; use columns_at_once, smaller batches or the mode reverse")
    raise UsageError(
        f"engine {name}: {reason}; the hypergradient would be wrong at step {examination.t}"
        f"{examination.constructs}. Use engine auto, which takes one that is right"
    )


def reason_of(error: Exception) -> str:
    """Says why an engine that raised this is disqualified."""
    if isinstance(error, UsageError):
        return str(error)
    if is_lacking(error):
        return DOES_NOT_FIT
    return f"failed ({type(error).__name__}: {first_line(error)})"


def is_of_memory(reason: str) -> bool:
    """Returns whether an engine is disqualified for the memory that it takes."""
    return reason.startswith((DOES_NOT_FIT, WOULD_NEED))


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"
