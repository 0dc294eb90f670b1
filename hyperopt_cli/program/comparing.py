"""A compiled step against the same step as torch runs it: what differs by more than rounding is refused.

The two round differently, and some numbers of a step are rounding and nothing else: a gradient that is zero in truth
(of the bias of attention's keys, of softmax regression along the ones) comes out as 1e-18, and where Adam divides by
its size, what is left is its sign times any number. Which numbers these are is measured: the step is run again with
weights, slots and hyperparameters moved by their last bit, and each number of the results may differ by a few times as
much as that moves it. A number that is below the last bit of what a typical result holds may be anything below it. What
remains is compared with the number itself and with the norm of the result that it stands in.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.errors import VerificationError

# Relative to the norm of each result: compiled and eager round differently, and a network amplifies that.
AGREES = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 0.2, torch.float16: 0.2}
# Times the largest that a number was seen to move by, or times the last bit of all results.
SPREADS = 8.0
OUTLIERS = 1e3
# Runs with moved arguments: more of them as long as numbers differ, for the sign of a number that is rounding stays
# the same in every second run.
MOST = 24


def check(compiled: list[Tensor], eager: Callable[[torch.Generator | None], list[Tensor]]) -> None:
    """Compares the results of a compiled step with those of the same step as torch runs it.

    Args:
        compiled: flat.
        eager: the same results as torch finds them; given a generator, with arguments `moved` by their last bit.

    Raises:
        VerificationError: they differ by more than rounding.
    """
    wanted = eager(None)
    generator = torch.Generator().manual_seed(0)
    spreads = [torch.zeros_like(y, dtype=torch.float64) for y in wanted]
    reason: str | None = None
    for _ in range(MOST):
        for spread, x, y in zip(spreads, eager(generator), wanted, strict=True):
            torch.maximum(spread, _distance(x, y).nan_to_num(nan=torch.inf), out=spread)
        if (reason := _difference(compiled, wanted, spreads)) is None:
            return
    raise VerificationError(f"compile: the compiled step differs from the same step as torch runs it by {reason}")


def moved(x: Any, generator: torch.Generator) -> Any:
    """Moves every number of a floating tensor up or down by about its last bit; all else stays as it is.

    Whole numbers stay too: one may stand for a label, a flag or a step, to be compared with.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device, x.dtype) * 2 - 1
    near = x.detach() * (1 + torch.finfo(x.dtype).eps * signs)
    return torch.where(x.detach() == x.detach().round(), x.detach(), near).requires_grad_(x.requires_grad)


def drawn_like(tree: Any) -> Any:
    """Puts standard normal numbers in place of every floating tensor of `tree`, the same in every process."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        made.copy_(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        return made.requires_grad_(x.requires_grad)

    return tree_map(drawn, tree)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|, float64; 0 where y is not finite, and so cannot be compared with."""
    return torch.where(y.isfinite(), (x.detach().double() - y.detach().double()).abs(), 0.0)


def _difference(compiled: list[Tensor], wanted: list[Tensor], spreads: list[Tensor]) -> str | None:
    """By how much some result differs, in words; None if all agree."""
    dtypes = {y.dtype for y in wanted if y.dtype in AGREES}  # a float64 scalar may be a sum of float32
    slack, eps = max(AGREES[dtype] for dtype in dtypes), max(torch.finfo(dtype).eps for dtype in dtypes)
    sizes = [_size(y) for y in wanted]
    nothing = SPREADS * eps * statistics.median(sizes)
    for x, y, spread, size in zip(compiled, wanted, spreads, sizes, strict=True):
        there = y.detach().double().abs()
        allowed = SPREADS * spread + torch.where(there <= nothing, nothing, slack * there)
        difference = float(torch.linalg.vector_norm((_distance(x, y) - allowed).clamp(min=0)))
        if not difference <= slack * size:
            return f"{difference:.1e}, of {size:.1e}; set compile: false"
    return None


def _size(x: Tensor) -> float:
    """The norm, in which no number counts more than `OUTLIERS` typical ones: it may be rounding that was divided by."""
    there = torch.where(x.isfinite(), x.detach().double().abs(), 0.0)
    others = there[there > 0]
    return float(torch.linalg.vector_norm(others.clamp(max=OUTLIERS * float(others.median())))) if len(others) else 0.0
