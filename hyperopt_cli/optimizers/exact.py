"""Exact integer arithmetic: fixed-point numbers multiplied by rationals with nothing lost.

A number x is held as the integer X = round(2^radix x). Multiplying by n/d < 1 merges d/n neighbours into one; what
tells them apart goes into a store S >= 0, one integer an element, shared by everything that is held for the element:

    v  = S d mod n,   delta = floor(d v / n)
    q  = (X - delta) div d,   r = (X - delta) mod d
    X' = n q + r + v,   S' = (S d + r) div n          multiply; for n < d, X n/d <= X' < X n/d + d - n + 1

    s = X' mod n,   S d + r = S' n + s                divide: undoes it, bit for bit

S is a stream coder: r is pushed as a digit of base d, X' mod n is popped as one of base n. It grows by log2(d/n) bits a
multiplication, which is what the multiplication loses. With v and delta left out this is Maclaurin et al. 2015,
https://arxiv.org/abs/1502.03492, algorithm 3, whose X' is off by up to n (100,000 units for a factor of .99999); they
shift the two digits alike, so that what is pushed is nearly what is popped. Stream coders: Duda 2013,
https://arxiv.org/abs/1311.2540.

When S could outgrow 63 bits its lowest 32 are spilled as a word. Whether it could is known on the host, from a bound
that follows from the factors alone: nothing is read from the device. A factor of 0 spills all of X.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of a rational factor, relative to its distance from 1
WORD = 32  # bits that are spilled at once
LARGEST = 2**30  # denominator; a store of which a word was just spilled still takes a digit of it
LIMIT = 2.0**62  # of |X| and of S: sums and products below do not wrap


@dataclass(frozen=True)
class Rational:
    """A factor n/d, or one for each element, with what the host has to know of it.

    Attributes:
        n: numerators, int64, [] or like the elements; may be 0 or negative.
        d: denominators, positive.
        largest: of `d`.
        growth: of the store in one multiplication: the largest d/|n|, where n is not 0.
        size: the largest |n|/d.
        is_one: whether there is nothing to multiply.
        zeros: how many elements have a factor of 0.
        any_negative: whether an element changes its sign.
    """

    n: Tensor
    d: Tensor
    largest: int
    growth: float
    size: float
    is_one: bool
    zeros: int
    any_negative: bool

    @classmethod
    def of(cls, n: Tensor, d: Tensor) -> "Rational":
        """Makes the factor from numerators and denominators on the host."""
        live = n != 0
        growth = float((d[live] / n[live].abs()).max()) if bool(live.any()) else 1.0
        growth = growth if bool(live.all()) else max(growth, 1.0)  # zeros are carried as 1/1
        ones = bool((n == d).all())
        return cls(
            n, d, int(d.max()), growth, float((n.abs() / d).max()), ones, int((~live).sum()), bool((n < 0).any())
        )

    def to(self, device: torch.device) -> "Rational":
        """Returns the same factor on a device."""
        n, d = (x.to(device, non_blocking=True) for x in (self.n, self.d))
        return replace(self, n=n, d=d)

    @property
    def value(self) -> Tensor:
        """The factor n/d in float64, shaped like `n`."""
        return self.n.double() / self.d


def rational(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rationals of smallest denominator within `TOLERANCE |1 - x|` of x, element by element.

    Where that denominator exceeds `LARGEST`, the nearest multiple of 1 / `LARGEST`. |x| <= 1e-6 gives 0.

    Args:
        x: float64, finite, below `LARGEST` in size.

    Returns:
        n and d, int64, shaped like x.

    Example:
        >>> n, d = rational(torch.tensor([0.9, 0.999, 1.0, 0.0, -0.25, 1.01], dtype=torch.float64))
        >>> list(zip(n.tolist(), d.tolist()))
        [(9, 10), (999, 1000), (1, 1), (0, 1), (-1, 4), (101, 100)]
    """
    y = 1 - x.double()  # has the same denominators, and the tolerance is relative to it
    p, q = _simplest_between(y.abs() * (1 - TOLERANCE), y.abs() * (1 + TOLERANCE))
    far = q > LARGEST
    p = torch.where(far, (y.abs() * LARGEST).round().to(torch.int64), p)
    q = torch.where(far, LARGEST, q)
    return q - torch.where(y < 0, -p, p), q


