"""What a model is trained for: losses by name."""
