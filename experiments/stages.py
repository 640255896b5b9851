"""Ranks reduced in stages: does LoRA end lower if it starts wide and is cut down on the way?

Each arm is one training run of the same total length and the same batches: LoRA of the first
stage's rank, cut by SVD to the next stage's rank ("AB"), and so on, down to r. HRP "AB" is the arm
with two stages. One JSON record a run; finished runs are not done again.

    python experiments/stages.py --task gsm8k --model DIR/base-lm-30m --dataset DIR/gsm8k \
        --steps 450 --preheat_rank 128 --out experiments/results/stages-gsm8k --workers 14
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import set_seed

from hrp.bench.record import write_whole
from hrp.bench.tasks import Task, TaskRequest, load_task
from hrp.layers import LoraModule, lora_modules, read_spectrum
from hrp.spectrum import Spectrum
from hrp.versions import installed_versions

SCALING = 2.0
RANK = 4


@dataclass(frozen=True)
class Arm:
    """A way down to rank r.

    ``shares`` are the parts of all steps that the stages before the last take, ``wide`` their
    ranks as fractions of ``preheat_rank``. ``schedule``: "restart" trains them at the constant
    ``--wide_rate`` (times ``hotter``) and starts the cosine in the last stage; "continued" has one
    cosine over all steps, with that rate as its height in the wide stages. ``moments`` carries
    Adam's through each cut.
    """

    shares: tuple[float, ...] = ()
    wide: tuple[float, ...] = (1.0,)
    schedule: str = "restart"
    hotter: float = 1.0
    moments: bool = False

    def stages(self, preheat_rank: int, steps: int) -> list[tuple[int, int]]:
        lengths = [round(share * steps) for share in self.shares]
        wide = [max(RANK, round(part * preheat_rank)) for part in self.wide[: len(lengths)]]
        return [*zip(wide, lengths, strict=True), (RANK, steps - sum(lengths))]


ARMS = {
    "lora": Arm(),
    **{f"ab-{share}": Arm((share / 100,)) for share in (5, 10, 20, 30, 40)},
    **{f"ab-{share}-cont": Arm((share / 100,), schedule="continued") for share in (10, 20, 40)},
    "ab-20-moments": Arm((0.2,), moments=True),
    "ab-20-cont-moments": Arm((0.2,), schedule="continued", moments=True),
    "ab-40-cont-moments": Arm((0.4,), schedule="continued", moments=True),
    "ab-60-cont-moments": Arm((0.6,), schedule="continued", moments=True),
    "ab-20-hot": Arm((0.2,), hotter=2.0),
    "ab-40-cont-hot": Arm((0.4,), schedule="continued", hotter=2.0),
    "staged-20": Arm((0.1, 0.1), (1.0, 0.25)),
    "staged-40": Arm((0.2, 0.2), (1.0, 0.25)),
    "staged-40-cont": Arm((0.2, 0.2), (1.0, 0.25), schedule="continued"),
    "staged-40-cont-moments": Arm((0.2, 0.2), (1.0, 0.25), schedule="continued", moments=True),
    "staged-75-cont-moments": Arm(
        (0.25, 0.25, 0.25), (1.0, 0.25, 0.0625), schedule="continued", moments=True
    ),
}


def batches(task: Task, size: int, seed: int) -> Iterator[Any]:
    """The same batches for every arm of a seed."""
    generator = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        task.train,
        size,
        shuffle=True,
        collate_fn=task.collator,
        generator=generator,
        drop_last=True,
    )
    while True:
        yield from loader


def rate_at(
    arm: Arm, step: int, first_of_last: int, rate: float, options: argparse.Namespace
) -> float:
    wide, wide_rate = step < first_of_last, arm.hotter * options.wide_rate
    if arm.schedule == "continued":
        part = step / options.steps
    elif wide:
        return wide_rate
    else:
        part = (step - first_of_last) / (options.steps - first_of_last)
    return (wide_rate if wide else rate) * 0.5 * (1 + math.cos(math.pi * part))


def cut(spectrum: Spectrum, modules: dict[str, LoraModule]) -> None:
    """Write the update truncated to each module's rank: direction "AB"."""
    for name, module in modules.items():
        leading = spectrum[name].crop(module.rank)
        root = (leading.S / module.scaling).sqrt()
        module.write(root[:, None] * leading.Vh, leading.U * root)


