"""Three hundred ordinary models and losses, by name: what people train, and no defect among them.

A row is `() -> Ordinary`: a module, the arguments of its forward by seed, and the loss of what it returns.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

B = 2  # examples of a batch
LARGEST = 100e6  # weights
ROWS: dict[str, Callable[[], "Ordinary"]] = {}


class Ordinary(NamedTuple):
    """A model, its batches and its loss.

    Attributes:
        module: with weights drawn under a fixed seed.
        inputs: generator -> the arguments of its forward.
        loss: what it returns -> a scalar; it may depend on the arguments.
    """

    module: nn.Module
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    loss: Callable[..., torch.Tensor]


def pattern(out, *_):
    """Squared distance of all floating outputs from a fixed pattern: the loss of a module that has none."""
    found = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())]
    total = 0.0
    for x in found:
        x = torch.view_as_real(x) if x.is_complex() else x
        total = total + (x - 0.3 * torch.sin(torch.arange(x.numel()).to(x)).reshape(x.shape)).square().mean()
    return total


def first(out, *_):
    return pattern(out[0] if isinstance(out, tuple | list) else out)


def normal(*shape):
    return lambda g: (torch.randn(*shape, generator=g),)


def row(name, make, inputs, loss=pattern):
    assert name not in ROWS, name
    ROWS[name] = lambda: Ordinary(make(), inputs, loss)


class Called(nn.Module):
    """A module around a function of its layers."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.layers = nn.ModuleDict({k: v for k, v in layers.items() if isinstance(v, nn.Module)})
        self.weights = nn.ParameterDict({k: v for k, v in layers.items() if isinstance(v, torch.Tensor)})
        self._forward = forward

    def forward(self, *inputs):
        return self._forward({**self.layers, **self.weights}, *inputs)


def between(layer, width=6, out=None):
    """A linear layer, the layer that is asked about, and a linear layer."""
    return nn.Sequential(nn.Linear(5, width), layer, nn.Linear(out or width, 3))


# ---- activations

ACTIVATIONS = {
    "CELU": nn.CELU, "ELU": nn.ELU, "GELU": nn.GELU, "GELU tanh": lambda: nn.GELU("tanh"), "GLU": nn.GLU,
    "Hardshrink": nn.Hardshrink, "Hardsigmoid": nn.Hardsigmoid, "Hardswish": nn.Hardswish, "Hardtanh": nn.Hardtanh,
    "LeakyReLU": nn.LeakyReLU, "LogSigmoid": nn.LogSigmoid, "LogSoftmax": lambda: nn.LogSoftmax(1), "Mish": nn.Mish,
    "PReLU": nn.PReLU, "PReLU of channels": lambda: nn.PReLU(6), "RReLU": nn.RReLU, "ReLU": nn.ReLU, "ReLU6": nn.ReLU6,
    "SELU": nn.SELU, "SiLU": nn.SiLU, "Sigmoid": nn.Sigmoid, "Softmax": lambda: nn.Softmax(1),
    "Softmin": lambda: nn.Softmin(1), "Softplus": nn.Softplus, "Softshrink": nn.Softshrink, "Softsign": nn.Softsign,
    "Tanh": nn.Tanh, "Tanhshrink": nn.Tanhshrink, "Threshold": lambda: nn.Threshold(0.1, 0.0),
    "ReLU in place": lambda: nn.ReLU(inplace=True), "SiLU in place": lambda: nn.SiLU(inplace=True),
    "Hardswish in place": lambda: nn.Hardswish(inplace=True), "ELU in place": lambda: nn.ELU(inplace=True),
    "Dropout": lambda: nn.Dropout(0.3), "AlphaDropout": lambda: nn.AlphaDropout(0.3),
    "FeatureAlphaDropout": lambda: nn.FeatureAlphaDropout(0.3), "Identity": nn.Identity,
}  # fmt: skip
for _name, _make in ACTIVATIONS.items():
    row(f"nn.{_name}", lambda m=_make, n=_name: between(m(), out=3 if n == "GLU" else None), normal(4, 5))

row("nn.Softmax2d", lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softmax2d()), normal(B, 2, 5, 5))
row("nn.Dropout1d", lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.Dropout1d(0.4)), normal(B, 2, 5))
row("nn.Dropout2d", lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout2d(0.4)), normal(B, 2, 5, 5))
row("nn.Dropout3d", lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.Dropout3d(0.4)), normal(B, 1, 3, 3, 3))

# ---- losses

