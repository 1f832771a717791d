"""Mutated camera_path.json files: RuntimeError that names the file, or a path that can be followed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyngp import CameraPath
from robustness.test_json_input import FUZZ, ODD, VALUES

KEYS = ("loop", "time", "path", "duration_seconds", "spline_order")
KEYFRAME_KEYS = ("R", "T", "slice", "scale", "fov", "aperture_size", "dof", "timestamp")


def document() -> dict[str, Any]:
    keyframes = [
        {"R": [0, 0, 0, 1], "T": [x, 0, 0], "slice": 0, "scale": 1, "fov": 50, "aperture_size": 0, "timestamp": x}
        for x in (1, 2, 3)
    ]
    return {"loop": False, "time": 0, "path": keyframes, "duration_seconds": 3, "spline_order": 3}


def load(file: Path) -> CameraPath | None:
    path = CameraPath()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path.load(str(file))
        except RuntimeError as error:
            assert str(file) in str(error) and len(str(error)) < 1500, error
            assert not path.keyframes
            return None
    for t in (0.0, 0.3, 1.0) if path.keyframes else ():
        k = path.eval_camera_path(t)
        values = [*k.T, *k.R, k.slice, k.scale, k.fov, k.aperture_size, k.timestamp]
        assert np.isfinite(values).all() and 0 < k.fov < 180 and k.aperture_size >= 0
        assert abs(np.linalg.norm(k.R) - 1) < 1e-5
    return path


def test_the_file_as_it_is(tmp_path):
    (tmp_path / "path.json").write_text(json.dumps(document()))
    assert load(tmp_path / "path.json") is not None


@pytest.mark.parametrize("where", ["file", "keyframe"])
def test_odd_values_of_every_key(where, tmp_path):
    file, accepted = tmp_path / "path.json", 0
    for key in KEYS if where == "file" else KEYFRAME_KEYS:
        for value in ODD:
            changed = document()
            (changed if where == "file" else changed["path"][1])[key] = value
            file.write_text(json.dumps(changed))
            accepted += load(file) is not None
    assert accepted > 10


@FUZZ
@given(key=st.sampled_from(KEYS), keyframe_key=st.sampled_from(KEYFRAME_KEYS), a=VALUES, b=VALUES)
def test_mutations(tmp_path_factory, key, keyframe_key, a, b):
    file = tmp_path_factory.getbasetemp() / "mutated_path.json"
    for changed in (document() | {key: a}, document()):
        if isinstance(changed["path"], list) and changed["path"] and isinstance(changed["path"][-1], dict):
            changed["path"][-1][keyframe_key] = b
        file.write_text(json.dumps(changed))
        load(file)