def _simplest_between(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the fraction p/q of smallest q in [low, high], 0 <= low, by continued fractions (Stern and Brocot)."""
    p0, p1 = torch.zeros_like(low, dtype=torch.int64), torch.ones_like(low, dtype=torch.int64)
    q0, q1 = p1.clone(), p0.clone()
    unfinished = torch.ones_like(low, dtype=torch.bool)
    while unfinished.any():
        last = low.ceil() <= high
        term = torch.where(last, low.ceil(), low.floor())
        whole = torch.where(unfinished, term, 0).clamp(max=4.0 * LARGEST).to(torch.int64)
        p0, p1 = torch.where(unfinished, p1, p0), torch.where(unfinished, whole * p1 + p0, p1)
        q0, q1 = torch.where(unfinished, q1, q0), torch.where(unfinished, whole * q1 + q0, q1)
        unfinished = unfinished & ~last & (q1 <= LARGEST)
        low, high = (torch.where(unfinished, 1 / (x - term), 1.0) for x in (high, low))
    return p1, q1


@lru_cache(maxsize=65536)
def rational_number(x: float) -> Rational:
    """Returns the rational of a single number, found by `rational`."""
    return Rational.of(*rational(torch.tensor(x, dtype=torch.float64)))


Radix = int | Tensor  # bits after the binary point: for all elements, or int8 with a number for each


def unit(radix: Radix) -> Tensor | float:
    """Returns 2^-radix, written into the exponent of a double."""
    if isinstance(radix, int):
        return 2.0**-radix
    return ((1023 - radix.to(torch.int64)) << 52).view(torch.float64)


def encode(x: Tensor, radix: Radix) -> Tensor:
    """Returns X = round(2^radix x), int64, shaped like x."""
    return (x.double() / unit(radix)).round().to(torch.int64)


def decode(held: Tensor, radix: Radix, dtype: torch.dtype) -> Tensor:
    """Returns x = 2^-radix X in `dtype`, shaped like `held`."""
    return (held.double() * unit(radix)).to(dtype)


def multiply(x: Tensor, store: Tensor, n: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Multiplies X by n/d, for n > 0, and keeps what is lost in the store; see the module's equations.

    Args:
        x: X, int64.
        store: S, like x.
        n: numerators, int64, [] or like x.
        d: denominators, likewise.

    Returns:
        X' and S'.
    """
    u, v = divided(store * d, n)
    q, r = divided(x - divided(v * d, n)[0], d)
    top = r + v
    return q * n + top, u + divided(top, n)[0]


def divide(x: Tensor, store: Tensor, n: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Undoes `multiply`, bit for bit; see the module's equations.

    Args:
        x: X', int64.
        store: S', like x.
        n: numerators, int64, [] or like x.
        d: denominators, likewise.

    Returns:
        X and S.
    """
    s = divided(x, n)[1]
    store, r = divided(store * n + s, d)
    v = divided(store * d, n)[1]
    q = divided(x - v - r, n)[0]
    return q * d + r + divided(v * d, n)[0], store


def divided(x: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the quotient, rounded down, and the remainder of integers |x| <= 2^62 by 0 < by <= 2^31.

    Compiled, by two floating-point quotients: the first is off by less than 2^11, what remains of x is below 2^53, and
    there the rounded-down quotient of doubles is exact. Processors divide doubles by the vector, integers one by one.
    """
    if torch.compiler.is_compiling():
        near = (x.double() / by.double()).floor().to(torch.int64)
        rest = x - near * by
        missing = (rest.double() / by.double()).floor().to(torch.int64)
        return near + missing, rest - missing * by
    quotient = torch.div(x, by, rounding_mode="floor")
    return quotient, x - quotient * by


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class Store:
    """What exact multiplications would otherwise lose, one integer an element; last in, first out.

    Attributes:
        remainders: S, int64.
        words: what was spilled, in order: int32 words of S, or whole int64 numbers.
        bound: S < bound for every element, whatever the data.
    """

    remainders: Tensor
    words: list[Tensor] = field(default_factory=list)
    bound: int = 1
    _bounds: list[int] = field(default_factory=list)

    def multiply(self, x: Tensor, by: Rational, kernel: Kernel = multiply) -> Tensor:
        """Returns X n/d, to within |d - n| + 1; what is lost is kept."""
        if by.is_one:
            return x
        n, d = by.n, by.d
        if by.zeros:
            self.words.append(x)
            x, n, d = _where_zero(by, x)
            if by.zeros == by.n.numel():
                return x
        if by.any_negative:
            x, n = torch.where(n < 0, -x, x), n.abs()
        self._make_room(by)
        x, self.remainders = kernel(x, self.remainders, n, d)
        return x

    def divide(self, x: Tensor, by: Rational, kernel: Kernel = divide) -> Tensor:
        """Returns the X of which `multiply` made this one."""
        if by.is_one:
            return x
        if by.zeros == by.n.numel():
            return self.words.pop()
        _, n, d = _where_zero(by, x) if by.zeros else (x, by.n, by.d)
        x, self.remainders = kernel(x, self.remainders, n.abs(), d)
        self._take_back(by)
        if by.any_negative:
            x = torch.where(n < 0, -x, x)
        return torch.where(by.n == 0, self.words.pop(), x) if by.zeros else x

    def _make_room(self, by: Rational) -> None:
        """Spills a word if the next digits could outgrow S."""
        self._bounds.append(self.bound)
        if self.bound * by.largest > LIMIT:
            self.words.append(self.remainders.to(torch.int32))  # its lowest 32 bits
            self.remainders = self.remainders >> WORD
            self.bound = (self.bound >> WORD) + 1
        self.bound = int(self.bound * by.growth * (1 + 1e-9)) + 2

    def _take_back(self, by: Rational) -> None:
        self.bound = self._bounds.pop()
        if self.bound * by.largest > LIMIT:
            self.remainders = (self.remainders << WORD) | (self.words.pop().to(torch.int64) & (2**WORD - 1))

    def state_dict(self) -> dict[str, Any]:
        """Returns everything, for a checkpoint; bounds as text, for they may exceed 64 bits."""
        bounds = [str(bound) for bound in self._bounds]
        return {"remainders": self.remainders, "words": list(self.words), "bound": str(self.bound), "bounds": bounds}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> "Store":
        """Makes a store on a device from what `state_dict` returned."""
        words = [word.to(device) for word in state["words"]]
        return cls(
            state["remainders"].to(device), words, int(state["bound"]), [int(bound) for bound in state["bounds"]]
        )

    @property
    def is_empty(self) -> bool:
        """Whether everything that was kept has been taken back."""
        return not self.words and not bool(self.remainders.any())

    def bits(self) -> float:
        """Returns bits an element: the words that were spilled, and the mean of log2(S + 1)."""
        spilled = sum(word.element_size() * 8 for word in self.words)
        return spilled + float((self.remainders.double() + 1).log2().mean())


def _where_zero(by: Rational, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns X, n and d with 0 times X replaced by 1 times 0."""
    zero = by.n == 0
    return torch.where(zero, 0, x), torch.where(zero, 1, by.n), torch.where(zero, 1, by.d)
