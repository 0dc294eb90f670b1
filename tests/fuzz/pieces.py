"""What the losses of the fuzzer are made of: operators, and the defects that real losses have.

Each is a factory, `(Draw) -> (z, site) -> z`: it draws its constants once, and the function that it returns maps a
tensor [n, m] to one of the same shape. `site` holds the batch and the hyperparameters of the call. Constants are made
in float64 and cast to z, so that the same piece runs in float32 and, for the truth, in float64.
"""

import random
import secrets
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tests.fuzz.truth import HELD, held


class Draw:
    """Constants of one case: the same for the same seed."""

    def __init__(self, seed, n, m, steps):
        self.random = random.Random(seed)
        self.gen = torch.Generator().manual_seed(self.random.getrandbits(32))
        self.n, self.m, self.steps = n, m, steps

    def normal(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.gen, dtype=torch.float64) * scale

    def ints(self, below, *shape):
        return torch.randint(below, shape, generator=self.gen)

    def uniform(self, low, high):
        return self.random.uniform(low, high)

    def choice(self, options):
        return self.random.choice(list(options))


class Site(NamedTuple):
    """Where a piece is called: the batch (a dictionary; {} in the outer loss), lambda_t, and the weights."""

    batch: dict[str, Any]
    hyper: dict[str, Any]
    params: dict[str, Any]


SMOOTH, KINKED, LINALG, DEFECTS, SEEDED, UNSEEDED, SURROGATES = {}, {}, {}, {}, {}, {}, {}


def into(table, name):
    def add(factory):
        table[name] = factory
        return factory

    return add


def simple(table, **functions):
    for name, function in functions.items():
        table[name] = lambda d, f=function: lambda z, s: f(z)


# ---- smooth operators

simple(
    SMOOTH,
    tanh=torch.tanh,
    sigmoid=torch.sigmoid,
    gelu=F.gelu,
    gelu_tanh=lambda z: F.gelu(z, approximate="tanh"),
    silu=F.silu,
    mish=F.mish,
    softplus=F.softplus,
    logsigmoid=F.logsigmoid,
    softsign=lambda z: z / (1 + z**2).sqrt(),
    sin=torch.sin,
    cos=torch.cos,
    exp=lambda z: torch.exp(0.3 * z),
    expm1=lambda z: torch.expm1(0.3 * z),
    log1p=lambda z: torch.log1p(z**2),
    sqrt=lambda z: torch.sqrt(z**2 + 0.1),
    rsqrt=lambda z: z * torch.rsqrt(z**2 + 0.5),
    reciprocal=lambda z: 1 / (1.5 + torch.tanh(z)),
    erf=torch.erf,
    atan=torch.atan,
    atan2=lambda z: torch.atan2(z, 1 + z**2),
    hypot=lambda z: torch.hypot(z, torch.ones_like(z)),
    pow3=lambda z: 0.2 * torch.tanh(z) ** 3 + z,
    float_pow=lambda z: torch.pow(z**2 + 0.3, 0.7),
    lgamma=lambda z: torch.lgamma(2 + torch.tanh(z)),
    digamma=lambda z: torch.digamma(2 + torch.tanh(z)),
    erfinv=lambda z: torch.erfinv(0.5 * torch.tanh(z)),
    sinc=torch.sinc,
    xlogy=lambda z: torch.xlogy(z, 1.5 + torch.tanh(z)),
    logaddexp=lambda z: torch.logaddexp(z, -0.5 * z),
    logit=lambda z: torch.logit(0.25 + 0.5 * torch.sigmoid(z)),
    softmax=lambda z: 3 * F.softmax(z, 1),
    log_softmax=lambda z: F.log_softmax(z, 1),
    logsumexp=lambda z: z - torch.logsumexp(z, 1, keepdim=True),
    cumsum=lambda z: 0.5 * torch.cumsum(z, 1),
    layer_norm=lambda z: F.layer_norm(z, z.shape[1:]),
    rms_norm=lambda z: F.rms_norm(z, z.shape[1:], eps=1e-3),
    group_norm=lambda z: F.group_norm(z.unsqueeze(-1).expand(*z.shape, 2) * torch.tensor([1.0, 0.5]).to(z), 1).sum(-1),
    instance_norm=lambda z: F.instance_norm(z.unsqueeze(0)).squeeze(0),
    batch_norm=lambda z: F.batch_norm(z, None, None, training=True),
    normalize=lambda z: F.normalize(z + 0.1, dim=1) * 2,
    variance=lambda z: z * torch.var(z, 1, keepdim=True),
    deviation=lambda z: z / (0.5 + torch.std(z, 0, keepdim=True)),
    norm=lambda z: z / (0.5 + z.norm()),
    gram=lambda z: torch.tanh(z @ z.T @ z),
    einsum=lambda z: 0.3 * torch.einsum("ij,kj->ik", z, z) @ z,
    cdist=lambda z: z * torch.cdist(z, z.flip(0) + 1).mean(),
    avg_pool=lambda z: z + F.avg_pool1d(z.unsqueeze(0), 2).repeat_interleave(2, 2).squeeze(0).sum() * 0.1,
    interpolate=lambda z: F.interpolate(z.unsqueeze(0), size=z.shape[1] + 2, mode="linear")[0, :, 1:-1],
    fft=lambda z: torch.fft.irfft(torch.fft.rfft(z, dim=1) * 0.7, n=z.shape[1], dim=1) + 0.3 * z,
    fft_abs=lambda z: z + 0.1 * torch.fft.rfft(z + 2, dim=1).abs().sum(),
    roll=lambda z: z + 0.5 * z.roll(1, 1) * z,
    checkpoint=lambda z: torch.utils.checkpoint.checkpoint(torch.tanh, z, use_reentrant=False),
    sdpa=lambda z: F.scaled_dot_product_attention(z[None, None], z.flip(0)[None, None], z[None, None] * 0.5)[0, 0],
    sdpa_causal=lambda z: F.scaled_dot_product_attention(z[None], z[None], z[None], is_causal=True)[0],
    kl=lambda z: z * F.kl_div(F.log_softmax(z, 1), F.softmax(z.flip(1), 1), reduction="sum"),
    index_add=lambda z: z.index_add(1, torch.tensor([0, 1, 0]), torch.tanh(z[:, :3])),
    masked_scatter=lambda z: torch.where(torch.arange(z.shape[1]) % 2 == 0, z * 2, z.sin()),
    pdist=lambda z: z * torch.pdist(z + torch.arange(z.shape[0]).to(z)[:, None]).mean(),
    complex_abs=lambda z: torch.complex(z, z.flip(1) + 3).abs(),
    unfold=lambda z: z * z.unfold(1, 2, 1).prod(-1).mean(),
    diff=lambda z: z + torch.diff(z, dim=1).square().mean(),
    trapezoid=lambda z: z * torch.trapezoid(z, dim=1).mean(),
    celu_smooth=lambda z: F.softplus(z, beta=2.0),
)


