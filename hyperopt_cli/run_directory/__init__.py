"""What a run leaves behind: its directory, its state, its result and its TensorBoard log."""
