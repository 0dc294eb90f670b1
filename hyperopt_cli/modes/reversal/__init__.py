"""What reversible mode stands on: the factors in use, the state in fixed point, and its elementwise passes."""