LABELS = torch.tensor([0, 2, 1, 1])
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0])
MULTI = torch.tensor([[0, 2, -1], [1, -1, 0], [2, 1, -1], [0, -1, 1]])
LOSSES = {
    "CrossEntropyLoss": lambda y, *_: nn.CrossEntropyLoss()(y, LABELS),
    "CrossEntropyLoss, weighted": lambda y, *_: F.cross_entropy(y, LABELS, torch.tensor([0.2, 1.0, 2.0]).to(y)),
    "CrossEntropyLoss, smoothed": lambda y, *_: nn.CrossEntropyLoss(label_smoothing=0.1)(y, LABELS),
    "CrossEntropyLoss, probabilities": lambda y, *_: F.cross_entropy(y, torch.full_like(y, 1 / 3)),
    "CrossEntropyLoss, ignored": lambda y, *_: nn.CrossEntropyLoss(ignore_index=1)(y, LABELS),
    "CrossEntropyLoss, sum": lambda y, *_: nn.CrossEntropyLoss(reduction="sum")(y, LABELS),
    "NLLLoss": lambda y, *_: nn.NLLLoss()(F.log_softmax(y, 1), LABELS),
    "L1Loss": lambda y, *_: nn.L1Loss()(y, torch.full_like(y, 0.3)),
    "MSELoss": lambda y, *_: nn.MSELoss()(y, torch.full_like(y, 0.3)),
    "HuberLoss": lambda y, *_: nn.HuberLoss(delta=0.5)(y, torch.full_like(y, 0.3)),
    "SmoothL1Loss": lambda y, *_: nn.SmoothL1Loss(beta=0.5)(y, torch.full_like(y, 0.3)),
    "PoissonNLLLoss": lambda y, *_: nn.PoissonNLLLoss()(y, torch.full_like(y, 2.0)),
    "PoissonNLLLoss, full": lambda y, *_: nn.PoissonNLLLoss(full=True, log_input=False)(y**2, torch.full_like(y, 2.0)),
    "GaussianNLLLoss": lambda y, *_: nn.GaussianNLLLoss()(y, torch.zeros_like(y), y.exp()),
    "KLDivLoss": lambda y, *_: nn.KLDivLoss(reduction="batchmean")(F.log_softmax(y, 1), torch.full_like(y, 1 / 3)),
    "BCELoss": lambda y, *_: nn.BCELoss()(torch.sigmoid(y), torch.full_like(y, 0.3)),
    "BCEWithLogitsLoss": lambda y, *_: nn.BCEWithLogitsLoss()(y, torch.full_like(y, 0.3)),
    "BCEWithLogitsLoss, weighted": lambda y, *_: F.binary_cross_entropy_with_logits(
        y, torch.full_like(y, 0.3), pos_weight=torch.full((3,), 2.0).to(y)
    ),
    "MarginRankingLoss": lambda y, *_: nn.MarginRankingLoss(0.2)(y[:, 0], y[:, 1], SIGNS.to(y)),
    "HingeEmbeddingLoss": lambda y, *_: nn.HingeEmbeddingLoss()(y[:, 0], SIGNS.to(y)),
    "MultiLabelMarginLoss": lambda y, *_: nn.MultiLabelMarginLoss()(y, MULTI),
    "SoftMarginLoss": lambda y, *_: nn.SoftMarginLoss()(y[:, 0], SIGNS.to(y)),
    "MultiLabelSoftMarginLoss": lambda y, *_: nn.MultiLabelSoftMarginLoss()(y, (MULTI > 0).to(y)),
    "CosineEmbeddingLoss": lambda y, *_: nn.CosineEmbeddingLoss()(y, y.flip(0) + 1, SIGNS.to(y)),
    "MultiMarginLoss": lambda y, *_: nn.MultiMarginLoss()(y, LABELS),
    "TripletMarginLoss": lambda y, *_: nn.TripletMarginLoss()(y, y.flip(0), y.roll(1, 0)),
    "TripletMarginWithDistanceLoss": lambda y, *_: nn.TripletMarginWithDistanceLoss(
        distance_function=nn.CosineSimilarity()
    )(y, y.flip(0), y.roll(1, 0)),
    "CTCLoss": lambda y, *_: nn.CTCLoss()(
        F.log_softmax(y.unsqueeze(1), 2), torch.tensor([[1, 2]]), torch.tensor([4]), torch.tensor([2])
    ),
    "CosineSimilarity": lambda y, *_: nn.CosineSimilarity()(y, y.flip(0) + 1).mean(),
    "PairwiseDistance": lambda y, *_: nn.PairwiseDistance()(y, y.flip(0)).mean(),
    "InfoNCE": lambda y, *_: F.cross_entropy(F.normalize(y, dim=1) @ F.normalize(y.flip(0), dim=1).T * 5,
                                             torch.arange(4)),
    "focal": lambda y, *_: ((1 - F.softmax(y, 1).gather(1, LABELS[:, None])) ** 2
                            * -F.log_softmax(y, 1).gather(1, LABELS[:, None])).mean(),
    "dice": lambda y, *_: 1 - 2 * torch.sigmoid(y)[:, 0].sum() / (torch.sigmoid(y).sum() + 4),
}  # fmt: skip
for _name, _loss in LOSSES.items():
    row(f"loss {_name}", lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), normal(4, 5), _loss)
