"""Sizes at which a benchmark takes a second; its figures then mean nothing."""

from hyperopt_cli.bench import checkpointing, modes, networks, reversal, tangents

REVERSAL = reversal.Sizes(
    inputs=6,
    hidden=(4,),
    batch=5,
    pixels=8,
    widths=(4,),
    image_batch=2,
    stored_parameters=20,
    stored_steps=200,
)
CHECKPOINTING = checkpointing.Sizes(inputs=6, hidden=(4,), batch=5, slots=(3, 1))
MODES = modes.Sizes(steps=6, inputs=6, hidden=(4,), batch=5, num_rates=3, slots=2)
NETWORKS = networks.Sizes(
    inputs=6,
    hidden=(5, 4),
    batch=5,
    pixels=8,
    widths=(4, 4),
    resnet_depth=8,
    wide_depth=10,
    image_batch=3,
    resnet34_pixels=32,
    vit_pixels=32,
    tokens=4,
    large_batch_cpu=2,
)
RATE = tangents.Rate(edge_cpu=64)
