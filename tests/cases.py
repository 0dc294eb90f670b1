"""One table of problems: every optimizer, schedule and group, at interior values and on the boundary."""

from functools import cache

import torch

from hyperopt_cli import Problem, hypergradient, optimizers

F64 = torch.float64
T = 12


def scalar(x):
    return torch.tensor(x, dtype=F64)


def net_problem(optimizer, schedule=None, init=None, steps=T, outer_batches=True):
    """A tanh network on a teacher's data, mini-batches of 5, with an L2 penalty where lambda names it."""
    gen = torch.Generator().manual_seed(3)
    x, y = torch.randn(40, 4, generator=gen, dtype=F64), torch.randn(40, 2, generator=gen, dtype=F64)
    w0 = {
        "a.weight": torch.randn(6, 4, generator=gen, dtype=F64) / 2,
        "a.bias": torch.randn(6, generator=gen, dtype=F64) / 10,
        "b.weight": torch.randn(2, 6, generator=gen, dtype=F64) / 2,
    }

    def output(params, inputs):
        return torch.tanh(inputs @ params["a.weight"].T + params["a.bias"]) @ params["b.weight"].T

    def inner_loss(params, hyper, batch):
        inputs, targets = batch
        loss = ((output(params, inputs) - targets) ** 2).mean()
        if "l2" in hyper:
            l2 = hyper["l2"]
            for name, w in params.items():
                loss = loss + (l2[name] if isinstance(l2, dict) else l2) * (w**2).sum() / 2
        return loss

    def outer_loss(params, hyper, batch=(x[25:], y[25:])):
        loss = ((output(params, batch[0]) - batch[1]) ** 2).mean()
        return loss * (1 + hyper["direct"] ** 2) if "direct" in hyper else loss

    def batch(t):
        i = (5 * t) % 25
        return x[i : i + 5], y[i : i + 5]

    chunks = [((x[25:32], y[25:32]), 7 / 15), ((x[32:], y[32:]), 8 / 15)]  # ragged
    return Problem(
        init if init is not None else w0,
        inner_loss,
        outer_loss,
        batch,
        optimizer,
        steps,
        schedule,
        chunks if outer_batches else None,
    )


