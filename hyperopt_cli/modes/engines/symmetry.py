"""Is the matrix that an engine multiplies with symmetric, as every Hessian is?

    asymmetry = |u.(H v) - v.(H u)| / max(|H u|, |H v|)       u, v ~ N(0, 1), drawn with a seed of their own

Of a right engine it is rounding, about 1e-15 in float64; torch's silently wrong derivatives gave .17 to .34 in whole
models and .4 to .9 in single normalisation layers. |H u| rather than |u| |H u| is the size of u.(H v) for random u, so
that the figure does not fall with the number of parameters. Where a run lowers the precision of its products the
figure is taken without that: rounding to 8 bits would hide half of what is wrong.

Where the gradient of a whole parameter is zero at s_0 (an adapter whose other factor starts at zero, a branch behind a
scale of zero), its products would show nothing: the figure is taken at a point close by (`awake`).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.errors import UsageError
from hyperopt_cli.modes.dynamics import Dynamics
from hyperopt_cli.modes.engines.base import Engine
from hyperopt_cli.modes.engines.setting import SYMMETRY, Setting
from hyperopt_cli.modes.sizes import size_of
from hyperopt_cli.optimizers.base import Params
from hyperopt_cli.problem import Hyper

SEED, SEED_AWAY = 20, 21
GROSS = 0.05
AWAY = 0.01  # of the size of the weights


def directions(params: Params, num: int, seed: int = SEED) -> Params:
    """Random directions in w, [num, *shape]; no other generator moves."""
    generator = torch.Generator().manual_seed(seed)
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


def awake(setting: Setting) -> tuple[Setting, Params]:
    """The setting and its gradient, or those a little away where the gradient of a whole parameter is zero."""
    plain = setting.plain_gradient()
    if all(bool((g != 0).any()) for g in plain.values()):
        return setting, plain
    num = sum(w.numel() for w in setting.params.values())
    size = AWAY * (float((_inner(setting.params, setting.params) / num).sqrt()) or 1.0)
    away = directions(setting.params, 1, SEED_AWAY)
    moved = setting._replace(params={name: w + size * away[name][0] for name, w in setting.params.items()})
    there = moved.plain_gradient()
    return (moved, there) if all(bool(g.isfinite().all()) for g in there.values()) else (setting, plain)


def check_pullback(mode: str, engine: Engine, dynamics: Dynamics, hyper: Hyper, known: set[str]) -> None:
    """The same for the double backward of a mode that sweeps back, once for problems of one size.

    A field that a model trains by may be no gradient, and its Jacobian rightly not symmetric: what is refused are
    products that finite differences of the training gradient do not show either. Below float64 only what cannot be
    rounding is: a model may compute parts of itself in bfloat16.

    Raises:
        UsageError: the products are not those of a symmetric matrix.
    """
    size = repr(size_of(dynamics, hyper))
    if size in known:
        return
    plain = dynamics.plain_hyper_at(hyper, 0)
    rows = tree_map(lambda x: x.new_zeros(2, *x.shape), plain)
    setting = Setting.of(dynamics, plain, rows, chunk_size=1)
    if setting.symmetry > SYMMETRY["float64"]:
        setting = setting._replace(symmetry=max(GROSS, setting.symmetry), agreement=max(GROSS, setting.agreement))
    try:
        check_symmetry(f"mode {mode}", engine, setting)
    except UsageError:
        if not _shown_by_differences(engine, setting):
            raise
    known.add(size)


def _shown_by_differences(engine: Engine, setting: Setting) -> bool:
    """Whether (J' u).v is u.(J v) of central differences of the gradient, for one u and v."""
    setting, _ = awake(setting)
    u, v = (_row(directions(setting.params, 2), i) for i in (0, 1))
    accuracy: float = max(torch.finfo(w.dtype).eps for w in setting.params.values()) ** (1 / 3)
    h = accuracy * float((1 + _inner(setting.params, setting.params).sqrt()) / _inner(v, v).sqrt())
    ahead, behind = (
        setting._replace(params={name: w + sign * h * v[name] for name, w in setting.params.items()}).plain_gradient()
        for sign in (1.0, -1.0)
    )
    difference = {name: (ahead[name] - behind[name]) / (2 * h) for name in ahead}
    pulled = _row(setting.in_full_precision(engine, {name: x[None] for name, x in u.items()}).grad_tangents, 0)
    size = max(float(_inner(difference, difference).sqrt()), float(_inner(pulled, pulled).sqrt()))
    return abs(float(_inner(pulled, v)) - float(_inner(u, difference))) <= 10 * accuracy * size


class Probe(NamedTuple):
    """What two products showed.

    Attributes:
        asymmetry: of the products.
        strayed: the difference of the engine's gradient from that of plain training, over its size.
    """

    asymmetry: float
    strayed: float


def check_symmetry(name: str, engine: Engine, setting: Setting) -> None:
    """Takes two products and compares; an engine that has left the finite numbers is left to the run, which says where.

    Raises:
        UsageError: the products are not those of a symmetric matrix, or of another loss than the run's.
    """
    reason = misfit(probed(engine, setting), setting)
    if reason is not None:
        raise UsageError(
            f"{name}: {reason}; the hypergradient would be silently wrong. Use another engine of forward (auto chooses "
            "among those that are right); if all are refused, a derivative of the model's own operators is wrong (an "
            "autograd.Function that cannot be differentiated twice), or rounds too much (float16 inside of the model)"
        )


def probed(engine: Engine, setting: Setting) -> Probe:
    """Two products along random directions, at rest where the gradient is zero.

    Where a gradient is put to zero (`padding_idx` of an embedding) its Jacobian has a row of zeros and no such column:
    right, and not symmetric.
    """
    setting, plain = awake(setting)
    both = {name: u * (plain[name] != 0) for name, u in directions(setting.params, 2).items()}
    out = setting.in_full_precision(engine, both)
    size = _inner(plain, plain).sqrt()
    away = {name: g - plain[name] for name, g in out.grads.items()}
    strayed = float(_inner(away, away).sqrt() / size) if float(size) > 0 else 0.0
    return Probe(asymmetry(both, out.grad_tangents), strayed)


def misfit(probe: Probe, setting: Setting) -> str | None:
    """What is wrong with what was found, or None."""
    if probe.strayed > setting.agreement:
        return (
            f"its gradient differs from that of plain training by {probe.strayed:.2g} of its size: it draws other "
            "random numbers (dropout inside of attention, for one)"
        )
    figure = probe.asymmetry
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
