"""Which of several processes this is: started by `srun`, by `torchrun`, or by `hyperopt run --nproc`.

`torchrun` and `--nproc` say in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT who is who and where the first
one listens. `srun` says it in SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID and SLURM_STEP_NODELIST; a batch script
that is not below `srun` has no SLURM_STEP_NUM_TASKS, and is no rank.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hyperopt_cli.errors import UsageError

FIRST_PORT, NUM_PORTS = 20000, 12000  # below the ports that systems give out by themselves


@dataclass(frozen=True)
class Place:
    """Which of the processes of a run this is, and where the first one is found.

    Attributes:
        rank: its number among all processes.
        size: how many there are.
        local_rank: its number among those on this node.
        address: the host where the first one listens.
        port: the port where it listens.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def place(env: Mapping[str, str] = os.environ) -> Place | None:
    """Returns what the environment says; None for a process that is alone.

    Raises:
        UsageError: the environment has only a part of what is needed.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        rank, size, local_rank, port = (_number(env, name) for name in names)
        found = Place(rank, size, local_rank, _text(env, "MASTER_ADDR"), port)
    elif "SLURM_STEP_NUM_TASKS" in env and "SLURM_PROCID" in env:
        rank, size = _number(env, "SLURM_PROCID"), _number(env, "SLURM_STEP_NUM_TASKS")
        if size == 1:
            return None
        address = env.get("MASTER_ADDR") or _first_node(_text(env, "SLURM_STEP_NODELIST"))
        port = _number(env, "MASTER_PORT") if "MASTER_PORT" in env else _port_of_step(env)
        found = Place(rank, size, _number(env, "SLURM_LOCALID"), address, port)
    else:
        return None
    return found if found.size > 1 else None


def _first_node(nodes: str) -> str:
    """Returns the first of Slurm's list of nodes, in which `node[03-05,9]` stands for several.

    >>> _first_node("gpu[003-005,9],login"), _first_node("alpha,beta"), _first_node("rack[1-2]n[01-09].ib")
    ('gpu003', 'alpha', 'rack1n01.ib')
    """
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).partition(",")[0]


def _port_of_step(env: Mapping[str, str]) -> int:
    """Returns a port that is the same for all tasks of a step, and another one for the next step."""
    step = f"{env.get('SLURM_JOB_ID', '0')}.{env.get('SLURM_STEP_ID', '0')}.{env.get('SLURM_RESTART_COUNT', '0')}"
    numbers = [int(part) for part in step.split(".") if part.isdigit()]
    mixed: int = sum(7919**i * number for i, number in enumerate(numbers))
    return FIRST_PORT + mixed % NUM_PORTS


def _text(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise UsageError(f"{name} is not set, though this process is to be one of several; start them by one launcher")
    return env[name]


def _number(env: Mapping[str, str], name: str) -> int:
    text = _text(env, name)
    if not text.isdigit():
        raise UsageError(f"{name}: got {text!r}; must be a number")
    return int(text)
