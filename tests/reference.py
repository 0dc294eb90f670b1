"""Oracles that share no code with the package: a plain autograd unroll, central differences, torch.optim's own numbers.

The update rules below are written from the documentation of torch.optim, one tensor at a time, with every
hyperparameter an ordinary tensor in one long autograd graph.
"""

import torch

DEFAULTS = {
    "sgd": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0},
    "nesterov": {"lr": 1e-3, "momentum": 0.0, "weight_decay": 0.0},
    "adam": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    "adamw": {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 1e-2},
    "rmsprop": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0},
    "centered": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0},
}


def root(v):
    """sqrt whose derivative at exactly 0 is taken as 0."""
    return torch.where(v > 0, v.clamp_min(1e-300) ** 0.5, torch.zeros_like(v))


def sgd_step(w, g, m, t, h):
    g = g + h["weight_decay"] * w
    m = g + h["momentum"] * m if t == 0 else h["momentum"] * m + (1 - h["dampening"]) * g
    return w - h["lr"] * m, m


def nesterov_step(w, g, m, t, h):
    g = g + h["weight_decay"] * w
    m = h["momentum"] * m + g
    return w - h["lr"] * (g + h["momentum"] * m), m


def adam_step(w, g, m, t, h, decoupled=False):
    m, v = m if isinstance(m, tuple) else (m, m)
    if decoupled:
        w = w * (1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * w
    m = m + (1 - h["beta1"]) * (g - m)
    v = h["beta2"] * v + (1 - h["beta2"]) * g**2
    m_hat = m / (1 - h["beta1"] ** (t + 1))
    denominator = root(v) / torch.sqrt(1 - h["beta2"] ** (t + 1)) + h["eps"]
    return w - h["lr"] * m_hat / denominator, (m, v)


def adamw_step(w, g, m, t, h):
    return adam_step(w, g, m, t, h, decoupled=True)


def rmsprop_step(w, g, m, t, h, centered=False):
    v, average, buffer = m if isinstance(m, tuple) else (m, m, m)
    g = g + h["weight_decay"] * w
    v = h["alpha"] * v + (1 - h["alpha"]) * g**2
    spread = v
    if centered:
        average = average + (1 - h["alpha"]) * (g - average)
        spread = v - average**2
    buffer = h["momentum"] * buffer + g / (root(spread) + h["eps"])
    return w - h["lr"] * buffer, (v, average, buffer)


def centered_step(w, g, m, t, h):
    return rmsprop_step(w, g, m, t, h, centered=True)


STEPS = {name[:-5]: function for name, function in list(globals().items()) if name.endswith("_step")}


def trained(rule, problem, hyper, create_graph):
    """w_T; with a graph of the whole run if asked for. `rule` is a key of `STEPS`."""
    init = problem.init(hyper) if callable(problem.init) else problem.init
    params = {
        k: v.detach().clone().requires_grad_() if v.is_leaf and not v.requires_grad else v for k, v in init.items()
    }
    memory = {k: torch.zeros_like(v) for k, v in params.items()}
    for t in range(problem.steps):
        now = problem.schedule(hyper, t) if problem.schedule else hyper
        loss = problem.inner_loss(params, now, problem.batch(t))
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=create_graph, materialize_grads=True)
        for name, g in zip(list(params), grads, strict=True):
            h = {}
            for argument, default in DEFAULTS[rule].items():
                value = now.get(argument, getattr(problem.optimizer, argument, default))
                value = (
                    value.get(name, getattr(problem.optimizer, argument, default)) if isinstance(value, dict) else value
                )
                h[argument] = torch.as_tensor(value, dtype=g.dtype)
            params[name], memory[name] = STEPS[rule](params[name], g, memory[name], t, h)
        if not create_graph:
            params = {k: v.detach().requires_grad_() for k, v in params.items()}
    return params


def objective(problem, params, hyper):
    """E at these parameters."""
    if problem.outer_batches is None:
        return problem.outer_loss(params, hyper)
    return sum(weight * problem.outer_loss(params, hyper, batch) for batch, weight in problem.outer_batches)


def value_of(rule, problem, hyper):
    """E of a plain run: what `differences` takes, with no second derivative anywhere."""
    return objective(problem, trained(rule, problem, hyper, create_graph=False), hyper).detach()


def unroll(rule, problem, hyper):
    """E, dE/dlambda and w_T by backpropagation through the whole run. `rule` is a key of `STEPS`."""
    hyper = {k: v.detach().clone().requires_grad_() for k, v in hyper.items()}
    params = trained(rule, problem, hyper, create_graph=True)
    value = objective(problem, params, hyper)
    grads = torch.autograd.grad(value, list(hyper.values()), materialize_grads=True)
    return value.detach(), dict(zip(hyper, grads, strict=True)), {k: v.detach() for k, v in params.items()}


CENTRAL = (2e-6, {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12})  # fourth order
ONE_SIDED = (1e-8, {0: -1.5, 1: 2.0, 2: -0.5})  # second order


def differences(value_of, hyper):
    """dE/dlambda by central differences, element by element.

    At a decay of the second moment of exactly 0 the difference is one-sided: below 0 the moment itself turns negative.
    """
    grads = {}
    for name, x in hyper.items():
        grad = torch.zeros_like(x)
        for i in range(x.numel()):
            step, stencil = ONE_SIDED if name in ("beta2", "alpha") and x.view(-1)[i] == 0 else CENTRAL
            total = 0.0
            for offset, weight in stencil.items():
                moved = x.clone()
                moved.view(-1)[i] += offset * step
                total += weight * float(value_of({**hyper, name: moved}))
            grad.view(-1)[i] = total / step
        grads[name] = grad
    return grads
