"""Network configurations: named ones, files with comments and `parent`, dictionaries (specification A.5, D.1)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pyngp import _core
from pyngp.dataset import load_json


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396 JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def named_config(name: str) -> dict[str, Any] | None:
    """`base`, or `base_N` with a hash table of 2^N entries; None for other names."""
    match = re.fullmatch(r"base(?:_(\d+))?(?:\.json)?", name)
    if not match:
        return None
    config = json.loads(_core.base_nerf_config())
    if match[1]:
        config["encoding"]["log2_hashmap_size"] = int(match[1])
    return config


MAX_PARENTS = 32


def resolve_config(source: str | Path | dict[str, Any], folder: Path | None = None, depth: int = 0) -> dict[str, Any]:
    """The whole configuration: a name, a file or a dictionary, its `parent` (relative to it) merged in.

    Raises RuntimeError that names the file.
    """
    if isinstance(source, dict):
        config, folder = source, folder or Path.cwd()
    else:
        path = Path(source) if folder is None else folder / source
        if not path.is_file():
            named = named_config(str(source))
            if named is not None:
                return named
            raise RuntimeError(
                f"network configuration {source!s}: no such file; named ones are base and base_N "
                "(N: log2 of the hash table's entries, e.g. base_14)"
            )
        config, folder = load_json(path), path.parent
        if not isinstance(config, dict):
            raise RuntimeError(f"{path}: must be a JSON object")
    parent = config.get("parent")
    if parent is None:
        return config
    name = "network configuration" if isinstance(source, dict) else str(path)
    if not isinstance(parent, str):
        raise RuntimeError(f"{name}: 'parent' must be a file name")
    if depth >= MAX_PARENTS:
        raise RuntimeError(f"{name}: 'parent': more than {MAX_PARENTS} files deep; does one name itself?")
    return merge_patch(resolve_config(parent, folder, depth + 1), config)
