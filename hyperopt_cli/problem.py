"""One training run as a value: what is differentiated, before anybody has chosen how.

The run is the dynamical system

    g_t     = grad L(P(s_t, lambda_t), lambda_t, batch_t)      inner_loss L, batch
    s_{t+1} = U(s_t, g_t, lambda_t, t)               optimizer
    lambda_t = schedule(lambda, t)
    E(R(s_T), lambda)                                outer_loss

with `s_t = (w_t, slots)`. Every mode in `hyperopt_cli.modes` computes the same `dE/dlambda` of it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, cast, get_args

import torch
from torch import Tensor

from hyperopt_cli.errors import NonFiniteError, UsageError
from hyperopt_cli.optimizers.base import InnerOptimizer, Params, StepHyper

__all__ = ["Across", "Batch", "Chunked", "Hyper", "Params", "Precision", "Problem", "StepHyper"]

Hyper = dict[str, Tensor]
Batch = Any
Precision = Literal["tf32", "bf16"]
T = TypeVar("T")
NAMED = "a dictionary of tensors, each by its name"


class Across(Protocol):
    """Several processes of which each has chunks of its own; all of them call the same methods in the same order."""

    def summed(self, tree: Any) -> Any:
        """Returns the sum of a tree of tensors over all processes, with the same bits on each of them."""

    def from_lead(self, value: T) -> T:
        """Returns the value that the first process gives, on all of them."""


@dataclass(frozen=True)
class Chunked:
    """A batch too large to be differentiated at once: L is the weighted sum of `inner_loss` over its chunks.

    The gradient, its tangents and its pullback are taken of one chunk after the other, so that memory is that of the
    largest chunk and time is linear in their number. For a loss that is a mean over its batch the weight of a chunk is
    its share n_i / n of the examples, exact for a ragged last one too; the weights then add up to 1, and what the loss
    has beside the mean (a penalty) counts once. Batch normalisation sees these chunks, each for itself.

    Args:
        chunks: batches with their weights, at least one; read several times in a step, each time from the beginning,
            and one at a time, so that they may be made when they are asked for. Not an iterator, which ends for good.
        across: processes of which each has chunks of its own; L is the sum over the chunks of all. None: all are here.

    Raises:
        TypeError: `chunks` is an iterator.
        ValueError: it is an empty sequence, and no other process has any.
    """

    chunks: Iterable[tuple[Batch, float]]
    across: Across | None = None

    def __post_init__(self) -> None:
        if isinstance(self.chunks, Iterator):
            raise TypeError("chunks: got an iterator, which can be read only once; give a sequence")
        if isinstance(self.chunks, Sequence) and len(self.chunks) == 0 and self.across is None:
            raise ValueError("chunks: got none; a batch has at least one")


@dataclass(frozen=True)
class Problem:
    """A training run of `steps` steps and the objective at its end.

    Args:
        init: `(Hyper) -> Params`, w_0, which may depend on lambda; or simply a dict of tensors.
        inner_loss: `(Params, StepHyper, Batch) -> Tensor []`, L; receives all of lambda_t.
        outer_loss: `(Params, Hyper) -> Tensor []`, E; with `outer_batches`, `(Params, Hyper, Batch) -> Tensor []`;
            like `inner_loss` it receives lambda on the parameters' device.
        batch: `(t) -> Batch`, pure in t: it is replayed, in any order; it carries the seed of what is random in step t.
            A `Chunked` goes chunk by chunk.
        optimizer: the update rule U.
        steps: the horizon T, at least 1.
        schedule: `(Hyper, t) -> StepHyper`; None: lambda is the same at every step.
        outer_batches: fixed chunks with their weights; E is then the weighted sum over them. A `Chunked` of a sequence,
            which may be empty, where other processes have chunks too.
        precision: "tf32" or "bf16": of the inner gradient's matrix products and of theirs alone, for float32
            parameters (`dynamics/precision.py`); None: that of the parameters.

    Raises:
        TypeError: `optimizer` is not an `InnerOptimizer`, `steps` is not an integer, `batch` is not callable, `init`
            is neither callable nor a dictionary, or the chunks of `outer_batches` are no sequence.
        ValueError: `steps` is below 1, `outer_batches` is empty, or `precision` is another one.
    """

    init: Callable[[Hyper], Params] | Params
    inner_loss: Callable[[Params, StepHyper, Batch], Tensor]
    outer_loss: Callable[..., Tensor]
    batch: Callable[[int], Batch]
    optimizer: InnerOptimizer
    steps: int
    schedule: Callable[[Hyper, int], StepHyper] | None = None
    outer_batches: Sequence[tuple[Batch, float]] | Chunked | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, type):
            name = self.optimizer.__name__
            raise TypeError(f"optimizer: got the class {name}; pass an instance, as {name}()")
        if not isinstance(self.optimizer, InnerOptimizer):
            raise TypeError(
                f"optimizer: got {type(self.optimizer).__name__}; pass one of hyperopt_cli.optimizers "
                "(torch.optim's optimizers update in place and cannot be differentiated exactly)"
            )
        if not callable(self.init) and not isinstance(self.init, Mapping):
            got = type(self.init).__name__
            raise TypeError(f"init: got a {got}; pass {NAMED}, or a function of lambda that returns one")
        if not callable(self.batch):
            raise TypeError(
                f"batch: got a {type(self.batch).__name__}; pass a function of the step, lambda t: None where the loss "
                "needs no batch"
            )
        if not isinstance(self.steps, int) or isinstance(self.steps, bool):
            raise TypeError(f"steps: got {self.steps!r}; the horizon is an integer")
        if self.steps < 1:
            raise ValueError(f"steps: got {self.steps}; the horizon is at least 1")
        if isinstance(self.outer_batches, Chunked):
            if not isinstance(self.outer_batches.chunks, Sequence):
                got = type(self.outer_batches.chunks).__name__
                raise TypeError(f"outer_batches: got chunks in a {got}; pass a sequence of them")
        elif self.outer_batches is not None and len(self.outer_batches) == 0:
            raise ValueError("outer_batches: got no chunk; leave it out if outer_loss takes no batch")
        if self.precision is not None and self.precision not in get_args(Precision):
            allowed = ", ".join(map(repr, get_args(Precision)))
            raise ValueError(
                f"precision: got {self.precision!r}; allowed are {allowed}, or None for the parameters' own"
            )

    def initial(self, hyper: Hyper) -> Params:
        """Returns w_0, named; connected to `hyper` in autograd's graph where `init` depends on it.

        Raises:
            UsageError: `init` returned something else.
        """
        if callable(self.init):
            params = self.init(dict(hyper))
            if not isinstance(params, Mapping):
                raise UsageError(f"init: it returned a {type(params).__name__}; return {NAMED}")
            return dict(params)
        for name, w in self.init.items():
            if not isinstance(w, Tensor):
                raise UsageError(f"init: {name!r} is a {type(w).__name__}; pass {NAMED}")
        return {name: w.detach() for name, w in self.init.items()}

    def hyper_at(self, hyper: Hyper, step: int) -> StepHyper:
        """Returns lambda_t.

        Raises:
            UsageError: `schedule` returned something else.
        """
        if self.schedule is None:
            return dict(hyper)
        at_step = self.schedule(dict(hyper), step)
        if not isinstance(at_step, Mapping):
            raise UsageError(f"schedule: at step {step} it returned a {type(at_step).__name__}; return {NAMED}")
        return at_step

    def training_loss(self, params: Params, hyper: StepHyper, batch: Batch) -> Tensor:
        """Evaluates L, [].

        The loss gets dictionaries of its own: what it rebinds in them (a mask, a cast) stays with it.

        Raises:
            UsageError: it is no tensor of one number.
        """
        with uncompiled():
            return _scalar("inner_loss", self.inner_loss(dict(params), dict(hyper), batch))

    def validation_loss(self, params: Params, hyper: Hyper, *arguments: Batch) -> Tensor:
        """Evaluates E, or the term of one chunk, []; lambda is brought to where the parameters lie.

        Raises:
            UsageError: it is no tensor of one number.
        """
        device = next(iter(params.values())).device
        with uncompiled():
            value = self.outer_loss(dict(params), {name: x.to(device) for name, x in hyper.items()}, *arguments)
        return _scalar("outer_loss", value)

    def outer_chunks(self) -> Sequence[tuple[tuple[Batch, ...], float]]:
        """Returns the further arguments of `outer_loss`, chunk by chunk, with the weight of each."""
        return [((), 1.0)] if self.outer_batches is None else _Chunks(_sequence(self.outer_batches))

    @property
    def outer_across(self) -> Across | None:
        """The processes over whose chunks E is summed; None: all of them are here."""
        return self.outer_batches.across if isinstance(self.outer_batches, Chunked) else None

    def on_outer_chunk(self, index: int) -> "Problem":
        """Returns the same run with E of one of its chunks alone; of none, where there are fewer here."""
        if self.outer_batches is None:
            return self
        chunks, across = _sequence(self.outer_batches), self.outer_across
        chosen = [chunks[index]] if index < len(chunks) else []
        return replace(self, outer_batches=chosen if across is None else Chunked(chosen, across))


def _sequence(chunks: Sequence[tuple[Batch, float]] | Chunked) -> Sequence[tuple[Batch, float]]:
    return cast(Sequence[tuple[Batch, float]], chunks.chunks) if isinstance(chunks, Chunked) else chunks


class _Chunks(Sequence[tuple[tuple[Batch, ...], float]]):
    """Reads chunks one at a time: a set that streams is never held whole."""

    def __init__(self, chunks: Sequence[tuple[Batch, float]]) -> None:
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, index: Any) -> Any:
        batch, weight = self._chunks[index]
        return (batch,), weight

    def __iter__(self) -> Iterator[tuple[tuple[Batch, ...], float]]:
        for batch, weight in self._chunks:  # a set that streams reads ahead here
            yield (batch,), weight


def uncompiled() -> AbstractContextManager[object]:
    """Inside, functions that the user's code has compiled run as they were written; nothing where there are none.

    A compiled function is an opaque step that is differentiated only once, and dynamo takes the modes of the
    dispatcher that are active for a part of it.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; loading it takes seconds
        return nullcontext()
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise UsageError(f"{name}: it returned a {type(value).__name__}; return a tensor of one number")
    if value.numel() != 1:
        raise UsageError(f"{name}: it returned a tensor of shape {list(value.shape)}; return its mean or its sum")
    return value


def check_hyper(hyper: Hyper) -> None:
    """Refuses hyperparameters that cannot be differentiated in.

    Raises:
        TypeError: an entry is no tensor of floating-point numbers.
        ValueError: there is none.
        NonFiniteError: one is not a number.
    """
    if not isinstance(hyper, Mapping):
        raise TypeError(f"hyper: got a {type(hyper).__name__}; pass {NAMED}")
    if not hyper:
        raise ValueError("hyper: got no entry; there is nothing to differentiate with respect to")
    for name, value in hyper.items():
        if not isinstance(value, Tensor) or not torch.is_floating_point(value):
            got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"hyper[{name!r}]: got a {got}; pass a floating-point tensor, e.g. torch.tensor(0.1)")
        if value.isnan().any():
            raise NonFiniteError(0, name)
