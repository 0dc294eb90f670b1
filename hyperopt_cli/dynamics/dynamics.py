"""A problem's state and update rule, as every mode sees them.

    s_0 = (w_0(lambda), zeros)      p_t = P(s_t, lambda_t)      s_{t+1} = U(s_t, g_t, lambda_t, t)      R(s_T)

For an elementwise rule the state is *packed*: all parameters lie end to end in one vector `[P]` under the name "", so
that the update and its derivatives are a few large operations. Packing is a permutation: its adjoint is unpacking.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from hyperopt_cli.dynamics.chunked_loss import ChunkedLoss, Loss
from hyperopt_cli.dynamics.cudnn import differentiable_on_cuda
from hyperopt_cli.dynamics.derivatives import gradient
from hyperopt_cli.dynamics.kinds import Leaving
from hyperopt_cli.dynamics.precision import check, in_bf16
from hyperopt_cli.optimizers.base import InnerOptimizer, Params, Slots, StepHyper
from hyperopt_cli.problem import Batch, Chunked, Hyper, Problem
from hyperopt_cli.program import as_operators
from hyperopt_cli.program.raised import as_due


class State(NamedTuple):
    """The state s_t: parameters and slots, packed where the rule is elementwise."""

    params: Params
    slots: Slots

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as dictionaries of tensors, which a checkpoint can hold."""
        return self._asdict()

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> "State":
        """Makes a state on a device from what `state_dict` returned."""
        moved: State = tree_map(lambda x: x.to(device), cls(**state))
        return moved


