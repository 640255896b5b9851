"""``hrp init`` makes a plain PEFT adapter of a spectrum and a rank, for any trainer to go on."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

    from hrp.spectra.spectrum import Spectrum

EXAMPLE = """examples:
  hrp init --spectrum runs/spectrum --lora_r 8 --lora_alpha 16 --output_dir runs/start
  hrp init --spectrum runs/spectrum --lora_r 8 --direction B --allocation energy \\
      --output_dir runs/start-by-energy
"""
RECORD = "hrp.json"  # lists the files that the command wrote, as `hrp.cli.outputs` has it
# The adapter's config has these even at PEFT's default, since other readers want them.
_ALWAYS = {
    *("peft_type", "task_type", "base_model_name_or_path", "r", "lora_alpha", "lora_dropout"),
    *("bias", "target_modules", "init_lora_weights", "inference_mode"),
}
_START = ("direction", "scale", "truncation", "allocation")  # the flags that a card shows
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp init",
        description="Write a PEFT adapter folder (init_lora_weights: true) that starts from a\n"
        "spectrum. No base weight is loaded. Any trainer goes on from it:\n"
        "PeftModel.from_pretrained(base, folder, is_trainable=True).\n"
        "Not for classifiers, whose head PEFT wants in the folder: there, give a spectrum to\n"
        "`hrp finetune --task classification`.",
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
    add(
        "--truncation",
        choices=("loss", "frobenius"),
        default="loss",
        help="cut to the rank in the metric of the loss, or by the plain SVD (default: loss)",
    )
    add("--lora_r", type=int, default=16, help="rank, at most the spectrum's (default: 16)")
    add("--lora_alpha", type=float, default=32, help="scaling is lora_alpha / r (default: 32)")
    add("--lora_dropout", type=float, default=0.05, help="of later training (default: 0.05)")
    add(
        "--lora_target_modules",
        nargs="+",
        metavar="NAME",
        help="modules to adapt (default: those of the spectrum, stacked experts included)",
    )
    add(
        "--lora_task_type",
        default="CAUSAL_LM",
        metavar="TASK",
        help=f"what the base model is for: {' or '.join(AUTO_CLASSES)} (default: CAUSAL_LM)",
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
    add(
        "--overwrite",
        action="store_true",
        help="replace the adapter in --output_dir, if there is nothing else in it",
    )
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp init``; returns the exit status."""
    options = _parser().parse_args(argv)
    from hrp.cli.failures import reported

    return reported("init", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from hrp.cli.locks import lock_beside
    from hrp.cli.outputs import locked

    with locked(lock_beside(options.output_dir), "init", options.output_dir):
        return _write(options)


def _write(options: argparse.Namespace) -> int:
    from hrp.cli.modelcard import CardFacts, card
    from hrp.files import digests, write_folder
    from hrp.spectra.spectrum import Spectrum

    _check(options)
    spectrum = Spectrum.load(options.spectrum)
    base = _base_name(options, spectrum.provenance)
    model = _adapter(options, spectrum, base)
    note = _note(options, model, spectrum)
    start = {name: getattr(options, name) for name in _START}
    lora_config = model.peft_config["default"].to_dict()
    adapter = str(options.output_dir)
    facts = CardFacts("init", base, adapter, lora_config, spectrum.provenance, start)

    def write(folder: Path) -> None:
        # PEFT would add the base's own embeddings where they have a LoRA.
        model.save_pretrained(folder, save_embedding_layers=False)
        _shorten_config(folder / "adapter_config.json")
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
        files = {name: [value] for name, value in digests(folder).items()}
        record = {"command": "init", "finished": True, "settings": {}, "files": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    write_folder(options.output_dir, write, options.overwrite)
    print(f"wrote {options.output_dir}: {note}")
    return 0


def _shorten_config(path: Path) -> None:
    """Leave out PEFT's defaults: an older PEFT warns of every key that it does not know."""
    from peft import LoraConfig

    defaults = json.loads(json.dumps(LoraConfig().to_dict(), default=list))
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {
        name: value
        for name, value in config.items()
        if name in _ALWAYS or (name in defaults and value != defaults[name])
    }
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check(options: argparse.Namespace) -> None:
    from hrp.cli.input_checks import check_lora
    from hrp.validation import check_integer, check_scale

    _check_task(options.lora_task_type)
    check_lora(options)
    check_scale(options.scale, options.direction)
    if options.rank_budget is not None:
        check_integer("rank_budget", options.rank_budget, minimum=1)
        if options.allocation != "energy":
            raise ValueError(
                "`--rank_budget` goes with `--allocation energy`; with uniform ranks, set "
                "`--lora_r`"
            )
    _check_output(options.output_dir, options.spectrum, options.overwrite)


def _check_task(task: str) -> None:
    if task in AUTO_CLASSES:
        return
    remedy = ""
    if task == "SEQ_CLS":
        remedy = (
            "; for a classifier, whose head `hrp init` cannot make, pass --spectrum to `hrp "
            "finetune --task classification`, or use `hrp.initialize_lora_hrp_weights`"
        )
    known = ", ".join(AUTO_CLASSES)
    raise ValueError(f"`--lora_task_type` must be one of {known}, got {task}{remedy}")


def _check_output(folder: Path, spectrum: Path, overwrite: bool) -> None:
    from hrp.files import check_as_recorded, settle

    settle(folder, clear=True)
    if not folder.exists():
        return
    if spectrum.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"`--output_dir` must not hold the spectrum '{spectrum}', got '{folder}'; choose "
            "another"
        )
    if not (folder / "adapter_config.json").exists():
        raise FileExistsError(f"'{folder}' exists and is no adapter; choose another --output_dir")
    if not overwrite:
        raise FileExistsError(f"'{folder}' holds an adapter; pass --overwrite to replace it")
    check_as_recorded(folder, RECORD)


def _base_name(options: argparse.Namespace, provenance: dict[str, Any]) -> str:
    from hrp.cli.input_checks import check_model

    base = options.model_name_or_path or provenance.get("base_model")
    if not base:
        raise ValueError("the spectrum names no base model; give `--model_name_or_path`")
    check_model(str(base))
    return str(base)


def _adapter(options: argparse.Namespace, spectrum: Spectrum, base: str) -> PeftModel:
    """Build the initialised PEFT model on an empty base."""
    from hrp import initialize_lora_hrp_weights
    from hrp.cli.input_checks import mistakes_told
    from hrp.cli.skeleton import empty_base, with_adapter

    auto_class = AUTO_CLASSES[options.lora_task_type]
    with mistakes_told(None, f"--lora_task_type {options.lora_task_type}", base):
        skeleton = empty_base(base, auto_class, options.trust_remote_code)
    model = with_adapter(skeleton, _lora_config(options, spectrum, skeleton), spectrum)
    initialize_lora_hrp_weights(
        model, spectrum, options.direction, options.scale, truncation=options.truncation
    )
    if options.lora_target_modules is None:
        _check_whole(model, spectrum)
    return model


def _check_whole(model: PeftModel, spectrum: Spectrum) -> None:
    """Raise ``ValueError`` where PEFT passed over a module of the spectrum."""
    from hrp.adapters.layers import lora_modules

    lacking = sorted(set(spectrum) - set(lora_modules(model, "default")))
    if lacking:
        raise ValueError(
            f"PEFT does not adapt {len(lacking)} of the spectrum's {len(spectrum)} modules here, "
            f"such as {lacking[:3]}; name those to adapt in `--lora_target_modules`"
        )


def _lora_config(options: argparse.Namespace, spectrum: Spectrum, skeleton: Any) -> LoraConfig:
    from peft import LoraConfig

    from hrp.cli.skeleton import covered

    targets = _targets(options, spectrum, skeleton)
    settings = {
        "task_type": options.lora_task_type,
        "lora_dropout": options.lora_dropout,
        "use_rslora": options.use_rslora,
        **targets,
    }
    if options.allocation == "uniform":
        alpha = _number(options.lora_alpha)
        return LoraConfig(r=options.lora_r, lora_alpha=alpha, **settings)
    if "target_parameters" in targets:
        raise ValueError(
            "`--allocation` must be uniform with experts stacked in one parameter, got energy: "
            "PEFT has one rank for all of them"
        )
    part = covered(skeleton, LoraConfig(**settings), spectrum)
    return LoraConfig(**settings, **_energy_fields(options, part))


def _targets(options: argparse.Namespace, spectrum: Spectrum, skeleton: Any) -> dict[str, Any]:
    """Return the ``LoraConfig`` fields that say where it goes; raises ``ValueError``."""
    from hrp.cli.input_checks import check_targets
    from hrp.cli.skeleton import spectrum_targets

    names = options.lora_target_modules
    if names == ["all-linear"]:  # which PEFT knows as a word only
        return {"target_modules": "all-linear"}
    check_targets(names, skeleton)
    if names is not None:
        return {"target_modules": names}
    targets = spectrum_targets(skeleton, spectrum)
    if "target_parameters" in targets and options.lora_dropout:
        raise ValueError(
            f"`lora_dropout` must be 0 with {targets['target_parameters']} in the spectrum, got "
            f"{options.lora_dropout}: PEFT has no dropout on parameters; pass --lora_dropout 0"
        )
    return targets


def _energy_fields(options: argparse.Namespace, spectrum: Spectrum) -> dict[str, Any]:
    """Return ranks of the ``LoraConfig`` that keep the most energy of ``spectrum``."""
    from hrp.adapters.patterns import lora_fields
    from hrp.spectra.allocation import energy_ranks, kept_energy, parameter_count, uniform_ranks

    ranks = uniform_ranks(spectrum, options.lora_r)
    chosen = energy_ranks(spectrum, options.rank_budget or parameter_count(spectrum, ranks))
    if options.rank_budget is None:  # whose last direction may not have fitted the budget
        chosen = max(ranks, chosen, key=lambda found: kept_energy(spectrum, found))
    root = math.sqrt(options.lora_r) if options.use_rslora else options.lora_r
    return lora_fields(chosen, options.lora_alpha / root, options.use_rslora)


def _note(options: argparse.Namespace, model: PeftModel, spectrum: Spectrum) -> str:
    """Say in one line what adapter it is."""
    from hrp.adapters.layers import lora_modules
    from hrp.spectra.allocation import kept_energy

    modules = lora_modules(model, "default")
    ranks = {name: module.rank for name, module in modules.items()}
    factors = {id(p): p.numel() for module in modules.values() for p in module.parameters()}
    span = sorted(set(ranks.values()))
    shown = f"rank {span[0]}" if len(span) == 1 else f"ranks {span[0]} to {span[-1]}"
    return (
        f"{shown} on {len(ranks)} modules, {sum(factors.values()):,} parameters, "
        f"{kept_energy(spectrum, ranks):.1%} of the preheated energy, direction "
        f"{options.direction}"
    )


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value
