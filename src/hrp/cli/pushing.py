"""Pushes a finished output to the hub; done again where it failed."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi

from hrp.cli.failures import UsageError
from hrp.cli.outputs import Output

# Checkpoints, locks and work in progress stay at home, as with HF Trainer.
_NOT_PUSHED = ["_*", "checkpoint-*/**", ".hrp-*/**"]


def push(output: Output, training: Any) -> None:
    """Upload the output as HF Trainer would, and record that it is done.

    Raises:
        UsageError: the hub cannot be reached, or refuses; the output is finished all the same.
    """
    if not PartialState().is_main_process:
        return
    name = training.hub_model_id or output.folder.resolve().name
    try:
        api = HfApi(token=training.hub_token)
        repo = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo,
            folder_path=output.folder,
            revision=training.hub_revision,
            commit_message="End of training",
            ignore_patterns=_NOT_PUSHED,
        )
    except Exception as error:  # the errors of its network library have no base that we know
        raise UsageError(
            f"'{output.folder}' is finished, but could not be pushed to '{name}' ({error}); run "
            "the same command again to push it"
        ) from error
    output.update(pushed=True)
