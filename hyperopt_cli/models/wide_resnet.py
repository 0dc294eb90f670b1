"""Wide residual networks: Zagoruyko, Komodakis 2016, https://arxiv.org/abs/1605.07146, table 1.

One convolution, three stages of n blocks with 16 k, 32 k and 64 k channels, a mean over all pixels and one linear
layer: 6 n + 4 layers with the 1 x 1 convolutions of the shortcuts. Normalisation and ReLU come before each convolution;
where a block changes the shape, its shortcut starts behind the first of them.
"""

from torch import Tensor, nn
from torch.nn.functional import relu

from hyperopt_cli.models.layers import Norm, blocks_per_stage, conv3x3, image_channels, initialize_he, norm_layer

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """A residual block: shortcut + conv(dropout(relu(norm(conv(relu(norm(x)))))))."""

    def __init__(self, num_in: int, num_out: int, stride: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm_layer(norm, num_in), conv3x3(num_in, num_out, stride)
        self.norm2, self.conv2 = norm_layer(norm, num_out), conv3x3(num_out, num_out)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = None
        if num_in != num_out or stride != 1:
            self.shortcut = nn.Conv2d(num_in, num_out, kernel_size=1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_in, H, W] to [B, num_out, H / stride, W / stride]."""
        active = relu(self.norm1(x))
        residual: Tensor = self.conv2(self.dropout(relu(self.norm2(self.conv1(active)))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def wide_resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    depth: int = 16,
    widen_factor: int = 1,
    norm: Norm = "batch",
    dropout: float = 0.0,
) -> nn.Module:
    """Makes the wide residual network WRN-`depth`-`widen_factor`.

    Args:
        input_shape: (channels, height, width), at least 8 x 8 pixels.
        num_classes: number of outputs.
        depth: 6 n + 4: 16, 22, 28, 40 in the paper.
        widen_factor: k, at least 1.
        norm: "batch" as in the paper, "group" or "none".
        dropout: share of the activations between a block's convolutions that a training step drops.

    Returns:
        A module from [B, *input_shape] to [B, num_classes]; WRN-16-1 has 175,066 parameters on CIFAR-10.

    Raises:
        ValueError: inputs that aren't pictures, another depth, a factor below 1, or an unknown norm.
    """
    num_blocks = blocks_per_stage(depth, stem=4)
    if widen_factor < 1:
        raise ValueError(f"widen_factor = {widen_factor}: it has to be at least 1")
    channels = WIDTHS[0]
    layers: list[nn.Module] = [conv3x3(image_channels(input_shape), channels)]
    for stage, width in enumerate(WIDTHS):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Block(channels, width * widen_factor, stride, norm, dropout))
            channels = width * widen_factor
    head = [
        norm_layer(norm, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    ]
    model = nn.Sequential(*layers, *head)
    initialize_he(model)
    return model
