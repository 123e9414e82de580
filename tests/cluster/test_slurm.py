"""A report on a SLURM cluster: a real one of one node on loopback, brought up here and taken down again.

`make test-cluster` runs it, `make test` does not: schedulers wait in minutes. The miniature project of test_pipeline
stands in for the real notebooks. Needs root and Debian's slurm-wlm, slurmdbd, munge and mariadb-server.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_pipeline import MODEL, ROOT, profile, project, start

__all__ = ["project"]
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
absent = [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
reason = f"no SLURM to bring up: {absent[0]} is absent" if absent else "SLURM's daemons are started as root here"
pytestmark = pytest.mark.skipif(bool(absent) or os.geteuid() != 0, reason=reason)

DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={ports[0]}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
LogFile={folder}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=loopback
StorageLoc=slurm
"""
CLUSTER = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[1]}
SlurmdPort={ports[2]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdTimeout=10
KillWait=5
JobRequeue=0
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports[0]}
AccountingStoragePass={folder}/munge/socket
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


class Cluster:
    """One controller, one database, one node."""

    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().partition(".")[0]
        self.environ = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MYSQL_UNIX_PORT": str(folder / "db" / "socket"),
            "USER": "root",
        }

    def run(self, *command: str) -> str:
        streams = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        result = subprocess.run(command, env=self.environ, timeout=60, **streams)
        assert result.returncode == 0, (command, result.stdout)
        return result.stdout

    def up(self) -> None:
        folder = self.folder
        for name in ("munge", "db", "state", "spool"):
            (folder / name).mkdir(mode=0o700)
        (folder / "munge" / "key").write_bytes(os.urandom(32))
        (folder / "munge" / "key").chmod(0o400)
        places = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", *(f"--{name}={folder}/munge/{file}" for name, file in places.items()))
        store = ("--no-defaults", f"--datadir={folder}/db", "--user=root")
        self.run("mariadb-install-db", *store, "--auth-root-authentication-method=socket")
        files = (f"--socket={folder}/db/socket", f"--pid-file={folder}/db/pid")
        with open(folder / "mariadb.log", "w") as log:
            subprocess.Popen(["mariadbd", *store, *files, "--skip-networking"], stdout=log, stderr=log)
        until(lambda: (folder / "db" / "socket").exists())
        grant = "grant all on slurm.* to slurm@localhost identified by 'loopback'"
        self.run("mariadb", "--no-defaults", files[0], "-e", f"create database slurm; {grant}")
        values = {"folder": folder, "host": self.host, "ports": free_ports(3)}
        values["memory"] = psutil.virtual_memory().total * 4 // 5 // 2**20  # MiB
        (folder / "slurm.conf").write_text(CLUSTER.format(**values))
        (folder / "slurmdbd.conf").write_text(DATABASE.format(**values))
        (folder / "slurmdbd.conf").chmod(0o600)
        self.run("slurmdbd")
        until(lambda: self.run("sacctmgr", "-i", "add", "cluster", "one"))
        self.run("slurmctld")
        self.node_up()

    def node_up(self, hidden: Path | None = None) -> None:
        """hidden: a folder that the node does not share."""
        apart = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {hidden} && exec "$@"', "sh") if hidden else ()
        self.run(*apart, "slurmd", "-N", self.host)
        until(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"))

    def node_away(self) -> None:
        """As a node that loses its power: daemon, steps and jobs go at once."""
        os.kill(int((self.folder / "slurmd.pid").read_text()), signal.SIGKILL)
        subprocess.run(["pkill", "-KILL", "slurmstepd"])

    def states(self) -> list[str]:
        """Of the jobs so far, in their order."""
        return [line.split()[0] for line in self.run("sacct", "-X", "-n", "-o", "State").splitlines()]

    def down(self) -> None:
        for name in ("slurmd.pid", "slurmctld.pid", "slurmdbd.pid", "db/pid", "munge/pid"):
            if (self.folder / name).is_file():
                with suppress(ProcessLookupError):
                    os.kill(int((self.folder / name).read_text()), signal.SIGTERM)


def until(true, seconds: float = 60.0) -> None:
    """Wait until it is; a command that fails meanwhile is not there yet."""
    last = None
    for _ in range(int(seconds / 0.2)):
        try:
            if true():
                return
        except AssertionError as error:
            last = error
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds:.0f} s: {last}")


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster():
    folder = Path("/tmp", f"slurm-{os.getpid()}")  # short: a socket's path has at most 107 characters
    folder.mkdir(mode=0o755)
    one = Cluster(folder)
    try:
        one.up()
        yield one
    finally:
        one.down()
        time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def site(cluster, project, monkeypatch):
    """The miniature project on the cluster; where a file `slow` lies, training does not end."""
    for name in ("SLURM_CONF", "USER", "PATH"):
        monkeypatch.setenv(name, cluster.environ[name])
    shutil.copytree(ROOT / "profiles" / "slurm", project / "profiles" / "slurm")
    path = project / "notebooks" / "60_train.ipynb"
    content = json.loads(path.read_text())
    content["cells"][1]["source"] += "\nwhile pathlib.Path('slow').exists():\n    time.sleep(0.2)"
    path.write_text(json.dumps(content))
    return project


