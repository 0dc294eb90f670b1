"""Reversible mode: every step is undone bit for bit, or the run ends with an error."""

import gc
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
import torch

from hyperopt_cli import Problem, Reverse, Reversible, errors, hypergradient, optimizers
from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.modes.account import Account, Finite
from hyperopt_cli.modes.reversal.factors import Factors, at_factors
from hyperopt_cli.modes.reversal.fixed_point import FixedPoint
from hyperopt_cli.modes.reversal.kernels import EAGER, compiled
from hyperopt_cli.modes.reversal.radix import chosen
from hyperopt_cli.optimizers.base import WEIGHTS, Coupling, InnerOptimizer, itself, zeros
from tests.cases import CASES, hypergradient_of, net_problem, scalar
from tests.modes.test_exactness import assert_close
from tests.reference import unroll

REFUSED = {
    "sgd",
    "sgd weight decay at 0",
    "nesterov",
    "nesterov at 0",
    "rmsprop plain",
    "knots",
    "per tensor",
    "late",
    "losses",
}
F64 = torch.float64


@pytest.mark.parametrize("case", sorted(set(CASES) - REFUSED))
def test_equals_the_plain_unroll_at_the_factors_in_use(case):
    rule, problem, hyper = CASES[case]
    value, grad, params = unroll(rule, at_factors(problem, hyper), hyper)
    got = hypergradient_of(case, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)
    assert_close(got.params, params, 1e-9)


@pytest.mark.parametrize("case", ["momentum", "adam", "adamw", "rmsprop", "cosine", "init"])
def test_equals_the_plain_unroll_as_it_is_where_the_factors_are_rationals(case):
    rule, problem, hyper = CASES[case]
    value, grad, _ = unroll(rule, problem, hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refuses_before_step_0_what_cannot_be_undone(case):
    _, problem, hyper = CASES[case]
    seen = []
    with pytest.raises(errors.UsageError, match=r"contains the gradient itself.*Reverse\(slots=...\)"):
        hypergradient(problem, hyper, "reversible", on_step=lambda *step: seen.append(step))
    assert not seen


@pytest.mark.parametrize("case", ["momentum", "adamw", "rmsprop centered", "per weight"])
def test_a_trained_factor_that_is_no_small_rational_is_taken_at_one_nearby(case):
    rule, problem, hyper = CASES[case]
    odd = {name: value * 0.912345678 for name, value in hyper.items()}
    used = at_factors(problem, odd)
    value, grad, _ = unroll(rule, used, odd)
    got = hypergradient(problem, odd, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)
    _, off, _ = unroll(rule, problem, odd)
    with pytest.raises(AssertionError):  # the factors matter: at the numbers as given it is another run
        assert_close(got.grad, off, 1e-10)
    assert_close(got.grad, off, 1e-4)


def test_the_factors_in_use_are_reported_and_reproduce_the_run():
    _, problem, hyper = CASES["momentum"]
    odd = {**hyper, "momentum": scalar(0.87654321)}
    got = hypergradient(problem, odd, "reversible")
    factor = got.stats["factors"]["momentum"]
    assert isinstance(factor, Fraction)
    assert abs(float(factor) - 0.87654321) <= 1e-6 * (1 - 0.87654321)
    assert factor.denominator < 5000
    want = hypergradient(problem, {**odd, "momentum": scalar(float(factor))}, "reverse")
    assert_close(got.grad, want.grad, 1e-9)


def test_a_scheduled_momentum_has_a_factor_at_every_step():
    _, problem, hyper = CASES["momentum"]
    rise = replace(problem, schedule=lambda h, t: {**h, "momentum": h["momentum"] * (0.5 + t / 24)})
    got = hypergradient(rise, hyper, "reversible")
    used = got.stats["factors"]["momentum"]
    assert [abs(float(f) - 0.9 * (0.5 + t / 24)) < 1e-6 for t, f in enumerate(used)] == [True] * problem.steps
    value, grad, _ = unroll("sgd", at_factors(rise, hyper), hyper)
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)


def test_a_momentum_of_each_tensor_is_undone_where_one_of_them_is_0():
    problem = net_problem(
        optimizers.SGD(), lambda h, t: {"lr": h["lr"], "momentum": {"a.weight": h["m"][0], "b.weight": h["m"][1]}}
    )
    hyper = {"lr": scalar(0.1), "m": torch.tensor([0.0, 0.9], dtype=F64)}
    value, grad, _ = unroll("sgd", problem, hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)
    assert got.stats["factors"]["momentum"] == {"a.weight": 0, "a.bias": 0, "b.weight": Fraction(9, 10)}


