"""Every candidate engine is examined on a few columns before it may be timed: does it run, is it right?

Two columns in w alone must be products with a symmetric matrix (`symmetry.py`). Two columns, one in w alone and one in
w and lambda, must agree with those of the reference engine. Never are more taken at once than in the run. An engine
that was set by hand meets the same (`check_agreement` after `check_symmetry`), whatever it takes.
"""

from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.engines import symmetry
from hyperopt_cli.modes.engines.base import Engine, Tangents
from hyperopt_cli.modes.engines.setting import Setting
from hyperopt_cli.modes.memory import available_bytes, is_lacking, taken_by
from hyperopt_cli.optimizers.base import Params, StepHyper

NUM_COLUMNS = 2
SHARE_OF_MEMORY = 0.9
# Reasons for which fewer columns at once are a way out.
DOES_NOT_FIT, WOULD_NEED = "does not fit into the memory", "would need about"


class Examination(NamedTuple):
    """What came of it.

    Attributes:
        products: the columns that are compared, None where they could not be taken.
        reason: why the engine is disqualified, or None.
        asymmetry: None as well.
        error: largest relative difference of a column from the reference; None as well, and without a reference.
    """

    products: Params | None
    reason: str | None
    asymmetry: float | None = None
    error: float | None = None


def examined(engine: Engine, setting: Setting, reference: Params | None, one_by_one: bool = False) -> Examination:
    """Tries an engine.

    Args:
        engine: the candidate.
        setting: what it is tried on.
        reference: the products of the reference engine; None: it is the reference itself, or none could be had.
        one_by_one: it takes a column at a time, whatever the chunk: its memory does not grow with K.
    """
    setting, w_dot, hyper_dot = _columns(setting)
    held: list[Tangents] = []
    device = next(iter(w_dot.values())).device
    room = available_bytes(device)
    try:
        taken = taken_by(lambda: held.append(setting.taken_by(engine, w_dot, hyper_dot)), device)
        products = held[0].grad_tangents
        growth = 1.0 if one_by_one else setting.at_once / min(setting.at_once, NUM_COLUMNS)
        if taken * growth > SHARE_OF_MEMORY * room:
            return Examination(products, f"{WOULD_NEED} {_mebibytes(taken * growth)}, {_mebibytes(room)} are free")
        probe = symmetry.probed(engine, setting)
    except (UsageError, RuntimeError) as failure:
        return Examination(None, reason_of(failure) if reference is None else _reason(failure))
    except Exception as failure:
        if reference is None:
            raise
        return Examination(None, _reason(failure))  # the reference could: the loss is not to blame
    error = None if reference is None else difference(products, reference)
    return Examination(products, symmetry.misfit(probe, setting) or _deviation(error, setting), probe.asymmetry, error)


def check_agreement(name: str, engine: Engine, reference: Engine, setting: Setting) -> None:
    """Takes the columns that are compared by both; a reference that cannot take this model refuses nothing.

    Raises:
        UsageError: they differ by more than rounding.
    """
    if engine is reference:
        return
    setting, w_dot, hyper_dot = _columns(setting)
    try:
        wanted = setting.taken_by(reference, w_dot, hyper_dot).grad_tangents
    except (UsageError, RuntimeError) as failure:
        if is_lacking(failure):
            raise
        return
    reason = _deviation(difference(setting.taken_by(engine, w_dot, hyper_dot).grad_tangents, wanted), setting)
    if reason is not None:
        raise UsageError(f"{name}: {reason}; use another engine, or auto, which chooses among those that are right")


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.0f} MiB"


def reason_of(error: Exception) -> str:
    """Why an engine that raised this is disqualified; what it does not explain is raised again."""
    if isinstance(error, UsageError):
        return str(error)
    if is_lacking(error):
        return DOES_NOT_FIT
    raise error


def is_of_memory(reason: str) -> bool:
    """Whether an engine is disqualified for the memory that it takes."""
    return reason.startswith((DOES_NOT_FIT, WOULD_NEED))


def _reason(failure: Exception) -> str:
    """The same of a candidate, which may fail in any way."""
    with suppress(Exception):
        return reason_of(failure)
    lines = str(failure).strip().splitlines() or [""]
    return f"failed ({type(failure).__name__}: {lines[0]})"


def difference(products: Params, reference: Params) -> float:
    """The largest difference of a column from the reference's, over its size; 0 where both are 0.

    Not finite where the products alone are; where the reference is not finite there is nothing to compare with.
    """
    rows, wanted = (torch.cat([_rows(x) for x in tree.values()], dim=1) for tree in (products, reference))
    if not wanted.isfinite().all():
        return 0.0
    apart, size = (torch.linalg.vector_norm(x, dim=1) for x in (rows - wanted, wanted))
    relative = torch.where(apart == 0, 0.0, apart / size)
    return float(relative.max())


def _deviation(error: float | None, setting: Setting) -> str | None:
    if error is None or error <= setting.agreement:
        return None
    return f"differs from the reference engine by {error:.2g} (rounding is at most {setting.agreement:g})"


def _columns(setting: Setting) -> tuple[Setting, Params, StepHyper]:
    """Two columns that rest where the gradient is zero, and where no whole parameter is at rest (`symmetry.awake`).

    A gradient that is put to zero (`padding_idx` of an embedding) is a constant to the one order of derivatives, and
    the zero that it is to the other.
    """
    setting, plain = symmetry.awake(setting)
    w_dot = {name: v * (plain[name] != 0) for name, v in symmetry.directions(setting.params, NUM_COLUMNS).items()}
    hyper_dot = tree_map(lambda x: x.new_zeros(NUM_COLUMNS, *x.shape), setting.hyper)
    tree_map(lambda x: x[-1].fill_(1.0), hyper_dot)
    return setting, w_dot, hyper_dot


def _rows(x: Tensor) -> Tensor:
    return symmetry.wide(x.reshape(x.shape[0], -1))
