"""Pure-Python reader of .ingp snapshots: gzip (or zlib, or raw) around MessagePack (part D)."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from .occupancy import GRID_SIZE, N_CELLS

PARAM_TYPES = {"__half": np.float16, "float": np.float32}


@dataclass(frozen=True)
class Camera:
    """Training camera in NGP space: pose (3, 4), focal px, centre uv, resolution (W, H)."""

    pose: NDArray[np.float64]
    focal: NDArray[np.float64]
    centre: NDArray[np.float64]
    resolution: tuple[int, int]
    lens: dict[str, Any] | None


@dataclass(frozen=True)
class Snapshot:
    """``config``: all of the top level but "snapshot"; ``state``: the "snapshot" map."""

    config: dict[str, Any]
    state: dict[str, Any]
    params: NDArray[np.float64]
    density_grid: NDArray[np.float64]
    cameras: list[Camera]


def decompress(data: bytes) -> bytes:
    """MessagePack bytes of a gzip, zlib or raw container (D.1)."""
    if data[:2] == b"\x1f\x8b":
        return gzip.decompress(data)
    if len(data) >= 2 and data[0] == 0x78 and (data[0] * 256 + data[1]) % 31 == 0:
        return zlib.decompress(data)
    return data


def _cameras(state: dict[str, Any]) -> list[Camera]:
    dataset = state.get("nerf", {}).get("dataset", {})
    return [
        Camera(
            pose=np.array(xform["start"], dtype=np.float64),
            focal=np.array(meta["focal_length"], dtype=np.float64),
            centre=np.array(meta["principal_point"], dtype=np.float64),
            resolution=(int(meta["resolution"][0]), int(meta["resolution"][1])),
            lens=meta["lens"],
        )
        for xform, meta in zip(dataset.get("xforms", []), dataset.get("metadata", []), strict=True)
    ]


def load(path: str | Path) -> Snapshot:
    """Read a snapshot; ``density_grid`` is (cascades, 128^3), Morton; 0 cascades if absent."""
    root = msgpack.unpackb(decompress(Path(path).read_bytes()), strict_map_key=False)
    state = root.pop("snapshot")
    if state["version"] < 1:
        raise ValueError(f"{path}: snapshot version {state['version']} < 1")
    params = np.frombuffer(state.pop("params_binary"), dtype=PARAM_TYPES[state["params_type"]])
    grid = np.frombuffer(state.pop("density_grid_binary", b""), dtype=np.float16)
    if grid.size % N_CELLS or state.get("density_grid_size", GRID_SIZE) != GRID_SIZE:
        raise ValueError(f"{path}: density grid of {grid.size} values")
    return Snapshot(
        config=root,
        state=state,
        params=params.astype(np.float64),
        density_grid=grid.astype(np.float64).reshape(-1, N_CELLS),
        cameras=_cameras(state),
    )
