"""The training runs of one outer step, one for each seed, with what is kept of them in the middle of it.

Several processes divide the seeds among themselves, or take each run together. In both cases every one of them has all
results at the end, and goes on with the same numbers.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from hyperopt_cli.errors import ReversalError, VerificationError
from hyperopt_cli.modes import Hypergradient, Mode, hypergradient
from hyperopt_cli.modes.base import OnStep, whole
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import Ranks

SUMMED = ("wall_s", "num_steps", "num_gradients", "num_hvps")  # of a mode's stats, over the replicas


class Kept(Protocol):
    """Whoever keeps the runs of an outer step, with all else that goes on from there."""

    def due(self) -> bool:
        """Whether they are to be kept now."""

    def keep(self, progress: int, runs: dict[str, Any]) -> None:
        """Keeps them; may raise, to end the run."""

    def meet(self) -> None:
        """Waits until all processes are here."""

    def together(self, work: Callable[[], None], keep_idle: Callable[[], None]) -> None:
        """Does the part of this process, and waits for the others."""


class Replicas:
    """Hypergradients of one outer step.

    Args:
        ranks: the processes that share it.
        keeper: asked after each inner step; None: nobody.
    """

    def __init__(self, ranks: Ranks, keeper: Kept | None) -> None:
        self._ranks, self._keeper = ranks, keeper
        self._done: dict[int, dict[str, Any]] = {}
        self._left: dict[int, dict[str, Any]] = {}  # by those that were interrupted
        self._now = 0

    @property
    def num_done(self) -> int:
        """How many are done."""
        return len(self._done)

    def clear(self) -> None:
        """For the next outer step, or for this one at another place."""
        self._done, self._left = {}, {}

    def begin_again(self) -> None:
        """What is begun is of no use: it was of another mode."""
        self._left = {}

    def measured(
        self,
        problem: Callable[[int], Problem],
        seeds: Sequence[int],
        hyper: Hyper,
        mode: Mode,
        on_step: Callable[[int], OnStep | None],
        begun_again: Callable[[ReversalError], None],
    ) -> list[Hypergradient]:
        """One for each seed; they stay until `clear`, so that a run which stops before keeps them.

        Args:
            problem: seed -> the training run.
            seeds: of all replicas.
            hyper: lambda.
            mode: how to differentiate.
            on_step: replica -> who watches it.
            begun_again: told of a run that is begun again, because what was left of it could not be reversed.
        """

        def taken(replica: int, left: dict[str, Any] | None) -> Hypergradient:
            keeper = None if self._keeper is None else self
            return hypergradient(
                problem(seeds[replica]), hyper, mode, on_step=on_step(replica), keeper=keeper, left=left
            )

        def work() -> None:
            for replica in range(len(seeds)):
                if self._is_own(replica) and replica not in self._done:
                    self._now = replica
                    left = self._left.pop(replica, None)
                    failed: str | None = None
                    try:
                        run = taken(replica, left)
                    except ReversalError as error:
                        if left is None:
                            raise
                        begun_again(error)
                        failed = str(error)
                    if failed is not None:  # not above: as long as the error is there, it holds a state and its store
                        run = taken(replica, None)
                    self._done[replica] = {**run._asdict(), "params": run.params if replica == 0 else {}}

        if self._keeper is None:
            work()
        else:
            self._keeper.together(work, self.keep_all)
        self._share(len(seeds))
        # what another process did lies on the host
        devices = [run["value"].device for run in self._done.values()]
        device = next((each for each in devices if each.type != "cpu"), devices[0])
        return [_on(device, self._done[replica]) for replica in range(len(seeds))]

    def _is_own(self, replica: int) -> bool:
        """Whether this process takes that run."""
        return not self._ranks.divides("replicas") or replica % self._ranks.size == self._ranks.rank

    def _share(self, num: int) -> None:
        """Everybody gets all results; of one run that was taken together they must be the same."""
        if self._ranks.divides("replicas"):
            self._done = dict(pair for part in self._ranks.gathered(_on_host(self._done)) for pair in part.items())
        elif self._ranks.size > 1:
            _check_equal(self._ranks.gathered(_digest([self._done[replica] for replica in range(num)])))

    def due(self) -> bool:
        """As the keeper says."""
        return self._keeper is not None and self._keeper.due()

    def meet(self) -> None:
        """As the keeper does."""
        assert self._keeper is not None
        self._keeper.meet()

    def keep(self, left: dict[str, Any]) -> None:
        """In the middle of a run."""
        self._keep(left)

    def keep_all(self) -> None:
        """Where this process is in the middle of none."""
        self._keep(None)

    def _keep(self, left: dict[str, Any] | None) -> None:
        """Everything that is done or begun, by all."""
        begun = {replica: old for replica, old in self._left.items() if self._is_own(replica)}
        begun |= {} if left is None else {self._now: left}
        parts = [(self._done, begun)]
        if self._ranks.divides("replicas"):
            parts = self._ranks.at_lead(_on_host((self._done, begun)))
        done = {replica: run for part, _ in parts for replica, run in part.items()}
        inner = {replica: left for _, part in parts for replica, left in part.items() if replica not in done}
        progress = [run["stats"]["progress"] for run in done.values()] + [left["progress"] for left in inner.values()]
        assert self._keeper is not None
        self._keeper.keep(sum(progress), kept(done, inner))

    def found(self, runs: Mapping[str, Any]) -> None:
        """Goes on from what was kept."""
        self._done, self._left = dict(runs["replicas"]), dict(runs["inner"])


def kept(done: Mapping[int, Mapping[str, Any]], inner: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """For a checkpoint: of the runs that are done what an outer step takes, of the others what a mode has left."""
    taken = (*SUMMED, "peak_bytes", "progress", "inner_loss", "growth", "digits")
    results = [
        [replica, {**run, "stats": {key: run["stats"][key] for key in taken if key in run["stats"]}}]
        for replica, run in sorted(done.items())
    ]
    return {"replicas": results, "inner": [[replica, left] for replica, left in sorted(inner.items())]}


def _on(device: torch.device, run: Mapping[str, Any]) -> Hypergradient:
    value, params = tree_map_only(Tensor, lambda x: x.to(device), (run["value"], run["params"]))
    return Hypergradient(value, run["grad"], params, run["stats"])


def _on_host(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.cpu(), whole(tree))


def _digest(runs: Sequence[Mapping[str, Any]]) -> str:
    """Of E, the hypergradient, w_T and every loss on the way."""
    digest = hashlib.sha256()
    for run in runs:
        for x in tree_leaves((run["value"], run["grad"], run["params"], run["stats"]["inner_loss"])):
            digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_equal(digests: Sequence[str]) -> None:
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise VerificationError(
            f"the training run of rank 0 had other bits than that of {', '.join(f'rank {rank}' for rank in others)}; "
            "ranks that share a run need the same processor or GPU, torch and number of threads, and deterministic "
            "operators; a data set and a model of one's own must be the same each time they are made"
        )
