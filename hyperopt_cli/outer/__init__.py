"""The outer loop: hypergradient descent on the validation loss, a generator of outer steps."""