# ---- reversal alone, at size


def noisy(optimizer, steps, size, dtype=F64):
    """A quadratic whose targets are other noise at every step."""
    gen = torch.Generator().manual_seed(0)
    targets = torch.randn(7, size, generator=gen, dtype=dtype)
    w = torch.randn(size, generator=gen, dtype=dtype)
    return Problem(
        {"w": w},
        lambda p, h, target: ((p["w"] - target) ** 2).sum() / 2,
        lambda p, h: (p["w"] ** 2).mean(),
        lambda t: targets[t % 7],
        optimizer,
        steps,
    )


def there_and_back(optimizer, hyper, steps, size=100_000, kernels=EAGER):
    """Steps forward and back without a sweep; the gradient of `noisy` is w - target."""
    problem = noisy(optimizer, steps, size)
    dynamics = Dynamics.of(problem, hyper)
    factors = Factors(dynamics, hyper)
    with torch.no_grad():
        radixes = chosen(dynamics, hyper, factors, {}, 1, 0, Account(steps, dynamics.like))
    held = FixedPoint(dynamics, factors, radixes, kernels)
    start = {part: x.clone() for part, x in held.numbers[""].items()}
    moved = dynamics.hyper_at(hyper, 0)
    for t in range(steps):
        held.advance({"": held.weights()[""] - problem.batch(t)}, moved, t)
    bits, size_bytes = held.bits(), stored_bytes(held)
    assert not torch.equal(held.numbers[""][WEIGHTS], start[WEIGHTS])
    for t in reversed(range(steps)):
        w = held.undo_weights(moved, t)
        held.undo_rest({"": w[""] - problem.batch(t)}, moved, t)
    assert all(torch.equal(x, start[part]) for part, x in held.numbers[""].items())
    assert held.stores[""].is_empty
    assert held.num_wrong() == 0
    return bits / steps, size_bytes / size


def stored_bytes(held):
    own = [radix[""] for radix in held.radixes.values() if isinstance(radix[""], torch.Tensor)]
    tensors = [*held.numbers[""].values(), held.stores[""].remainders, *held.stores[""].words, *own]
    return sum(x.numel() * x.element_size() for x in tensors)


LARGE = {
    # name: (optimizer, hyper, most bits a parameter and step, most bytes a parameter)
    "heavy ball at .9": (optimizers.SGD(), {"lr": scalar(0.01), "momentum": scalar(0.9)}, 0.16, 24),
    "heavy ball at .98": (optimizers.SGD(), {"lr": scalar(0.01), "momentum": scalar(0.98)}, 0.031, 24),
    "adam": (optimizers.Adam(), {"lr": scalar(0.001)}, 0.16, 32),
    "adamw": (optimizers.AdamW(), {"lr": scalar(0.001), "weight_decay": scalar(0.01)}, 0.16, 32),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_thousand_steps_of_100_000_parameters_are_undone_and_the_store_is_small(name):
    optimizer, hyper, most_bits, most_bytes = LARGE[name]
    bits, size = there_and_back(optimizer, hyper, 1000)
    assert bits <= most_bits
    assert size <= most_bytes + 0.02 * 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["heavy ball at .9", "heavy ball at .98"])
def test_ten_thousand_steps_are_undone(name):
    optimizer, hyper, most_bits, most_bytes = LARGE[name]
    bits, size = there_and_back(optimizer, hyper, 10_000, kernels=compiled())
    assert bits <= most_bits
    assert size <= most_bytes + 0.02 * 10_000


@pytest.mark.parametrize("name", LARGE)
def test_odd_numbers_of_steps_and_odd_factors_are_undone(name):
    optimizer, hyper, _, _ = LARGE[name]
    odd = {key: value * 0.912345678 for key, value in hyper.items()}
    there_and_back(optimizer, odd, 137, size=501)