@into(SMOOTH, "linear")
def linear(d):
    weight, bias = d.normal(d.m, d.m, scale=0.5), d.normal(d.m, scale=0.2)
    return lambda z, s: F.linear(z, weight.to(z), bias.to(z))


@into(SMOOTH, "conv1d")
def conv1d(d):
    kernel = d.normal(1, 1, 3, scale=0.5)
    return lambda z, s: F.conv1d(z.unsqueeze(1), kernel.to(z), padding=1).squeeze(1)


@into(SMOOTH, "bilinear")
def bilinear(d):
    weight = d.normal(d.m, d.m, d.m, scale=0.2)
    return lambda z, s: F.bilinear(torch.tanh(z), z, weight.to(z))


@into(SMOOTH, "own function")
def right_function(d):
    """A Function whose backward is right, and differentiable."""
    return lambda z, s: Right.apply(z)


@into(SMOOTH, "penalty of a hyperparameter")
def penalty(d):
    return lambda z, s: z * (1 + s.hyper["c"]) if "c" in s.hyper else z * 1.1


# ---- operators with kinks

simple(
    KINKED,
    relu=F.relu,
    relu6=lambda z: F.relu6(3 * z),
    leaky_relu=lambda z: F.leaky_relu(z, 0.1),
    elu=F.elu,
    selu=F.selu,
    celu=lambda z: F.celu(z, 0.7),
    hardtanh=F.hardtanh,
    hardswish=F.hardswish,
    hardsigmoid=lambda z: F.hardsigmoid(3 * z),
    softshrink=lambda z: F.softshrink(z, 0.2),
    hardshrink=lambda z: F.hardshrink(z, 0.2),
    threshold=lambda z: F.threshold(z, 0.1, 0.1),
    abs=torch.abs,
    clamp=lambda z: z.clamp(-0.7, 0.9),
    maximum=lambda z: torch.maximum(z, z.flip(1) * 0.5),
    where=lambda z: torch.where(z > 0, z**2, -z),
    masked_fill=lambda z: z.masked_fill(z < -0.5, 0.0),
    amax=lambda z: z - z.amax(1, keepdim=True),
    max_values=lambda z: z - 0.5 * z.max(1, keepdim=True).values,
    max_pool=lambda z: z + 0.2 * F.max_pool1d(z.unsqueeze(0), 2).sum(),
    adaptive_max_pool=lambda z: z * F.adaptive_max_pool1d(z.unsqueeze(0), 2).mean(),
    sort=lambda z: z.sort(1).values * torch.linspace(0.5, 1.5, z.shape[1]).to(z),
    topk=lambda z: z + z.topk(2, 1).values.square().sum(1, keepdim=True),
    median=lambda z: z - z.median(1, keepdim=True).values,
    kthvalue=lambda z: z * z.kthvalue(2, 1, keepdim=True).values,
    quantile=lambda z: z - torch.quantile(z, 0.4, dim=1, keepdim=True),
    cummax=lambda z: z + 0.5 * z.cummax(1).values,
    aminmax=lambda z: z / (1 + z.aminmax().max - z.aminmax().min),
    smooth_l1=lambda z: z + F.smooth_l1_loss(z, z.flip(1) * 0.3, beta=0.5),
    huber=lambda z: z + F.huber_loss(z, torch.zeros_like(z), delta=0.4),
    norm_l1=lambda z: z * z.norm(p=1) * 0.1,
    remainder=lambda z: torch.remainder(z, 0.9),
    frac=lambda z: z + torch.frac(2 * z),
    rounded=lambda z: z * (1 + torch.round(z)),
    floor=lambda z: z + 0.3 * torch.floor(3 * z) * z,
    argmax_gather=lambda z: z + z.gather(1, z.argmax(1, keepdim=True)),
    one_hot_max=lambda z: z * F.one_hot(z.argmax(1), z.shape[1]).to(z) + z,
    sorted_indices=lambda z: z[:, z.sum(0).argsort()],
    scatter_amax=lambda z: z.scatter_reduce(1, torch.zeros_like(z, dtype=torch.long), z * 1.5, "amax"),
)


