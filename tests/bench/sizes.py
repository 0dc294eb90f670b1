"""Sizes at which a benchmark takes a second; its figures then mean nothing."""

from hyperopt_cli.bench import checkpointing, reversal

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