def test_plain_floating_point_fails_the_same_test():
    """Heavy ball undone in float64: the error grows by 1/momentum a step."""
    problem = noisy(optimizers.SGD(), 1000, 1000)
    w, m = problem.init["w"], torch.zeros(1000, dtype=F64)
    start = w
    for t in range(1000):
        m = 0.9 * m + (w - problem.batch(t))
        w = w - 0.01 * m
    for t in reversed(range(1000)):
        w = w + 0.01 * m
        m = (m - (w - problem.batch(t))) / 0.9
    assert not torch.equal(w, start)
    assert not float((w - start).abs().max()) < 1e6


# ---- what must not pass silently


def test_a_gradient_with_other_bits_on_the_way_back_is_an_error_with_the_step():
    _, problem, hyper = CASES["momentum"]
    back = []

    def batch(t):
        inputs, targets = problem.batch(t)
        return (inputs, targets + 1e-9) if back and t == 5 else (inputs, targets)

    def on_step(phase, done, steps):
        if done == steps:
            back.append(phase)

    with pytest.raises(errors.ReversalError) as caught:
        hypergradient(replace(problem, batch=batch), hyper, "reversible", on_step=on_step)
    assert caught.value.exit_code == 4
    assert caught.value.step == 4  # undoing step 5 with another gradient gives a wrong buffer, which gives a wrong w_4
    assert caught.value.num_wrong > 10
    assert "step 4" in str(caught.value)
    assert str(caught.value.num_wrong) in str(caught.value)


def test_a_wrong_bit_in_the_very_last_step_back_is_seen_in_the_start_state():
    _, problem, hyper = CASES["momentum"]
    back = []

    def batch(t):
        inputs, targets = problem.batch(t)
        return (inputs, targets + 1e-9) if back and t == 0 else (inputs, targets)

    with pytest.raises(errors.ReversalError) as caught:
        hypergradient(
            replace(problem, batch=batch),
            hyper,
            "reversible",
            on_step=lambda phase, done, steps: back.append(1) if done == steps else None,
        )
    assert caught.value.step == 0


@pytest.mark.parametrize(("size", "step"), [(1e14, 0), (3000.0, None), (1e9, None)])
def test_a_number_outside_of_the_range_raises_before_it_wraps(size, step):
    problem = replace(noisy(optimizers.SGD(), 5, 3), init={"w": torch.full((3,), size, dtype=F64)})
    hyper = {"lr": scalar(0.1), "momentum": scalar(0.9)}
    if step is None:
        hypergradient(problem, hyper, "reversible")
        return
    with pytest.raises(errors.FixedPointRangeError, match=r"radix") as caught:
        hypergradient(problem, hyper, "reversible")
    assert (caught.value.step, caught.value.exit_code) == (step, 3)
    with pytest.raises(errors.FixedPointRangeError, match="radix 60"):
        hypergradient(replace(problem, init={"w": torch.ones(3) * 5}), hyper, Reversible(radix={"w": 60}))


@pytest.mark.parametrize(("size", "radix"), [(1e14, {"w": 12, "momentum_buffer": 11}), (1e40, None)])
def test_a_number_outside_of_the_range_names_a_radix_that_has_room(size, radix):
    problem = replace(noisy(optimizers.SGD(), 5, 3), init={"w": torch.full((3,), size, dtype=F64)})
    hyper = {"lr": scalar(0.1), "momentum": scalar(0.9)}
    given = {}
    for name, bits in (radix or {}).items():
        with pytest.raises(errors.FixedPointRangeError) as caught:
            hypergradient(problem, hyper, Reversible(radix=given))
        given |= {name: bits}
        told = ", ".join(f"{k}: {v}" for k, v in given.items())
        assert [each.add for each in caught.value.remedies] == [(f"mode={{name: reversible, radix: {{{told}}}}}",)]
    if radix is None:
        with pytest.raises(errors.FixedPointRangeError, match="diverges") as caught:
            hypergradient(problem, hyper, "reversible")
        assert not caught.value.remedies
    else:
        hypergradient(problem, hyper, Reversible(radix=given))


def test_a_run_that_diverges_says_so():
    problem = noisy(optimizers.SGD(), 500, 3)
    with pytest.raises(errors.NonFiniteError):
        hypergradient(problem, {"lr": scalar(5.0), "momentum": scalar(0.9)}, "reversible")


