"""What is asked of a cluster: time, devices, where, and how often a stopped run is run again."""

import re
import shlex
from dataclasses import dataclass

from hyperopt_cli.errors import UsageError

DEFAULT_GRACE_S = 180
DEFAULT_REQUEUES = 20
_TIME_FORMS = "minutes, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES[:SECONDS]"

# Options of sbatch that the script needs as it writes them.
OWN_OPTIONS = {
    "--array": "use --array of hyperopt",
    "--job-name": "the recipe gives the job its name",
    "--output": "each element has its own file; hyperopt logs shows it",
    "--error": "it goes where the output goes; hyperopt logs shows it",
    "--open-mode": "a requeued run appends",
    "--chdir": "submit from the folder to work in",
    "--ntasks": "use --nproc",
    "--ntasks-per-node": "use --nproc and --nodes",
    "--no-requeue": "use --requeues 0",
    "--requeue": "use --requeues",
    "--signal": "use --grace",
    "--wrap": "the script runs hyperopt",
    "--test-only": "hyperopt asks that first by itself; --dry-run prints the script",
    "--parsable": "hyperopt reads the job's number by itself",
}
_SHORT = {"-a": "--array", "-J": "--job-name", "-o": "--output", "-e": "--error", "-D": "--chdir", "-n": "--ntasks"}


@dataclass(frozen=True)
class Request:
    """What each element of a job asks of the cluster.

    Attributes:
        gpus: GPUs, of which each rank uses one.
        nodes: nodes, of which each has as many ranks and GPUs as the others.
        time: the limit, in Slurm's forms; None for that of the partition.
        partition: Slurm's partition; None for the default.
        account: Slurm's account; None for the default.
        grace_s: how long before the limit a run is told to stop.
        requeues: how often a run that was stopped and saved is run again.
        sbatch_lines: further options of sbatch, one or more a line.
        nproc: processes that share the run, its ranks; None for one for each GPU, else one for each node.
    """

    gpus: int | None = None
    nodes: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    grace_s: int = DEFAULT_GRACE_S
    requeues: int = DEFAULT_REQUEUES
    sbatch_lines: tuple[str, ...] = ()
    nproc: int | None = None

    def __post_init__(self) -> None:
        """Raises:
        UsageError: something here can't be asked for.
        """
        num, nodes, gpus = self.num_ranks, self.num_nodes, self.gpus
        if gpus and num != gpus:
            raise UsageError(f"--nproc {num}: got --gpus {gpus}; a process uses one GPU: give as many, or only --gpus")
        if num % nodes:
            given = f"--gpus {gpus}" if gpus else f"--nproc {num}"
            raise UsageError(
                f"--nodes {nodes}: got {given}; each node gets as many processes: give a multiple of {nodes}"
            )
        for name, text in (("--partition", self.partition), ("--account", self.account), ("--time", self.time)):
            if text is not None and not re.fullmatch(r"[\w.,:@+/-]+", text):
                raise UsageError(f"{name}: got {text!r}; only letters, digits and . , : @ + / - _ are allowed")
        for line in self.sbatch_lines:
            _check_line(line)
        limit_s = self.time_s
        if limit_s is not None and limit_s <= self.grace_s:
            raise UsageError(
                f"--time {self.time}: the run would be told to stop --grace {self.grace_s} seconds before that, at "
                "once; give more time, or less grace (what it takes to write a checkpoint)"
            )

    @property
    def num_ranks(self) -> int:
        """How many processes share a run."""
        return self.nproc or self.gpus or self.nodes or 1

    @property
    def num_nodes(self) -> int:
        """How many nodes these processes are spread over."""
        return self.nodes or 1

    @property
    def time_s(self) -> int | None:
        """The time limit in seconds; None if none was given."""
        return None if self.time is None else seconds(self.time)


def seconds(time: str) -> int:
    """Returns a time that is written as `sbatch --time` takes it, in seconds.

    >>> seconds("90"), seconds("1:30"), seconds("2:00:00"), seconds("1-12"), seconds("1-0:30")
    (5400, 90, 7200, 129600, 88200)

    Raises:
        UsageError: the text is no such time.
    """
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,6}))?(?::(\d{1,6}))?", time, re.ASCII)
    if match is None:
        raise UsageError(f"--time: got {time!r}; must be {_TIME_FORMS}")
    days, *rest = match.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, secs = [*numbers, 0, 0][:3]
    else:
        hours, minutes, secs = 0, *[*numbers, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + secs
    if total == 0:
        raise UsageError(f"--time: got {time!r}, which is no time; must be {_TIME_FORMS}")
    return total


def _check_line(line: str) -> None:
    if not line.isprintable() or not line.strip().startswith("-"):
        raise UsageError(f"--sbatch-line: got {line!r}; must be one line of options, such as --constraint=a100")
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UsageError(f"--sbatch-line: got {line!r} ({error}); close the quote") from None
    for word in words:
        option = _SHORT.get(word[:2], word.partition("=")[0])
        if option in OWN_OPTIONS:
            raise UsageError(f"--sbatch-line: got {word}, which hyperopt sets itself: {OWN_OPTIONS[option]}")