def submitted(*options: str) -> tuple[int, str]:
    """Exit code and console of a report made on the cluster."""
    process = start("--profile", "profiles/slurm", "--seconds-between-status-checks", "2", *options)
    printed, _ = process.communicate(timeout=400)
    return process.returncode, printed


def test_a_report_runs_through_sbatch_and_a_second_run_has_nothing_to_do(cluster, site):
    before = len(cluster.states())
    code, printed = submitted()
    assert code == 0, printed + Path("reports/mini/snakemake.log").read_text()
    assert cluster.states()[before:] == ["COMPLETED"] * 4
    for job in ("all/none/data", f"{MODEL}/torch/train", f"{MODEL}/jittor/train", "all/none/compare"):
        assert f"[report] {job}: done in " in printed
    asked = cluster.run("sacct", "-X", "-n", "-P", "-o", "ReqMem,TimelimitRaw,ReqCPUS").splitlines()[before]
    assert asked == "4G|60|1"
    assert "up to date" in submitted()[1] and len(cluster.states()) == before + 4


def test_a_job_that_the_scheduler_ends_for_time_is_named_and_a_second_run_continues(cluster, site):
    profile(site, epochs=3, hours=1 / 60)
    Path("slow").touch()
    before = len(cluster.states())
    code, printed = submitted()
    assert code == 1 and cluster.states()[before:] == ["COMPLETED", "TIMEOUT", "TIMEOUT"], printed
    assert f"{MODEL}/torch/train: FAILED" in printed and "SIGTERM" in printed
    Path("slow").unlink()
    assert submitted()[0] == 0 and cluster.states()[before + 3 :] == ["COMPLETED"] * 3


def test_a_node_that_goes_away_ends_the_run_and_when_it_is_back_a_second_one_continues(cluster, site):
    Path("slow").touch()
    before = len(cluster.states())
    process = start("--profile", "profiles/slurm", "--seconds-between-status-checks", "2")
    until(lambda: cluster.states()[before:].count("RUNNING") == 2, 120)
    cluster.node_away()
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 1 and cluster.states()[before + 1 :] == ["NODE_FAIL"] * 2, printed
    assert "not finished" in printed and "NODE_FAIL" in printed
    Path("slow").unlink()
    cluster.node_up()
    assert submitted()[0] == 0 and cluster.states()[before + 3 :] == ["COMPLETED"] * 3


def test_a_node_that_does_not_share_the_checkout_is_told_in_one_line(cluster, site):
    cluster.node_away()
    cluster.node_up(hidden=site)
    code, printed = submitted("--latency-wait", "5")
    said = [line for line in printed.splitlines() if "not finished" in line]
    assert code == 1 and len(said) == 1 and f"no job has begun in what is seen from here: {site}" in said[0], printed
    cluster.node_away()
    cluster.node_up()
