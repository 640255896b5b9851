"""Tells what binds a run: the settings, data and base weights that a resumed run must share.

The library's checkpoints and the records of the command line use the same list.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hrp.adapters.restoring import restored_globals
from hrp.files import digest

# Every other setting may change what is trained. Longer training is allowed, and so is what is
# shown, saved or pushed, where, and how fast the data are read.
FREE = {
    *("max_steps", "num_train_epochs", "preheat_save_steps"),
    *("output_dir", "resume_from_checkpoint", "overwrite", "resume"),
    *("report_to", "run_name", "project", "disable_tqdm", "log_level", "log_level_replica"),
    *("log_on_each_node", "include_num_input_tokens_seen", "skip_memory_metrics", "debug"),
    *("push_to_hub", "enable_jit_checkpoint", "local_rank", "ddp_timeout", "dataset_num_proc"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
}
FREE_PREFIXES = ("logging_", "save_", "hub_", "trackio_")
SECRETS = {"token", "use_auth_token"}  # in model_init_kwargs; the record may go to the hub

DATA, BASE = "content of the data", "base weights"
"""Names of the two fingerprints among the settings."""

_FREE_IN_ADAPTERS = {
    *("base_model_name_or_path", "revision", "inference_mode", "init_lora_weights"),
    *("auto_mapping", "peft_version"),
}
_ADAPTER_PARTS = ("lora_", "modules_to_save", "trainable_tokens_")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SAMPLED_ENTRIES = 1024  # of a tensor, besides the sum of all its bits
_SAMPLED_ROWS = 256  # of a data set that computes its rows
_READ_WHOLE = 1 << 26  # bytes of a weight file; of a larger one, as many are sampled
_BLOCK = 1 << 16


def settings_of(*groups: Any) -> dict[str, Any]:
    """Collect the settings in the dataclasses ``groups`` that bind a run, as JSON types."""
    bound = {}
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if field.name in FREE or field.name.startswith(FREE_PREFIXES):
                continue
            if isinstance(value, dict):
                value = {key: entry for key, entry in value.items() if key not in SECRETS}
            bound[field.name] = _as_json(value)
    return bound


def settings_of_training(
    args: Any, model: nn.Module, dataset: object, optimizer: object = None
) -> dict[str, Any]:
    """Collect what binds a run of HF's Trainer: its arguments, adapters, data and base weights."""
    bound = settings_of(args) | {"processes": args.world_size}
    for name, config in getattr(model, "peft_config", {}).items():
        for field, value in config.to_dict().items():
            if field not in _FREE_IN_ADAPTERS:
                bound[f"{name}.{field}"] = _as_json(value)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # which Accelerate wraps
    for name, value in getattr(optimizer, "defaults", {}).items():
        if isinstance(value, int | float | str | list | tuple):
            bound[f"{type(optimizer).__name__}.{name}"] = _as_json(value)
    return bound | {DATA: data_digest(dataset), BASE: base_digest(model)}


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List each setting that differs, with both values.

    A setting that only one of both has came or went with a version of TRL or transformers.
    """
    return [
        name if name in (DATA, BASE) else f"{name} (was {before[name]!r}, now {now[name]!r})"
        for name in sorted(set(before) & set(now))
        if before[name] != now[name]
    ]


def data_digest(dataset: Any) -> str | None:
    """Return a digest of the rows of a data set, or None where they are streamed.

    Lists and Hugging Face's data sets are read whole. A data set that computes its rows is read
    at 256 places, and known by its length alone if it does not give the same row twice.
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return None
    state = blake2b(digest_size=16)
    state.update(str(len(dataset)).encode())
    if hasattr(dataset, "with_format") and hasattr(dataset, "cleanup_cache_files"):
        import pyarrow  # type: ignore[import-untyped]

        for table in dataset.with_format("arrow").iter(batch_size=1000):
            sink = pyarrow.BufferOutputStream()
            plain = table.combine_chunks().replace_schema_metadata(None)
            with pyarrow.ipc.new_stream(sink, plain.schema) as stream:
                stream.write_table(plain)
            state.update(sink.getvalue())
        return state.hexdigest()
    rows: Any = dataset
    places = range(len(rows))
    with restored_globals():
        if not isinstance(rows, list | tuple) and len(rows) > 1:
            torch.manual_seed(0)
            if _text(rows[0]) != _text(rows[0]):
                return state.hexdigest()
            places = places[:: max(1, len(rows) // _SAMPLED_ROWS)]
        for place in places:
            state.update(_text(rows[place]))
    return state.hexdigest()


def base_digest(model: nn.Module) -> str:
    """Return a digest of the parameters that belong to no adapter.

    It takes the sum of all bits of each tensor, where the tensor is, and 1,024 of its entries.
    """
    state = blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if any(part.startswith(_ADAPTER_PARTS) for part in name.split(".")):
            continue
        for tensor in _plain_tensors(parameter.detach()):
            state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            kind = _BITS.get(tensor.element_size())
            if kind is None or tensor.device.type == "meta" or not tensor.numel():
                continue
            bits = tensor.view(kind)
            sampled = bits.reshape(-1)[:: max(1, tensor.numel() // _SAMPLED_ENTRIES)]
            state.update(str(int(bits.sum(dtype=torch.int64))).encode())
            state.update(sampled.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()


def files_digest(path: Path, whole: bool = True) -> str:
    """Return a digest of a file, or of all files below a folder; hidden ones are left out.

    Unless ``whole``, files over 64 MiB are sampled: fine-tuning moves every part of a weight file.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    state = blake2b(digest_size=16)
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        if not any(part.startswith(".") for part in name.split("/")) or not name:
            sampled = not whole and file.stat().st_size > _READ_WHOLE
            state.update(f"{name}\0{_sampled_digest(file) if sampled else digest(file)}\0".encode())
    return state.hexdigest()


def _sampled_digest(path: Path) -> str:
    size = path.stat().st_size
    state = blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in range(0, size, max(_BLOCK, size // (_READ_WHOLE // _BLOCK))):
            file.seek(start)
            state.update(file.read(_BLOCK))
        file.seek(-_BLOCK, os.SEEK_END)
        state.update(file.read())
    return state.hexdigest()


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the content of ``tensor``: this process's shard, packed parts."""
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor.as_subclass(Tensor)


def _as_json(value: Any) -> Any:
    return json.loads(_text(value))


def _text(value: Any) -> bytes:
    """Return a setting or a row of data as JSON."""
    return json.dumps(value, default=_plain, skipkeys=True).encode()


def _plain(value: Any) -> Any:
    """Return a JSON type for the content of ``value``, or for its type where it has no content."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Tensor):
        flat = value.detach().cpu().reshape(-1)
        return [str(value.dtype), list(value.shape), flat.view(torch.uint8).numpy().tobytes().hex()]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return value.tolist()
    if hasattr(value, "tobytes"):  # an array, or an image
        kind, shape = getattr(value, "dtype", value), getattr(value, "shape", ())
        return [_plain_name(kind), list(shape), value.tobytes().hex()]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Sequence):
        return list(value)
    return _plain_name(value)


def _plain_name(value: Any) -> str:
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text
