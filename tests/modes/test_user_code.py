"""What users write in losses, schedules and init: exact where it means something, refused where it can't."""

import pytest
import torch

from hyperopt_cli import Forward, Problem, hypergradient, optimizers
from hyperopt_cli.errors import NonDeterministicError, UsageError
from tests.cases import T, net_problem, scalar
from tests.modes.test_exactness import MODES, assert_close
from tests.reference import unroll

ALL = pytest.mark.parametrize("mode", MODES)
F64 = torch.float64


def vector_problem(inner_loss, outer_loss=None, optimizer=None, schedule=None, start=(3.0, 3.0), steps=4, **more):
    init = {"w": torch.tensor(start, dtype=F64)}
    outer = outer_loss or (lambda p, h: (p["w"] ** 2).sum())
    return Problem(init, inner_loss, outer, lambda t: t, optimizer or optimizers.SGD(), steps, schedule, **more)


def assert_exact(problem, hyper, mode, rule="sgd", tolerance=1e-10):
    value, grad, params = unroll(rule, problem, hyper)
    got = hypergradient(problem, hyper, MODES[mode])
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, tolerance)
    assert_close(got.params, params, tolerance)


@ALL
def test_a_loss_may_rebind_what_it_was_given(mode):
    mask = torch.tensor([1.0, 0.0], dtype=F64)

    def masking(p, h, b=None):
        p["w"] = p["w"] * mask
        h.pop("lr")
        return ((p["w"] - 1) ** 2).sum()

    def pure(p, h, b=None):
        return ((p["w"] * mask - 1) ** 2).sum()

    chunks = [(None, 0.5), (None, 0.5)]
    want = hypergradient(vector_problem(pure, pure, outer_batches=chunks), {"lr": scalar(0.1)}, "reverse")
    got = hypergradient(vector_problem(masking, masking, outer_batches=chunks), {"lr": scalar(0.1)}, MODES[mode])
    assert_close({"E": got.value, **got.grad}, {"E": want.value, **want.grad}, 1e-14)


@ALL
def test_a_schedule_may_write_into_what_it_was_given(mode):
    def decay(h, t):
        h["lr"] = h["lr"] * 0.9**t
        return h

    loss = lambda p, h, b: ((p["w"] - 1) ** 2).sum()  # noqa: E731
    pure = vector_problem(loss, schedule=lambda h, t: {**h, "lr": h["lr"] * 0.9**t})
    hyper = {"lr": scalar(0.1), "momentum": scalar(0.5)}
    value, grad, _ = unroll("sgd", pure, hyper)
    got = hypergradient(vector_problem(loss, schedule=decay), hyper, MODES[mode])
    assert_close({"E": got.value, **got.grad}, {"E": value, **grad}, 1e-12)


@ALL
def test_a_number_of_the_schedule_keeps_its_digits(mode):
    problem = vector_problem(lambda p, h, b: ((p["w"] - 1) ** 2).sum(), schedule=lambda h, t: {**h, "momentum": 0.9})
    assert_exact(problem, {"lr": scalar(0.1)}, mode, tolerance=1e-13)


@ALL
def test_a_loss_may_differentiate_inside(mode):
    """A gradient penalty: |d/dx f|^2."""

    def penalised(p, h, b):
        x = torch.tensor([0.3, 0.7], dtype=F64, requires_grad=True)
        (slope,) = torch.autograd.grad(torch.tanh(p["w"] * x).sum(), x, create_graph=True)
        return (slope**2).sum() + h["l2"] * (p["w"] ** 2).sum()

    assert_exact(vector_problem(penalised), {"lr": scalar(0.1), "l2": scalar(0.0)}, mode)


@ALL
def test_a_key_that_the_loss_reads_at_one_batch_only_is_connected(mode):
    def loss(p, h, t):
        return ((p["w"] - 1) ** 2).sum() + (h["late"] * (p["w"] ** 3).sum() if t == 3 else 0.0)

    assert_exact(vector_problem(loss, steps=12), {"lr": scalar(0.05), "late": scalar(0.01)}, mode)


@ALL
def test_a_key_that_one_outer_chunk_reads_is_connected(mode):
    outer = lambda p, h, b: (p["w"] ** 2).sum() * (h["scale"] if b else 1.0)  # noqa: E731
    problem = vector_problem(
        lambda p, h, b: ((p["w"] - 1) ** 2).sum(), outer, outer_batches=[(False, 0.5), (True, 0.5)]
    )
    assert_exact(problem, {"lr": scalar(0.1), "scale": scalar(2.0)}, mode)