# ---- linear algebra with factors of which autograd knows nothing, and other operators with doubtful second derivatives


def _matrix(z):
    a = torch.tanh(z[:3, :3])
    return 2 * torch.eye(3).to(z) + 0.4 * a


def _spd(z):
    a = _matrix(z)
    return a @ a.T


for _name, _f in {
    "det": lambda z: torch.linalg.det(_matrix(z)),
    "slogdet": lambda z: torch.linalg.slogdet(_matrix(z))[1],
    "logdet": lambda z: torch.logdet(_spd(z)),
    "solve": lambda z: torch.linalg.solve(_matrix(z), z[:3, :2]).square().sum(),
    "solve from the right": lambda z: torch.linalg.solve(_matrix(z), z[:2, :3], left=False).square().sum(),
    "inv": lambda z: torch.linalg.inv(_matrix(z)).sum(),
    "pinv": lambda z: torch.linalg.pinv(_matrix(z)).sin().sum(),
    "cholesky": lambda z: torch.linalg.cholesky(_spd(z)).sum(),
    "cholesky_inverse": lambda z: torch.cholesky_inverse(torch.linalg.cholesky(_spd(z))).sum(),
    "cholesky_solve": lambda z: torch.cholesky_solve(z[:3, :2], torch.linalg.cholesky(_spd(z))).square().sum(),
    "triangular": lambda z: torch.linalg.solve_triangular(_matrix(z).triu(), z[:3, :2], upper=True).square().sum(),
    "lu_factor": lambda z: torch.linalg.lu_factor(_matrix(z))[0].diagonal().abs().log().sum(),
    "lu_solve": lambda z: torch.linalg.lu_solve(*torch.linalg.lu_factor(_matrix(z)), z[:3, :2]).square().sum(),
    "eigvalsh": lambda z: torch.linalg.eigvalsh(_spd(z) + torch.diag(torch.arange(3.0)).to(z)).log().sum(),
    "svdvals": lambda z: torch.linalg.svdvals(_matrix(z) + torch.diag(torch.arange(3.0)).to(z)).square().log().sum(),
    "qr": lambda z: torch.linalg.qr(_matrix(z)).R.diagonal().square().log().sum(),
    "matrix_exp": lambda z: torch.linalg.matrix_exp(0.3 * _matrix(z)).sum(),
    "lstsq": lambda z: torch.linalg.lstsq(_matrix(z), z[:3, :2]).solution.square().sum(),
    "householder": lambda z: torch.linalg.householder_product(
        torch.tril(_matrix(z), -1) + torch.eye(3).to(z), torch.tanh(z[0, :2])
    ).sum(),
    "matrix_power": lambda z: torch.linalg.matrix_power(0.4 * _matrix(z), 3).sum(),
    "scatter_reduce prod": lambda z: z.scatter_reduce(
        1, torch.tensor([[0, 0, 1]]).expand(z.shape[0], 3), z[:, :3] + 1, "prod", include_self=False
    ).square().mean(),
    "scatter_reduce mean": lambda z: z.scatter_reduce(
        1, torch.tensor([[0, 0, 1]]).expand(z.shape[0], 3), z[:, :3].sin(), "mean"
    ).square().mean(),
    "cumprod through zero": lambda z: (torch.cumprod(z * (torch.arange(z.shape[1]) != 1), 1) + z).square().mean(),
    "prod through zero": lambda z: torch.prod(z * (torch.arange(z.shape[1]) != 1).to(z) + 0.0, 1).sum()
    + torch.prod(1 + 0.3 * z, 1).mean(),
    "prod of a zero": lambda z: torch.prod(z - z.detach()[:, :1], 1).mean(),
    "cumprod": lambda z: torch.cumprod(1 + 0.5 * z, 1).square().mean(),
    "logcumsumexp": lambda z: torch.logcumsumexp(z, 1).mean(),
    "logcumsumexp of spread values": lambda z: torch.logcumsumexp(
        z[:, :3] * torch.tensor([-60.0, 2.0, 90.0]).to(z), 1
    ).mean()
    * 0.02,
    "norm at zero": lambda z: torch.linalg.vector_norm(z * 0.0) + z.square().mean(),
    "renorm": lambda z: torch.renorm(z, 2, 0, 0.5).square().sum(),
    "ctc": lambda z: F.ctc_loss(
        F.log_softmax(z.unsqueeze(1), 2), torch.tensor([[1]]), torch.tensor([z.shape[0]]), torch.tensor([1])
    ),
    "grid_sample": lambda z: F.grid_sample(
        z[None, None], torch.tanh(z[:3, :2]).reshape(1, 1, 3, 2) * 0.9, align_corners=False
    ).square().mean(),
    "special": lambda z: torch.special.log_ndtr(z).mean() + torch.special.i0e(z).mean(),
}.items():  # fmt: skip
    LINALG[_name] = lambda d, f=_f: lambda z, s: z * (1 + 0.3 * f(z))


