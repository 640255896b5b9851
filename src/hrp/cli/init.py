"""``hrp init``: a spectrum and a rank make a plain PEFT adapter that any trainer goes on from."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLE = """examples:
  hrp init --spectrum runs/spectrum --lora_r 8 --lora_alpha 16 --output_dir runs/start
  hrp init --spectrum runs/spectrum --lora_r 8 --direction B --allocation energy \\
      --output_dir runs/start-by-energy
"""
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class InitOptions:
    """The command's flags, as parsed."""

    spectrum: Path
    output_dir: Path
    model_name_or_path: str | None
    trust_remote_code: bool
    direction: Any
    scale: float
    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: list[str] | None
    lora_task_type: str
    use_rslora: bool
    allocation: str
    rank_budget: int | None
    overwrite: bool


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp init",
        description="Write a PEFT adapter folder (init_lora_weights: true) that starts from a\n"
        "spectrum. No base weight is loaded. Any trainer goes on from it:\n"
        "PeftModel.from_pretrained(base, folder, is_trainable=True).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--spectrum", type=Path, required=True, metavar="DIR", help="folder from `hrp preheat`")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="adapter folder to write")
    add("--model_name_or_path", help="the base model (default: the one the spectrum names)")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add(
        "--direction",
        choices=("A", "B", "AB"),
        default="AB",
        help="start lora_A (A), lora_B (B) or both (AB) from the spectrum (default: AB)",
    )
    add("--scale", type=float, default=1.0, help="norm of each direction; 1 with AB (default: 1)")
    add("--lora_r", type=int, default=16, help="rank, at most the spectrum's (default: 16)")
    add("--lora_alpha", type=float, default=32, help="scaling is lora_alpha / r (default: 32)")
    add("--lora_dropout", type=float, default=0.05, help="of later training (default: 0.05)")
    add(
        "--lora_target_modules",
        nargs="+",
        metavar="NAME",
        help="modules to adapt (default: those of the spectrum)",
    )
    add(
        "--lora_task_type",
        choices=sorted(AUTO_CLASSES),
        default="CAUSAL_LM",
        help="what the base model is for (default: CAUSAL_LM)",
    )
    add("--use_rslora", action="store_true", help="scaling is lora_alpha / sqrt(r)")
    add(
        "--allocation",
        choices=("uniform", "energy"),
        default="uniform",
        help="one rank for all modules, or ranks that keep the most energy (default: uniform)",
    )
    add(
        "--rank_budget",
        type=int,
        metavar="N",
        help="with energy: LoRA parameters in all (default: as many as --lora_r takes)",
    )
    add("--overwrite", action="store_true", help="replace --output_dir if it exists")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp init``; returns the exit status."""
    options = InitOptions(**vars(_parser().parse_args(argv)))
    from hrp.cli.failures import reported

    return reported("init", lambda: _run(options))


def _run(options: InitOptions) -> int:
    from hrp.artefact import write_folder
    from hrp.spectrum import Spectrum

    _check(options)
    spectrum = Spectrum.load(options.spectrum)
    base = _base_name(options, spectrum.provenance)
    model, note = _adapter(options, spectrum, base)

    def write(folder: Path) -> None:
        from hrp.cli.modelcard import start_card

        model.save_pretrained(folder)
        (folder / "README.md").write_text(
            start_card(base, model.peft_config["default"], spectrum.provenance, vars(options)),
            encoding="utf-8",
        )

    write_folder(options.output_dir, write, options.overwrite)
    print(f"wrote {options.output_dir}: {note}")
    return 0


def _check(options: InitOptions) -> None:
    from hrp.cli.checks import check_lora
    from hrp.config import check_integer, check_scale

    check_lora(options)
    check_scale(options.scale, options.direction)
    if options.rank_budget is not None:
        check_integer("rank_budget", options.rank_budget, minimum=1)
        if options.allocation != "energy":
            raise ValueError(
                "`--rank_budget` goes with `--allocation energy`; with uniform ranks, set "
                "`--lora_r`"
            )
    _check_output(options.output_dir, options.overwrite)


def _check_output(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not (folder / "adapter_config.json").exists():
        raise FileExistsError(f"'{folder}' exists and is no adapter; choose another --output_dir")
    if not overwrite:
        raise FileExistsError(f"'{folder}' holds an adapter; pass --overwrite to replace it")


def _base_name(options: InitOptions, provenance: dict[str, Any]) -> str:
    from hrp.cli.checks import check_model

    base = options.model_name_or_path or provenance.get("base_model")
    if not base:
        raise ValueError("the spectrum names no base model; give `--model_name_or_path`")
    check_model(str(base))
    return str(base)


def _adapter(options: InitOptions, spectrum: Any, base: str) -> tuple[Any, str]:
    """Build the initialised PEFT model on an empty base, and say in one line what it is."""
    from peft import LoraConfig, get_peft_model

    from hrp import initialize_lora_hrp_weights
    from hrp.cli.checks import check_targets, mistakes_told
    from hrp.layers import lora_modules

    with mistakes_told(None, f"--lora_task_type {options.lora_task_type}", base):
        skeleton = empty_base(base, options.lora_task_type, options.trust_remote_code)
    targets: list[str] | str | None = options.lora_target_modules
    if targets == ["all-linear"]:  # which PEFT knows as a word only
        targets = "all-linear"
    check_targets(targets, skeleton)
    fields, note = _rank_fields(options, spectrum)
    config = LoraConfig(
        task_type=options.lora_task_type,
        target_modules=targets or _target_modules(skeleton, spectrum),
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        **fields,
    )
    model = get_peft_model(skeleton, config)
    for module in {id(m.layer): m for m in lora_modules(model, "default").values()}.values():
        _materialise(module.layer)
    initialize_lora_hrp_weights(model, spectrum, options.direction, options.scale)
    return model, note


def empty_base(name: str, task_type: str, trust_remote_code: bool) -> Any:
    """Build the base model's modules without their weights, on PyTorch's meta device."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    auto_class = getattr(transformers, AUTO_CLASSES[task_type])
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    model.name_or_path = name
    return model