def test_a_second_moment_that_outgrows_its_radix_gets_a_smaller_one():
    gen = torch.Generator().manual_seed(0)
    problem = replace(noisy(optimizers.Adam(), 30, 5), init={"w": 100 * torch.randn(5, generator=gen, dtype=F64)})
    hyper = {"lr": scalar(0.1), "beta2": scalar(0.9)}
    got = hypergradient(problem, hyper, "reversible")
    assert int(got.stats["radix"]["exp_avg_sq"][""].max()) < optimizers.Adam().couplings(())[1].radix
    assert_close(got.grad, hypergradient(problem, hyper, "reverse").grad, 1e-9)
    with pytest.raises(errors.FixedPointRangeError):
        hypergradient(problem, hyper, Reversible(radix={"exp_avg_sq": 70}))


def test_an_unknown_slot_in_radix_is_named():
    _, problem, hyper = CASES["momentum"]
    with pytest.raises(errors.UsageError, match=r"given for velocity; what is held is momentum_buffer, w"):
        hypergradient(problem, hyper, Reversible(radix={"velocity": 40}))


@pytest.mark.parametrize("given", [{"radix": {"w": 0}}, {"radix": {"w": 101}}, {"compile": "maybe"}])
def test_arguments_out_of_range_are_refused(given):
    with pytest.raises(ValueError, match=r"got .* allowed are"):
        Reversible(**given)


def test_an_operator_without_a_deterministic_kernel_is_named():
    _, problem, hyper = CASES["momentum"]

    def loss(params, step_hyper, batch):
        index = torch.tensor([0, 0])
        filled = torch.zeros(2, dtype=F64).put_(index, torch.ones(2, dtype=F64), accumulate=False)
        return problem.inner_loss(params, step_hyper, batch) + 0 * filled.sum()

    with pytest.raises(errors.UsageError, match=r"put_.*deterministic"):
        hypergradient(replace(problem, inner_loss=loss), hyper, "reversible")
    assert not torch.are_deterministic_algorithms_enabled()
    hypergradient(replace(problem, inner_loss=loss), hyper, "reverse")


# ---- rules of one's own


@dataclass(frozen=True)
class Signed(InnerOptimizer):
    """m <- decay m + (1 - decay) g;  w <- w - lr m / |m|, each tensor by its own norm."""

    lr: float = 0.05
    decay: float = 0.9

    def slots(self, params, driven):
        return {"m": zeros(params)}

    def couplings(self, slots):
        return (
            Coupling("m", lambda x, d, a: (1 - a.decay) * d, itself("decay")),
            Coupling(WEIGHTS, lambda x, d, a: -a.lr * x["m"] / x["m"].norm()),
        )


@dataclass(frozen=True)
class Undoable(InnerOptimizer):
    lr: float = 0.05

    def update(self, params, slots, grads, hyper, step):
        return {name: w - self.lr * grads[name] for name, w in params.items()}, slots


def test_a_rule_of_ones_own_is_undone_through_its_couplings():
    problem = net_problem(Signed())
    hyper = {"lr": scalar(0.05), "decay": scalar(0.8)}
    got = hypergradient(problem, hyper, "reversible")
    want = hypergradient(problem, hyper, "reverse")
    assert_close({"E": got.value, **got.grad}, {"E": want.value, **want.grad}, 1e-9)


def test_a_rule_that_states_update_alone_is_refused():
    with pytest.raises(errors.UsageError, match=r"Undoable states its rule by `update`.*give it couplings"):
        hypergradient(net_problem(Undoable()), {"l2": scalar(0.1)}, "reversible")


def test_a_coupling_cannot_read_what_it_moves():
    @dataclass(frozen=True)
    class Selfish(Signed):
        def couplings(self, slots):
            return (Coupling("m", lambda x, d, a: d - x["m"]), Coupling(WEIGHTS, lambda x, d, a: -a.lr * x["m"]))

    with pytest.raises(errors.UsageError, match="Selfish: the coupling of 'm' reads 'm'; it sees w, not itself"):
        hypergradient(net_problem(Selfish()), {"lr": scalar(0.05)}, "reversible")


# ---- costs and accounts


def test_one_gradient_there_one_back_and_no_more(monkeypatch):
    monkeypatch.setattr(Account, "examines", False)
    _, problem, hyper = CASES["momentum"]
    calls = []

    def loss(*arguments):
        calls.append(1)
        return problem.inner_loss(*arguments)

    got = hypergradient(replace(problem, inner_loss=loss), hyper, "reversible")
    steps = problem.steps
    assert (got.stats["num_steps"], got.stats["num_gradients"], got.stats["num_hvps"]) == (steps, 2 * steps, steps)
    reverse = []
    hypergradient(
        replace(problem, inner_loss=lambda *a: reverse.append(1) or problem.inner_loss(*a)),
        hyper,
        Reverse(compile=False),
    )
    assert len(calls) == len(reverse) + 1  # the trial