row(
    "loss AdaptiveLogSoftmaxWithLoss",
    lambda: Called(
        lambda m, x: m["head"](m["body"](x), torch.arange(6)).loss,
        body=nn.Linear(5, 8),
        head=nn.AdaptiveLogSoftmaxWithLoss(8, 6, [2, 4]),
    ),
    normal(6, 5),
    first,
)

# ---- normalisations

NORMS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4), "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "GroupNorm of one group": lambda: nn.GroupNorm(1, 4), "InstanceNorm2d": lambda: nn.InstanceNorm2d(4),
    "InstanceNorm2d, affine": lambda: nn.InstanceNorm2d(4, affine=True),
    "LayerNorm of maps": lambda: nn.LayerNorm([4, 4, 4]),
    "LayerNorm, no bias": lambda: nn.LayerNorm(4, bias=False), "RMSNorm": lambda: nn.RMSNorm(4),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2), "CrossMapLRN2d": lambda: nn.CrossMapLRN2d(2),
    "LayerNorm": lambda: nn.LayerNorm(4), "LayerNorm, not affine": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "BatchNorm2d, not affine": lambda: nn.BatchNorm2d(4, affine=False),
}  # fmt: skip
for _name, _make in NORMS.items():
    row(
        f"norm {_name}",
        lambda m=_make: nn.Sequential(nn.Conv2d(2, 4, 3), m(), nn.Tanh(), nn.Conv2d(4, 2, 2)),
        normal(3, 2, 6, 6),
    )
row("norm BatchNorm1d", lambda: between(nn.BatchNorm1d(6)), normal(5, 5))
row("norm BatchNorm1d of sequences", lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), normal(B, 2, 6))
row("norm BatchNorm3d", lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4)), normal(B, 1, 4, 4, 4))
row("norm InstanceNorm1d", lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4)), normal(B, 2, 6))
row("norm InstanceNorm3d", lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.InstanceNorm3d(4)), normal(B, 1, 4, 4, 4))
row("norm weight_norm", lambda: between(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))), normal(4, 5))
row(
    "norm weight_norm of a convolution",
    lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), nn.Tanh(), nn.Conv2d(4, 2, 3)),
    normal(B, 2, 6, 6),
)
row("norm orthogonal", lambda: between(nn.utils.parametrizations.orthogonal(nn.Linear(6, 6))), normal(4, 5))
row(
    "norm standardised weights",
    lambda: Called(
        lambda m, x: F.conv2d(
            x, (m["w"] - m["w"].mean((1, 2, 3), keepdim=True)) / (m["w"].std((1, 2, 3), keepdim=True) + 1e-5)
        ),
        w=torch.randn(4, 2, 3, 3),
    ),
    normal(B, 2, 6, 6),
)
row("norm F.normalize", lambda: Called(lambda m, x: F.normalize(m["a"](x), dim=1), a=nn.Linear(5, 6)), normal(4, 5))
row(
    "norm scale and cosine head",
    lambda: Called(
        lambda m, x: m["s"] * F.normalize(m["a"](x), dim=1) @ F.normalize(m["c"], dim=0),
        a=nn.Linear(5, 6),
        c=torch.randn(6, 3),
        s=torch.tensor(5.0),
    ),
    normal(4, 5),
    lambda y, *_: F.cross_entropy(y, LABELS),
)

# ---- convolutions, pooling, shapes

LAYERS = {
    "Conv1d": (lambda: nn.Conv1d(2, 3, 3), (B, 2, 7)), "Conv2d": (lambda: nn.Conv2d(2, 3, 3), (B, 2, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), (B, 2, 3, 3, 3)),
    "Conv2d, strided": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (B, 2, 7, 7)),
    "Conv2d, dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2), (B, 2, 7, 7)),
    "Conv2d, grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), (B, 4, 6, 6)),
    "Conv2d, depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (B, 4, 6, 6)),
    "Conv2d, same": (lambda: nn.Conv2d(2, 3, 4, padding="same"), (B, 2, 6, 6)),
    "Conv2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (B, 2, 6, 6)),
    "Conv2d, reflected": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (B, 2, 6, 6)),
    "Conv2d, replicated": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate"), (B, 2, 6, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (B, 2, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (B, 2, 4, 4)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (B, 1, 3, 3, 3)),
}  # fmt: skip
for _name, (_make, _shape) in LAYERS.items():
    row(f"nn.{_name}", lambda m=_make: nn.Sequential(m(), nn.Tanh()), normal(*_shape))
