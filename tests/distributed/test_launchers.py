"""Faults under what starts the processes: torchrun, and Lightning's own launcher of scripts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_mvrec.strategies.checkpoint import read_meta
from tests.distributed.launch import run_ranks
from tests.distributed.test_faults import kept_fit, losses

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("failing_script.py")


def run(folder, command, fault, bad):
    """Run the script and return its exit status and what was printed; no process that names ``folder`` may be left."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE"):
        environment.pop(name, None)
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, SCRIPT, folder, fault, str(bad)], env=environment, stdout=file, stderr=file
        )
        try:
            status = process.wait(timeout=900)
        finally:
            process.kill()
    end = time.monotonic() + 300
    while left := processes(folder):
        if time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"processes {left} are left\n{log.read_text()}")
        time.sleep(0.5)
    return status, log.read_text()


def processes(folder):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_torchrun_starts_again_from_the_last_checkpoint_after_a_kill(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").mkdir()
    run_ranks(kept_fit, 2, tmp_path / "whole")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    status, log = run(tmp_path / "run", torchrun, "get_killed", 1)
    assert status == 0, log
    assert "rank 1 is gone" in log
    assert "Restored all states from the checkpoint" in log
    for rank in range(2):
        assert losses(tmp_path / "run", rank) == losses(tmp_path / "whole", rank)


@pytest.mark.parametrize("bad", [0, 1])
def test_lightnings_launcher_leaves_no_process_when_one_is_killed(tmp_path, bad):
    status, log = run(tmp_path, [sys.executable], "get_killed", bad)
    assert status == (1 if bad else -signal.SIGKILL)  # that of rank 0
    how = "killed by signal 9" if bad else "its process was killed"  # rank 0 has started rank 1, and knows
    assert f"[rank {1 - bad}] rank {bad} is gone: {how}" in log


def test_lightnings_launcher_lets_the_first_process_end_after_sigterm_to_another(tmp_path):
    status, log = run(tmp_path, [sys.executable], "get_sigterm", 1)
    assert status == 128 + signal.SIGTERM
    for rank in range(2):
        assert f"[rank {rank}] stopped before batch" in log
    assert "all is put away" in log
    made = max(losses(tmp_path, 0))
    assert read_meta(tmp_path / "last.ckpt")["checkpoint"]["global_step"] == made + 1 < 18


def test_lightnings_launcher_leaves_no_process_when_rank_0_dies_before_all_have_joined(tmp_path):
    status, log = run(tmp_path, [sys.executable], "killed early", 0)
    assert status == -signal.SIGKILL
    assert "[rank 1] rank 0 is gone: the process that has started this one ended" in log