def states_alive(steps, mode):
    """Live tensors of a state's size once the way there is done."""
    found = []

    def on_step(phase, done, total):
        if (phase, done) == ("forward", total):
            gc.collect()
            found.append(sum(1 for x in gc.get_objects() if type(x) is torch.Tensor and x.numel() == 20_000))

    hyper = {"lr": scalar(0.01), "momentum": scalar(0.9)}
    hypergradient(noisy(optimizers.SGD(), steps, 20_000), hyper, mode, on_step=on_step)
    return found[0]


def test_no_state_is_kept_but_words():
    assert states_alive(200, "reversible") - states_alive(20, "reversible") <= 2
    assert states_alive(200, "reverse") - states_alive(20, "reverse") >= 180


@pytest.mark.slow
@pytest.mark.parametrize("case", ["momentum", "adamw", "rmsprop centered", "per weight"])
def test_compiled_it_gives_the_same(case):
    rule, problem, hyper = CASES[case]
    value, grad, _ = unroll(rule, at_factors(problem, hyper), hyper)
    got = hypergradient(problem, hyper, Reversible(compile=True))
    assert got.stats["compiled"]
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)


def test_it_is_compiled_where_that_repays_itself():
    _, problem, hyper = CASES["momentum"]
    assert not hypergradient(problem, hyper, Reversible()).stats["compiled"]


# ---- numbers of every size side by side


def bowl(curvatures, optimizer, steps=20, dtype=F64, start=0.0):
    """Adam divides by the root of each coordinate's own second moment: a small one counts as much as a large one."""
    c = torch.tensor(curvatures, dtype=dtype)
    return Problem(
        {"w": torch.full_like(c, start)},
        lambda p, h, b: (c * (p["w"] - 1) ** 2).sum() / 2,
        lambda p, h: ((p["w"] - 0.3) ** 2).sum(),
        lambda t: None,
        optimizer,
        steps,
    )


