"""The networks whose derivatives are measured: this package's, and the three of a published benchmark.

Dagréou, Ablin, Vaiter, Moreau 2024, "How to compute Hessian-vector products?",
https://iclr-blogposts.github.io/2024/blog/bench-hvp/, takes ResNet-34 on 224 x 224 pictures, ViT-B/16 on 96 x 96, and
BERT-base for token classification on 32 tokens, in batches of 64 for the memory. Weights and data are drawn at random,
nothing is downloaded. Normalisation is as in training, batch statistics that leave no trace; dropout is off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hyperopt_cli.bench.problems import NUM_CLASSES, Batches, seeded
from hyperopt_cli.errors import UsageError
from hyperopt_cli.models import convnet, logistic, mlp, resnet, wide_resnet
from hyperopt_cli.models.batch_norm import use_batch_statistics

OWN = ("logistic", "mlp", "convnet", "resnet", "wide_resnet")
NUM_IMAGE_CLASSES, NUM_TAGS, NUM_TOKENS = 1000, 9, 30522  # ImageNet's, CoNLL's, BERT's


@dataclass(frozen=True)
class Sizes:
    """The sizes of the networks and of their batches; `large_batch_cpu` is that of the large ones on a CPU."""

    inputs: int = 784
    hidden: tuple[int, ...] = (300, 300)
    batch: int = 128
    pixels: int = 32
    widths: tuple[int, ...] = (16, 32, 32)
    resnet_depth: int = 20
    wide_depth: int = 16
    image_batch: int = 64
    resnet34_pixels: int = 224
    vit_pixels: int = 96
    tokens: int = 32
    large_batch: int = 64
    large_batch_cpu: int = 4
    dtype: str = "float32"


class Network(NamedTuple):
    """A model, and what it takes as inputs.

    Attributes:
        title: its name, with the size of an input.
        make: makes the module, in torch's initialisation.
        num_classes: how many classes its outputs have.
        shape: the shape of one input.
        batch: inputs in a batch.
        num_tokens: inputs are indices below this number; None where they are normal numbers.
        tagged: whether each position of an input has a target of its own.
    """

    title: str
    make: Callable[[], nn.Module]
    num_classes: int
    shape: tuple[int, ...]
    batch: int
    num_tokens: int | None = None
    tagged: bool = False


class Ready(NamedTuple):
    """A network on its device, with batches.

    Attributes:
        title: with the number of parameters, the batch and the dtype.
        model: in training mode, a pure function of parameters and inputs.
        batches: on random data.
    """

    title: str
    model: nn.Module
    batches: Batches


def networks(sizes: Sizes, device: torch.device) -> dict[str, Network]:
    """Returns all networks that can be asked for, by name."""
    flat, image = (sizes.inputs,), (3, sizes.pixels, sizes.pixels)
    size = f"{sizes.pixels} x {sizes.pixels}"
    widths = "-".join(map(str, (sizes.inputs, *sizes.hidden, NUM_CLASSES)))

    def network(title: str, make: Callable[..., nn.Module], shape: tuple[int, ...], batch: int) -> Network:
        return Network(title, partial(make, input_shape=shape, num_classes=NUM_CLASSES), NUM_CLASSES, shape, batch)

    own = {
        "logistic": network(f"logistic regression {sizes.inputs}-{NUM_CLASSES}", logistic, flat, sizes.batch),
        "mlp": network(f"MLP {widths}", partial(mlp, hidden=sizes.hidden), flat, sizes.batch),
        "convnet": network(
            f"convnet with GroupNorm, {size}", partial(convnet, widths=sizes.widths), image, sizes.image_batch
        ),
        "resnet": network(
            f"ResNet-{sizes.resnet_depth}, {size}", partial(resnet, depth=sizes.resnet_depth), image, sizes.image_batch
        ),
        "wide_resnet": network(
            f"WRN-{sizes.wide_depth}-1, {size}", partial(wide_resnet, depth=sizes.wide_depth), image, sizes.image_batch
        ),
    }
    batch = sizes.large_batch_cpu if device.type == "cpu" else sizes.large_batch
    wide, small = sizes.resnet34_pixels, sizes.vit_pixels
    published = {
        "resnet34": Network(
            f"ResNet-34, {wide} x {wide}", _resnet34, NUM_IMAGE_CLASSES, (3, wide, wide), batch
        ),
        "vit_b_16": Network(
            f"ViT-B/16, {small} x {small}", partial(_vit, small), NUM_IMAGE_CLASSES, (3, small, small), batch
        ),
        "bert": Network(
            f"BERT-base, {sizes.tokens} tokens", _Tagger, NUM_TAGS, (sizes.tokens,), batch,
            num_tokens=NUM_TOKENS, tagged=True,
        ),
    }  # fmt: skip
    return {**own, **published}


def chosen(known: Mapping[str, Network], names: Sequence[str]) -> dict[str, Network]:
    """Returns the networks of these names.

    Raises:
        UsageError: there is no such network, or a package that it is made of is not installed.
    """
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"models: got {', '.join(unknown)}; allowed are {', '.join(known)}")
    if "bert" in names and find_spec("transformers") is None:
        others = ",".join(name for name in names if name != "bert") or "..."
        raise UsageError(
            "models: bert is made by transformers, which is not installed; "
            f"pip install 'hyperopt-cli[transformers]', or leave it out: --models {others}"
        )
    return {name: known[name] for name in names}


def ready(network: Network, num_batches: int, batch: int | None, sizes: Sizes, device: torch.device) -> Ready:
    """Makes the network, with `num_batches` batches to train on and one to validate on.

    Args:
        network: the network to make.
        num_batches: batches to train on.
        batch: inputs in each; None: the network's own number.
        sizes: the dtype is taken from it.
        device: where to compute.
    """
    dtype, size = getattr(torch, sizes.dtype), batch or network.batch
    model = seeded(network.make).to(device, dtype).train()
    use_batch_statistics(model)
    count = sum(w.numel() for w in model.parameters())
    title = f"{network.title} ({count:,} parameters), batch {size}, {sizes.dtype}"

    source, of_all = torch.Generator().manual_seed(0), (num_batches + 1, size, *network.shape)
    if network.num_tokens is None:
        inputs = torch.randn(of_all, generator=source).to(device, dtype)
    else:
        inputs = torch.randint(network.num_tokens, of_all, generator=source).to(device)
    labelled = of_all if network.tagged else of_all[:2]
    targets = torch.randint(network.num_classes, labelled, generator=source).to(device)
    return Ready(title, model, Batches(inputs, targets))


def _resnet34() -> nn.Module:
    from torchvision.models import resnet34

    model: nn.Module = resnet34(weights=None, num_classes=NUM_IMAGE_CLASSES)
    return model


def _vit(pixels: int) -> nn.Module:
    from torchvision.models import vit_b_16

    model: nn.Module = vit_b_16(weights=None, image_size=pixels, num_classes=NUM_IMAGE_CLASSES)
    # torchvision starts it at zeros, which would hide most of the Hessian
    nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.02)
    return model


class _Tagger(nn.Module):
    """BERT-base with a class for each token, from indices [B, L] to logits [B, L, NUM_TAGS]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForTokenClassification

        config = BertConfig(
            vocab_size=NUM_TOKENS,
            num_labels=NUM_TAGS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )
        self.bert = BertForTokenClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Any = self.bert(input_ids=tokens)
        logits: Tensor = out.logits
        return logits
