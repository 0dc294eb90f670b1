"""The derivative of a training run by differences of the run itself; it shares no code with the package.

The run is a plain loop: `torch.autograd.grad` without a graph of its own, and an update rule on plain tensors. E is
differenced along every entry of lambda, in float64, by the central difference of fourth order at two step sizes a
decade apart. A difference counts only where

- every comparison, argmax, sort and rounding of the run, in its losses, its gradients and its update rule, has the
  same result at all ends as in the middle (`Recorder`), and
- the two step sizes agree.

Otherwise the steps shrink; where none is left, there is no truth (`Unjudged`).
"""

import contextlib
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

STENCIL = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}  # fourth order
LADDER = (1e-3, 1e-4, 1e-5, 1e-6)  # times the size of the entry of lambda
aten = torch.ops.aten


class Unjudged(Exception):
    """Differences cannot judge this run; the message says why."""


HELD = []  # what `held` gives again, where E is differenced along its straight-through estimators; the last one is used


def held(make):
    """What a straight-through estimator adds: no derivative goes through it, so that differences hold it still.

    Args:
        make: () -> tensor.
    """
    if not HELD:
        return make().detach()
    known, place = HELD[-1]
    if place == len(known):
        known.append(make().detach())
    HELD[-1] = known, place + 1
    return known[place]


@contextlib.contextmanager
def holding(known):
    """Inside, `held` gives what it gave before, in its order."""
    HELD.append((known, 0))
    try:
        yield
    finally:
        HELD.pop()