# ---- custom Functions


class Right(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return g * (s + x * s * (1 - s))


class KeepsValue(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.s = torch.sigmoid(x)
        ctx.save_for_backward(x)
        return x * ctx.s

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (ctx.s * (1 + x * (1 - ctx.s)))


class KeepsInput(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        return g * (1 - torch.tanh(ctx.x) ** 2)


class KeepsNumber(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.size = float(x.norm())
        return x / (1 + ctx.size)

    @staticmethod
    def backward(ctx, g):
        return g / (1 + ctx.size)


class Straight(Function):
    """Rounds; its backward is that of the identity."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, g):
        return g


class StraightSign(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() < 1)


def straight(z):
    return z + held(lambda: torch.round(4 * z) / 4 - z) if HELD else Straight.apply(z)


def straight_sign(z):
    if not HELD:
        return StraightSign.apply(z)
    within = held(lambda: (z.abs() < 1).to(z))
    return within * z + held(lambda: torch.sign(z) - within * z)


class Reversal(Function):
    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.by * g, None


class WrongScale(Function):
    """Its backward is not that of its forward, and depends upon x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x**2 / 3)


class Once(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.cos(x)


class ThroughNumpy(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.from_numpy(np.asarray(np.cos(x.detach().numpy())))


class NumpyAllTheWay(Function):
    """A backward that is a constant to autograd, gradient and all."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().numpy().copy()
        return torch.from_numpy(np.tanh(ctx.x))

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(np.asarray(g.detach().numpy() * (1 - np.tanh(ctx.x) ** 2)))


class SavesOutput(Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.exp(0.3 * x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return 0.3 * g * y


class SavesIntermediate(Function):
    """Its backward reads a number of the forward that is neither input nor output, which autograd takes as fixed."""

    @staticmethod
    def forward(ctx, x):
        e = torch.exp(-x)
        ctx.save_for_backward(e)
        return 1 / (1 + e)

    @staticmethod
    def backward(ctx, g):
        (e,) = ctx.saved_tensors
        return g * e / (1 + e) ** 2


class NewStyle(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * torch.sigmoid(x)  # a term is left out


class TwoOutputs(Function):
    """The second output is marked as not differentiable, and used."""

    @staticmethod
    def forward(ctx, x):
        size = x.square().mean()
        ctx.mark_non_differentiable(size)
        return torch.tanh(x), size

    @staticmethod
    def backward(ctx, g, _):
        return g


simple(
    DEFECTS,
    **{
        "Function: keeps a value on ctx": KeepsValue.apply,
        "Function: keeps its input on ctx": KeepsInput.apply,
        "Function: keeps a number on ctx": KeepsNumber.apply,
        "Function: straight-through": lambda z: straight(z) * z,
        "Function: straight-through sign": lambda z: straight_sign(z) * z,
        "Function: reversal": lambda z: Reversal.apply(torch.tanh(z), 0.5) + z,
        "Function: wrong and used": WrongScale.apply,
        "Function: once_differentiable": Once.apply,
        "Function: through numpy": ThroughNumpy.apply,
        "Function: numpy all the way": NumpyAllTheWay.apply,
        "Function: saves its output": SavesOutput.apply,
        "Function: saves an intermediate": SavesIntermediate.apply,
        "Function: new style, wrong": NewStyle.apply,
        "Function: not differentiable output": lambda z: torch.mul(*TwoOutputs.apply(z)) + z,
        "detach: factor": lambda z: z * z.detach(),
        "detach: target": lambda z: z + (z - 0.5 * z.flip(1).detach()) ** 2,
        "detach: statistics": lambda z: (z - z.mean(0).detach()) / (0.5 + z.std(0).detach()),
        "detach: straight-through": lambda z: z * (z + held(lambda: torch.round(3 * z) / 3 - z)),
        "detach: cosine": lambda z: z * (1 - F.cosine_similarity(torch.tanh(z), z.flip(1).detach(), dim=1)[:, None]),
        "detach: data": lambda z: z * torch.sigmoid(z.data),
        "detach: numpy": lambda z: z * float(np.tanh(z.detach().numpy()).mean() + 1),
        "item: norm": lambda z: z / (0.5 + z.norm().item()),
        "item: largest": lambda z: z / (0.5 + z.abs().max().item()),
        "item: list": lambda z: z * torch.tensor(z.mean(0).tolist(), dtype=z.dtype),
        "in place: repeated indices": lambda z: _assign(z, lambda x, i: x.__setitem__(i, x[i] + x[i] ** 2)),
        "in place: repeated indices doubled": lambda z: _assign(z**2, lambda x, i: x.__setitem__(i, x[i] + x[i])),
        "in place: repeated columns": lambda z: _columns(z),
        "in place: index_put accumulates": lambda z: z.clone().index_put_(
            (torch.tensor([0, 0, 1]),), torch.tanh(z[:3]), accumulate=True
        ),
        "in place: index_add_": lambda z: z.clone().index_add_(0, torch.tensor([1, 1]), z[:2] ** 2),
        "in place: index_copy_ repeated": lambda z: z.clone().index_copy_(0, torch.tensor([1, 1]), z[[0, 0]] ** 2),
        "in place: a view": lambda z: _view(z),
        "in place: slices": lambda z: _slices(z),
        "in place: scatter_": lambda z: z.clone().scatter_(1, torch.tensor([[0], [1], [0]]), z[:3, 1:2] ** 2),
        "in place: scatter_reduce_ prod": lambda z: z.clone().scatter_reduce_(
            1, torch.zeros(z.shape[0], 2, dtype=torch.long), 1 + z[:, 1:3], "prod"
        ),
        "in place: sqrt_ of a clone": lambda z: (z.clone() ** 2).add_(0.2).sqrt_(),
        "hook: scaled": lambda z: _hooked(z, lambda g: 0.5 * g),
        "hook: reversed": lambda z: _hooked(z, lambda g: -0.7 * g),
        "hook: clipped": lambda z: _hooked(z, lambda g: g.clamp(-0.05, 0.05)),
        "hook: normalised": lambda z: _hooked(z, lambda g: g / (1 + g.norm())),
        "hook: detached norm": lambda z: _hooked(z, lambda g: g / (0.1 + g.detach().norm())),
        "hook: times the value": lambda z: _hooked(z, lambda g: g * (1 + z.detach() ** 2)),
        "hook: on a node": lambda z: _node_hook(z),
        "inference: no_grad factor": lambda z: _no_grad_factor(z),
    },
)  # fmt: skip


def _assign(z, write):
    x = z.clone()
    write(x, torch.tensor([0, 0, 2, 2]))
    return x


def _columns(z):
    x = z.clone()
    x[:, torch.tensor([1, 1, 0])] += x[:, torch.tensor([1, 1, 0])].sin()
    return x


def _view(z):
    x = z * 1.0
    x[:, 0].mul_(x[:, 1].detach() + 2)
    return x


def _slices(z):
    x = torch.zeros_like(z)
    x[:, ::2] = z[:, ::2] ** 2
    x[1:] += z[:-1]
    return x


def _hooked(z, hook):
    x = z * 1.0
    if x.requires_grad:
        x.register_hook(hook)
    return torch.tanh(x)


def _node_hook(z):
    x = torch.tanh(z)
    if x.grad_fn is not None:
        x.grad_fn.register_prehook(lambda grads: tuple(g * 0.6 for g in grads))
    return x


def _no_grad_factor(z):
    with torch.no_grad():
        factor = 1 + torch.tanh(z).square()
    return z * factor


@into(DEFECTS, "no_grad: teacher")
def teacher(d):
    weight = d.normal(d.m, d.m, scale=0.5)

    def piece(z, s):
        with torch.no_grad():
            target = 2 * torch.tanh(z @ weight.to(z))
        return z + (z - target) ** 2

    return piece


@into(DEFECTS, "no_grad: self-distillation")
def distilled(d):
    def piece(z, s):
        with torch.no_grad():
            soft = F.softmax(z / 0.5, 1)
        return z - (soft * F.log_softmax(z.flip(1), 1)).sum(1, keepdim=True)

    return piece


@into(DEFECTS, "no_grad: pseudo-label")
def pseudo_label(d):
    def piece(z, s):
        with torch.no_grad():
            labels = z.argmax(1)
            trust = F.softmax(z, 1).max(1).values
        return z + (F.cross_entropy(z, labels, reduction="none") * trust)[:, None]

    return piece


@into(DEFECTS, "no_grad: running mean that is not read")
def unread_mean(d):
    kept = torch.zeros(d.m, dtype=torch.float64)

    def piece(z, s):
        with torch.no_grad():
            kept.lerp_(z.detach().mean(0).to(kept), 0.1)
        return z - z.mean(0)

    return piece


@into(DEFECTS, "no_grad: batch statistics")
def statistics(d):
    def piece(z, s):
        with torch.no_grad():
            mean, std = z.mean(0), z.std(0)
        return (z - mean) / (std + 0.5)

    return piece


# ---- seeded draws: there is a truth


def _float32(z):
    """Draws are in float32, so that the run in float64 draws the same."""
    return {"dtype": torch.float32}


@into(SEEDED, "seeded: manual_seed in the loss")
def manual_seed(d):
    def piece(z, s):
        torch.manual_seed(s.batch["seed"])
        return z * (1 + 0.3 * torch.randn(z.shape, **_float32(z)).to(z))

    return piece


@into(SEEDED, "seeded: a generator")
def generator(d):
    def piece(z, s):
        g = torch.Generator().manual_seed(s.batch["seed"])
        return z + 0.3 * torch.randn(z.shape, generator=g, **_float32(z)).to(z) * z

    return piece


@into(SEEDED, "seeded: a generator from a tensor")
def tensor_seed(d):
    def piece(z, s):
        g = torch.Generator().manual_seed(int(s.batch["step"]) + 17)
        return z * torch.rand(z.shape, generator=g, **_float32(z)).to(z)

    return piece


@into(SEEDED, "seeded: dropout")
def seeded_dropout(d):
    def piece(z, s):
        torch.manual_seed(s.batch["seed"])
        mask = F.dropout(torch.ones(z.shape, **_float32(z)), 0.4, training=True)
        return z * mask.to(z)

    return piece


@into(SEEDED, "seeded: dropout of the tensor")
def live_dropout(d):
    def piece(z, s):
        torch.manual_seed(s.batch["seed"])
        return F.dropout(z, 0.3, training=True)

    return piece


@into(SEEDED, "seeded: numpy")
def numpy_seed(d):
    return lambda z, s: z * float(np.random.default_rng(s.batch["seed"]).uniform(0.5, 1.5))


@into(SEEDED, "seeded: python")
def python_seed(d):
    return lambda z, s: z * random.Random(s.batch["seed"]).uniform(0.5, 1.5)


@into(SEEDED, "seeded: fork_rng")
def forked(d):
    def piece(z, s):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(s.batch["seed"])
            noise = torch.randn(z.shape, **_float32(z))
        return z + 0.2 * noise.to(z) * z

    return piece


@into(SEEDED, "seeded: permutation")
def permutation(d):
    def piece(z, s):
        g = torch.Generator().manual_seed(s.batch["seed"])
        return z + 0.5 * z[torch.randperm(z.shape[0], generator=g)] * z

    return piece


@into(SEEDED, "an int of the batch")
def int_factor(d):
    return lambda z, s: z * (1 + 0.1 * s.batch["n"])


@into(SEEDED, "an int of the batch as a power")
def int_power(d):
    return lambda z, s: torch.tanh(z) ** (1 + s.batch["n"] % 3)


@into(SEEDED, "an int of the batch as a shape")
def int_shape(d):
    return lambda z, s: z + z[: 1 + s.batch["n"] % z.shape[0]].sum(0) * 0.2


# ---- unseeded draws and hidden counters: there is none


@into(UNSEEDED, "unseeded: torch.randn")
def unseeded_randn(d):
    return lambda z, s: z * (1 + 0.3 * torch.randn(z.shape, dtype=z.dtype))


@into(UNSEEDED, "unseeded: rand_like")
def unseeded_rand(d):
    return lambda z, s: z * torch.rand_like(z.detach())


@into(UNSEEDED, "unseeded: dropout")
def unseeded_dropout(d):
    return lambda z, s: F.dropout(z, 0.4, training=True)


@into(UNSEEDED, "unseeded: randperm")
def unseeded_permutation(d):
    return lambda z, s: z + z[torch.randperm(z.shape[0])] * z


@into(UNSEEDED, "unseeded: numpy")
def unseeded_numpy(d):
    return lambda z, s: z * float(1 + np.random.rand())


@into(UNSEEDED, "unseeded: numpy generator")
def unseeded_default_rng(d):
    rng = np.random.default_rng()
    return lambda z, s: z * float(rng.uniform(0.5, 1.5))


@into(UNSEEDED, "unseeded: python")
def unseeded_python(d):
    return lambda z, s: z * (0.5 + random.random())


@into(UNSEEDED, "unseeded: the system")
def unseeded_system(d):
    return lambda z, s: z * (0.5 + secrets.SystemRandom().random())


@into(UNSEEDED, "unseeded: an own generator")
def unseeded_generator(d):
    g = torch.Generator().manual_seed(5)  # once: every call draws on
    return lambda z, s: z * torch.rand(z.shape, generator=g, dtype=torch.float64).to(z)


@into(UNSEEDED, "unseeded: no effect")
def unseeded_zero(d):
    return lambda z, s: z + 0.0 * torch.randn(z.shape, dtype=z.dtype)


@into(UNSEEDED, "counter: factor")
def counter(d):
    calls = [0]

    def piece(z, s):
        calls[0] += 1
        return z * (1 + 0.1 * calls[0])

    return piece


@into(UNSEEDED, "counter: running mean that is read")
def running_mean(d):
    kept = [torch.zeros(d.m, dtype=torch.float64)]

    def piece(z, s):
        kept[0] = 0.9 * kept[0] + 0.1 * z.detach().double().mean(0)
        return z - kept[0].to(z)

    return piece


@into(UNSEEDED, "counter: running mean in place")
def running_mean_in_place(d):
    kept = torch.zeros(d.m, dtype=torch.float64)

    def piece(z, s):
        with torch.no_grad():
            kept.mul_(0.9).add_(z.double().mean(0), alpha=0.1)
        return z - kept.to(z)

    return piece


# ---- rounding in E through a straight-through estimator: autograd's surrogate is what is asked for

simple(
    SURROGATES,
    **{
        "surrogate: Function": straight,
        "surrogate: detach": lambda z: z + held(lambda: torch.round(4 * z) / 4 - z),
        "surrogate: quantised": lambda z: z + held(lambda: torch.clamp(torch.round(5 * z), -8, 7) / 5 - z),
    },
)


# ---- what ends a chain: [n, m] -> []

ENDS = {}


simple(
    ENDS,
    square=lambda z: z.square().mean(),
    logcosh=lambda z: (z + F.softplus(-2 * z)).mean(),
    l1=lambda z: F.l1_loss(z, torch.full_like(z, 0.3)),
    bce=lambda z: F.binary_cross_entropy_with_logits(z, torch.full_like(z, 0.3)),
    logsumexp=lambda z: torch.logsumexp(z, (0, 1)),
    hinge=lambda z: F.relu(1 - z).mean(),
    poisson=lambda z: F.poisson_nll_loss(torch.tanh(z), torch.full_like(z, 2.0)),
    gaussian=lambda z: F.gaussian_nll_loss(z, torch.ones_like(z), 0.5 + torch.sigmoid(z.flip(1))),
    cosine=lambda z: F.cosine_embedding_loss(z, z.flip(1) + 1, torch.ones(z.shape[0])),
)


@into(ENDS, "mse")
def mse(d):
    target = d.normal(d.n, d.m)
    return lambda z, s: F.mse_loss(z, target.to(z))


@into(ENDS, "cross_entropy")
def cross_entropy(d):
    labels, smoothing = d.ints(d.m, d.n), d.choice([0.0, 0.1])
    return lambda z, s: F.cross_entropy(z, labels, label_smoothing=smoothing)


@into(ENDS, "weighted cross_entropy")
def weighted(d):
    labels, weight = d.ints(d.m, d.n), d.normal(d.m).abs() + 0.2
    return lambda z, s: F.cross_entropy(z, labels, weight=weight.to(z))


@into(ENDS, "smooth_l1")
def smooth_l1(d):
    target = d.normal(d.n, d.m)
    return lambda z, s: F.smooth_l1_loss(z, target.to(z), beta=0.7)


@into(ENDS, "triplet")
def triplet(d):
    positive, negative = d.normal(d.n, d.m), d.normal(d.n, d.m)
    return lambda z, s: F.triplet_margin_loss(z, positive.to(z), negative.to(z))


# ---- what begins one: (Draw) -> w_0, (site) -> [n, m], and the shape of a row of the batch's x, if it reads one

BASES, DEFECT_BASES = {}, {}


def base(name):
    return into(BASES, name)


@base("mlp")
def mlp(d):
    k = d.choice([3, 4])
    x = d.normal(d.n, k)
    start = {"a": d.normal(k, d.m, scale=0.6), "bias": d.normal(d.m, scale=0.2)}
    return start, lambda s: torch.tanh(s.batch.get("x", x).to(s.params["a"]) @ s.params["a"] + s.params["bias"]), (k,)


@base("vector")
def vector(d):
    x = d.normal(d.n, d.m)
    return {"w": d.normal(d.m, scale=0.7)}, lambda s: s.params["w"] * s.batch.get("x", x).to(s.params["w"]), (d.m,)


@base("two layers")
def two_layers(d):
    x = d.normal(d.n, 3)
    start = {"a": d.normal(3, 4, scale=0.6), "b": d.normal(4, d.m, scale=0.6), "bias": d.normal(4, scale=0.1)}

    def net(s):
        p = s.params
        return F.gelu(s.batch.get("x", x).to(p["a"]) @ p["a"] + p["bias"]) @ p["b"]

    return start, net, (3,)


@base("embedding")
def embedding(d):
    i = d.ints(7, d.n, 3)
    return {"e": d.normal(7, d.m)}, lambda s: F.embedding(i, s.params["e"]).mean(1), None


@base("convolution")
def convolution(d):
    x = d.normal(d.n, d.m)
    start = {"k": d.normal(2, 1, 3, scale=0.6), "c": d.normal(2, scale=0.6)}

    def net(s):
        y = torch.tanh(F.conv1d(s.batch.get("x", x).to(s.params["k"]).unsqueeze(1), s.params["k"], padding=1))
        return torch.einsum("ncm,c->nm", y, s.params["c"])

    return start, net, (d.m,)


@base("attention")
def attention(d):
    x = d.normal(d.n, 4)
    start = {name: d.normal(4, d.m, scale=0.5) for name in "qkv"}

    def net(s):
        p = s.params
        q, k, v = (s.batch.get("x", x).to(p["q"]) @ p[name] for name in "qkv")
        return F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]

    return start, net, (4,)


@base("recurrent")
def recurrent(d):
    x = d.normal(d.n, 2)
    start = {"i": d.normal(d.m, 2, scale=0.6), "h": d.normal(d.m, d.m, scale=0.4), "c": d.normal(d.m, scale=0.1)}

    def net(s):
        p, state, rows = s.params, None, []
        for row in s.batch.get("x", x).to(p["i"]):
            state = torch.tanh(p["i"] @ row + p["c"] + (0 if state is None else p["h"] @ state))
            rows.append(state)
        return torch.stack(rows)

    return start, net, (2,)


def with_defect(name):
    """A base that is a defect in itself."""
    return into(DEFECT_BASES, name)


@with_defect("padding_idx")
def padded(d):
    i = d.ints(5, d.n, 4)
    start = {"e": d.normal(5, d.m)}
    return start, lambda s: torch.tanh(F.embedding(i, s.params["e"], padding_idx=0)).mean(1), None


@with_defect("padding_idx of embedding_bag")
def padded_bag(d):
    i = d.ints(5, d.n, 4)
    return {"e": d.normal(5, d.m)}, lambda s: F.embedding_bag(i, s.params["e"], mode="mean", padding_idx=0), None


@with_defect("scale_grad_by_freq")
def by_frequency(d):
    i = d.ints(4, d.n, 4)
    start = {"e": d.normal(4, d.m)}
    return start, lambda s: torch.tanh(F.embedding(i, s.params["e"], scale_grad_by_freq=True)).mean(1), None


@with_defect("weight_norm")
def weight_norm(d):
    x, dim = d.normal(d.n, 4), d.choice([0, 1])
    start = {"v": d.normal(d.m, 4), "g": torch.ones((d.m, 1) if dim == 0 else (1, 4), dtype=torch.float64)}

    def net(s):
        return s.batch.get("x", x).to(s.params["v"]) @ torch._weight_norm(s.params["v"], s.params["g"], dim).T

    return start, net, (4,)


@with_defect("spectral norm by no_grad")
def spectral(d):
    x, u = d.normal(d.n, 4), d.normal(d.m)
    start = {"a": d.normal(d.m, 4)}

    def net(s):
        a = s.params["a"]
        with torch.no_grad():
            v = F.normalize(a.T @ u.to(a), dim=0)
            left = F.normalize(a @ v, dim=0)
        return s.batch.get("x", x).to(a) @ (a / (left @ a @ v)).T

    return start, net, (4,)


@with_defect("stop-gradient twin")
def twin(d):
    x, noise = d.normal(d.n, 4), d.normal(d.n, 4, scale=0.2)
    start = {"f": d.normal(4, d.m, scale=0.6), "q": d.normal(d.m, d.m, scale=0.5)}

    def net(s):
        p = s.params
        x_ = s.batch.get("x", x).to(p["f"])
        one, two = torch.tanh(x_ @ p["f"]), torch.tanh((x_ + noise.to(p["f"])) @ p["f"])
        return one - F.cosine_similarity(torch.tanh(one @ p["q"]), two.detach())[:, None]

    return start, net, (4,)


# ---- when a late branch begins: (Draw, step, norm of the first weight in w_0) -> (site) -> bool

GATES = {}


@into(GATES, "late: a tensor of the batch")
def by_tensor(d, step, size):
    return lambda s: bool(s.batch["step"] >= step)


@into(GATES, "late: an int of the batch")
def by_int(d, step, size):
    return lambda s: s.batch["n"] >= step


@into(GATES, "late: the step's hyperparameters")
def by_schedule(d, step, size):
    return lambda s: bool(s.hyper["progress"] >= step)


@into(GATES, "late: the size of a weight")
def by_weight(d, step, size):
    share, above = d.uniform(0.97, 1.03), d.choice([True, False])
    return lambda s: bool((next(iter(s.params.values())).norm() > share * size) == above)


@into(GATES, "late: item of a weight")
def by_item(d, step, size):
    share, above = d.uniform(0.97, 1.03), d.choice([True, False])
    return lambda s: (next(iter(s.params.values())).norm().item() > share * size) == above


@into(GATES, "late: a counter")
def by_counter(d, step, size):
    calls = [0]

    def gate(s):
        calls[0] += 1
        return calls[0] > step

    return gate
