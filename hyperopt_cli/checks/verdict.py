"""Which engine `auto` has chosen, what it was measured on, and for what the choice holds."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hyperopt_cli.dynamics.dynamics import Dynamics
from hyperopt_cli.dynamics.sizes import size_of
from hyperopt_cli.problem import Hyper


@dataclass(frozen=True)
class Circumstances:
    """What a verdict was made for; it fits where all of this is the same.

    Attributes:
        num_columns: K; 0 for a mode that carries none.
        steps: T.
        num_parameters: P.
        dtype: of the parameters.
        precision: of the products, where it is lower.
        device: its kind, and its name on a GPU.
        threads: of the CPU.
        torch: its version.
        sizes: a digest of the shapes of lambda, parameters and slots, and of the optimizer.
    """

    num_columns: int
    steps: int
    num_parameters: int
    dtype: str
    precision: str | None
    device: str
    threads: int
    torch: str
    sizes: str

    @classmethod
    def of(cls, dynamics: Dynamics, hyper: Hyper, num_columns: int = 0) -> "Circumstances":
        """Returns the circumstances of a run on this machine, now."""
        device, params = dynamics.like.device, tree_leaves(dynamics.start.params)
        return cls(
            num_columns=num_columns,
            steps=dynamics.problem.steps,
            num_parameters=sum(w.numel() for w in params),
            dtype=", ".join(sorted({str(w.dtype).removeprefix("torch.") for w in params})),
            precision=dynamics.problem.precision,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            torch=str(torch.__version__),
            sizes=hashlib.sha256(repr(size_of(dynamics, hyper)).encode()).hexdigest()[:16],
        )


@dataclass(frozen=True)
class Verdict:
    """Which engine, and why.

    Attributes:
        engine: its name.
        why: one line.
        made_for: where it holds.
        step_s: seconds that K columns of a step took, of each candidate that was measured.
        errors: relative error beside central differences of the training gradient, of each that was tried.
        disqualified: the reasons, by engine.
    """

    engine: str
    why: str
    made_for: Circumstances
    step_s: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    disqualified: Mapping[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Returns it as dictionaries, text and numbers."""
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Verdict":
        """Makes a verdict from what `state_dict` returned.

        Raises:
            TypeError: it lacks something, or has something else.
            KeyError: it lacks what it was made for.
        """
        return cls(**{**state, "made_for": Circumstances(**state["made_for"])})
