"""Reads YAML files that may be broken, or made to grow without bound."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import yaml

MOST_NODES = 10_000
_MOST_BYTES = 1 << 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Python's own is quadratic in the depth
# PyYAML raises these for such values as `!!int ''`, `!!bool x` and `!!timestamp x`.
_FAULTS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file of at most 10,000 values, aliases written out.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no file, no YAML in UTF-8, or too large; the message says where.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"'{path}' must be a file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"'{path}' must have at most {_MOST_BYTES} bytes, got more")
    text = path.read_bytes()
    fault = f"must have at most {MOST_NODES} values, got more"
    try:
        node = yaml.compose(text.decode("utf-8"), Loader=_LOADER)
        if _size(node, {}) <= MOST_NODES:
            return yaml.load(text, Loader=_LOADER)  # noqa: S506  # it is a safe one
    except (yaml.YAMLError, *_FAULTS) as error:
        if "nesting depth" not in str(error):
            fault = f"is not YAML: {' '.join(str(error).split())}"
    except RecursionError:
        pass
    raise ValueError(f"'{path}' {fault}")


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Count the nodes with every alias written out."""
    if id(node) not in sizes:
        sizes[id(node)] = MOST_NODES  # of a node that holds itself
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = itertools.chain(*parts) if isinstance(node, yaml.MappingNode) else parts
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in flat)
    return sizes[id(node)]
