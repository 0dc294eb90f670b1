"""Is a derivative that of the training run? Central differences of what training computes are the reference.

`differences.py` takes them, and says where they count; `decisions.py` tells whether a comparison, a maximum or a
rounding came out otherwise; `raised.py` computes in float64 what is written in another precision. `kinds.py` tells
steps of one kind from another. `judge.py` compares the candidates for the pullback of the gradient, step by step;
`engines/examination.py` does so for engines; `rule.py` and `outer.py` for what is not the gradient.
"""
