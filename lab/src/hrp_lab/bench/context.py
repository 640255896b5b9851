"""Give a run its context: `Bench` holds a worker's tasks and models, `Setup` is for its arm."""

from __future__ import annotations

import copy
import dataclasses
import gc
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from filelock import FileLock
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

from hrp.files import clear_dead_staging
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench import costs
from hrp_lab.bench.costs import Costs, ModelSize
from hrp_lab.bench.record import RunSpec
from hrp_lab.bench.speed.options import Speed
from hrp_lab.bench.tasks import Task, TaskRequest, load_task
from hrp_lab.bench.training import Plan, Trained, fine_tune

_BASES_KEPT = 4
# A run's data, model and adapter depend on these, apart from its own settings.
_GROUND = ("model", "dtype", "batch_size", "task", "lora", "training")


class NotApplicable(Exception):  # noqa: N818 - an answer, not an error
    """Says why an arm cannot run on this task or budget."""


@dataclass(frozen=True)
class Places:
    """Says where things lie on this machine and how fast it trains; no part of what a run is.

    Args:
        records: folder of the records.
        cache: folder of what runs share (preheated spectra and the like).
        model: local path of the base model; None means its name in the experiment.
        dataset: local folder or hub name of the data; None means the task's hub name.
        git: commit of the source tree and whether it was changed.
    """

    records: Path
    cache: Path
    model: str | None = None
    dataset: str | None = None
    git: tuple[str | None, bool | None] = (None, None)
    command: str = ""
    speed: Speed = field(default_factory=Speed)


@dataclass
class Start:
    """Holds a model that is ready to be fine-tuned, and what making it took.

    Args:
        model: with exactly the parameters to train requiring gradient.
        costs: of the start; wall time only for what was made once and shared.
        full: whether the base itself is trained.
        finish: makes the model to be judged of the trained one; None: it is the trained one.
    """

    model: nn.Module
    costs: Costs = field(default_factory=Costs)
    preheat_losses: tuple[float, ...] = ()
    optimizer: torch.optim.Optimizer | None = None
    callbacks: tuple[Any, ...] = ()
    full: bool = False
    finish: Callable[[nn.Module], nn.Module] | None = None