def _materialise(layer: Any) -> None:
    """Give the adapter's own tensors memory; those of the base stay without."""
    for name in layer.adapter_layer_names:
        getattr(layer, name).to_empty(device="cpu")
    layer.reset_lora_parameters("default", init_lora_weights=True)


def _target_modules(skeleton: Any, spectrum: Any) -> list[str]:
    """The last parts of the names (``q_proj`` ...) if they mean just the spectrum's modules."""
    suffixes = sorted({name.rpartition(".")[2] for name in spectrum})
    meant = {name for name, _ in skeleton.named_modules() if name.rpartition(".")[2] in suffixes}
    return suffixes if meant == set(spectrum) else list(spectrum)


def _rank_fields(options: InitOptions, spectrum: Any) -> tuple[dict[str, Any], str]:
    from hrp.allocation import (
        energy_ranks,
        kept_energy,
        lora_fields,
        parameter_count,
        uniform_ranks,
    )

    ranks = uniform_ranks(spectrum, options.lora_r)
    root = math.sqrt(options.lora_r) if options.use_rslora else options.lora_r
    if options.allocation == "uniform":
        fields: dict[str, Any] = {"r": options.lora_r, "lora_alpha": _number(options.lora_alpha)}
    else:
        chosen = energy_ranks(spectrum, options.rank_budget or parameter_count(spectrum, ranks))
        if options.rank_budget is None:  # whose last direction may not have fitted the budget
            chosen = max(ranks, chosen, key=lambda one: kept_energy(spectrum, one))
        ranks = chosen
        fields = lora_fields(ranks, options.lora_alpha / root, options.use_rslora)
    span = sorted(set(ranks.values()))
    shown = f"rank {span[0]}" if len(span) == 1 else f"ranks {span[0]} to {span[-1]}"
    return fields, (
        f"{shown} on {len(ranks)} modules, {parameter_count(spectrum, ranks):,} parameters, "
        f"{kept_energy(spectrum, ranks):.1%} of the preheated energy, direction "
        f"{options.direction}"
    )


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
