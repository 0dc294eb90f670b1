"""What the package says about a case, against its truth."""

import contextlib
import random
import signal
import time
import traceback
import warnings

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hyperopt_cli import Forward, Reverse, Reversible, hypergradient
from hyperopt_cli.errors import FixedPointRangeError, NonFiniteError, UsageError, VerificationError
from tests.fuzz import cases
from tests.fuzz.candidates import CANDIDATES
from tests.fuzz.truth import E, Unjudged, error, recorded, train, truth

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-2}
APART = {torch.float64: 1e-7, torch.float32: 1e-4}
ENGINES = (
    "folded",
    "forward_over_reverse",
    "forward_over_reverse_loop",
    "reverse_over_reverse",
    "reverse_over_reverse_loop",
    "dense",
)
MODES = {
    "forward": lambda: Forward(),
    "reverse": lambda: Reverse(),
    "reverse slots=2": lambda: Reverse(slots=2, compile=False),
    "reversible": lambda: Reversible(),
}
LIMIT_S = 180


class TooSlow(Exception):
    """A call took longer than its limit."""


@contextlib.contextmanager
def within(seconds):
    """Raises `TooSlow` in the main thread after so many seconds."""

    def late(*_):
        raise TooSlow(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def seeded(seed):
    """The global generators, so that a case is the same whenever it is repeated."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def truth_of(case):
    """A `Truth`, or a reason why there is none, and whether there can be no right answer.

    Returns:
        (truth or None, reason or "", must be refused)
    """
    parts, hyper = cases.doubled(case)
    try:
        if case.hidden:  # does the draw or the counter have an effect? three runs, the last with used counters
            values = []
            for seed in (1, 2, 3):
                seeded(seed)
                if seed != 3:
                    parts, hyper = cases.doubled(case.fresh())
                values.append(float(E(parts, hyper)))
            if len({repr(v) for v in values}) > 1:
                return None, "draws without a seed, or counts", True
        if case.dtype != torch.float64:
            own, own_hyper = case.fresh().in_own_precision()
            seeded(0)
            value, sums = recorded(own, own_hyper)
            seeded(0)
            exact, exact_sums = recorded(*cases.doubled(case.fresh()))
            if sums != exact_sums:
                return None, "float32 falls on the other side of a kink than float64", False
            if not abs(value - exact) <= 1e-4 * (1 + abs(exact)):
                return None, "float32 differs from float64 in E", False
        seeded(0)
        found = truth(
            lambda: cases.doubled(case.fresh())[0], hyper, tolerance=APART[case.dtype], surrogate=case.surrogate
        )
    except Unjudged as e:
        return None, str(e), False
    except TooSlow:
        raise
    except Exception as e:  # a fault of these tests: the table shows it
        return None, f"the plain run raises {type(e).__name__}: {e}", False
    return found, "", False


def verdict(case, mode, found, must_refuse):
    """One mode: a dictionary of `verdict`, and of `error` or `message`."""
    fresh = case.fresh()
    seeded(case.number)
    try:
        with within(LIMIT_S), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = hypergradient(*fresh.problem(), mode)
    except FixedPointRangeError as e:  # a run that really grows so far is refused by name
        said = "refused" if _outgrows(case, e) else "crash"
        return {"verdict": said, "message": f"{type(e).__name__}: {e}"}
    except NonFiniteError as e:
        return {"verdict": "crash" if found is not None else "not finite", "message": f"NonFiniteError: {e}"}
    except (UsageError, VerificationError) as e:
        return {"verdict": "refused", "message": f"{type(e).__name__}: {e}"}
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        return {"verdict": "crash", "message": f"{type(e).__name__}: {e} ({where.filename}:{where.lineno})"}
    said = {"engine": out.stats["engine"]} if "engine" in out.stats else {}
    if must_refuse:
        return {"verdict": "WRONG", "error": None, "message": "answered, and there is no truth", **said}
    if found is None:
        return {"verdict": "not judged", **said}
    wrong, told = error(out.grad, found.grad, found.value), out.stats.get("checks", "")
    if wrong > TOLERANCE[case.dtype] and case.surrogate and "no estimator" in told:
        plain = _plain(case)  # beside another cut an estimator may not show: what rounds is constant then
        if plain is None:
            return {"verdict": "not judged", **said}
        wrong = error(out.grad, plain.grad, plain.value)
    if wrong > TOLERANCE[case.dtype]:
        return {"verdict": "WRONG", "error": wrong, "grad": {k: v.tolist() for k, v in out.grad.items()}, **said}
    if case.surrogate and "surrogate" not in told and "no estimator" not in told and _matters(case, found):
        return {"verdict": "WRONG", "error": wrong, "message": "a surrogate, and stats do not say so", **said}
    return {"verdict": "right", "error": wrong, **said}


def _outgrows(case, error):
    """Whether a number of the plain run comes near the end of a fixed point's range; its increments may be larger."""
    largest, (parts, hyper) = 0.0, cases.doubled(case.fresh())
    rule = parts.rule

    def watched(w, slots, gradients, now, t):
        nonlocal largest
        w, slots = rule(w, slots, gradients, now, t)
        numbers = [x for x in torch.utils._pytree.tree_leaves((w, slots, gradients)) if isinstance(x, torch.Tensor)]
        largest = max(largest, *(float(x.abs().max()) for x in numbers))
        return w, slots

    seeded(case.number)
    train(parts._replace(rule=watched), hyper)
    return largest >= 2.0 ** (62 - error.radix - 6)


def candidates_right(case, found):
    """The candidates outside of the package that give the truth, with the errors of those that do not.

    They run in float64: what float32 would let pass is an error that happens to be small.
    """
    errors = {}
    for name, candidate in CANDIDATES.items():
        seeded(case.number)
        try:
            with within(LIMIT_S), warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                warnings.simplefilter("ignore")
                plain, hyper = cases.doubled(case.fresh())
                errors[name] = error(candidate(plain, hyper), found.grad, found.value)
        except Exception as e:  # a candidate that cannot is no candidate
            errors[name] = f"{type(e).__name__}: {str(e)[:80]}"
    tolerance = max(TOLERANCE[torch.float64], 10 * found.apart)
    return [k for k, v in errors.items() if isinstance(v, float) and v <= tolerance], errors


def _matters(case, found):
    """Whether the surrogate's derivative is another than that of E itself, if differences can tell."""
    plain = _plain(case)
    return plain is None or error(plain.grad, found.grad, found.value) > TOLERANCE[case.dtype]


def _plain(case):
    """The truth of E itself, in which what rounds is constant; None where differences cannot tell."""
    _, hyper = cases.doubled(case)
    try:
        seeded(0)
        return truth(lambda: cases.doubled(case.fresh())[0], hyper, tolerance=APART[case.dtype])
    except Unjudged:
        return None


def _located(case, modes):
    """Of the wrong numbers, which are those of a right training run with autograd's dE/dw."""
    wrong = [v for v in modes.values() if v["verdict"] == "WRONG" and "grad" in v]
    if not wrong or case.surrogate:
        return
    parts, hyper = cases.doubled(case.fresh())
    seeded(0)
    leaves = [
        {k: x.detach().clone().requires_grad_() for k, x in tree.items()} for tree in (train(parts, hyper), hyper)
    ]
    flat = [x for tree in leaves for x in tree.values()]
    by_flat = torch.autograd.grad(parts.outer(*map(dict, leaves)), flat, materialize_grads=True)

    def along(*trees):
        return sum((g * x).sum() for g, x in zip(by_flat, (x for tree in trees for x in tree.values()), strict=True))

    try:
        seeded(0)
        other = truth(lambda: cases.doubled(case.fresh())[0]._replace(outer=along), hyper, tolerance=APART[case.dtype])
    except Unjudged:
        return
    for v in wrong:
        grad = {k: torch.tensor(x) for k, x in v["grad"].items()}
        if error(grad, other.grad, other.value) <= TOLERANCE[case.dtype]:
            v["message"] = "only dE/dw is wrong: autograd's derivative of the outer loss was taken"


def engines_of(case):
    """Engines that are set by hand, in one case of three."""
    number = case.number
    return [ENGINES[number // 3 % len(ENGINES)]] if number % 3 == 0 else []


def judged(seed, number, engines=None):
    """The line of one case."""
    begun = time.perf_counter()
    case = cases.draw(seed, number)
    line = {
        "number": number,
        "dtype": str(case.dtype).removeprefix("torch."),
        "constructs": case.constructs,
        "defects": case.defects,
    }
    try:
        with within(LIMIT_S), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, reason, must_refuse = truth_of(case)
    except TooSlow:
        found, reason, must_refuse = None, "differences took too long", False
    if found is not None:
        line["truth"] = {k: v.tolist() for k, v in found.grad.items()}
        line |= {"value": found.value, "step": found.step, "apart": found.apart}
    line |= {"reason": reason, "must_refuse": must_refuse}
    modes = {name: made() for name, made in MODES.items()}
    for engine in engines_of(case) if engines is None else engines:
        modes[f"forward {engine}"] = Forward(engine=engine, compile=False)
    line["modes"] = {name: verdict(case, mode, found, must_refuse) for name, mode in modes.items()}
    if found is not None:
        _located(case, line["modes"])
        verdicts = [v["verdict"] for v in line["modes"].values()]
        if all(v == "right" for v in verdicts):
            line["candidate"] = True
        else:
            line["candidates"], line["errors of candidates"] = candidates_right(case, found)
            line["candidate"] = bool(line["candidates"]) or "right" in verdicts
            if not line["candidate"] and engines is None:
                for engine in ENGINES:
                    if verdict(case, Forward(engine=engine, compile=False), found, False)["verdict"] == "right":
                        line["candidate"], line["candidates"] = True, [engine]
                        break
    line["seconds"] = round(time.perf_counter() - begun, 2)
    return line