def windows(hyper, t):
    n = hyper["lr"].shape[0]
    return {**hyper, "lr": hyper["lr"][t * n // T]}


def per_step(hyper, t):
    return {**hyper, "lr": hyper["lr"][t]}


def knots(hyper, t):
    u = t / (T - 1) * (hyper["lr"].shape[0] - 1)
    i = min(int(u), hyper["lr"].shape[0] - 2)
    return {**hyper, "lr": hyper["lr"][i] * (1 - (u - i)) + hyper["lr"][i + 1] * (u - i)}


def cosine(hyper, t):
    share = torch.as_tensor((t + 0.5) / T, dtype=F64)
    down = 0.5 * (1 + torch.cos(torch.pi * (share - hyper["warmup"]) / (1 - hyper["warmup"])))
    shape = torch.where(share < hyper["warmup"], share / hyper["warmup"], hyper["final"] + (1 - hyper["final"]) * down)
    return {"lr": hyper["lr"] * shape, "momentum": hyper["momentum"]}


def per_tensor(hyper, t):
    names = ["a.weight", "a.bias", "b.weight"]
    return {
        "lr": {name: hyper["lr"][i] for i, name in enumerate(names)},
        "weight_decay": {"a.weight": hyper["weight_decay"][0], "b.weight": hyper["weight_decay"][1]},
        "l2": {name: hyper["l2"][0 if name[0] == "a" else 1] for name in names},
    }


def per_weight(hyper, t):
    return {"weight_decay": {"b.weight": hyper["weight_decay"]}, "lr": hyper["lr"]}


def late(hyper, t):
    return {"lr": hyper["late"] if t >= 7 else scalar(0.05)}


def scaled_init(hyper):
    gen, scale = torch.Generator().manual_seed(5), hyper["init_scale"]
    return {
        "a.weight": scale * torch.randn(6, 4, generator=gen, dtype=F64).to(scale.device),
        "a.bias": torch.zeros(6, dtype=F64, device=scale.device),
        "b.weight": scale * torch.randn(2, 6, generator=gen, dtype=F64).to(scale.device),
    }


S = optimizers.SGD
CASES = {
    # name: (rule of the reference, problem, hyper)
    "sgd": ("sgd", net_problem(S()), {"lr": scalar(0.1)}),
    "sgd weight decay at 0": ("sgd", net_problem(S()), {"lr": scalar(0.1), "weight_decay": scalar(0.0)}),
    "momentum": ("sgd", net_problem(S()), {"lr": scalar(0.1), "momentum": scalar(0.9), "weight_decay": scalar(0.01)}),
    "momentum at 0": (
        "sgd",
        net_problem(S()),
        {"lr": scalar(0.1), "momentum": scalar(0.0), "weight_decay": scalar(0.0)},
    ),
    "fixed momentum": ("sgd", net_problem(S(momentum=0.8, weight_decay=0.02)), {"lr": scalar(0.1)}),
    "dampening": (
        "sgd",
        net_problem(S(momentum=0.9)),
        {"lr": scalar(0.1), "momentum": scalar(0.7), "dampening": scalar(0.3)},
    ),
    "dampening at 0": ("sgd", net_problem(S(momentum=0.9)), {"lr": scalar(0.1), "dampening": scalar(0.0)}),
    "nesterov": (
        "nesterov",
        net_problem(S(nesterov=True)),
        {"lr": scalar(0.1), "momentum": scalar(0.9), "weight_decay": scalar(0.01)},
    ),
    "nesterov at 0": (
        "nesterov",
        net_problem(S(nesterov=True)),
        {"lr": scalar(0.1), "momentum": scalar(0.0), "weight_decay": scalar(0.0)},
    ),
    "adam": (
        "adam",
        net_problem(optimizers.Adam()),
        {
            "lr": scalar(0.05),
            "beta1": scalar(0.8),
            "beta2": scalar(0.95),
            "eps": scalar(1e-3),
            "weight_decay": scalar(0.1),
        },
    ),
    "adam at 0": (
        "adam",
        net_problem(optimizers.Adam()),
        {
            "lr": scalar(0.05),
            "beta1": scalar(0.0),
            "beta2": scalar(0.0),
            "weight_decay": scalar(0.0),
            "eps": scalar(0.1),
        },
    ),
    "adam defaults": ("adam", net_problem(optimizers.Adam(beta1=0.7)), {"lr": scalar(0.05)}),
    "adamw": (
        "adamw",
        net_problem(optimizers.AdamW()),
        {
            "lr": scalar(0.05),
            "beta1": scalar(0.8),
            "beta2": scalar(0.95),
            "eps": scalar(1e-3),
            "weight_decay": scalar(0.1),
        },
    ),
    "adamw at 0": (
        "adamw",
        net_problem(optimizers.AdamW()),
        {
            "lr": scalar(0.05),
            "beta1": scalar(0.0),
            "beta2": scalar(0.0),
            "eps": scalar(0.1),
            "weight_decay": scalar(0.0),
        },
    ),
    "rmsprop": (
        "rmsprop",
        net_problem(optimizers.RMSprop()),
        {
            "lr": scalar(0.01),
            "alpha": scalar(0.9),
            "eps": scalar(1e-3),
            "momentum": scalar(0.5),
            "weight_decay": scalar(0.1),
        },
    ),
    "rmsprop at 0": (
        "rmsprop",
        net_problem(optimizers.RMSprop()),
        {
            "lr": scalar(0.01),
            "alpha": scalar(0.0),
            "eps": scalar(0.1),
            "momentum": scalar(0.0),
            "weight_decay": scalar(0.0),
        },
    ),
    "rmsprop plain": ("rmsprop", net_problem(optimizers.RMSprop(alpha=0.9, eps=1e-3)), {"lr": scalar(0.01)}),
    "rmsprop centered": (
        "centered",
        net_problem(optimizers.RMSprop(centered=True)),
        {"lr": scalar(0.01), "alpha": scalar(0.9), "eps": scalar(1e-3), "momentum": scalar(0.5)},
    ),
    "windows": (
        "sgd",
        net_problem(S(), windows),
        {"lr": torch.tensor([0.1, 0.2, 0.05], dtype=F64), "momentum": scalar(0.5)},
    ),
    "per step": (
        "adam",
        net_problem(optimizers.Adam(eps=1e-3), per_step),
        {"lr": torch.linspace(0.1, 0.01, T, dtype=F64)},
    ),
    "knots": ("sgd", net_problem(S(), knots), {"lr": torch.tensor([0.1, 0.2, 0.05, 0.1], dtype=F64)}),
    "cosine": (
        "sgd",
        net_problem(S(), cosine),
        {"lr": scalar(0.2), "warmup": scalar(0.3), "final": scalar(0.0), "momentum": scalar(0.9)},
    ),
    "per tensor": (
        "sgd",
        net_problem(S(), per_tensor),
        {
            "lr": torch.tensor([0.1, 0.2, 0.05], dtype=F64),
            "weight_decay": torch.tensor([0.0, 0.1], dtype=F64),
            "l2": torch.tensor([0.0, 0.1], dtype=F64),
        },
    ),
    "per weight": (
        "adamw",
        net_problem(optimizers.AdamW(eps=1e-3), per_weight),
        {"lr": scalar(0.05), "weight_decay": torch.linspace(0, 0.1, 12, dtype=F64).reshape(2, 6)},
    ),
    "late": ("sgd", net_problem(S(), late), {"late": scalar(0.1)}),
    "init": ("sgd", net_problem(S(momentum=0.9), init=scaled_init), {"lr": scalar(0.1), "init_scale": scalar(0.4)}),
    "init alone": ("adam", net_problem(optimizers.Adam(eps=1e-3), init=scaled_init), {"init_scale": scalar(0.4)}),
    "losses": (
        "sgd",
        net_problem(S(), outer_batches=False),
        {"lr": scalar(0.1), "l2": scalar(0.0), "direct": scalar(0.3)},
    ),
    "one step": ("adam", net_problem(optimizers.Adam(), steps=1), {"lr": scalar(0.05), "beta2": scalar(0.9)}),
    "one step of momentum": ("sgd", net_problem(S(), steps=1), {"lr": scalar(0.05), "momentum": scalar(0.9)}),
}


@cache
def hypergradient_of(case, mode):
    """That of a case in a mode as its word has it: several tests of one process ask for the same."""
    _, problem, hyper = CASES[case]
    return hypergradient(problem, hyper, mode)