AFTER_CONV = {
    "MaxPool2d": nn.MaxPool2d(2), "MaxPool2d, overlapping": nn.MaxPool2d(3, 2, 1), "AvgPool2d": nn.AvgPool2d(2),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d(2), "AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d(2),
    "LPPool2d": nn.LPPool2d(2, 2), "FractionalMaxPool2d": nn.FractionalMaxPool2d(2, output_size=2),
    "Upsample, nearest": nn.Upsample(scale_factor=2),
    "Upsample, bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "Upsample, bicubic": nn.Upsample(scale_factor=1.5, mode="bicubic"), "PixelShuffle": nn.PixelShuffle(2),
    "PixelUnshuffle": nn.PixelUnshuffle(2), "ChannelShuffle": nn.ChannelShuffle(2), "Unfold": nn.Unfold(2),
    "ZeroPad2d": nn.ZeroPad2d(1), "ReflectionPad2d": nn.ReflectionPad2d(1), "ReplicationPad2d": nn.ReplicationPad2d(1),
    "CircularPad2d": nn.CircularPad2d(1), "ConstantPad2d": nn.ConstantPad2d(1, 0.5), "Flatten": nn.Flatten(),
    "UpsamplingBilinear2d": nn.UpsamplingBilinear2d(scale_factor=2),
}  # fmt: skip
for _name, _layer in AFTER_CONV.items():
    row(f"nn.{_name}", lambda m=_layer: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), m), normal(B, 2, 6, 6))
row("nn.MaxPool1d", lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.MaxPool1d(2)), normal(B, 2, 8))
row("nn.MaxPool3d", lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.MaxPool3d(2)), normal(B, 1, 5, 5, 5))
row(
    "nn.MaxUnpool2d",
    lambda: Called(
        lambda m, x: F.max_unpool2d(*F.max_pool2d(m["c"](x), 2, return_indices=True), 2), c=nn.Conv2d(2, 3, 3)
    ),
    normal(B, 2, 6, 6),
)
row("nn.Fold", lambda: nn.Sequential(nn.Linear(4, 4), nn.Fold((3, 3), 2)), normal(B, 4, 4))
row("nn.Bilinear", lambda: Called(lambda m, x: m["b"](x, x.flip(0)), b=nn.Bilinear(5, 5, 3)), normal(4, 5))
row("nn.Linear", lambda: nn.Linear(5, 3), normal(4, 5))
row(
    "F.grid_sample",
    lambda: Called(
        lambda m, x: F.grid_sample(
            m["c"](x), F.affine_grid(m["t"].expand(B, 2, 3), (B, 3, 4, 4), align_corners=False), align_corners=False
        ),
        c=nn.Conv2d(2, 3, 3),
        t=torch.tensor([[[0.9, 0.1, 0.05], [0.0, 0.8, 0.1]]]),
    ),
    normal(B, 2, 6, 6),
)
row(
    "F.interpolate, area",
    lambda: Called(lambda m, x: F.interpolate(m["c"](x), size=2, mode="area"), c=nn.Conv2d(2, 3, 3)),
    normal(B, 2, 6, 6),
)
row(
    "residual",
    lambda: Called(lambda m, x: x + m["b"](torch.tanh(m["a"](x))), a=nn.Linear(5, 6), b=nn.Linear(6, 5)),
    normal(4, 5),
)
row(
    "squeeze and excitation",
    lambda: Called(
        lambda m, x: m["c"](x) * torch.sigmoid(m["e"](m["c"](x).mean((2, 3))))[:, :, None, None],
        c=nn.Conv2d(2, 4, 3),
        e=nn.Linear(4, 4),
    ),
    normal(B, 2, 6, 6),
)
row(
    "channels last",
    lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3)).to(memory_format=torch.channels_last),
    lambda g: (torch.randn(B, 3, 8, 8, generator=g).to(memory_format=torch.channels_last),),
)
row(
    "spectral convolution",
    lambda: Called(
        lambda m, x: torch.fft.irfft(torch.fft.rfft(m["a"](x)) * m["w"], n=6), a=nn.Linear(5, 6), w=torch.randn(4)
    ),
    normal(4, 5),
)
row(
    "complex weights",
    lambda: Called(
        lambda m, x: (torch.complex(m["a"](x), m["b"](x)) * torch.polar(m["r"], m["p"])).abs(),
        a=nn.Linear(5, 6),
        b=nn.Linear(5, 6),
        r=torch.rand(6) + 0.5,
        p=torch.randn(6),
    ),
    normal(4, 5),
)
row(
    "einsum",
    lambda: Called(lambda m, x: torch.einsum("bi,ijk,bk->bj", x, m["w"], x.flip(1)), w=torch.randn(5, 3, 5)),
    normal(4, 5),
)
row(
    "mixture of experts, soft",
    lambda: Called(
        lambda m, x: torch.einsum("be,beo->bo", F.softmax(m["g"](x), 1), torch.einsum("bi,eio->beo", x, m["w"])),
        g=nn.Linear(5, 4),
        w=torch.randn(4, 5, 3),
    ),
    normal(4, 5),
)


def _routed(m, x):
    weight, chosen = F.softmax(m["g"](x), 1).topk(2, 1)
    return torch.einsum("bk,bko->bo", weight, torch.einsum("bi,bkio->bko", x, m["w"][chosen]))