@pytest.mark.parametrize("curvatures", [[1000.0, 1e-5], [100.0, 1e-6], [1e6, 1.0, 1e-6], [1e-3, 1e-6]])
@pytest.mark.parametrize("optimizer", [optimizers.Adam(), optimizers.AdamW(), optimizers.RMSprop(momentum=0.9)])
def test_a_small_gradient_beside_a_large_one_keeps_its_digits(optimizer, curvatures):
    problem, hyper = bowl(curvatures, optimizer), {"lr": scalar(0.01)}
    value, grad, params = unroll(type(optimizer).__name__.lower(), at_factors(problem, hyper), hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert_close({"E": got.value, **got.grad, **got.params}, {"E": value, **grad, **params}, 1e-7)


def test_a_gradient_that_wakes_up_late_is_given_room():
    """At step 40 the gradient of a coordinate that had none grows to 100: the run begins anew, and is exact."""
    problem = bowl([1.0, 1.0], optimizers.Adam(), steps=60)

    def loss(params, hyper, t):
        return ((params["w"][0] - 1) ** 2 + (100.0 if t >= 40 else 0.0) * params["w"][1]) / 2

    problem, hyper = replace(problem, inner_loss=loss, batch=lambda t: t), {"lr": scalar(0.01)}
    value, grad, _ = unroll("adam", at_factors(problem, hyper), hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert got.stats["num_steps"] > 60
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-8)


class DueAt:
    """A keeper for which a checkpoint is due after some steps, and who keeps nothing."""

    def __init__(self, *at: int) -> None:
        self.at, self.asked = at, 0

    def due(self) -> bool:
        self.asked += 1
        return self.asked in self.at

    def save(self, state) -> None:
        pass

    def barrier(self) -> None:
        pass


@pytest.mark.parametrize("at", [(), (42, 43), (45, 46), (50, 51, 60, 61)])
def test_the_counts_do_not_depend_on_when_a_radix_was_seen_to_be_outgrown(at, monkeypatch):
    """On a GPU steps are looked at once in 64, and where a checkpoint is due."""
    monkeypatch.setattr(Finite, "every", 30)
    problem = bowl([1.0, 1.0], optimizers.Adam(), steps=60)

    def loss(params, hyper, t):
        return ((params["w"][0] - 1) ** 2 + (100.0 if t >= 40 else 0.0) * params["w"][1]) / 2

    problem, hyper = replace(problem, inner_loss=loss, batch=lambda t: t), {"lr": scalar(0.01)}
    got = hypergradient(problem, hyper, "reversible", keeper=DueAt(*at))
    assert got.stats["num_steps"] == 41 + 41 + 60  # as far as the step that outgrew it, the trial so far, and the run


def test_the_first_trial_is_not_counted_and_needs_no_second_where_gradients_stay_as_they_are():
    problem, hyper = bowl([100.0, 3.0], optimizers.Adam(), steps=400), {"lr": scalar(1e-4)}
    assert hypergradient(problem, hyper, "reversible").stats["num_steps"] == 400


@pytest.mark.parametrize("start", [5000.0, -1e5])
def test_a_large_weight_that_never_moves_is_held(start):
    problem = bowl([0.0, 0.0], optimizers.SGD(momentum=0.9), start=start)
    problem = replace(problem, inner_loss=lambda p, h, b: 0.0 * p["w"][0] + ((p["w"][1] - start - 1) ** 2))
    hyper = {"lr": scalar(0.1)}
    got, want = (hypergradient(problem, hyper, mode) for mode in ("reversible", "reverse"))
    assert_close({"E": got.value, **got.grad}, {"E": want.value, **want.grad}, 1e-9)


@pytest.mark.parametrize("start", [float("nan"), float("inf")])
def test_a_start_that_is_not_finite_is_refused(start):
    problem = bowl([1.0, 0.0], optimizers.SGD(momentum=0.9))
    problem = replace(problem, init={"w": torch.tensor([0.0, start], dtype=F64)}, outer_loss=lambda p, h: p["w"][0])
    problem = replace(problem, inner_loss=lambda p, h, b: (p["w"][0] - 1) ** 2)
    with pytest.raises(errors.NonFiniteError):
        hypergradient(problem, {"lr": scalar(0.1)}, "reversible")


def test_each_parameter_is_computed_in_its_own_dtype():
    def problem(first):
        init = {"a": torch.ones(2, dtype=first), "b": torch.linspace(0, 1, 5, dtype=F64)}
        return Problem(
            init,
            lambda p, h, t: ((p["b"] - 1) ** 2).sum() + (p["a"].double() ** 2).sum(),
            lambda p, h: (p["b"] ** 2).sum(),
            lambda t: None,
            optimizers.SGD(momentum=0.9),
            20,
        )

    hyper = {"lr": scalar(0.01)}
    grads = [hypergradient(problem(dtype), hyper, "reversible").grad["lr"] for dtype in (torch.bfloat16, F64)]
    assert abs(grads[0] - grads[1]) < 1e-12


def test_a_wrong_step_of_the_second_tensor_alone_is_seen_at_its_step():
    back = []
    problem = Problem(
        {"a": torch.ones(2, dtype=torch.float32), "b": torch.ones(3, dtype=F64)},  # two dtypes: not one vector
        lambda p, h, t: (p["a"] ** 2).sum() + ((p["b"] - (1e-6 if back and t == 5 else 0.0)) ** 2).sum(),
        lambda p, h: (p["b"] ** 2).sum(),
        lambda t: t,
        optimizers.SGD(momentum=0.9),
        12,
    )
    with pytest.raises(errors.ReversalError) as caught:
        hypergradient(
            problem,
            {"lr": scalar(0.01)},
            "reversible",
            on_step=lambda phase, done, steps: back.append(1) if done == steps else None,
        )
    assert caught.value.step == 4
    assert caught.value.num_wrong == 9  # w, momentum and store of b


def test_a_wrong_state_speaks_before_what_it_leads_to(monkeypatch):
    """As on a GPU, where witnesses are read once in 64 steps: the wrong state comes first, then its overflow."""
    monkeypatch.setattr(Finite, "every", property(lambda self: 64))
    back = []
    problem = Problem(
        {"w": torch.zeros(3, dtype=F64)},
        lambda p, h, t: (torch.exp(p["w"]) - (2.0 + (1e-6 if back and t == 95 else 0.0)) * p["w"]).sum(),
        lambda p, h: (p["w"] ** 2).sum(),
        lambda t: t,
        optimizers.SGD(momentum=0.1),
        100,
    )
    with pytest.raises(errors.ReversalError) as caught:
        hypergradient(
            problem,
            {"lr": scalar(0.1)},
            "reversible",
            on_step=lambda phase, done, steps: back.append(1) if done == steps else None,
        )
    assert caught.value.step == 94


def test_an_overflow_in_the_last_steps_is_seen_where_witnesses_are_read_rarely(monkeypatch):
    monkeypatch.setattr(Finite, "every", property(lambda self: 64))
    problem = bowl([1.0, 1.0], optimizers.SGD(), steps=5)
    problem = replace(problem, inner_loss=lambda p, h, t: p["w"].sum() * (1e30 if t == 3 else 1.0), batch=lambda t: t)
    with pytest.raises(errors.FixedPointRangeError):
        hypergradient(problem, {"lr": scalar(0.1), "momentum": scalar(0.9)}, "reversible")


# ---- factors of every kind


def test_adamw_at_a_rate_of_0_has_a_factor_of_1():
    problem = net_problem(optimizers.AdamW())
    hyper = {"lr": scalar(0.0), "weight_decay": scalar(0.01)}
    value, grad, _ = unroll("adamw", problem, hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-9)


def test_a_mapping_for_some_of_the_tensors_leaves_the_others_at_the_same_rational():
    odd = 0.87654321
    problem = net_problem(
        optimizers.SGD(momentum=odd), lambda h, t: {"lr": h["lr"], "momentum": {"a.weight": h["momentum"]}}
    )
    hyper = {"lr": scalar(0.1), "momentum": scalar(odd)}
    value, grad, _ = unroll("sgd", at_factors(problem, hyper), hyper)
    got = hypergradient(problem, hyper, "reversible")
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-12)


