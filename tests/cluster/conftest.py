"""A real Slurm on this machine: munged, slurmctld and slurmd in a temporary folder, on ports of their own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# More than the machine may have (config_overrides), so that what is to run side by side does.
CPUS = 4

# cred_expire, of 5 s at least, is also how long a requeued job waits: then until the queue is looked through again.
# preempt_send_user_signal: a preempted job gets its own --signal.
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
KillWait=20
MaxArraySize=100
InactiveLimit=0
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10
"""


@pytest.fixture(scope="session")
def real_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The path of slurm.conf, of a cluster whose one node is idle."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: slurmctld slurmd slurm-client munge)")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    conf = _configure(folder)
    daemons = []
    try:
        daemons.append(_munged(folder))
        daemons.append(_start(folder, "slurmctld", "-D", "-c", "-f", conf))
        daemons.append(_start(folder, "slurmd", "-D", "-N", "localhost", "-f", conf))
        _wait_for_node(conf, folder)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            _reap(daemon)


@pytest.fixture
def slurm(real_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same, for one test: SLURM_CONF names it, and no job is left behind."""
    monkeypatch.setenv("SLURM_CONF", str(real_slurm))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield real_slurm
    subprocess.run(["scancel", "--full", "--signal=KILL", "--user=root"], capture_output=True, check=False)
    subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
    wait_until(lambda: not queue(), 30, "the queue to be empty")


def queue() -> str:
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


def wait_until(holds: Callable[[], object], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.2)


def _configure(folder: Path) -> Path:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, ports=_free_ports(2), cpus=CPUS))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    return conf


def _munged(folder: Path) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    named = {"socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    options = [f"--{option}={folder / name}" for option, name in named.items()]
    daemon = _start(folder, "munged", "--foreground", "--force", f"--key-file={key}", *options)
    wait_until((folder / "munge.socket").exists, 10, "munged")
    return daemon


def _start(folder: Path, program: str, *arguments: object) -> subprocess.Popen[bytes]:
    with (folder / f"{program}.out").open("wb") as out:
        return subprocess.Popen(
            [program, *map(str, arguments)], stdout=out, stderr=out, env=_environment(), start_new_session=True
        )


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": SBIN}


def _wait_for_node(conf: Path, folder: Path) -> None:
    def idle() -> bool:
        asked = ["sinfo", "--noheader", "--format=%T", "--partition=main"]
        done = subprocess.run(asked, capture_output=True, text=True, env={**_environment(), "SLURM_CONF": str(conf)})
        return done.stdout.strip() == "idle"

    try:
        wait_until(idle, 30, "the node to be idle")
    except AssertionError:
        for log in sorted(folder.glob("*.log")):
            print(f"==> {log.name} <==\n{log.read_text()[-2000:]}")
        raise


def _reap(daemon: subprocess.Popen[bytes]) -> None:
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
