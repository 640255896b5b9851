"""Start a built trainer's adapter in each of several processes, and train it.

`test_two_processes.py` starts it: torchrun --nproc_per_node 2 built_in_two_processes.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from torch.nn.parallel import DistributedDataParallel

import hrp
from helpers.built_trainers import SEED, losses, plain

CONFIG = hrp.HRPConfig(preheat_rank=4, preheat_steps=2, seed=SEED)


def by_hand(folder: Path):
    trainer = plain(folder)
    hrp.apply_hrp(trainer, CONFIG)
    return trainer


def by_callback(folder: Path):
    trainer = plain(folder)
    trainer.add_callback(hrp.HRPCallback(CONFIG, trainer))
    return trainer


def by_callback_alone(folder: Path):
    trainer = plain(folder)
    trainer.add_callback(hrp.HRPCallback(CONFIG))
    return trainer


def main(folder: Path) -> None:
    results = {}
    for build in (by_hand, by_callback, by_callback_alone):
        trainer = build(folder)
        trainer.train()
        assert isinstance(trainer.model_wrapped, DistributedDataParallel)
        parameters = trainer.model.named_parameters()
        factors = {name: p.detach().clone() for name, p in parameters if "lora" in name}
        results[build.__name__] = (losses(trainer), factors)
    torch.save(results, folder / f"results-{PartialState().process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
