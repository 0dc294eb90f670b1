"""Ways to differentiate a run that users of torch have at hand, written without the package.

    unroll   one graph over the whole run, gradients with `create_graph` (the double backward)
    jvp      forward over reverse: `torch.func.jvp` of a step, its gradient by `torch.func.grad`
    list     the step written down by `make_fx`, with each detach removed, and jvp of that

Attention is taken by its math form: the fused one has no second derivative.

A case that one of them gets right can be answered; a package that refuses it refuses what can be had.
"""

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

aten = torch.ops.aten


def unroll(parts, hyper):
    leaves = {k: x.detach().clone().requires_grad_() for k, x in hyper.items()}
    w = {k: x if x.requires_grad else x.detach().clone().requires_grad_() for k, x in parts.init(dict(leaves)).items()}
    slots = {}
    for t in range(parts.steps):
        now = parts.schedule(dict(leaves), t)
        point = parts.gradient_at(dict(w), slots, dict(now), t)
        loss = parts.loss(dict(point), dict(now), parts.batch(t))
        grads = torch.autograd.grad(loss, list(point.values()), create_graph=True, materialize_grads=True)
        w, slots = parts.rule(w, slots, dict(zip(w, grads, strict=True)), dict(now), t)
    value = parts.outer(parts.result(w, slots), dict(leaves))
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def _tangents(parts, hyper, of_step, of_outer):
    """Forward mode, one entry of lambda after the other, by two ways to push a tangent."""
    names = list(hyper)
    grad = {}
    for name in names:
        dot = {k: torch.ones_like(x) if k == name else torch.zeros_like(x) for k, x in hyper.items()}
        w, w_dot = torch.func.jvp(lambda h: parts.init(dict(h)), (hyper,), (dot,))
        zero = {k: torch.zeros_like(x) for k, x in w.items()}
        slots, slots_dot = {}, {}
        if parts.steps:  # the names of the slots, from a step whose result is thrown away
            _, made = parts.rule(w, {}, zero, parts.schedule(dict(hyper), 0), 0)
            slots = {s: {k: torch.zeros_like(x) for k, x in w.items()} for s in made}
            slots_dot = {s: {k: torch.zeros_like(x) for k, x in w.items()} for s in made}
        for t in range(parts.steps):
            batch = parts.batch(t)

            def step(w, slots, h, t=t, batch=batch):
                now = parts.schedule(dict(h), t)
                point = parts.gradient_at(dict(w), slots, dict(now), t)
                return parts.rule(w, slots, of_step.gradient(parts, point, now, batch), dict(now), t)

            (w, slots), (w_dot, slots_dot) = of_step.push(step, (w, slots, hyper), (w_dot, slots_dot, dot))
        _, e_dot = of_outer.push(
            lambda w, slots, h: parts.outer(parts.result(w, slots), dict(h)),
            (w, slots, hyper),
            (w_dot, slots_dot, dot),
        )
        grad[name] = e_dot
    return grad


class Live:
    """`torch.func` as it stands."""

    @staticmethod
    def gradient(parts, w, now, batch):
        return torch.func.grad(lambda p: parts.loss(dict(p), dict(now), batch))(w)

    @staticmethod
    def push(f, point, dot):
        return torch.func.jvp(f, point, dot)


class List:
    """The operators below autograd, written down."""

    @staticmethod
    def gradient(parts, w, now, batch):
        leaves = {k: x.detach().requires_grad_() for k, x in w.items()}
        loss = parts.loss(dict(leaves), dict(now), batch)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True), strict=True))

    @staticmethod
    def push(f, point, dot):
        flat, spec = tree_flatten(point)
        flat_dot = tree_flatten(dot)[0]
        out_spec = None

        def flattened(*xs):
            nonlocal out_spec
            out, out_spec = tree_flatten(f(*tree_unflatten(list(xs), spec)))
            return [x.detach() for x in out]

        graph = make_fx(flattened, tracing_mode="real")(*flat)
        for node in list(graph.graph.nodes):
            if node.target is aten.detach.default:
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.recompile()
        value, value_dot = torch.func.jvp(lambda *xs: tuple(graph(*xs)), tuple(flat), tuple(flat_dot))
        return tree_unflatten(list(value), out_spec), tree_unflatten(list(value_dot), out_spec)


class AutogradOuter:
    """E by one backward: what every mode of the package needs of it."""

    @staticmethod
    def push(f, point, dot):
        flat, spec = tree_flatten(point)
        leaves = [x.detach().clone().requires_grad_() for x in flat]
        value = f(*tree_unflatten(leaves, spec))
        grads = torch.autograd.grad(value, leaves, materialize_grads=True)
        return value.detach(), sum((g * x).sum() for g, x in zip(grads, tree_flatten(dot)[0], strict=True))


CANDIDATES = {
    "unroll": unroll,
    "jvp": lambda parts, hyper: _tangents(parts, hyper, Live, AutogradOuter),
    "list": lambda parts, hyper: _tangents(parts, hyper, List, AutogradOuter),
    "list, and of E": lambda parts, hyper: _tangents(parts, hyper, List, List),
}
