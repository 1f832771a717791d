"""Camera paths as files: camera_path.json, as instant-ngp writes and reads it (specification A.13)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pyngp import _core
from pyngp.dataset import load_json

_MANY_KEYFRAMES = 16  # recorded rather than placed by hand
_LARGEST = 1e30  # of any number; float32 holds it, and sums of it


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < _LARGEST else "a huge integer"
    return text if len(text) < 100 else text[:100] + "…"


def _number(entry: Mapping[str, Any], keys: tuple[str, ...], default: float | None, where: str) -> float:
    """The first of the keys that is there."""
    for key in keys:
        if key in entry:
            value = entry[key]
            known = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not known or not abs(value) < _LARGEST:  # nor is a NaN
                raise RuntimeError(f"{where}.{key}: must be a finite number, not {_shown(value)}")
            return float(value)
    if default is None:
        raise RuntimeError(f"{where}: has no {keys[0]}")
    return default


def _vector(entry: Mapping[str, Any], key: str, n: int, where: str) -> list[float]:
    value = entry.get(key)
    if not isinstance(value, list) or len(value) != n:
        raise RuntimeError(f"{where}.{key}: must be a list of {n} numbers, not {_shown(value)}")
    return [_number({key: v}, (key,), None, where) for v in value]


def _keyframe(entry: Any, where: str) -> _core.CameraKeyframe:
    if not isinstance(entry, dict):
        raise RuntimeError(f"{where}: must be an object with R, T, slice, scale, fov and aperture_size")
    rotation = _vector(entry, "R", 4, where)
    length = math.sqrt(sum(v * v for v in rotation))
    if length < 1e-6:
        raise RuntimeError(f"{where}.R: must be a quaternion, not zero")
    keyframe = _core.CameraKeyframe()
    keyframe.R = np.array(rotation) / length
    keyframe.T = _vector(entry, "T", 3, where)
    keyframe.slice = _number(entry, ("slice",), None, where)
    keyframe.scale = _number(entry, ("scale",), None, where)
    keyframe.fov = _number(entry, ("fov",), None, where)
    if not 0 < keyframe.fov < 180:
        raise RuntimeError(f"{where}.fov: is {keyframe.fov}; it must be above 0 and below 180 degrees")
    keyframe.aperture_size = _number(entry, ("aperture_size", "dof"), 0.0, where)
    if keyframe.aperture_size < 0:
        raise RuntimeError(f"{where}.aperture_size: is {keyframe.aperture_size}; it must not be negative")
    keyframe.timestamp = _number(entry, ("timestamp",), 0.0, where)
    return keyframe


def load_camera_path(
    path: _core.CameraPath, file: str | os.PathLike[str], first_xform: ArrayLike | None = None
) -> None:
    """Reads a file into `path`. first_xform (3,4): moves all keyframes; a file that can't be used changes nothing.

    Keyframes without valid timestamps become equidistant.
    """
    document = load_json(Path(file))
    entries = document.get("path") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise RuntimeError(f"{file}: is not a camera path; it has no list `path`")
    keyframes = [_keyframe(entry, f"{file}: path[{i}]") for i, entry in enumerate(entries)]
    if first_xform is not None:
        moved = np.asarray(first_xform, np.float64)
        if moved.shape != (3, 4):
            raise ValueError(f"first_xform must have shape (3, 4), not {moved.shape}")
        for keyframe in keyframes:
            m = np.vstack([keyframe.m().astype(np.float64), [0, 0, 0, 1]])
            keyframe.from_m(moved @ m)
    order = int(_number(document, ("spline_order",), 3, str(file)))
    if not 0 <= order <= 3:
        raise RuntimeError(f"{file}: spline_order is {order}; it must be 0, 1, 2 or 3")
    duration = _number(document, ("duration_seconds",), 0.0, str(file))
    if duration < 0:
        raise RuntimeError(f"{file}.duration_seconds: is {duration}; it must not be negative")
    loop = document.get("loop", False)
    if not isinstance(loop, bool):
        raise RuntimeError(f"{file}.loop: must be true or false, not {_shown(loop)}")
    path.keyframes = keyframes
    path.spline_order = order
    path.loop = loop
    path.play_time = 0.0
    if keyframes and not path.has_valid_timestamps():
        path.make_keyframe_timestamps_equidistant()
    path.duration_seconds = duration or path.duration_seconds
    if len(keyframes) >= _MANY_KEYFRAMES:
        path.keyframe_subsampling = len(keyframes) - 1
        path.editing_kernel_type = _core.EditingKernel.Gaussian


def save_camera_path(path: _core.CameraPath, file: str | os.PathLike[str]) -> None:
    """Writes `path` so that instant-ngp and load_camera_path() read it."""

    def floats(values: Any) -> list[float]:
        return [float(v) for v in values]

    entries = [
        {
            "R": floats(k.R),
            "T": floats(k.T),
            "slice": k.slice,
            "scale": k.scale,
            "fov": k.fov,
            "aperture_size": k.aperture_size,
            "timestamp": k.timestamp,
        }
        for k in path.keyframes
    ]
    document = {
        "loop": path.loop,
        "time": path.play_time,
        "path": entries,
        "duration_seconds": path.duration_seconds,
        "spline_order": path.spline_order,
    }
    Path(file).write_text(json.dumps(document, indent=1), encoding="utf-8")
