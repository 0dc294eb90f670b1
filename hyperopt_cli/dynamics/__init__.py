"""What every mode stands on: the state, a training step, chunked losses, precision."""
