"""A function of tensors as a list of operators: written down, differentiated, partitioned, compiled, and run again.

`record.py` writes down the training gradient below autograd, as training computes it: a detach, a `no_grad`, a hook, a
custom backward are there what they do and no more, so that the derivative of the list (`derivative.py`; `rules.py` has
the operators whose own is missing or wrong) is that of the run where a double backward is cut.

`operators.py` writes down a whole step, gradient and update rule together, for the compiler: as one function
(`compiled_step.py`), or partitioned into forward and backward (`partition.py`). `comparing.py` compares what is
compiled with the step as torch runs it, `worth_compiling.py` says whether the horizon repays it, `failures.py` what may
go wrong.

Nothing here knows of engines or training runs.
"""

from hyperopt_cli.program.compiled_step import CompiledStep, cannot_compile
from hyperopt_cli.program.derivative import as_operators, differentiable
from hyperopt_cli.program.partition import PartitionedStep, Saved
from hyperopt_cli.program.record import Program, recorded
from hyperopt_cli.program.worth_compiling import Compilation, decide

__all__ = [
    "Compilation",
    "CompiledStep",
    "PartitionedStep",
    "Program",
    "Saved",
    "as_operators",
    "cannot_compile",
    "decide",
    "differentiable",
    "recorded",
]
