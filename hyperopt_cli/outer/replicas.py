"""The training runs of one outer step, one for each seed, with what is saved of them in the middle of it.

Several processes divide the seeds among themselves, or take each run together. In both cases every one of them has all
results at the end, and goes on with the same numbers.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from hyperopt_cli.errors import ReversalError, VerificationError
from hyperopt_cli.keeper import Keeper
from hyperopt_cli.modes import Hypergradient, Measurements, Mode, hypergradient
from hyperopt_cli.modes.account import OnStep, listed
from hyperopt_cli.modes.plain_run import plain_run
from hyperopt_cli.problem import Hyper, Problem
from hyperopt_cli.ranks.group import Ranks

SUMMED = ("wall_s", "num_steps", "num_gradients", "num_hvps")  # of a mode's stats, over the replicas


class Replicas:
    """Takes the training runs of one point, and keeps those that are done or begun.

    Args:
        ranks: the processes that share the outer step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._done: dict[int, dict[str, Any]] = {}
        self._begun: dict[int, dict[str, Any]] = {}  # the states of those that were interrupted
        self._now = 0

    @property
    def num_done(self) -> int:
        """How many hypergradients of this outer step are done."""
        return len(self._done)

    def clear(self) -> None:
        """Forgets everything, for the next outer step or for this one at another point."""
        self._done, self._begun = {}, {}

    def begin_again(self) -> None:
        """Forgets the runs that are begun, because they were taken in another mode."""
        self._begun = {}

    def taken(
        self,
        problem: Callable[[int], Problem],
        seeds: Sequence[int],
        hyper: Hyper,
        mode: Mode | None,
        measurements: Measurements,
        keeper: Keeper | None,
        together: Callable[[Callable[[], None]], None],
        on_step: Callable[[int], OnStep],
        begun_again: Callable[[ReversalError], None],
        wanted: Callable[[float], bool] | None = None,
        hopeless: Callable[[int, Tensor], bool] | None = None,
    ) -> list[Hypergradient]:
        """Returns the run of each seed; they are kept until `clear`, so that a run that stops has them.

        Args:
            problem: seed -> the training run.
            seeds: the seeds of all replicas.
            hyper: lambda.
            mode: how to differentiate; None: not at all, these are plain runs.
            measurements: what earlier hypergradients of this run have measured.
            keeper: saves the state of the run that is under way.
            together: does the work of this process, and waits for others that share it.
            on_step: replica -> the function that is called at each of its inner steps.
            begun_again: is told of a run that is begun again, because what was saved of it could not be reversed.
            wanted: tells by E whether its derivative is wanted, for a mode with a backward sweep.
            hopeless: tells by the training losses so far whether a plain run is to be stopped.
        """

        def run_of(replica: int, resume_from: dict[str, Any] | None) -> Hypergradient:
            run, told, ranks = problem(seeds[replica]), on_step(replica), self._ranks.of_one_run
            if mode is None:
                return plain_run(
                    run, hyper, on_step=told, keeper=keeper, resume_from=resume_from, ranks=ranks, hopeless=hopeless
                )
            return hypergradient(
                run,
                hyper,
                mode,
                on_step=told,
                keeper=keeper,
                resume_from=resume_from,
                measurements=measurements,
                ranks=ranks,
                wanted=wanted,
            )

        def work() -> None:
            for replica in range(len(seeds)):
                if self._is_own(replica) and replica not in self._done:
                    self._now = replica
                    saved = self._begun.pop(replica, None)
                    failed: str | None = None
                    try:
                        run = run_of(replica, saved)
                    except ReversalError as error:
                        if saved is None:
                            raise
                        begun_again(error)
                        failed = str(error)
                    if failed is not None:  # not above: as long as the error is there, it holds a state and its store
                        run = run_of(replica, None)
                    self._done[replica] = {**run._asdict(), "params": run.params if replica == 0 else {}}

        together(work)
        self._share(len(seeds))
        # what another process did lies on the host
        devices = [run["value"].device for run in self._done.values()]
        device = next((each for each in devices if each.type != "cpu"), devices[0])
        done = [self._done[replica] for replica in range(len(seeds))]
        here = tree_map_only(Tensor, lambda x: x.to(device), [(run["value"], run["params"]) for run in done])
        return [
            Hypergradient(value, run["grad"], params, run["stats"])
            for (value, params), run in zip(here, done, strict=True)
        ]

    def _is_own(self, replica: int) -> bool:
        """Returns whether this process takes the run of that replica."""
        return not self._ranks.divides("replicas") or replica % self._ranks.size == self._ranks.rank

    def _share(self, num: int) -> None:
        """Gives all results to every process; where all took each run together, it checks that they are the same.

        Raises:
            VerificationError: E, the hypergradient, w_T or a loss on the way has other bits elsewhere.
        """
        if self._ranks.divides("replicas"):
            self._done = dict(pair for part in self._ranks.gathered(_on_host(self._done)) for pair in part.items())
        elif self._ranks.size > 1:
            digest = hashlib.sha256()
            for run in (self._done[replica] for replica in range(num)):
                for x in tree_leaves((run["value"], run["grad"], run["params"], run["stats"]["inner_loss"])):
                    digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            digests = self._ranks.gathered(digest.hexdigest())
            others = [f"rank {rank}" for rank, each in enumerate(digests) if each != digests[0]]
            if others:
                raise VerificationError(
                    f"the training run of rank 0 had other bits than that of {', '.join(others)}; ranks that share a "
                    "run need the same processor or GPU, torch and number of threads, and deterministic operators; a "
                    "data set and a model of one's own must be the same each time they are made"
                )

    def state_dict(self, run: dict[str, Any] | None) -> dict[str, Any]:
        """Returns what is done or begun by all processes; `run` is the state of the run that is under way here.

        Of a run that is done it holds what an outer step takes, of the others what a mode resumes from.
        """
        begun = {replica: saved for replica, saved in self._begun.items() if self._is_own(replica)}
        begun |= {} if run is None else {self._now: run}
        parts = [(self._done, begun)]
        if self._ranks.divides("replicas"):
            parts = self._ranks.at_lead(_on_host((self._done, begun)))
        done = {replica: each for part, _ in parts for replica, each in part.items()}
        inner = {replica: each for _, part in parts for replica, each in part.items() if replica not in done}
        progress = [each["stats"]["progress"] for each in done.values()] + [each["progress"] for each in inner.values()]
        taken = (*SUMMED, "peak_bytes", "progress", "inner_loss", "growth", "digits")
        results = [
            [replica, {**each, "stats": {key: each["stats"][key] for key in taken if key in each["stats"]}}]
            for replica, each in sorted(done.items())
        ]
        return {"progress": sum(progress), "replicas": results, "inner": [list(each) for each in sorted(inner.items())]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a state that was saved, and goes on from there."""
        self._done, self._begun = dict(state["replicas"]), dict(state["inner"])


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which torch computes in one thread: the number of threads changes the bits of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_host(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.cpu(), listed(tree))
