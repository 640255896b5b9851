"""``hrp init`` makes a plain PEFT adapter of a spectrum and a rank, for any trainer to go on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hrp.cli.help_page import Help

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
_TASKS = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
_START = ("direction", "scale", "truncation", "allocation")  # the flags that a card shows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp init",
        description="Write a PEFT adapter folder (init_lora_weights: true) that starts from a\n"
        "spectrum. No base weight is loaded. Any trainer goes on from it:\n"
        "PeftModel.from_pretrained(base, folder, is_trainable=True).\n"
        "Not for classifiers, whose head PEFT wants in the folder: there, give a spectrum to\n"
        "`hrp finetune --task classification`.",
        epilog=EXAMPLE,
        formatter_class=Help,
    )
    add = parser.add_argument
    add("--spectrum", type=Path, required=True, metavar="DIR", help="folder from `hrp preheat`")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="adapter folder to write")
    add("--model_name_or_path", help="the base model, if not the one that the spectrum names")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--direction", choices=("A", "B", "AB"), default="AB", help="start lora_A, lora_B or both")
    add("--scale", type=float, default=1.0, help="norm of each direction; 1 with AB")
    add(
        "--truncation",
        choices=("loss", "frobenius"),
        default="loss",
        help="cut to the rank in the metric of the loss, or by the plain SVD",
    )
    add("--lora_r", type=int, default=16, help="rank, at most the spectrum's")
    add("--lora_alpha", type=float, default=32.0, help="scaling is lora_alpha / r")
    add("--lora_dropout", type=float, default=0.05, help="of later training")
    add(
        "--lora_target_modules",
        nargs="+",
        metavar="NAME",
        help="modules to adapt, if not those of the spectrum, stacked experts included",
    )
    add("--lora_task_type", default="CAUSAL_LM", metavar="TASK", help=" or ".join(_TASKS))
    add("--use_rslora", action="store_true", help="scaling is lora_alpha / sqrt(r)")
    add(
        "--allocation",
        choices=("uniform", "energy"),
        default="uniform",
        help="one rank for all modules, or ranks that keep the most energy",
    )
    add(
        "--rank_budget",
        type=int,
        metavar="N",
        help="with energy: LoRA parameters in all, if not as many as --lora_r takes",
    )
    add("--overwrite", action="store_true", help="replace an adapter that has nothing beside it")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp init``; returns the exit status."""
    options = _parser().parse_args(argv)
    from hrp.cli.failures import reported
    from hrp.cli.locks import lock_beside
    from hrp.cli.outputs import locked

    def run() -> int:
        with locked(lock_beside(options.output_dir), "init", options.output_dir):
            return _write(options)

    return reported("init", run)


def _write(options: argparse.Namespace) -> int:
    from hrp.cli.modelcard import card
    from hrp.cli.skeleton import described, made_adapter
    from hrp.files import digests, write_folder
    from hrp.spectra.spectrum import Spectrum

    _check(options)
    spectrum = Spectrum.load(options.spectrum)
    model = made_adapter(options, spectrum)
    note = described(model, spectrum)
    readme = card(
        command="init",
        adapter=str(options.output_dir),
        lora_config=model.peft_config["default"].to_dict(),
        provenance=spectrum.provenance,
        start={name: getattr(options, name) for name in _START},
    )

    def write(folder: Path) -> None:
        # PEFT would add the base's own embeddings where they have a LoRA.
        model.save_pretrained(folder, save_embedding_layers=False)
        _shorten_config(folder / "adapter_config.json")
        (folder / "README.md").write_text(readme, encoding="utf-8")
        files = {name: [value] for name, value in digests(folder).items()}
        record = {"command": "init", "finished": True, "settings": {}, "files": files}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    write_folder(options.output_dir, write, options.overwrite)
    print(f"wrote {options.output_dir}: {note}, direction {options.direction}")
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
    """Raise ``ValueError`` or ``FileExistsError`` on flags that do not go; nothing is read yet."""
    from hrp.cli.input_checks import check_lora
    from hrp.files import check_as_recorded, settle
    from hrp.validation import check_integer, check_scale

    if options.lora_task_type not in _TASKS:
        remedy = ""
        if options.lora_task_type == "SEQ_CLS":
            remedy = (
                "; for a classifier, whose head `hrp init` cannot make, pass --spectrum to `hrp "
                "finetune --task classification`, or use `hrp.initialize_lora_hrp_weights`"
            )
        known = ", ".join(_TASKS)
        raise ValueError(
            f"`--lora_task_type` must be one of {known}, got {options.lora_task_type}{remedy}"
        )
    check_lora(options)
    check_scale(options.scale, options.direction)
    if options.rank_budget is not None:
        check_integer("rank_budget", options.rank_budget, minimum=1)
        if options.allocation != "energy":
            raise ValueError(
                "`--rank_budget` goes with `--allocation energy`; with uniform ranks, set "
                "`--lora_r`"
            )
    folder, spectrum = options.output_dir, options.spectrum
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
    if not options.overwrite:
        raise FileExistsError(f"'{folder}' holds an adapter; pass --overwrite to replace it")
    check_as_recorded(folder, RECORD)
