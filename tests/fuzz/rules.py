"""Update rules: those of the package written once more on plain tensors, and rules as users write them, with defects.

A rule is `(w, slots, g, h, t) -> (w, slots)` on dictionaries. Those of the package are written from the documentation
of torch.optim; those of one's own are the user's code, which the package calls through `Own`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hyperopt_cli import optimizers

DEFAULTS = {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.99, "eps": 1e-2, "alpha": 0.9}


def zeros(w):
    return {k: torch.zeros_like(x) for k, x in w.items()}


def _argument(h, fixed, name):
    return h.get(name, fixed.get(name, DEFAULTS[name]))


def sgd(fixed):
    def rule(w, slots, g, h, t):
        lr, momentum, decay = (_argument(h, fixed, name) for name in ("lr", "momentum", "weight_decay"))
        m = slots.get("m") or zeros(w)
        m = {k: momentum * m[k] + g[k] + decay * w[k] for k in w}
        if fixed.get("nesterov"):
            return {k: w[k] - lr * (g[k] + decay * w[k] + momentum * m[k]) for k in w}, {"m": m}
        return {k: w[k] - lr * m[k] for k in w}, {"m": m}

    return rule


def adam(fixed, decoupled=False):
    def rule(w, slots, g, h, t):
        names = ("lr", "beta1", "beta2", "eps", "weight_decay")
        lr, beta1, beta2, eps, decay = (_argument(h, fixed, name) for name in names)
        m, v = slots.get("m") or zeros(w), slots.get("v") or zeros(w)
        if decoupled:
            w = {k: x * (1 - lr * decay) for k, x in w.items()}
        else:
            g = {k: x + decay * w[k] for k, x in g.items()}
        m = {k: beta1 * m[k] + (1 - beta1) * g[k] for k in w}
        v = {k: beta2 * v[k] + (1 - beta2) * g[k] ** 2 for k in w}
        first, second = 1 - beta1 ** (t + 1), 1 - beta2 ** (t + 1)
        w = {k: w[k] - lr * (m[k] / first) / ((v[k] / second) ** 0.5 + eps) for k in w}
        return w, {"m": m, "v": v}

    return rule


def rmsprop(fixed):
    def rule(w, slots, g, h, t):
        names = ("lr", "alpha", "eps", "momentum", "weight_decay")
        lr, alpha, eps, momentum, decay = (_argument(h, fixed, name) for name in names)
        v, b = slots.get("v") or zeros(w), slots.get("b") or zeros(w)
        g = {k: x + decay * w[k] for k, x in g.items()}
        v = {k: alpha * v[k] + (1 - alpha) * g[k] ** 2 for k in w}
        b = {k: momentum * b[k] + g[k] / (v[k] ** 0.5 + eps) for k in w}
        return {k: w[k] - lr * b[k] for k in w}, {"v": v, "b": b}

    return rule


# name: (the package's, the plain rule, lambda)
GIVEN = {
    "SGD": (lambda: optimizers.SGD(), sgd({}), {"lr": 0.1}),
    "SGD, momentum": (lambda: optimizers.SGD(), sgd({}), {"lr": 0.07, "momentum": 0.6}),
    "SGD, decay": (
        lambda: optimizers.SGD(momentum=0.5),
        sgd({"momentum": 0.5}),
        {"lr": 0.07, "weight_decay": 0.05},
    ),
    "SGD, Nesterov": (
        lambda: optimizers.SGD(nesterov=True),
        sgd({"nesterov": True}),
        {"lr": 0.06, "momentum": 0.6, "weight_decay": 0.03},
    ),
    "Adam": (lambda: optimizers.Adam(beta2=0.99, eps=1e-2), adam({}), {"lr": 0.03, "beta1": 0.8}),
    "AdamW": (
        lambda: optimizers.AdamW(beta2=0.99, eps=1e-2, weight_decay=0.0),
        adam({}, decoupled=True),
        {"lr": 0.03, "weight_decay": 0.1, "beta2": 0.95},
    ),
    "RMSprop": (lambda: optimizers.RMSprop(alpha=0.9, eps=1e-2), rmsprop({}), {"lr": 0.02, "alpha": 0.9}),
}


# ---- rules of one's own


def _global_norm(g):
    return torch.stack([x.square().sum() for x in g.values()]).sum().sqrt()


def _ball(w, slots, g, h, scale=1.0):
    m = {k: 0.5 * slots["m"][k] + scale * g[k] for k in w}
    return {k: w[k] - h["lr"] * m[k] for k in w}, {"m": m}


def squashed(w, slots, g, h, t):
    return _ball(w, slots, {k: torch.tanh(3 * x) for k, x in g.items()}, h)


def warmed_up(w, slots, g, h, t):
    return _ball(w, slots, g, h, (t + 1) / (t + 3))


def clipped(w, slots, g, h, t):
    return _ball(w, slots, g, h, 1 / (1 + _global_norm(g)))


def clipped_by_item(w, slots, g, h, t):
    return _ball(w, slots, g, h, 1 / (0.3 + _global_norm(g).item()))


def clipped_by_float(w, slots, g, h, t):
    size = float(_global_norm(g))
    return _ball(w, slots, g, h, min(1.0, 0.3 / size) if size else 1.0)


def trust_ratio(w, slots, g, h, t):
    with torch.no_grad():
        ratio = {k: (w[k].norm() + 0.1) / (g[k].norm() + 0.5) for k in w}
    return _ball(w, slots, {k: ratio[k] * g[k] for k in w}, h)


def second_moment_detached(w, slots, g, h, t):
    v = {k: 0.9 * slots["m"][k] + 0.1 * g[k].detach() ** 2 for k in w}
    return {k: w[k] - h["lr"] * g[k] / (0.1 + v[k].sqrt()) for k in w}, {"m": v}


def normalised_without_grad(w, slots, g, h, t):
    with torch.no_grad():
        mean = {k: x.mean() for k, x in g.items()}
    return _ball(w, slots, {k: g[k] - mean[k] for k in w}, h)


def late_no_grad(w, slots, g, h, t):
    if t < 2:
        return _ball(w, slots, g, h)
    with torch.no_grad():
        scale = 1 / (0.5 + _global_norm(g))
    return _ball(w, slots, g, h, scale)


def decay_by_item(w, slots, g, h, t):
    new, slots = _ball(w, slots, g, h)
    return {k: x * (1 - 0.1 * float(h["lr"])) for k, x in new.items()}, slots


def momentum_detached(w, slots, g, h, t):
    m = {k: 0.5 * slots["m"][k].detach() + g[k] for k in w}
    return {k: w[k] - h["lr"] * m[k] for k in w}, {"m": m}


def softsign(w, slots, g, h, t):
    m = {k: 0.5 * slots["m"][k] + g[k] for k in w}
    return {k: w[k] - h["lr"] * m[k].sign() * 0.3 - 0.1 * h["lr"] * w[k] for k in w}, {"m": m}


OWN = {
    "own rule: squashed": squashed,
    "own rule: warm-up": warmed_up,
    "own rule: clipped": clipped,
    "own rule: sign": softsign,
    "own rule: clipped by item": clipped_by_item,
    "own rule: clipped by float": clipped_by_float,
    "own rule: no_grad trust ratio": trust_ratio,
    "own rule: detached second moment": second_moment_detached,
    "own rule: no_grad mean": normalised_without_grad,
    "own rule: no_grad later": late_no_grad,
    "own rule: decay by item": decay_by_item,
    "own rule: detached momentum": momentum_detached,
    "own rule: detach in gradient_at": squashed,
    "own rule: detach in result": squashed,
}


def look_ahead(w, slots, h, t):
    return {k: x + 0.1 * torch.tanh(x).detach() * x for k, x in w.items()}


def averaged(w, slots):
    return {k: x - 0.3 * x.detach() * slots["m"][k] for k, x in w.items()}


@dataclass(frozen=True)
class Own(optimizers.InnerOptimizer):
    """A rule of one's own, as the package takes it."""

    elementwise: ClassVar[bool] = False

    lr: float = 1e-3
    rule: Callable[..., Any] = squashed

    def slots(self, params, driven):
        return {"m": zeros(params)}

    def update(self, params, slots, grads, hyper, step):
        return self.rule(params, slots, grads, hyper, step)


class LooksAhead(Own):
    def gradient_at(self, params, slots, hyper, step):
        return look_ahead(params, slots, hyper, step)


class Averages(Own):
    def result(self, params, slots):
        return averaged(params, slots)


def with_slots(rule):
    """The same with its first slot of zeros, which the package asks `slots` for."""
    return lambda w, slots, g, h, t: rule(w, slots or {"m": zeros(w)}, g, h, t)
