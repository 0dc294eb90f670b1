"""Exact arithmetic against Python's own integers and fractions, which share no code with it."""

import doctest
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperopt_cli.modes.reversal.kernels import compiled
from hyperopt_cli.optimizers import exact
from hyperopt_cli.optimizers.exact import LARGEST, LIMIT, Rational, Store, decode, encode, rational, rational_number

numbers = st.one_of(
    st.sampled_from([0.0, 1.0, 0.9, 0.98, 0.999, 0.99999, -0.5, 1.0625, 1e-3, 1 - 1e-9]),
    st.floats(-1.5, 1.5, allow_nan=False),
)


def tensor(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def integers(size, seed, bits=50):
    return torch.randint(-(2**bits), 2**bits, (size,), generator=torch.Generator().manual_seed(seed))


def by(n, d):
    return Rational.of(torch.tensor(n), torch.tensor(d))


def test_the_examples_hold():
    assert doctest.testmod(exact).failed == 0


@given(st.floats(-2, 2, allow_nan=False))
@settings(max_examples=300, deadline=None)
def test_a_rational_has_the_smallest_denominator_within_the_tolerance(x):
    n, d = (int(part) for part in rational(tensor(x)))
    slack = abs(1 - Fraction(x)) / 10**6
    if d == LARGEST:
        assert abs(Fraction(n, d) - Fraction(x)) <= Fraction(1, LARGEST)
        return
    assert abs(Fraction(n, d) - Fraction(x)) <= slack * Fraction(1 + 1e-6)
    for smaller in range(1, min(d, 400)):
        nearest = Fraction(round(Fraction(x) * smaller), smaller)
        assert abs(nearest - Fraction(x)) > slack * Fraction(1 - 1e-6)


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**28), st.integers(1, 2**20), st.integers(1, 2**20))
@settings(max_examples=300, deadline=None)
def test_a_product_is_off_by_no_more_than_the_difference_of_numerator_and_denominator(x, store, n, d):
    product, kept = (int(part) for part in exact.multiply(*map(torch.tensor, (x, store, n, d))))
    error = product - Fraction(x) * n / d
    assert abs(error) <= abs(d - n) + max(1, Fraction(n, d))
    assert error >= 0 or n > d
    assert kept == (store * d + (x - (d * (store * d % n)) // n) % d) // n
    assert tuple(map(int, exact.divide(*map(torch.tensor, (product, kept, n, d))))) == (x, store)


@given(st.lists(numbers, min_size=1, max_size=60), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_any_sequence_of_products_is_undone(factors, seed):
    x, store = integers(7, seed, bits=40), Store(torch.zeros(7, dtype=torch.int64))
    done = []
    for i, factor in enumerate(factors):
        if float(x.abs().max()) > 2**58:
            break
        done.append((x, rational_number(factor), integers(7, seed + i, bits=30)))
        x = store.multiply(x, done[-1][1]) + done[-1][2]
        assert int(store.remainders.max()) < store.bound <= LIMIT * 4
        assert int(store.remainders.min()) >= 0
    for before, factor, added in reversed(done):
        x = store.divide(x - added, factor)
        assert torch.equal(x, before)
    assert store.is_empty
    assert store.bound == 1


@given(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=40), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_factors_may_differ_by_element_and_step(factors, seed):
    x, store = integers(4, seed, bits=40), Store(torch.zeros(4, dtype=torch.int64))
    done = []
    for row in factors:
        if float(x.abs().max()) > 2**58:
            break
        done.append((x, Rational.of(*rational(tensor(row)))))
        x = store.multiply(x, done[-1][1])
        assert int(store.remainders.max()) < store.bound
    for before, factor in reversed(done):
        x = store.divide(x, factor)
        assert torch.equal(x, before)
    assert store.is_empty


def test_words_with_their_highest_bit_set_come_back():
    x, store = integers(200, 5), Store(torch.zeros(200, dtype=torch.int64))
    start = x
    for t in range(900):
        x = store.multiply(x, by(9, 10)) + integers(200, t, bits=49)
    assert len(store.words) >= 3
    assert any(bool((word < 0).any()) for word in store.words)
    for t in reversed(range(900)):
        x = store.divide(x - integers(200, t, bits=49), by(9, 10))
    assert torch.equal(x, start)
    assert store.is_empty


def test_zeros_among_factors_above_1_do_not_shrink_the_bound():
    x, store = integers(2, 0, bits=20), Store(torch.zeros(2, dtype=torch.int64))
    factors = [Rational.of(*rational(tensor(row))) for row in ([0.9, 0.9], [0.0, 2.0])] * 60
    done = []
    for factor in factors:
        done.append(x)
        x = store.multiply(x, factor) // 2
        done[-1] = (done[-1], x)
        assert int(store.remainders.max()) < store.bound


def test_a_word_that_is_left_is_not_empty():
    store = Store(torch.zeros(3, dtype=torch.int64))
    assert store.is_empty
    store.words.append(torch.ones(3, dtype=torch.int32))
    assert not store.is_empty


def test_a_store_that_lost_a_bit_is_noticed():
    x, store = integers(100, 0), Store(torch.zeros(100, dtype=torch.int64))
    start = x
    for _ in range(50):
        x = store.multiply(x, by(9, 10))
    store.remainders[3] ^= 1
    for _ in range(50):
        x = store.divide(x, by(9, 10))
    assert not (torch.equal(x, start) and store.is_empty)


@pytest.mark.parametrize(("n", "d", "steps"), [(9, 10, 1000), (49, 50, 1000), (1, 2, 200), (1, 1000, 40)])
def test_the_store_grows_by_what_a_multiplication_loses(n, d, steps):
    x, store = integers(2000, 1), Store(torch.zeros(2000, dtype=torch.int64))
    for t in range(steps):
        x = store.multiply(x, by(n, d)) + integers(2000, t, bits=49)
    assert store.bits() / steps == pytest.approx(math.log2(d / n), rel=0.05)


def test_a_factor_of_0_keeps_the_whole_number():
    x, store = integers(10, 2), Store(torch.zeros(10, dtype=torch.int64))
    assert not store.multiply(x, by(0, 1)).any()
    assert store.bits() == 64
    assert torch.equal(store.divide(torch.zeros_like(x), by(0, 1)), x)
    assert store.is_empty


def test_what_is_never_negative_stays_so():
    x, store = integers(5000, 3, bits=20).abs(), Store(torch.zeros(5000, dtype=torch.int64))
    for t in range(300):
        x = store.multiply(x, rational_number((0.999, 0.8765432, 0.99999)[t % 3]))
        assert int(x.min()) >= 0


def test_nothing_is_read_from_the_device():
    """On the meta device any reading of a value raises."""
    x = torch.zeros(8, dtype=torch.int64, device="meta")
    store = Store(torch.zeros_like(x))
    factors = [rational_number(f).to(x.device) for f in (0.9, 0.5, 0.0, -0.25, 0.999) * 60]
    factors.append(Rational.of(*rational(torch.linspace(0, 1, 8, dtype=torch.float64))).to(x.device))
    for factor in factors:
        x = store.multiply(x, factor)
    assert len(store.words) > 60
    for factor in reversed(factors):
        x = store.divide(x, factor)
    assert not store.words
    with pytest.raises(RuntimeError):
        bool(x.any())


def test_every_element_may_have_a_radix_of_its_own():
    x = torch.tensor([1e6, 1.0, 1e-6, 1e-12, -3.0], dtype=torch.float64)
    radix = torch.tensor([-10, 20, 60, 100, 0], dtype=torch.int8)
    want = [round(Fraction(v) * Fraction(2) ** int(r)) for v, r in zip(x.tolist(), radix.tolist(), strict=True)]
    assert encode(x, radix).tolist() == want
    assert torch.equal(decode(torch.ones(5, dtype=torch.int64), radix, x.dtype), 2.0 ** -radix.double())


@pytest.mark.parametrize("radix", [40, 48, 60])
def test_a_number_survives_fixed_point_to_half_a_unit(radix):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float((decode(encode(x, radix), radix, x.dtype) - x).abs().max()) <= 2.0 ** -(radix + 1)
    exact_floats = (x * 2**20).round() / 2**20
    assert torch.equal(decode(encode(exact_floats, radix), radix, x.dtype), exact_floats)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "d"), [(9, 10), (99999, 100000), (LARGEST - 1, LARGEST)])
def test_the_compiled_passes_give_the_same_integers(n, d):
    kernels = compiled()
    gen = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**62) + 1, 2**62, (10_001,), generator=gen) // (2 if n > d else 1)
    store = torch.randint(0, max(1, 2**62 // d), (10_001,), generator=gen)
    args = torch.tensor(n), torch.tensor(d)
    once, again = exact.multiply(x, store, *args), kernels.multiply(x, store, *args)
    assert all(map(torch.equal, once, again))
    back = kernels.divide(*once, *args)
    assert torch.equal(back[0], x)
    assert torch.equal(back[1], store)
