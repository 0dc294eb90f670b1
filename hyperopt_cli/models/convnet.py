"""A small plain convolutional network for pictures of 8 x 8 pixels and more."""

from collections.abc import Sequence

from torch import nn

from hyperopt_cli.models.layers import Norm, conv3x3, image_channels, initialize_he, norm_layer


def convnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    widths: Sequence[int] = (16, 32, 32),
    norm: Norm = "group",
    dropout: float = 0.0,
) -> nn.Module:
    """Makes convolution, normalisation and ReLU for each width, with 2 x 2 means between, and a mean over all pixels.

    Averages, not maxima: the gradient of a maximum jumps where two pixels tie, as they do on flat backgrounds.

    Args:
        input_shape: (channels, height, width), at least 8 x 8 pixels.
        num_classes: number of outputs.
        widths: channels of each convolution.
        norm: "group", "batch" or "none".
        dropout: share of the pooled features that a training step drops.

    Returns:
        A module from [B, *input_shape] to [B, num_classes].

    Raises:
        ValueError: inputs that aren't pictures, no widths, or an unknown norm.
    """
    if not widths or min(widths) < 1:
        raise ValueError(f"widths = {tuple(widths)}: at least one is needed, each at least 1")
    channels, pixels = image_channels(input_shape), min(input_shape[1:])
    layers: list[nn.Module] = []
    for width in widths:
        if layers and pixels >= 4:
            layers.append(nn.AvgPool2d(2))
            pixels //= 2
        layers += [conv3x3(channels, width), norm_layer(norm, width), nn.ReLU()]
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes)]
    model = nn.Sequential(*layers, *head)
    initialize_he(model)
    return model
