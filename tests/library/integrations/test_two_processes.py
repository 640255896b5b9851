"""Under DDP every process starts the same, by hand and by the callback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import built_in_two_processes
from helpers.tiny import assert_identical

SCRIPT = Path(built_in_two_processes.__file__)


@pytest.mark.slow
def test_both_processes_start_and_train_alike(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
               "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
               str(SCRIPT), str(tmp_path)]  # fmt: skip
    paths = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"results-{rank}.pt") for rank in range(2))
    by_hand, factors = first["by_hand"]
    assert len(by_hand) == 3
    for results in (first, second):
        for losses, started in results.values():
            assert losses == by_hand
            assert_identical(factors, started)