row("mixture of experts, top 2", lambda: Called(_routed, g=nn.Linear(5, 4), w=torch.randn(4, 5, 3)), normal(4, 5))


def _penalised(m, x):
    x = x.detach().requires_grad_()
    y = m["n"](x)
    return y, torch.autograd.grad(y.sum(), x, create_graph=True)[0]


row(
    "deep set",
    lambda: Called(lambda m, x: m["b"](torch.tanh(m["a"](x)).sum(1)), a=nn.Linear(5, 6), b=nn.Linear(6, 2)),
    normal(B, 4, 5),
)
row(
    "graph convolution",
    lambda: Called(
        lambda m, x: m["b"](
            torch.relu(
                torch.zeros(4, 6)
                .to(x)
                .index_add(0, torch.tensor([0, 1, 2, 3, 0]), m["a"](x)[torch.tensor([1, 2, 3, 0, 2])])
            )
        ),
        a=nn.Linear(5, 6),
        b=nn.Linear(6, 2),
    ),
    normal(4, 5),
)
row(
    "graph pooling by scatter",
    lambda: Called(
        lambda m, x: (
            torch.zeros(2, 6)
            .to(x)
            .scatter_reduce(0, torch.tensor([0, 0, 1, 1])[:, None].expand(4, 6), torch.tanh(m["a"](x)), "mean")
        ),
        a=nn.Linear(5, 6),
    ),
    normal(4, 5),
)
row(
    "variational autoencoder",
    lambda: Called(
        lambda m, x: (m["d"](m["m"](x) + torch.randn(4, 3).to(x) * (0.5 * m["v"](x)).exp()), m["m"](x), m["v"](x)),
        m=nn.Linear(5, 3),
        v=nn.Linear(5, 3),
        d=nn.Linear(3, 5),
    ),
    normal(4, 5),
    lambda out, x: F.mse_loss(out[0], x) - 0.05 * (1 + out[2] - out[1] ** 2 - out[2].exp()).mean(),
)
row(
    "neural ODE, Euler",
    lambda: Called(lambda m, x: [x := x + 0.2 * torch.tanh(m["f"](x)) for _ in range(4)][-1], f=nn.Linear(5, 5)),
    normal(4, 5),
)
row(
    "gradient penalty",
    lambda: Called(_penalised, n=nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))),
    normal(4, 5),
    lambda out, *_: out[0].square().mean() + (out[1].norm(dim=1) - 1).square().mean(),
)
row(
    "checkpointed block",
    lambda: Called(
        lambda m, x: torch.utils.checkpoint.checkpoint(m["b"], m["a"](x), use_reentrant=False),
        a=nn.Linear(5, 6),
        b=nn.Sequential(nn.Tanh(), nn.Linear(6, 3)),
    ),
    normal(4, 5),
)
row("in-place residual", lambda: Called(lambda m, x: m["a"](x).tanh_().add_(x), a=nn.Linear(5, 5)), normal(4, 5))
row(
    "slices written",
    lambda: Called(
        lambda m, x: torch.zeros(4, 6).to(x).index_copy(1, torch.arange(3), torch.tanh(m["a"](x))), a=nn.Linear(5, 3)
    ),
    normal(4, 5),
)

# ---- embeddings

TOKENS = lambda g: (torch.randint(0, 9, (B, 5), generator=g),)  # noqa: E731
row("nn.Embedding", lambda: nn.Sequential(nn.Embedding(9, 4), nn.Tanh()), TOKENS)
row("nn.Embedding, padded", lambda: nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Tanh()), TOKENS)
row(
    "nn.Embedding, tied",
    lambda: Called(lambda m, i: torch.tanh(m["e"](i)) @ m["e"].weight.T, e=nn.Embedding(9, 4)),
    TOKENS,
)
for _mode in ("mean", "sum", "max"):
    row(f"nn.EmbeddingBag, {_mode}", lambda m=_mode: nn.Sequential(nn.EmbeddingBag(9, 4, mode=m), nn.Tanh()), TOKENS)

# ---- recurrent nets

SEQUENCE = normal(B, 4, 3)
for _kind in (nn.RNN, nn.GRU, nn.LSTM):
    for _label, _options in {
        "": {}, ", bidirectional": {"bidirectional": True}, ", two layers": {"num_layers": 2},
        ", dropout": {"num_layers": 2, "dropout": 0.3}, ", no bias": {"bias": False},
    }.items():  # fmt: skip
        row(f"nn.{_kind.__name__}{_label}", lambda k=_kind, o=_options: k(3, 4, batch_first=True, **o), SEQUENCE, first)
    row(
        f"nn.{_kind.__name__}, packed",
        lambda k=_kind: Called(
            lambda m, x: m["r"](nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True))[0].data,
            r=k(3, 4, batch_first=True),
        ),
        SEQUENCE,
    )
    row(
        f"nn.{_kind.__name__}, packed and padded, bidirectional",
        lambda k=_kind: Called(
            lambda m, x: nn.utils.rnn.pad_packed_sequence(
                m["r"](nn.utils.rnn.pack_padded_sequence(x, [4, 2], batch_first=True))[0], batch_first=True
            )[0],
            r=k(3, 4, batch_first=True, bidirectional=True),
        ),
        SEQUENCE,
    )