def carried(old: dict, new_A: Tensor, new_B: Tensor) -> tuple[dict, dict]:
    """Adam's state of the cut factors: new_B = B T and new_A = S A make their gradients linear in
    the old ones; second moments as if the gradient's rows were independent."""
    A, B = old["A"].float(), old["B"].float()
    T = torch.linalg.lstsq(B.cpu(), new_B.float().cpu(), driver="gelsd").solution.to(A.device)
    S = torch.linalg.lstsq(A.mT.cpu(), new_A.float().mT.cpu(), driver="gelsd").solution.to(A.device)
    state_A, state_B = old["state_A"], old["state_B"]
    return (
        {
            "step": state_A["step"],
            "exp_avg": T.mT @ state_A["exp_avg"],
            "exp_avg_sq": T.square().mT @ state_A["exp_avg_sq"],
        },
        {
            "step": state_B["step"],
            "exp_avg": state_B["exp_avg"] @ S,
            "exp_avg_sq": state_B["exp_avg_sq"] @ S.square(),
        },
    )


def adapter(base: Any, rank: int, task: Task) -> PeftModel:
    config = LoraConfig(
        r=rank, lora_alpha=SCALING * rank, target_modules="all-linear", task_type=task.task_type
    )
    return get_peft_model(base, config)


def kept(modules: dict[str, LoraModule], optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {
        name: {
            "A": module.parameters()[0].detach(),
            "B": module.parameters()[1].detach(),
            "state_A": optimizer.state[module.parameters()[0]],
            "state_B": optimizer.state[module.parameters()[1]],
        }
        for name, module in modules.items()
    }


def run(task: Task, arm: Arm, rate: float, seed: int, options: argparse.Namespace) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.bfloat16 if device == "cuda" else torch.float32
    base = task.load_model(half).to(device)
    set_seed(seed)
    data, step, old, spectrum, losses = batches(task, options.batch_size, seed), 0, None, None, []
    stages = arm.stages(options.preheat_rank, options.steps)
    first_of_last = options.steps - stages[-1][1]
    for rank, length in stages:
        model = adapter(base, rank, task)
        modules = lora_modules(model, "default")
        if spectrum is not None:
            cut(spectrum, modules)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)
        if arm.moments and old:
            for name, module in modules.items():
                lora_A, lora_B = module.parameters()
                states = carried(old[name], lora_A.detach(), lora_B.detach())
                optimizer.state[lora_A], optimizer.state[lora_B] = states
        model.train()
        for _ in range(length):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(arm, step, first_of_last, rate, options)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = model(**next(data).to(device)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            step += 1
        if rank != RANK:
            old, spectrum = kept(modules, optimizer), read_spectrum(modules, {})
            base = model.unload()
    end = task.evaluate(model)["eval_loss"]
    return {"stages": stages, "test_loss": end if math.isfinite(end) else None,
            "train_losses": torch.stack(losses).view(-1).tolist()[::10]}  # fmt: skip


def work(options: argparse.Namespace, tasks: Any) -> None:
    torch.set_num_threads(1)
    task = load_task(
        TaskRequest(options.task, options.model, options.dataset, json.loads(options.task_options))
    )
    while (setting := tasks.get()) is not None:
        name, rate, seed = setting
        began = time.time()
        found = run(task, ARMS[name], rate, seed, options)
        record = {
            "arm": name, **asdict(ARMS[name]), "learning_rate": rate, "seed": seed, **found,
            "settings": {key: str(value) for key, value in vars(options).items()},
            "seconds": time.time() - began, "versions": installed_versions(),
            "command": "python " + " ".join(sys.argv),
        }  # fmt: skip
        path = options.out / f"{name}-lr{rate:g}-seed{seed}.json"
        write_whole(path, json.dumps(record) + "\n")
        print(f"{name:24} lr {rate:g} seed {seed}: {found['test_loss']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="wordproblems")
    parser.add_argument("--model", default="hrp-demo")
    parser.add_argument("--dataset", default=None)
    parser.add_argument("--task_options", default="{}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--preheat_rank", type=int, default=32)
    parser.add_argument("--wide_rate", type=float, default=1e-3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[4e-3, 2e-3, 8e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    queue: Any = multiprocessing.get_context("spawn").Queue()
    for rate, seed, arm in itertools.product(options.learning_rates, options.seeds, options.arms):
        if not (options.out / f"{arm}-lr{rate:g}-seed{seed}.json").exists():
            queue.put((arm, rate, seed))
    workers = [
        multiprocessing.get_context("spawn").Process(target=work, args=(options, queue))
        for _ in range(options.workers)
    ]
    for worker in workers:
        queue.put(None)
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
