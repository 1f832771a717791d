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
    CameraKeyframe,
    CameraPath,
    CameraPathPos,
    CameraPathRenderSettings,
    CameraPredictionMode,
    ColorSpace,
    DeviceArray,
    EditingKernel,
    GroundTruthRenderMode,
    Lens,
    LensMode,
    LossType,
    MeshSdfMode,
    NerfActivation,
    OccupancySchedule,
    RandomMode,
    RenderMode,
    SDFGroundTruthMode,
    TestbedMode,
    TonemapCurve,
    TrainMode,
)
from pyngp.devices import Device, devices
from pyngp.testbed import Testbed

__version__ = _version("pyngp")

# Values by their own names, as in instant-ngp (specification A.0): where enumerations share a name, of the later one.
_EXPORTED_ENUMS = (
    TrainMode,
    TestbedMode,
    GroundTruthRenderMode,
    RenderMode,
    RandomMode,
    LossType,
    SDFGroundTruthMode,
    NerfActivation,
    MeshSdfMode,
    ColorSpace,
    TonemapCurve,
    LensMode,
    CameraPredictionMode,
)
for _enum in _EXPORTED_ENUMS:
    globals().update(_enum.__members__)


def get_cmake_dir() -> str:
    """Folder for CMake's `ngp_DIR`: find_package(ngp) of this installation's C++ library."""
    return str(_Path(_core.__file__).parent / "lib" / "cmake" / "ngp")


__all__ = [
    "BoundingBox",
    "CameraKeyframe",
    "CameraPath",
    "CameraPathPos",
    "CameraPathRenderSettings",
    "CameraPredictionMode",
    "ColorSpace",
    "Device",
    "DeviceArray",
    "EditingKernel",
    "GroundTruthRenderMode",
    "Lens",
    "LensMode",
    "LossType",
    "MeshSdfMode",
    "NerfActivation",
    "OccupancySchedule",
    "RandomMode",
    "RenderMode",
    "SDFGroundTruthMode",
    "Testbed",
    "TestbedMode",
    "TonemapCurve",
    "TrainMode",
    "__version__",
    "devices",
    "get_cmake_dir",
]
