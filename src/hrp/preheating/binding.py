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
    fields = (
        (field.name, getattr(group, field.name))
        for group in groups
        for field in dataclasses.fields(group)
    )
    bound = {n: v for n, v in fields if n not in FREE and not n.startswith(FREE_PREFIXES)}
    for name, value in bound.items():
        if isinstance(value, dict):
            bound[name] = {key: entry for key, entry in value.items() if key not in SECRETS}
    return _as_json(bound)


def settings_of_training(
    args: Any, model: nn.Module, dataset: object, optimizer: object = None
) -> dict[str, Any]:
    """Collect what binds a run of HF's Trainer: its arguments, adapters, data and base weights."""
    bound = settings_of(args) | {"processes": args.world_size}
    for name, config in getattr(model, "peft_config", {}).items():
        fields = {k: v for k, v in config.to_dict().items() if k not in _FREE_IN_ADAPTERS}
        bound |= {f"{name}.{field}": value for field, value in _as_json(fields).items()}
    optimizer = getattr(optimizer, "optimizer", optimizer)  # which Accelerate wraps
    for name, value in getattr(optimizer, "defaults", {}).items():
        if isinstance(value, int | float | str | list | tuple):
            bound |= _as_json({f"{type(optimizer).__name__}.{name}": value})
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
        for table in dataset.with_format("arrow").iter(batch_size=1000):
            _feed_table(state, table)
        return state.hexdigest()
    with restored_globals():
        for row in _sampled_rows(dataset):
            _feed(state, row)
    return state.hexdigest()


def base_digest(model: nn.Module) -> str:
    """Return a digest of the parameters that belong to no adapter.

    It takes the sum of all bits of each tensor, where the tensor is, and 1,024 of its entries.
    """
    state = blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if not any(part.startswith(_ADAPTER_PARTS) for part in name.split(".")):
            for tensor in _plain_tensors(parameter.detach()):
                state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                _feed_sampled(state, tensor)
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


def _sampled_rows(dataset: Any) -> Iterator[Any]:
    count = len(dataset)
    if isinstance(dataset, list | tuple) or count <= 1:
        yield from (dataset[index] for index in range(count))
        return
    torch.manual_seed(0)
    twice = [blake2b(digest_size=16) for _ in range(2)]
    for state in twice:
        _feed(state, dataset[0])
    if twice[0].digest() == twice[1].digest():
        step = max(1, count // _SAMPLED_ROWS)
        yield from (dataset[index] for index in range(0, count, step))


def _feed(state: Any, value: Any) -> None:
    """Add a row, or part of one, to a digest; of what has no plain content, only the type."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        state.update(f"{value.dtype}{tuple(value.shape)}".encode())
        value = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else np.empty(0)
    if isinstance(value, np.ndarray) and value.dtype != object:
        state.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif value is None or isinstance(value, str | bytes | int | float):
        state.update(f"{type(value).__name__}{value!r}\0".encode(errors="surrogatepass"))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _feed(state, str(key))
            _feed(state, value[key])
    elif isinstance(value, Sequence | np.ndarray):
        state.update(f"[{len(value)}".encode())
        for part in value:
            _feed(state, part)
    else:
        state.update(type(value).__name__.encode())
        if hasattr(value, "tobytes"):  # such as an image
            state.update(value.tobytes())


def _feed_table(state: Any, table: Any) -> None:
    import pyarrow  # type: ignore[import-untyped]

    sink = pyarrow.BufferOutputStream()
    plain = table.combine_chunks().replace_schema_metadata(None)
    with pyarrow.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    state.update(sink.getvalue())


def _feed_sampled(state: Any, tensor: Tensor) -> None:
    kind = _BITS.get(tensor.element_size())
    if kind is None or tensor.device.type == "meta" or not tensor.numel():
        return
    bits = tensor.view(kind)
    flat = bits.reshape(-1)[:: max(1, tensor.numel() // _SAMPLED_ENTRIES)]
    state.update(str(int(bits.sum(dtype=torch.int64))).encode())
    state.update(flat.cpu().contiguous().numpy().tobytes())


def _plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that hold the content of ``tensor``: this process's shard, packed parts."""
    if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain_tensors(getattr(tensor, name))
    else:
        yield tensor.as_subclass(Tensor)


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    text = str(value)
    return type(value).__name__ if " at 0x" in text else text