@ALL
def test_parameters_of_two_dtypes_and_of_no_dimension_are_exact(mode):
    start = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0], dtype=F64), "c": torch.tensor(0.5)}
    problem = Problem(
        start,
        lambda p, h, b: (p["a"].double() ** 2).sum() + ((p["b"] - p["c"]) ** 2).sum(),
        lambda p, h: (p["b"] ** 2).sum() + p["a"].double().sum() + p["c"].double() ** 2,
        lambda t: None,
        optimizers.SGD(),
        5,
    )
    hyper = {"lr": scalar(0.05), "momentum": scalar(0.9)}
    got = hypergradient(problem, hyper, MODES[mode])
    assert {name: w.dtype for name, w in got.params.items()} == {name: w.dtype for name, w in start.items()}
    want = hypergradient(
        Problem({n: w.double() for n, w in start.items()}, *list(vars(problem).values())[1:6]), hyper, "reverse"
    )
    assert_close(got.grad, want.grad, 1e-5)


@ALL
@pytest.mark.parametrize("mapped", [False, True])
def test_beta2_near_1_survives_float32_parameters(mode, mapped):
    def problem(dtype):
        a = torch.tensor([1.0, 0.5, 2.0], dtype=dtype)
        return Problem(
            {"w": torch.tensor([1.0, -2.0, 3.0], dtype=dtype)},
            lambda p, h, t: (a * (p["w"] - 0.1 * t) ** 2).sum(),
            lambda p, h: (p["w"] ** 2).sum(),
            lambda t: t,
            optimizers.Adam(),
            20,
            (lambda h, t: {**h, "beta2": {"w": h["beta2"]}}) if mapped else None,
        )

    hyper = {"lr": scalar(0.05), "beta2": scalar(0.9999)}
    want = hypergradient(problem(F64), hyper, "reverse").grad
    assert_close(hypergradient(problem(torch.float32), hyper, MODES[mode]).grad, want, 2e-3)


def test_an_init_that_draws_anew_is_refused():
    problem = net_problem(optimizers.SGD(), init=lambda h: {"a": h["s"] * torch.randn(3, dtype=F64)})
    with pytest.raises(NonDeterministicError, match="init: evaluated twice"):
        hypergradient(problem, {"s": scalar(1.0)})


def test_a_draw_that_only_the_gradient_sees_is_refused():
    problem = vector_problem(
        lambda p, h, b: ((p["w"] - 1) ** 2).sum() + (p["w"] * torch.randn(2, dtype=F64)).sum(), start=(0.0, 0.0)
    )
    with pytest.raises(NonDeterministicError, match="inner_loss: evaluated twice"):
        hypergradient(problem, {"lr": scalar(0.1)})


def test_a_mapping_with_a_name_that_is_no_parameter_is_refused():
    problem = vector_problem(lambda p, h, b: (p["w"] ** 2).sum(), schedule=lambda h, t: {"lr": {"v": h["lr"]}})
    with pytest.raises(ValueError, match="lr: given for v at step 0; the parameters are w"):
        hypergradient(problem, {"lr": scalar(0.1)})


def test_an_entry_of_a_schedule_that_is_no_number_is_refused():
    problem = vector_problem(lambda p, h, b: (p["w"] ** 2).sum(), schedule=lambda h, t: {**h, "stage": "warm"})
    with pytest.raises(TypeError, match="stage is a str"):
        hypergradient(problem, {"lr": scalar(0.1)})


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_loss_that_reads_no_parameter_and_a_run_without_any_are_refused(mode):
    with pytest.raises(UsageError, match="depends on no parameter"):
        hypergradient(vector_problem(lambda p, h, b: h["lr"] * 1.0), {"lr": scalar(0.1)}, mode)
    with pytest.raises(ValueError, match="got no parameter"):
        hypergradient(net_problem(optimizers.SGD(), init={}), {"lr": scalar(0.1)}, mode)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_an_operator_without_a_forward_derivative_names_the_way_out():
    problem = vector_problem(lambda p, h, b: Squared.apply(p["w"]).sum())
    with pytest.raises(UsageError, match=r"engine forward_over_reverse: .*use reverse_over_reverse_loop"):
        hypergradient(problem, {"lr": scalar(0.1)}, Forward(engine="forward_over_reverse"))
    assert_exact(problem, {"lr": scalar(0.1)}, "reverse")
    assert_exact(problem, {"lr": scalar(0.1)}, "forward")
    assert_exact(problem, {"lr": scalar(0.1)}, "forward by double backwards")


@ALL
def test_one_value_in_a_vector_is_a_scalar(mode):
    problem = net_problem(optimizers.SGD(), steps=T)
    want = hypergradient(problem, {"lr": scalar(0.1)}, MODES[mode])
    got = hypergradient(problem, {"lr": torch.tensor([0.1], dtype=F64)}, MODES[mode])
    assert got.grad["lr"].shape == (1,)
    assert_close({"lr": got.grad["lr"][0]}, want.grad, 1e-14)
