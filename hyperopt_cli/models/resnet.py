"""Residual networks for small pictures: He, Zhang, Ren, Sun 2016, Deep Residual Learning, section 4.2.

https://arxiv.org/abs/1512.03385: one convolution, three stages of n blocks with 16, 32 and 64 channels, a mean over all
pixels and one linear layer: 6 n + 2 layers. Shortcuts carry no parameters (their option A): every second pixel, and
zeros for the channels that are new.
"""

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from hyperopt_cli.models.layers import Norm, blocks_per_stage, conv3x3, image_channels, initialize_he, norm_layer

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """A residual block: relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, num_in: int, num_out: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(num_in, num_out, stride), norm_layer(norm, num_out)
        self.conv2, self.norm2 = conv3x3(num_out, num_out), norm_layer(norm, num_out)
        self.stride, self.num_new = stride, num_out - num_in

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, num_in, H, W] to [B, num_out, H / stride, W / stride]."""
        residual = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.num_new // 2
        return relu(pad(shortcut, (0, 0, 0, 0, before, self.num_new - before)) + residual)


def resnet(input_shape: tuple[int, ...], num_classes: int, depth: int = 20, norm: Norm = "batch") -> nn.Module:
    """Makes the residual network of `depth` layers for pictures of 32 x 32 pixels (other sizes work).

    Args:
        input_shape: (channels, height, width), at least 8 x 8 pixels.
        num_classes: number of outputs.
        depth: 6 n + 2: 20, 32, 44, 56, 110 in the paper.
        norm: "batch" as in the paper, "group" or "none".

    Returns:
        A module from [B, *input_shape] to [B, num_classes]; 0.27 million parameters at depth 20.

    Raises:
        ValueError: inputs that aren't pictures, another depth, or an unknown norm.
    """
    num_blocks = blocks_per_stage(depth, stem=2)
    channels = WIDTHS[0]
    layers: list[nn.Module] = [conv3x3(image_channels(input_shape), channels), norm_layer(norm, channels), nn.ReLU()]
    for width in WIDTHS:
        for _ in range(num_blocks):
            layers.append(Block(channels, width, stride=1 if width == channels else 2, norm=norm))
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    initialize_he(model)
    return model