row("nn.RNN, relu", lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True), SEQUENCE, first)
row("nn.LSTM, projected", lambda: nn.LSTM(3, 5, proj_size=2, batch_first=True), SEQUENCE, first)
for _cell in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
    row(
        f"nn.{_cell.__name__}",
        lambda c=_cell: Called(lambda m, x: m["c"](x[:, 1], m["c"](x[:, 0])), c=c(3, 4)),
        SEQUENCE,
        first,
    )

# ---- attention

CAUSAL = torch.triu(torch.ones(4, 4, dtype=torch.bool), 1)
PADDED = torch.tensor([[False, False, False, False], [False, False, True, True]])


def attended(**call):
    def attend(m, x):
        masks = {
            k: v.to(x.dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in call.items()
        }
        return m["a"](x, x, x, **masks)[0]

    return attend


ATTENTION = {
    "": ({}, {}), ", with weights": ({}, {"need_weights": True}), ", without weights": ({}, {"need_weights": False}),
    ", masked": ({}, {"attn_mask": CAUSAL}), ", padded": ({}, {"key_padding_mask": PADDED}),
    ", causal": ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}),
    ", bias of keys": ({"add_bias_kv": True}, {}), ", zero": ({"add_zero_attn": True}, {}),
    ", dropout": ({"dropout": 0.3}, {}), ", no bias": ({"bias": False}, {}),
    ", float mask": ({}, {"attn_mask": torch.zeros(4, 4).masked_fill(CAUSAL, -5.0)}),
}  # fmt: skip
for _label, (_options, _call) in ATTENTION.items():
    row(
        f"nn.MultiheadAttention{_label}",
        lambda o=_options, c=_call: Called(attended(**c), a=nn.MultiheadAttention(4, 2, batch_first=True, **o)),
        normal(B, 4, 4),
    )
row(
    "nn.MultiheadAttention, other widths",
    lambda: Called(
        lambda m, x: m["a"](x, x[..., :3], x[..., :2])[0],
        a=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
    ),
    normal(B, 4, 4),
)


def sdpa(**options):
    def forward(m, x):
        q, k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in m["p"](x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)

    return lambda: Called(forward, p=nn.Linear(4, 12))


row("attention", sdpa(), normal(B, 4, 4))
row("attention, causal", sdpa(is_causal=True), normal(B, 4, 4))
row("attention, masked", sdpa(attn_mask=~CAUSAL), normal(B, 4, 4))
row("attention, scaled", sdpa(scale=0.3), normal(B, 4, 4))


def grouped(m, x):
    q = m["q"](x).unflatten(-1, (4, 2)).transpose(1, 2)
    k, v = (t.unflatten(-1, (2, 2)).transpose(1, 2) for t in m["k"](x).chunk(2, -1))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def by_hand(m, x):
    q, k, v = m["p"](x).chunk(3, -1)
    return F.softmax(q @ k.mT / 2 + torch.zeros(4, 4).to(x).masked_fill(CAUSAL, -torch.inf), -1) @ v


def linear_attention(m, x):
    q, k, v = m["p"](x).chunk(3, -1)
    q, k = F.elu(q) + 1, F.elu(k) + 1
    return q @ (k.mT @ v) / (q @ k.sum(1, keepdim=True).mT)


def rotary(m, x):
    q, k, v = m["p"](x).chunk(3, -1)
    angle = torch.arange(4).to(x)[:, None] * torch.tensor([1.0, 0.1]).to(x)

    def turn(t):
        one, other = t[..., :2], t[..., 2:]
        return torch.cat([one * angle.cos() - other * angle.sin(), one * angle.sin() + other * angle.cos()], -1)

    return F.scaled_dot_product_attention(turn(q)[:, None], turn(k)[:, None], v[:, None])[:, 0]


def relative(m, x):
    q, k, v = m["p"](x).chunk(3, -1)
    distance = torch.arange(4)[:, None] - torch.arange(4) + 3
    return F.softmax(q @ k.mT / 2 + m["b"][distance], -1) @ v


row("attention, grouped queries", lambda: Called(grouped, q=nn.Linear(4, 8), k=nn.Linear(4, 8)), normal(B, 4, 4))
row("attention, by hand", lambda: Called(by_hand, p=nn.Linear(4, 12)), normal(B, 4, 4))
row("attention, linear", lambda: Called(linear_attention, p=nn.Linear(4, 12)), normal(B, 4, 4))
row("attention, rotary", lambda: Called(rotary, p=nn.Linear(4, 12)), normal(B, 4, 4))
row("attention, relative bias", lambda: Called(relative, p=nn.Linear(4, 12), b=torch.randn(7)), normal(B, 4, 4))
for _label, _options in {
    "": {}, ", before": {"norm_first": True}, ", gelu": {"activation": "gelu"}, ", dropout": {"dropout": 0.2},
}.items():  # fmt: skip
    row(
        f"nn.TransformerEncoderLayer{_label}",
        lambda o=_options: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **{"dropout": 0.0, **o}),
        normal(B, 4, 4),
    )