class Parts(NamedTuple):
    """A training run as plain functions, built anew for each use, for losses may keep counters.

    Attributes:
        init: lambda -> w_0.
        loss: (w, lambda_t, batch) -> L.
        outer: (w, lambda) -> E.
        batch: t -> batch.
        schedule: (lambda, t) -> lambda_t.
        rule: (w, slots, gradients, lambda_t, t) -> (w, slots), on dictionaries; `slots` is empty at first.
        gradient_at: (w, slots, lambda_t, t) -> where the gradient is taken.
        result: (w, slots) -> what the run yields.
        steps: T.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    outer: Callable[..., Any]
    batch: Callable[..., Any]
    schedule: Callable[..., Any]
    rule: Callable[..., Any]
    steps: int
    gradient_at: Callable[..., Any] = lambda w, slots, h, t: w
    result: Callable[..., Any] = lambda w, slots: w


def gradient(parts, w, now, batch):
    """The training gradient as training takes it."""
    leaves = {k: x.detach().clone().requires_grad_() for k, x in w.items()}
    loss = parts.loss(dict(leaves), dict(now), batch)
    grads = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return {k: g.detach() for k, g in zip(leaves, grads, strict=True)}


def train(parts, hyper, batch=None):
    """w_T."""
    w = {k: x.detach() for k, x in parts.init(dict(hyper)).items()}
    slots = {}
    for t in range(parts.steps):
        now = parts.schedule(dict(hyper), t)
        point = parts.gradient_at(dict(w), slots, dict(now), t)
        w, slots = parts.rule(w, slots, gradient(parts, point, now, (batch or parts.batch)(t)), dict(now), t)
    return {k: x.detach() for k, x in parts.result(w, slots).items()}


def objective(parts, w, hyper):
    """E at `w`; its weights ask for a gradient, as those of a model do."""
    value = parts.outer({k: x.detach().clone().requires_grad_() for k, x in w.items()}, dict(hyper))
    return value.detach()


def E(parts, hyper):
    """E at the end of the run."""
    return objective(parts, train(parts, hyper), hyper)


class Recorder(TorchDispatchMode):
    """Writes down every discrete result of the operators below it, as checksums, in their order.

    These are the outputs of integers and booleans, the results of roundings, and the side of its kink that each element
    of a piecewise operator takes.
    """

    def __init__(self):
        super().__init__()
        self.sums = []

    def note(self, x):
        x = x.double() if x.is_floating_point() else x  # a rounding to float32 of the same whole number
        self.sums.append(zlib.crc32(x.detach().contiguous().cpu().numpy().tobytes()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        side = SIDES.get(name)
        if side is not None:  # before the call: it may write into its argument
            for x in side(*args, **kwargs):
                self.note(torch.as_tensor(x))
        out = func(*args, **kwargs)
        if name in PEAKS and isinstance(out, torch.Tensor):
            x = args[0]
            self.note(x == (out if out.ndim in (x.ndim, 0) else _back(x, out, *args[1:], **kwargs)))
        if name.startswith(("empty", "new_empty")) or "philox" in name:
            return out
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (name in ROUNDINGS or not (x.is_floating_point() or x.is_complex())):
                self.note(x)
        return out


def _back(x, out, dim=None, keepdim=False, **_):
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(x.ndim))
    for d in sorted(d % x.ndim for d in dims):
        out = out.unsqueeze(d)
    return out


def _clamp(x, low=None, high=None, **named):
    low, high = named.get("min", low), named.get("max", high)
    return [x > low for low in (low,) if low is not None] + [x < high for high in (high,) if high is not None]


def _about(threshold):
    return lambda x, *rest, **named: [x > -threshold, x > threshold]


def _zero(x, *rest, **named):
    return [] if x.is_complex() else [x > 0, x < 0]


def _order(x, y, *rest, **named):
    return [x > y, x < y]


def _shrink(x, by=0.5, *rest, **named):
    by = named.get("lambd", by)
    return [x > by, x < -by]


def _loss_within(default):
    def side(x, y, reduction=1, delta=None, **named):
        delta = default if delta is None else delta
        delta = named.get("beta", named.get("delta", delta))
        return [(x - y).abs() < delta, x > y]

    return side


def _norm(x, ord=2, *rest, **named):
    if ord in (2, 4):
        return []
    return [x > 0, x.abs() == x.abs().max() if x.numel() else x > 0]


def _scattered(self, dim, index, src, reduce, **named):
    if reduce not in ("amax", "amin"):
        return []
    out = aten.scatter_reduce.two(self, dim, index, src, reduce, **named)
    return [src == out.gather(dim, index)]


def _pooled(x, *rest, **named):
    return [x.flatten(-2).argsort(-1)] if x.ndim > 1 else [x.argsort()]


def _margins(x, target, *rest, **named):
    return [x.argsort(-1), (x.unsqueeze(-1) - x.unsqueeze(-2)) > 1, (x.unsqueeze(-1) - x.unsqueeze(-2)) < -1]


SIDES = {
    **dict.fromkeys(("relu", "leaky_relu", "elu", "prelu", "_prelu_kernel", "abs", "sgn", "sign", "rrelu_with_noise"),
                    _zero),
    "threshold": lambda x, threshold, value: [x > threshold],
    "hardtanh": lambda x, low=-1, high=1: _clamp(x, low, high),
    "clamp": _clamp,
    "clamp_min": lambda x, low: [x > low],
    "clamp_max": lambda x, high: [x < high],
    **dict.fromkeys(("hardswish", "hardsigmoid"), _about(3)),
    **dict.fromkeys(("hardshrink", "softshrink"), _shrink),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), _order),
    "smooth_l1_loss": _loss_within(1.0),
    "huber_loss": _loss_within(1.0),
    "linalg_vector_norm": _norm,
    "remainder": lambda x, y: [torch.floor(x / y)],
    "fmod": lambda x, y: [torch.trunc(x / y)],
    "frac": lambda x: [torch.trunc(x)],
    "scatter_reduce": _scattered,
    "fractional_max_pool2d": _pooled,
    **dict.fromkeys(("multi_margin_loss", "multilabel_margin_loss_forward"), _margins),
    "softplus": lambda x, beta=1, threshold=20: [x * beta > threshold],
}  # fmt: skip
PEAKS = {"amax", "amin", "max", "min", "median", "nanmedian"}  # without the index of what they take
ROUNDINGS = {"round", "floor", "ceil", "trunc", "sign", "sgn", "heaviside", "floor_divide"}


def recorded(parts, hyper):
    """E and every discrete result on the way."""
    with Recorder() as recorder:
        value = E(parts, hyper)
    return float(value), recorder.sums


def to_double(tree):
    """Every floating tensor of `tree` in float64."""
    return tree_map(lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x, tree)


def error(got, want, value):
    """The largest error of an entry, relative to it, or to a hundredth of all of them where it is smaller than that."""
    got, want = (torch.cat([x[k].detach().double().flatten() for k in want]) for x in (got, want))
    if got.shape != want.shape or not got.isfinite().all():
        return math.inf
    floor = max(float(want.norm()) * 1e-2, 1e-3 * (1 + abs(value)))
    return float(((got - want).abs() / want.abs().clamp_min(floor)).max()) if want.numel() else 0.0


class Truth(NamedTuple):
    """E, dE/dlambda, the step size that counted, and how far the two step sizes are apart."""

    value: float
    grad: dict[str, torch.Tensor]
    step: float
    apart: float


def truth(build, hyper, tolerance=1e-7, surrogate=False, stencil=None, ladder=LADDER):
    """dE/dlambda by differences of the whole run.

    Args:
        build: () -> Parts, in float64, new each time.
        hyper: lambda in float64.
        tolerance: how far two step sizes may be apart, as `error` measures it.
        surrogate: what the straight-through estimators of E add stays what it is at lambda (`held`).
        stencil: offsets with their weights; None: fourth order.
        ladder: step sizes, in units of the size of an entry.

    Raises:
        Unjudged: the run is not finite, or no two step sizes count.
    """
    value, middle = recorded(build(), hyper)
    if not math.isfinite(value):
        raise Unjudged("E is not finite")
    known = []

    def measure(moved):
        """E, and the discrete results on the way to it."""
        parts = build()
        if surrogate:
            parts = parts._replace(outer=estimated(parts.outer))
        return recorded(parts, moved)

    def estimated(outer):
        def of_held(w, hyper):
            with holding(known):
                return outer(w, hyper)

        return of_held

    measure(hyper)  # holds what is rounded
    middle = measure(hyper)[1]

    def at(h):
        grad = {k: torch.zeros_like(x) for k, x in hyper.items()}
        for k, x in hyper.items():
            for i in range(x.numel()):
                size = h * max(abs(float(x.reshape(-1)[i])), 0.1)
                for offset, weight in (stencil or STENCIL).items():
                    moved = x.clone()
                    moved.view(-1)[i] += offset * size
                    found, sums = measure({**hyper, k: moved})
                    if sums != middle:
                        return None
                    grad[k].view(-1)[i] += weight * found / size
        return grad

    reason, previous = "no step size is free of kinks", None
    for h in ladder:
        now = at(h)
        if now is not None and previous is not None:
            apart = error(now, previous, value)
            if apart < tolerance:
                # The larger step has less rounding, the smaller one less truncation: that is the error of either.
                return Truth(value, previous, 10 * h, apart)
            reason = f"two step sizes differ by {apart:.1e}"
        previous = now
    raise Unjudged(reason)
