"""Is the matrix that an engine multiplies with symmetric, as every Hessian is?

    asymmetry = |u.(H v) - v.(H u)| / max(|H u|, |H v|)       u, v ~ N(0, 1), drawn with a seed of their own

Of a right engine it is rounding, about 1e-15 in float64; torch's silently wrong derivatives gave .17 to .34 in whole
models and .4 to .9 in single normalisation layers. |H u| rather than |u| |H u| is the size of u.(H v) for random u, so
that the figure does not fall with the number of parameters. Where a run lowers the precision of its products the
figure is taken without that: rounding to 8 bits would hide half of what is wrong.
"""

import torch
from torch import Tensor

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.engines.base import Engine
from hyperopt_cli.modes.engines.setting import Setting
from hyperopt_cli.optimizers.base import Params

SEED = 20


def directions(params: Params, num: int) -> Params:
    """Random directions in w, [num, *shape]; no other generator moves."""
    generator = torch.Generator().manual_seed(SEED)
    return {
        name: torch.randn(num, *w.shape, generator=generator, dtype=w.dtype).to(w.device) for name, w in params.items()
    }


def asymmetry(u_and_v: Params, products: Params) -> float:
    """The figure; 0 where both products are 0, NaN where one is not finite.

    Args:
        u_and_v: two directions, [2, *shape].
        products: H u and H v, [2, *shape].
    """
    sizes = [_inner(row, row).sqrt() for row in (_row(products, 0), _row(products, 1))]
    difference = _inner(_row(u_and_v, 0), _row(products, 1)) - _inner(_row(u_and_v, 1), _row(products, 0))
    size = torch.stack(sizes).max()
    return 0.0 if float(size) == 0.0 else float((difference / size).abs())


def check_symmetry(name: str, engine: Engine, setting: Setting) -> None:
    """Takes two products and compares; an engine that has left the finite numbers is left to the run, which says where.

    Raises:
        UsageError: the products are not those of a symmetric matrix.
    """
    reason = misfit(probed(engine, setting), setting)
    if reason is not None:
        raise UsageError(
            f"engine {name}: {reason}; the hypergradient would be silently wrong. Use another engine (auto chooses "
            "among those that are right); if all are refused, a derivative of the model's own operators is wrong"
        )


def probed(engine: Engine, setting: Setting) -> float:
    """The asymmetry of an engine."""
    both = directions(setting.params, 2)
    return asymmetry(both, setting.in_full_precision(engine, both))


def misfit(figure: float, setting: Setting) -> str | None:
    """What is wrong with an asymmetry, or None."""
    if figure <= setting.symmetry or figure != figure:
        return None
    return f"u.(Hv) and v.(Hu) differ by {figure:.2g} of their size (rounding is at most {setting.symmetry:g})"


def _row(rows: Params, i: int) -> Params:
    return {name: x[i] for name, x in rows.items()}


def _inner(x: Params, y: Params) -> Tensor:
    return torch.stack([(wide(x[name]) * wide(y[name])).sum() for name in x]).sum()


def wide(x: Tensor) -> Tensor:
    """In the precision that sums are taken in."""
    return x.float() if x.device.type == "mps" else x.double()  # which has no float64
