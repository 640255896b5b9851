"""Preheat in each of several processes and write down what each of them saw.

`test_distributed.py` and `test_faults.py` start it as `launch` does:

torchrun --nproc_per_node 2 two_processes.py ENGINE FOLDER

On the CPU (gloo) with ACCELERATE_USE_CPU true or DS_ACCELERATOR cpu, else on one GPU a process.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import hrp
from helpers.tiny import collate, fingerprint, tiny_llama, token_rows, with_lora
from hrp.preheating import stopping

ON_CPU = "true" in os.environ.get("ACCELERATE_USE_CPU", "") or "DS_ACCELERATOR" in os.environ
CONFIG = hrp.HRPConfig(preheat_rank=8, preheat_steps=4, learning_rate=1e-2)
GLOBAL_BATCH = 8


def preheated(model: PeftModel, processes: int, sharded: bool = False) -> hrp.Spectrum:
    batch_size = GLOBAL_BATCH // processes
    data = DataLoader(token_rows(), batch_size=batch_size, collate_fn=collate)
    return hrp.preheat(model, CONFIG, dataloader=data, spend_model=sharded)


def preheated_by_trainer(model: PeftModel, folder: Path, sharded: bool = False) -> hrp.Spectrum:
    args = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=4,
        use_cpu=ON_CPU,
        report_to=[],
        disable_tqdm=True,
    )
    if sharded:
        as_if_on_gpus()  # the arguments have set it anew
    return hrp.preheat(
        model,
        CONFIG,
        trainer_cls=Trainer,
        args=args,
        train_dataset=token_rows(),
        data_collator=collate,
        spend_model=sharded,
    )


def save(folder: Path, name: str, content: object) -> None:
    torch.save(content, folder / f"{name}-{PartialState().process_index}.pt")


def ddp(folder: Path) -> None:
    model = with_lora(tiny_llama()).to(PartialState().device)
    before = fingerprint(model)
    spectrum = preheated(model, PartialState().num_processes)
    restored = all(value.equal(before[name]) for name, value in fingerprint(model).items())
    by_trainer = preheated_by_trainer(model, folder)
    if PartialState().is_main_process:
        spectrum.save(folder / "spectrum")
        by_trainer.save(folder / "by_trainer")
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    save(folder, "state", {"restored": restored, "weights": fingerprint(model)})


def nan_in_one_rank(folder: Path) -> None:
    model = with_lora(tiny_llama())

    def loss_fn(prepared, batch):
        loss = prepared(**batch).loss
        return loss * float("nan") if PartialState().process_index == 1 else loss

    data = DataLoader(token_rows(), batch_size=4, collate_fn=collate)
    try:
        hrp.preheat(model, CONFIG, dataloader=data, loss_fn=loss_fn)
    except hrp.NonFiniteLossError as error:
        save(folder, "error", str(error))


def as_if_on_gpus() -> None:
    """Let Accelerate shard on gloo: it offers FSDP on GPUs only, though FSDP2 runs anywhere."""
    if ON_CPU:
        PartialState().distributed_type = DistributedType.MULTI_GPU


def fsdp(folder: Path) -> None:
    """Preheat under FSDP2, which spends each model: it shards it for good."""
    as_if_on_gpus()
    model = with_lora(tiny_llama())
    spectrum = preheated(model, PartialState().num_processes, sharded=True)
    content = {
        "sharded": all(isinstance(parameter, DTensor) for parameter in model.parameters()),
        "U": {name: module.U for name, module in spectrum.items()},
    }
    save(folder, "state", content)
    by_trainer = preheated_by_trainer(with_lora(tiny_llama()), folder, sharded=True)
    if PartialState().is_main_process:
        spectrum.save(folder / "spectrum")
        by_trainer.save(folder / "by_trainer")


def dying(folder: Path) -> None:
    """Kill one rank in the second step, while the other waits for it."""
    calls = itertools.count()

    def loss_fn(prepared, batch):
        if next(calls) == 1 and PartialState().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return prepared(**batch).loss

    data = DataLoader(token_rows(), batch_size=4, collate_fn=collate)
    hrp.preheat(with_lora(tiny_llama()), CONFIG, dataloader=data, loss_fn=loss_fn).save(
        folder / "spectrum"
    )


def zero(folder: Path) -> None:
    """Preheat under DeepSpeed, which spends the model too; its stage says how much it shards."""
    import deepspeed

    initialize, stages = deepspeed.initialize, []

    def counted(**settings):
        stages.append(settings["config_params"]["zero_optimization"]["stage"])
        return initialize(**settings)

    deepspeed.initialize = counted
    model = with_lora(tiny_llama())
    spectrum = preheated(model, PartialState().num_processes, sharded=True)
    content = {
        "stages": stages,
        "sharded": all(hasattr(parameter, "ds_id") for parameter in model.parameters()),
        "U": {name: module.U for name, module in spectrum.items()},
    }
    save(folder, "state", content)
    by_trainer = preheated_by_trainer(with_lora(tiny_llama()), folder, sharded=True)
    if PartialState().is_main_process:
        spectrum.save(folder / "spectrum")
        by_trainer.save(folder / "by_trainer")


def at_once(folder: Path) -> None:
    """Preheat before anything else has set Accelerate up, with "auto", where the ranks disagree."""
    rank = int(os.environ["RANK"])
    stopping.subspace_turn = lambda *_: float(rank)  # the first has settled, the other has not
    config = hrp.HRPConfig(8, "auto", max_preheat_steps=12, subspace_window=2, learning_rate=1e-2)
    data = DataLoader(token_rows(), batch_size=4, collate_fn=collate)
    try:
        spectrum = hrp.preheat(with_lora(tiny_llama()), config, dataloader=data)
        content = {
            "steps": spectrum.provenance["steps"],
            "U": {n: m.U for n, m in spectrum.items()},
        }
    except ValueError as error:
        content = {"error": str(error)}
    torch.save(content, folder / f"state-{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    engine, target = sys.argv[1], Path(sys.argv[2])
    if engine == "at_once":
        at_once(target)
        sys.exit()
    PartialState(cpu=ON_CPU)
    if engine == "fsdp":
        fsdp(target)
    elif engine == "zero":
        zero(target)
    elif engine == "dying":
        dying(target)
    else:
        ddp(target)
        nan_in_one_rank(target)