def test_a_factor_that_is_not_finite_or_absurd_is_named():
    problem = net_problem(optimizers.SGD())
    with pytest.raises(errors.NonFiniteError, match="momentum is not finite at inner step 0"):
        hypergradient(problem, {"lr": scalar(0.1), "momentum": scalar(float("nan"))}, "reversible")
    with pytest.raises(errors.UsageError, match="momentum is 1e\\+10 at step 0; at most 1000"):
        hypergradient(problem, {"lr": scalar(0.1), "momentum": scalar(1e10)}, "reversible")


def test_a_product_that_would_wrap_is_a_range_error_or_gets_room():
    problem = bowl([0.0, 0.0], optimizers.AdamW(), steps=1, start=455.0)
    problem = replace(problem, inner_loss=lambda p, h, b: (p["w"] ** 2).sum())
    hyper = {"lr": scalar(0.1), "weight_decay": scalar(100.0)}
    got, want = (hypergradient(problem, hyper, mode) for mode in ("reversible", "reverse"))
    assert_close({"E": got.value, **got.grad}, {"E": want.value, **want.grad}, 1e-9)


def test_factors_of_elements_are_reported_as_a_range():
    _, problem, hyper = CASES["per weight"]
    low, high = hypergradient(problem, hyper, "reversible").stats["factors"]["1 - lr weight_decay"]
    assert 0.99 < low < high <= 1


def test_a_rule_whose_gradient_comes_after_w_is_refused():
    @dataclass(frozen=True)
    class After(Signed):
        def couplings(self, slots):
            m, w = super().couplings(slots)
            return (w, m._replace(increment=lambda x, d, a: 0.1 * d))

    with pytest.raises(errors.UsageError, match="contains the gradient itself"):
        hypergradient(net_problem(After()), {"lr": scalar(0.05)}, "reversible")


@pytest.mark.parametrize("fails", [False, True])
def test_torchs_settings_are_as_they_were_before(fails):
    _, problem, hyper = CASES["momentum"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cudnn.benchmark = True
    timed = []
    if fails:
        problem = replace(problem, outer_loss=lambda p, h, b: float("nan") * p["a.bias"].sum())
    try:
        hypergradient(problem, hyper, "reversible", on_step=lambda *step: timed.append(torch.backends.cudnn.benchmark))
    except errors.NonFiniteError:
        assert fails
    try:
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert torch.backends.cudnn.benchmark
        assert set(timed) == {False}  # the quickest of several kernels may be another one in another process
    finally:
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)
