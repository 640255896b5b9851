"""Measure what fine-tuning forgets: the rise of the base's loss on text of another kind.

The text is a fixed sample of the standard library's sources, which every Python has and which base
models have read much of; of a base that has not (the demo's) the rise says nothing. PEFT's own
comparison of methods asks the same of other text.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorForSeq2Seq

from hrp_lab.bench.sweeps import FORGETTING
from hrp_lab.bench.tasks.answers import answer_metrics

SAMPLE_MODULES = (
    "argparse", "ast", "base64", "bisect", "calendar", "cmd", "codecs", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "doctest",
    "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getopt",
    "gettext", "glob", "gzip", "hashlib", "heapq", "hmac", "imaplib", "inspect", "ipaddress",
    "linecache", "locale", "mailbox", "mimetypes", "netrc", "numbers", "optparse", "os", "pdb",
    "pickle", "pickletools", "platform", "plistlib", "poplib", "posixpath", "pprint", "profile",
    "pstats", "queue", "quopri", "random", "sched", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "socketserver", "ssl", "stat", "statistics", "string", "subprocess",
    "tarfile", "tempfile", "textwrap", "threading", "timeit", "token", "tokenize", "trace",
    "traceback", "types", "typing", "uuid", "warnings", "wave", "weakref", "zipapp", "zipfile",
)  # fmt: skip
"""These are modules that Python 3.11 and its successors have; packages stand for their file."""
_CHARACTERS = 4000  # of each module, from its middle on: no licence, few imports


def sample(rows: int) -> list[str]:
    """Return ``rows`` passages, each of another module, in a fixed order, from a line's beginning.

    Raises ``ValueError`` where more are asked for than there are modules.
    """
    if not 0 < rows <= len(SAMPLE_MODULES):
        raise ValueError(f"`forgetting_rows` must be in [0, {len(SAMPLE_MODULES)}], got {rows}")
    spread = [SAMPLE_MODULES[index * len(SAMPLE_MODULES) // rows] for index in range(rows)]
    return [_passage(name) for name in spread]


def _passage(module: str) -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    path = library / f"{module}.py"
    path = path if path.is_file() else library / module / "__init__.py"
    text = path.read_text(encoding="utf-8")
    begin = text.find("\n", len(text) // 2) + 1
    return text[begin : begin + _CHARACTERS]


def forgetting_metric(
    tokenizer: Any,
    load_model: Callable[[torch.dtype], nn.Module],
    rows: int,
    max_length: int,
    batch_size: int,
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that gives a fine-tuned model's `FORGETTING`, in nats a token.

    It is the model's loss on the sample minus that of the base model as it was loaded, in the same
    precision; 0 for a model that is the base. Without rows it is no metric at all. The base is
    judged once for each precision, at the first use.
    """
    if not rows:
        return lambda model: {}
    passages = tokenizer(sample(rows), truncation=True, max_length=max_length)["input_ids"]
    encoded = [{"input_ids": ids, "labels": list(ids)} for ids in passages]
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    of_the_base: dict[torch.dtype, float] = {}

    def loss(model: nn.Module) -> float:
        return answer_metrics(model, encoded, collator, batch_size)["eval_loss"]

    def forgetting(model: nn.Module) -> dict[str, float]:
        weight = next(model.parameters())  # the base's, whatever adapters there are
        if weight.dtype not in of_the_base:
            of_the_base[weight.dtype] = loss(load_model(weight.dtype).to(weight.device))
        return {FORGETTING: loss(model) - of_the_base[weight.dtype]}

    return forgetting