row(
    "nn.TransformerEncoder",
    lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), 2, enable_nested_tensor=False
    ),
    normal(B, 4, 4),
)
row(
    "nn.TransformerDecoderLayer",
    lambda: Called(
        lambda m, x: m["d"](x, x.flip(1), tgt_mask=CAUSAL), d=nn.TransformerDecoderLayer(4, 2, 8, 0.0, batch_first=True)
    ),
    normal(B, 4, 4),
)
row(
    "nn.Transformer",
    lambda: Called(lambda m, x: m["t"](x, x.flip(1)), t=nn.Transformer(4, 2, 1, 1, 8, 0.0, batch_first=True)),
    normal(B, 4, 4),
)

# ---- torchvision, up to 100 million weights

# sides of the images, where 64 pixels do not do
SIDES = {"inception_v3": 299, "maxvit_t": 224, "mvit_v1_b": 224, "mvit_v2_s": 224, "vit_b_16": 64, "vit_b_32": 64}
VIDEOS = {"mc3_18": (8, 32), "r2plus1d_18": (8, 32), "r3d_18": (8, 32), "s3d": (14, 224), "mvit_v1_b": (16, 224),
          "mvit_v2_s": (16, 224), "swin3d_t": (4, 64), "swin3d_s": (4, 64), "swin3d_b": (4, 64)}  # fmt: skip
LEFT_OUT = ("quantized", "rcnn", "retinanet", "ssd", "fcos", "raft")  # integers; detectors; pairs of 128 pixels


def classified(out, *_):
    """Cross-entropy of what a model of torchvision returns, with the auxiliary outputs that it has."""
    if isinstance(out, dict):
        return sum(F.cross_entropy(x, torch.ones(x.shape[0], *x.shape[2:], dtype=torch.long)) for x in out.values())
    out = out if isinstance(out, tuple) else (out,)
    return sum(F.cross_entropy(x, torch.arange(x.shape[0]) + 1) for x in out if x is not None)


def _vision(name):
    import torchvision

    options = {"weights": None}
    if "deeplab" in name or "fcn" in name or "lraspp" in name:
        options["weights_backbone"] = None
    if name.startswith("vit"):
        options["image_size"] = SIDES[name]
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = True
    return torchvision.models.get_model(name, **options)


def _add_vision():
    import torchvision.models

    for name in torchvision.models.list_models():
        sizes = [w.meta.get("num_params", 0) for w in torchvision.models.get_model_weights(name)]
        if any(part in name for part in LEFT_OUT) or max(sizes, default=0) > LARGEST:
            continue
        if name in VIDEOS:
            frames, side = VIDEOS[name]
            inputs = normal(B, 3, frames, side, side)
        else:
            inputs = normal(B, 3, *[SIDES.get(name, 64)] * 2)
        row(f"torchvision {name}", lambda n=name: _vision(n), inputs, classified)


# ---- transformers, tiny

