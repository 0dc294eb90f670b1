"""Tests of the run directory, its status, its result and its TensorBoard log."""