class Layout(NamedTuple):
    """How the state holds the parameters; `packed` says whether they share one vector."""

    shapes: dict[str, torch.Size]
    packed: bool

    @classmethod
    def of(cls, params: Params, optimizer: InnerOptimizer, step_hyper: StepHyper) -> "Layout":
        """Chooses the layout: packed for an elementwise rule over parameters of one dtype and device.

        Not where a mapping drives an argument that the rule takes from 1: a packed mapping has the parameters' dtype.
        """
        kinds = {(w.dtype, w.device) for w in params.values()}
        exact = all(w.dtype == torch.float64 for w in params.values())
        cancels = any(isinstance(step_hyper.get(name), Mapping) for name in optimizer.taken_from_1)
        packed = optimizer.elementwise and len(kinds) == 1 and (exact or not cancels)
        return cls({name: w.shape for name, w in params.items()}, packed)

    def pack(self, named: Params, batch_dims: int = 0) -> Params:
        """Turns named tensors `[*batch, *shape]` into what the state holds, `[*batch, P]` where it is packed."""
        if not self.packed:
            return named
        flat = [
            named[name].flatten(batch_dims) if shape else named[name].unsqueeze(-1)
            for name, shape in self.shapes.items()
        ]
        return {"": torch.cat(flat, dim=-1)}

    def unpack(self, held: Params, batch_dims: int = 0) -> Params:
        """Turns what the state holds into the named tensors `[*batch, *shape]`, as views."""
        if not self.packed:
            return held
        flat = held[""]
        batch = flat.shape[:batch_dims]
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.view((*batch, *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def pack_argument(self, value: Tensor | Mapping[str, Tensor], default: float, like: Tensor) -> Tensor:
        """Spreads a mapping over the packed vector, [P], with `default` for what it leaves out; a scalar stays one."""
        if not isinstance(value, Mapping):
            return value
        fixed = torch.full((), default, dtype=like.dtype, device=like.device)
        spread = [value.get(name, fixed).to(like).expand(shape).reshape(-1) for name, shape in self.shapes.items()]
        return torch.cat(spread)


@dataclass(frozen=True)
class Dynamics:
    """The dynamical system of `problem`, started at `hyper`.

    Attributes:
        problem: whose run it is.
        layout: how the state holds the parameters.
        start: s_0, without a graph.
        like: an empty tensor of the first parameter's dtype and device.
        driven: the optimizer's arguments that lambda_t drives, at every step.
        watch: told of every value of the training loss, with its graph; None: nobody.
        as_operators: which of init, schedule, update, point and result are differentiated as lists of operators, for
            what they come to by torch is not their derivative.
    """

    problem: Problem
    layout: Layout
    start: State
    like: Tensor
    driven: frozenset[str]
    watch: Callable[[Tensor], None] | None = None
    as_operators: frozenset[str] = frozenset()

    @classmethod
    def of(cls, problem: Problem, hyper: Hyper) -> "Dynamics":
        """Evaluates w_0 and makes the slots.

        Raises:
            ValueError: there is no parameter.
            UsageError: the parameters cannot have the problem's precision.
        """
        with torch.no_grad():
            named = {name: w.detach() for name, w in problem.initial(hyper).items()}
            if not named:
                raise ValueError("init: got no parameter; there is nothing to train")
            check(problem.precision, named.values())
            like = next(iter(named.values())).new_empty(0)
            step_hyper = problem.hyper_at(hyper, 0)
            layout = Layout.of(named, problem.optimizer, step_hyper)
            driven = frozenset(step_hyper) & frozenset(problem.optimizer.argument_names())
            return cls(problem, layout, _start(problem, layout, hyper, driven), like, driven)

    def watched_by(self, watch: Callable[[Tensor], None] | None) -> "Dynamics":
        """Returns the same dynamics, with every value of its training loss told to `watch`."""
        return replace(self, watch=watch)

    def derivable(self, name: str, function: Callable[..., Any], at: tuple[Any, ...]) -> Callable[..., Any]:
        """Returns init, schedule, update, point or result as a function whose derivative at `at` is right.

        That is the function itself, unless `checks/rule.py` has found a user's own to be cut.
        """
        return as_operators(function, at) if name in self.as_operators else function

    def with_schedule_as_operators(self) -> "Dynamics":
        """Returns the same dynamics, with a schedule that is taken as operators if it has to be."""
        schedule = self.problem.schedule
        if schedule is None or "schedule" not in self.as_operators:
            return self

        def listed(hyper: Hyper, t: int) -> StepHyper:
            at_t: StepHyper = as_operators(lambda h: _as_tensors(schedule(h, t)), (hyper,))(hyper)
            return at_t

        return replace(self, problem=replace(self.problem, schedule=listed))

    def initial(self, hyper: Hyper) -> State:
        """Returns s_0, differentiable in `hyper`: a slot that starts as a copy of w_0 moves with it."""
        return _start(self.problem, self.layout, hyper, self.driven)

    def hyper_at(self, hyper: Hyper, step: int) -> StepHyper:
        """Returns lambda_t, cast to the parameters' device and dtype; it is differentiable in `hyper`."""
        return self.cast(self.plain_hyper_at(hyper, step))

    def plain_hyper_at(self, hyper: Hyper, step: int) -> StepHyper:
        """Returns lambda_t as the schedule gives it, on the device of `hyper`.

        Raises:
            ValueError: an argument of the optimizer is neither a scalar nor a mapping, or is not driven at every step.
        """
        step_hyper = _as_tensors(self.problem.hyper_at(hyper, step))
        for name in self.problem.optimizer.argument_names():
            if (name in step_hyper) != (name in self.driven):
                raise ValueError(
                    f"schedule: {name} is given at some steps and not at step {0 if name in step_hyper else step}"
                )
            value = step_hyper.get(name)
            if isinstance(value, Mapping) and (unknown := [n for n in value if n not in self.layout.shapes]):
                raise ValueError(
                    f"{name}: given for {', '.join(unknown)} at step {step}; the parameters are "
                    f"{', '.join(self.layout.shapes)}"
                )
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(
                    f"{name}: got a tensor of shape {list(value.shape)} at step {step}; what reaches the optimizer is "
                    "a scalar, or a mapping from parameter name to a tensor: choose from it in schedule"
                )
        return step_hyper

    def cast(self, step_hyper: StepHyper) -> StepHyper:
        """Moves lambda_t to the parameters' device and casts it to their dtype; scalars keep their own.

        A float64 scalar does not promote float32 parameters, and `1 - beta2` does not survive float32.
        """
        moved: StepHyper = tree_map(self._cast, step_hyper)
        return moved

    def _cast(self, entry: Tensor) -> Tensor:
        device = self.like.device
        keeps = entry.ndim == 0 and device.type != "mps"  # which has no float64
        # to the host nothing may be on its way: whoever reads there does not wait for it
        return entry.to(device, entry.dtype if keeps else self.like.dtype, non_blocking=device.type != "cpu")

    def arguments(self, step_hyper: StepHyper) -> StepHyper:
        """Returns the entries of lambda_t that drive the optimizer, held like the state."""
        if not self.layout.packed:
            return {name: step_hyper[name] for name in self.driven}
        defaults = self.problem.optimizer
        return {
            name: self.layout.pack_argument(step_hyper[name], getattr(defaults, name), self.like)
            for name in self.driven
        }

    def point(self, state: State, step_hyper: StepHyper, step: int) -> Params:
        """Returns P(s_t, lambda_t), where the gradient is taken, held like the state."""
        return self.problem.optimizer.gradient_at(state.params, state.slots, self.arguments(step_hyper), step)

    @property
    def point_is_state(self) -> bool:
        """Whether P is the identity on w, so that its derivatives need not be taken."""
        return type(self.problem.optimizer).gradient_at is InnerOptimizer.gradient_at

    def update(self, state: State, grads: Params, step_hyper: StepHyper, step: int) -> State:
        """Returns s_{t+1}, in the dtypes of s_t.

        Args:
            state: s_t.
            grads: g_t, held like the state.
            step_hyper: lambda_t.
            step: t.
        """
        params, slots = self.problem.optimizer.update(
            state.params, state.slots, grads, self.arguments(step_hyper), step
        )
        # a 0-dim parameter is promoted by a scalar of higher precision
        kept: State = tree_map(lambda new, old: new.to(old.dtype), State(params, slots), state)
        return kept

    def loss_at(self, step: int) -> Loss:
        """Returns L(w, lambda_t) on the batch of that step, in the problem's precision; a sum if it is chunked."""
        return self.loss_on(self.problem.batch(step))

    def loss_on(self, batch: Batch) -> Loss:
        """Returns L(w, lambda_t) on a given batch, in the problem's precision; a sum if it is chunked."""
        if isinstance(batch, Chunked):
            return ChunkedLoss(lambda: self._losses(batch), batch.across)
        return self._loss(batch)

    def _losses(self, batch: Chunked) -> Iterator[tuple[Loss, float]]:
        for part, weight in batch.chunks:
            yield self._loss(part), weight
            del part  # before the next one is read

    def _loss(self, batch: Batch) -> Loss:
        def plain(params: Params, step_hyper: StepHyper) -> Tensor:
            with Leaving() as leaving:
                value = self.problem.training_loss(params, step_hyper, as_due(batch))
            leaving.mark(value)
            if self.watch is not None:
                self.watch(value)
            return value

        loss = differentiable_on_cuda(plain) if self.like.device.type == "cuda" else plain
        return in_bf16(loss, self.like.device) if self.problem.precision == "bf16" else loss

    def result(self, state: State) -> Params:
        """Returns R(s_T), held like the state."""
        return self.problem.optimizer.result(state.params, state.slots)


def train_step(dynamics: Dynamics, batch: Batch, t: Any, state: State, step_hyper: StepHyper) -> tuple[State, Tensor]:
    """Takes one training step.

    Args:
        dynamics: of the run.
        batch: that of step t.
        t: the step.
        state: s_t.
        step_hyper: lambda_t.

    Returns:
        s_{t+1}, and L [].
    """
    point = dynamics.layout.unpack(dynamics.point(state, step_hyper, t))
    value, g = gradient(dynamics.loss_on(batch), point, step_hyper)
    return dynamics.update(state, dynamics.layout.pack(g), step_hyper, t), value


def _as_tensors(step_hyper: Mapping[str, Any]) -> StepHyper:
    return {name: _tensors(name, value) for name, value in step_hyper.items()}


def _tensors(name: str, value: Any) -> Tensor | dict[str, Tensor]:
    """Returns an entry of lambda_t with numbers as float64 tensors, and tensors as they are."""
    if isinstance(value, Mapping):
        return {key: _tensor(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    return _tensor(name, value)


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        got = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"schedule: {name} is a {got}; give a floating-point tensor, a number, or a mapping of these "
            "(what only selects or counts belongs into the batch)"
        )
    return torch.tensor(value, dtype=torch.float64)


def _start(problem: Problem, layout: Layout, hyper: Hyper, driven: frozenset[str]) -> State:
    params = layout.pack(problem.initial(hyper))
    return State(params, problem.optimizer.slots(params, driven))