TINY = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODER = {**TINY, "num_key_value_heads": 1, "head_dim": 8}
GPT = {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "n_inner": 24,
       "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
SEQ2SEQ = {"vocab_size": 32, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32,
           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
IMAGE = {**TINY, "image_size": 16, "patch_size": 8, "num_channels": 3}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
      "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}  # fmt: skip
# model type: (what it takes, settings of its config)
MODELS = {
    "bert": ("text", TINY), "roberta": ("text", TINY), "camembert": ("text", TINY), "electra": ("text", {
        **TINY, "embedding_size": 16}), "albert": ("text", {**TINY, "embedding_size": 8, "num_hidden_groups": 1}),
    "distilbert": ("text", {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                            "max_position_embeddings": 32}),
    "deberta": ("text", {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
    "deberta-v2": ("text", {**TINY, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "mpnet": ("text", TINY), "layoutlm": ("text", TINY), "ernie": ("text", TINY), "roformer": ("text", TINY),
    "megatron-bert": ("text", TINY), "convbert": ("text", {**TINY, "embedding_size": 16, "conv_kernel_size": 3}),
    "squeezebert": ("text", {**TINY, "embedding_size": 16, "q_groups": 1, "k_groups": 1, "v_groups": 1,
                             "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1}),
    "mobilebert": ("text", {**TINY, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}),
    "funnel": ("text", {"vocab_size": 32, "d_model": 16, "d_head": 8, "n_head": 2, "d_inner": 24,
                        "block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1}),
    "fnet": ("text", {**TINY, "type_vocab_size": 2}), "nystromformer": ("text", {**TINY, "num_landmarks": 4,
                                                                                 "segment_means_seq_len": 8}),
    "rembert": ("text", {**TINY, "input_embedding_size": 8, "output_embedding_size": 8}),
    "xlm-roberta": ("text", TINY), "ibert": ("text", TINY), "yoso": ("text", TINY), "splinter": ("text", TINY),
    "modernbert": ("text", {**TINY, "cls_token_id": 1, "sep_token_id": 2}),
    "esm": ("text", {**TINY, "mask_token_id": 3, "position_embedding_type": "rotary"}),
    "big_bird": ("text", {**TINY, "attention_type": "original_full"}),
    "longformer": ("text", {**TINY, "attention_window": [4, 4]}),
    "xlnet": ("text", {"vocab_size": 32, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}),
    "gpt2": ("text", GPT), "gptj": ("text", {**GPT, "rotary_dim": 4}), "codegen": ("text", {**GPT, "n_head": 4,
                                                                                           "rotary_dim": 4}),
    "openai-gpt": ("text", GPT), "gpt_bigcode": ("text", GPT),
    "gpt_neo": ("text", {**TINY, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                         "window_size": 4}),
    "gpt_neox": ("text", TINY), "bloom": ("text", {"vocab_size": 32, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "opt": ("text", {**TINY, "ffn_dim": 24, "word_embed_proj_dim": 16}), "biogpt": ("text", TINY),
    "mpt": ("text", {"vocab_size": 32, "d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32}),
    "falcon": ("text", {**TINY, "new_decoder_architecture": False}),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "stablelm", "olmo",
                     "olmo2", "cohere", "granite", "starcoder2", "nemotron", "glm", "helium", "smollm3", "persimmon",
                     "phi"), ("text", DECODER)),
    "mixtral": ("text", {**DECODER, "num_local_experts": 2}), "qwen2_moe": ("text", {**DECODER, "num_experts": 2,
        "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts_per_tok": 1}),
    "mamba": ("text", {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}),
    "mamba2": ("text", {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4, "num_heads": 4,
                        "head_dim": 4, "n_groups": 1, "chunk_size": 4}),
    "t5": ("seq2seq", T5), "mt5": ("seq2seq", T5), "longt5": ("seq2seq", {**T5, "local_radius": 2}),
    "switch_transformers": ("seq2seq", {**T5, "num_experts": 2, "num_sparse_encoder_layers": 1,
                                        "num_sparse_decoder_layers": 1}),
    **dict.fromkeys(("bart", "mbart", "pegasus", "marian", "blenderbot", "blenderbot-small", "m2m_100", "plbart"),
                    ("seq2seq", SEQ2SEQ)),
    "vit": ("image", IMAGE), "deit": ("image", IMAGE), "beit": ("image", IMAGE), "dinov2": ("image", IMAGE),
    "data2vec-vision": ("image", IMAGE), "vit_mae": ("image", IMAGE), "vit_msn": ("image", IMAGE),
    "swin": ("image", {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
                       "window_size": 2}),
    "swinv2": ("image", {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
                         "window_size": 2}),
    "convnext": ("image", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}),
    "convnextv2": ("image", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2, "patch_size": 4}),
    "resnet": ("image", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}),
    "regnet": ("image", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "groups_width": 2}),
    "poolformer": ("image", {"hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}),
    "segformer": ("image", {"hidden_sizes": [4, 8], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1],
                            "patch_sizes": [3, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
                            "mlp_ratios": [2, 2]}),
    "mobilevit": ("image", {"image_size": 32, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 8],
                            "num_attention_heads": 2}),
    "focalnet": ("image", {"image_size": 16, "embed_dim": 8, "depths": [1, 1], "hidden_sizes": [8, 8],
                           "focal_levels": [1, 1], "focal_windows": [3, 3]}),
}  # fmt: skip


class _Called(nn.Module):
    """Tokens or pixels in, hidden states out."""

    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x):
        if self.kind == "image":
            return self.model(pixel_values=x, return_dict=False)[0]
        if self.kind == "seq2seq":
            return self.model(input_ids=x, decoder_input_ids=x.flip(1), use_cache=False, return_dict=False)[0]
        try:
            return self.model(input_ids=x, use_cache=False, return_dict=False)[0]
        except TypeError:
            return self.model(input_ids=x, return_dict=False)[0]


def _transformer(name):
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    kind, settings = MODELS[name]
    return _Called(AutoModel.from_config(AutoConfig.for_model(name, **settings)), kind)


def _add_transformers():
    for name, (kind, settings) in MODELS.items():
        side = max(settings.get("image_size", 32), 16)
        inputs = (
            normal(B, 3, side, side) if kind == "image" else (lambda g: (torch.randint(3, 32, (B, 8), generator=g),))
        )
        row(f"transformers {name}", lambda n=name: _transformer(n), inputs)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    _add_transformers()
    _add_vision()
