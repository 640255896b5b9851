"""Prints a training command's short help: the flags that people use, in groups, on one screen."""

from __future__ import annotations

import argparse
import copy
from functools import partial

# Group -> flag -> what it says; a command shows those that it has.
GROUPS: dict[str, dict[str, str]] = {
    "model and data": {
        "task": "kind of model; required",
        "model_name_or_path": "base model: hub id or folder; required",
        "dataset_path": "local JSON, JSONL, CSV or Parquet file, or folder",
        "dataset_name": "data set on the hub, instead of --dataset_path",
        "prompt_template": "makes the prompt of columns: 'Question: {question}\\nAnswer:'",
        "completion_template": "makes the completion likewise: ' {answer}'",
        "label_column": "column of the classes",
    },
    "LoRA": {
        "lora_r": "rank",
        "lora_alpha": "scaling is lora_alpha / r",
        "lora_target_modules": "names such as q_proj v_proj, or all-linear",
    },
    "preheating": {
        "preheat_rank": "rank of the temporary LoRA",
        "preheat_steps": "steps, a share, or auto (default: 0.2; classifiers: 0.05)",
        "direction": "start lora_A, lora_B or both from it",
        "spectrum": "start from a folder of `hrp preheat`; no preheating now",
    },
    "training": {
        "learning_rate": "preheating's follows from it; sweep it",
        "num_train_epochs": "passes over the data",
        "per_device_train_batch_size": "rows a step on each device",
    },
    "output, and more": {
        "output_dir": "adapter folder to write",
        "resume": "go on with the interrupted run that is there",
        "overwrite": "throw away what an earlier run left there",
        "config": "YAML file whose keys are flags; flags override it",
        "help-all": "every flag, TRL's and HF's included",
    },
}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults beside the flags, and the example as it was written."""

    def add_argument(self, action: argparse.Action) -> None:
        """Add a flag to the help; None and False are no defaults to tell of."""
        if action.default is None or action.default is False:
            action = copy.copy(action)
            action.default = argparse.SUPPRESS
        super().add_argument(action)


def short_help(parser: argparse.ArgumentParser) -> str:
    """Return the help of ``parser`` with only those of its flags that are in `GROUPS`."""
    short = argparse.ArgumentParser(
        usage=parser.usage,
        description=parser.description,
        epilog=parser.epilog,
        formatter_class=partial(Help, max_help_position=36, width=100),
        add_help=False,
    )
    actions = {option: action for action in parser._actions for option in action.option_strings}
    for title, flags in GROUPS.items():
        group = short.add_argument_group(title)
        for name, text in flags.items():
            if action := actions.get(f"--{name}"):
                group.add_argument(
                    f"--{name}",
                    metavar=None if action.choices else "",
                    choices=action.choices,
                    default=action.default,
                    help=text,
                )
    return short.format_help()