class Bench:
    """Holds the tasks and base models of a process, each loaded once."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tasks: dict[str, Task] = {}
        self._bases: dict[tuple[Any, ...], PreTrainedModel] = {}

    def task(self, spec: RunSpec) -> Task:
        """Return the task of a run, its data tokenised."""
        key = json.dumps([spec.task, spec.config["task"], spec.config["model"]], sort_keys=True)
        if key not in self._tasks:
            model = self.places.model or spec.config["model"]
            request = TaskRequest(spec.task, model, self.places.dataset, spec.config["task"])
            self._tasks[key] = load_task(request)
            gc.collect()
            gc.freeze()  # tokenised data by the million lists would slow every collection down
        return self._tasks[key]

    def base(self, spec: RunSpec, dtype: torch.dtype) -> PreTrainedModel:
        """Copy the base model of a run to the device; a new head depends on the seed only."""
        return copy.deepcopy(self._pristine(spec, dtype)).to(self.device)

    def skeleton(self, spec: RunSpec) -> PreTrainedModel:
        """Return the base model without weights (on the meta device), to look at shapes."""
        base = self._pristine(spec, getattr(torch, spec.config["dtype"]))
        with torch.device("meta"):
            return type(base)(copy.deepcopy(base.config))

    def _pristine(self, spec: RunSpec, dtype: torch.dtype) -> PreTrainedModel:
        task = self.task(spec)
        seed = spec.seed if task.seeded_head else None
        key = (spec.task, spec.config["model"], dtype, seed)
        if key not in self._bases:
            while len(self._bases) >= _BASES_KEPT:
                del self._bases[next(iter(self._bases))]
            set_seed(spec.seed)
            self._bases[key] = task.load_model(dtype)
        return self._bases[key]


class Setup:
    """Gives an arm what it needs of its run: fresh models, data, sizes, and the budget."""

    def __init__(self, bench: Bench, spec: RunSpec) -> None:
        self.bench, self.spec = bench, spec
        self.task = bench.task(spec)
        self.sharing_s = 0.0  # spent on making or reading what runs share

    def section(self, name: str) -> dict[str, Any]:
        """Return the run's settings of a section of `ARM_DEFAULTS`."""
        return dict(self.spec.config[name])

    @cached_property
    def rank(self) -> int:
        """Return PEFT's ``r``."""
        return self.lora_config().r

    def base(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """Return a fresh base model, in the experiment's dtype unless told otherwise."""
        return self.bench.base(self.spec, dtype or getattr(torch, self.spec.config["dtype"]))

    def lora_config(self, **overrides: Any) -> LoraConfig:
        """Return the experiment's ``LoraConfig``, with ``overrides`` of the arm."""
        settings = {**copy.deepcopy(self.spec.config["lora"]), "task_type": self.task.task_type}
        return LoraConfig(**settings | overrides)

    def adapter(self, base: nn.Module | None = None, **overrides: Any) -> PeftModel:
        """Put a LoRA, drawn by the run's seed, on a fresh base or the one given."""
        base = base or self.base()
        set_seed(self.spec.seed)
        return get_peft_model(base, self.lora_config(**overrides))

    @cached_property
    def targets(self) -> dict[str, tuple[int, int]]:
        """Return (d_out, d_in) of each module that the plain LoRA sits on, by name in the base."""
        adapter = get_peft_model(self.bench.skeleton(self.spec), self.lora_config())
        shapes: dict[str, tuple[int, int]] = {}
        for name in adapter.base_model.targeted_module_names:
            module = adapter.base_model.model.get_submodule(name).get_base_layer()
            if not isinstance(module, nn.Linear):
                raise NotApplicable(
                    f"module {name!r} is of kind {type(module).__name__}; this arm starts linear "
                    "modules only"
                )
            shapes[name] = module.out_features, module.in_features
        return shapes

    def linear_adapter(self, base: nn.Module | None = None, **overrides: Any) -> PeftModel:
        """Do as `adapter` does, with every target spelt out and checked to be linear.

        PEFT's special starts fall back to its default on other layers in silence.
        """
        return self.adapter(base, target_modules=sorted(self.targets), **overrides)

    @cached_property
    def size(self) -> ModelSize:
        """Return what the FLOP formulas need to know of the base.

        An encoder-decoder counts half: each token goes through one of its two stacks.
        """
        model = self.bench.skeleton(self.spec)
        config = model.config
        entries = sum(
            m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear | Conv1D)
        )
        return ModelSize(
            entries // (2 if config.is_encoder_decoder else 1),
            num_layers=int(getattr(config, "num_hidden_layers", 0)),
            hidden_size=int(getattr(config, "hidden_size", 0)),
            sequence_length=round(self.tokens_per_row),
        )

    @cached_property
    def tokens_per_row(self) -> float:
        """Return the mean length of a training example."""
        rows = self.task.train
        return sum(len(row["input_ids"]) for row in rows) / len(rows)

    def adapter_parameters(self, rank: int | None = None) -> int:
        """Count the entries of a LoRA of ``rank`` (default: the experiment's) on the targets."""
        return costs.lora_parameters(rank or self.rank, self.targets.values())

    @property
    def step_flops(self) -> float:
        """Return the FLOPs of a fine-tuning step of the plain LoRA on a mean batch."""
        accumulated = self.spec.config["training"].get("gradient_accumulation_steps", 1)
        tokens = round(self.tokens_per_row * self.spec.config["batch_size"] * accumulated)
        return costs.lora_flops(self.size, tokens, self.adapter_parameters())

    def used(self, began: float, tokens: int, flops: float, **more: Any) -> Costs:
        """Return the costs of a start that ``began`` at that `time.perf_counter` and ends now."""
        seconds = time.perf_counter() - began
        return Costs(
            tokens=tokens, flops=flops, wall_s=seconds, peak_memory_bytes=peak_memory(), **more
        )

    def steps_after(self, charged: float) -> int:
        """Return the fine-tuning steps that are left; raise `NotApplicable` where none is."""
        config = self.spec.config
        left = round(config["steps"] - (0 if config["budget"] == "equal_finetuning" else charged))
        if left < 1:
            raise NotApplicable(
                f"its start is charged {charged:g} steps of {config['steps']} in all; none is left"
            )
        return left

    def batches(self, count: int, batch_size: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield ``count`` training batches on the device, in an order drawn by the seed."""
        loader: DataLoader[Any] = DataLoader(
            self.task.train,  # type: ignore[arg-type]  # a list of dicts is a Dataset by duck
            batch_size=batch_size or self.spec.config["batch_size"],
            shuffle=True,
            collate_fn=self.task.collator,
            generator=torch.Generator().manual_seed(self.spec.seed),
        )
        epochs = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(epochs, count):
            yield {name: value.to(self.bench.device) for name, value in batch.items()}

    def plan(self, steps: int, learning_rate: float) -> Plan:
        """Return what the trainer is told."""
        config = self.spec.config
        return Plan(
            self.task, steps, learning_rate, self.spec.seed, config["batch_size"],
            config["training"], self.bench.places.speed,
        )  # fmt: skip

    def train(self, start: Start, steps: int, learning_rate: float) -> Trained:
        """Fine-tune a start in place through the HF Trainer."""
        plan = self.plan(steps, learning_rate)
        return fine_tune(start.model, plan, start.optimizer, start.callbacks)

    def shared(
        self, kind: str, settings: dict[str, Any], make: Callable[[], tuple[Spectrum, Costs]]
    ) -> Spectrum:
        """Return the spectrum that all runs of one task, seed and settings start from.

        The first of them makes it, others wait meanwhile. It is written whole or not at all, and
        its provenance says what it cost, so that every run can be charged in full.
        """
        began = time.perf_counter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        ground = {name: self.spec.config[name] for name in _GROUND}
        identity = json.dumps([self.spec.task, self.spec.seed, ground, settings], sort_keys=True)
        name = f"{kind}-spectrum-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        cache = self.bench.places.cache
        folder, lock = cache / name, cache / f".{name}.lock"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            clear_dead_staging(folder)
            if not folder.exists():
                spectrum, used = make()
                spectrum.provenance["costs"] = dataclasses.asdict(used)
                spectrum.save(folder)
                clear_device_cache(garbage_collection=True)  # of the models that made it
            lock.unlink(missing_ok=True)  # who waits for it then finds the folder
        self.sharing_s += time.perf_counter() - began
        return Spectrum.load(folder)


def peak_memory() -> int:
    """Return the largest memory allocated since the last reset, in bytes; 0 on the CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
