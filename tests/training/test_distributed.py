"""Exchange between processes: others wait for the first one for as long as its work takes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Collectives of the training group may take 4 s; the first process works for 9 s before the others go on.
SCRIPT = """
import sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from gr_training.distributed import main_first, rank, wait_for_main
dist.init_process_group("gloo", timeout=timedelta(seconds=4))
file = Path(sys.argv[1])
for turn in range(2):
    with main_first():
        if rank() == 0:
            time.sleep(9 if turn == 0 else 0)
            file.write_text(f"turn {turn}")
        print(rank(), file.read_text(), flush=True)
    if rank() == 0:
        time.sleep(9 if turn == 1 else 0)
    wait_for_main()
    dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_work_of_the_first_process_may_take_longer_than_a_collective(tmp_path: Path) -> None:
    """About 30 s: two processes, the second one waits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "file")]
    processes = [
        subprocess.Popen(command, env={**base, "WORLD_SIZE": "2", "RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    try:
        printed = [process.communicate(timeout=200)[0].splitlines() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert printed == [[f"{r} turn {turn}" for turn in range(2)] for r in range(2)]
    assert [process.returncode for process in processes] == [0, 0]
