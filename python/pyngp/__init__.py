"""Instant neural graphics primitives: train, render and query NeRFs in seconds, on any machine.

from pyngp import Testbed

testbed = Testbed(data="transforms.json")
testbed.fit(seconds=60)
testbed.save_snapshot("scene.ingp")
"""

from __future__ import annotations

from importlib.metadata import version as _version
from pathlib import Path as _Path

from pyngp import _core
from pyngp._core import (
    BoundingBox,
    ColorSpace,
    DeviceArray,
    Lens,
    LensMode,
    LossType,
    NerfActivation,
    OccupancySchedule,
    TestbedMode,
    TonemapCurve,
    TrainMode,
)
from pyngp.devices import Device, devices
from pyngp.testbed import Testbed

__version__ = _version("pyngp")


def get_cmake_dir() -> str:
    """Folder for CMake's `ngp_DIR`: find_package(ngp) of this installation's C++ library."""
    return str(_Path(_core.__file__).parent / "lib" / "cmake" / "ngp")


__all__ = [
    "BoundingBox",
    "ColorSpace",
    "Device",
    "DeviceArray",
    "Lens",
    "LensMode",
    "LossType",
    "NerfActivation",
    "OccupancySchedule",
    "Testbed",
    "TestbedMode",
    "TonemapCurve",
    "TrainMode",
    "__version__",
    "devices",
    "get_cmake_dir",
]
