"""Is a derivative that of the training run? Central differences of what training computes are the reference.

`differences.py` takes them, and says where they count; `decisions.py` tells whether a comparison, a maximum or a
rounding came out otherwise. `judge.py` compares the candidates for the pullback of the gradient, step by step;
`engine_judge.py` and `examination.py` do so for engines, of which `choice.py` takes the quickest that is right;
`rule.py` and `outer.py` for what is not the gradient. `flow.py` follows what autograd does not see, `watch.py` says
which steps are examined, `replayed.py` what differs when a step is taken twice, `remembered.py` what a loss keeps in
Python between its evaluations, `connectivity.py` whether every hyperparameter is connected, `no_writes.py` whether the
loss writes into what outlives it, `growth.py` how many digits a hypergradient has.
"""
