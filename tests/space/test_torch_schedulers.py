"""Schedules against those of `torch.optim.lr_scheduler`.

Ours take the middle of step t, u = (t + 1/2) / T; theirs stand at the whole numbers of their own axis. So theirs are
run on an axis of 2 T, where the middles are the odd numbers.
"""

import torch
from torch.optim import lr_scheduler

from hyperopt_cli.space import Schedule

T, PEAK = 20, 0.4
Scheduler = lr_scheduler.LRScheduler


def optimizer(lr: float = PEAK) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def at_the_middles(scheduler: Scheduler) -> torch.Tensor:
    values = []
    for _ in range(2 * T):
        values.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return torch.tensor(values[1::2], dtype=torch.float64)


def ours(kind: str, **numbers: float) -> torch.Tensor:
    parameters = {name: torch.tensor(x, dtype=torch.float64) for name, x in numbers.items()}
    peak = torch.tensor(PEAK, dtype=torch.float64)
    return torch.stack([Schedule(kind, T).at(peak, parameters, t) for t in range(T)])


def test_cosine_without_warmup_is_cosine_annealing() -> None:
    want = at_the_middles(lr_scheduler.CosineAnnealingLR(optimizer(), T_max=2 * T, eta_min=0.1 * PEAK))
    torch.testing.assert_close(ours("warmup_cosine", warmup=0.0, final=0.1), want, rtol=1e-10, atol=0)


def test_cosine_with_warmup_is_a_linear_ramp_then_cosine_annealing() -> None:
    base, rising = optimizer(), 10  # a quarter of the axis
    ramp = lr_scheduler.LinearLR(base, start_factor=1e-12, total_iters=rising)
    fall = lr_scheduler.CosineAnnealingLR(base, T_max=2 * T - rising, eta_min=0.1 * PEAK)
    want = at_the_middles(lr_scheduler.SequentialLR(base, [ramp, fall], [rising]))
    torch.testing.assert_close(ours("warmup_cosine", warmup=0.25, final=0.1), want, rtol=1e-9, atol=0)


def test_one_cycle_is_one_cycle() -> None:
    """Its last step stands at the end of the axis, and its peak at `pct_start total_steps - 1`."""
    total, share = 2 * T + 1, 0.3
    scheduler = lr_scheduler.OneCycleLR(
        optimizer(), PEAK, total_steps=total, pct_start=share, div_factor=25, final_div_factor=40, cycle_momentum=False
    )
    want = at_the_middles(scheduler)
    got = ours("one_cycle", warmup=(share * total - 1) / (total - 1), initial=1 / 25, final=1 / 1000)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)


def test_exponential_is_exponential() -> None:
    want = at_the_middles(lr_scheduler.ExponentialLR(optimizer(), gamma=0.05 ** (1 / (2 * T))))
    torch.testing.assert_close(ours("exponential", final=0.05), want, rtol=1e-10, atol=0)


def test_step_decay_is_multi_step() -> None:
    want = at_the_middles(lr_scheduler.MultiStepLR(optimizer(), milestones=[T, 3 * T // 2], gamma=0.2))
    torch.testing.assert_close(ours("step_decay", factor=0.2), want, rtol=1e-12, atol=0)
