"""Start `two_processes.py` in two processes, or as many as told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(engine: str, folder: Path, processes: int = 2, **settings: str) -> None:
    """Start processes by torchrun, and fail the test with their output if one of them fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "ACCELERATE_USE_CPU": "true",
        **settings,
    }
    done = subprocess.run(
        [*command, str(SCRIPT), engine, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
