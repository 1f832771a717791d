"""NeRF scenes in transforms.json form (specification C): reading, checking and preparing for training."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyngp import _core
from pyngp.frame_images import ImageFiles, LoadedImage, load_image
from pyngp.images import EXTENSIONS, Pixels, gather, reader_threads

# Keys that this version acts on, of the file and of a frame; those after them are instant-ngp's, read and named.
FILE_KEYS = {
    "frames", "n_frames", "sharpness_discard_threshold", "camera_angle_x", "camera_angle_y", "fl_x", "fl_y",
    "x_fov", "y_fov", "w", "h", "cx", "cy", "k1", "k2", "k3", "k4", "p1", "p2", "is_fisheye", "camera_model",
    "ftheta_p0", "ftheta_p1", "ftheta_p2", "ftheta_p3", "ftheta_p4", "latlong", "equirectangular", "orthographic",
    "aabb_scale", "scale", "offset", "aabb", "render_aabb", "up", "from_mitsuba", "normal_mts_args",
    "white_transparent", "black_transparent", "sharpen", "fix_premult", "enable_ray_loading", "enable_depth_loading",
    "integer_depth_scale", "n_extra_learnable_dims",
}  # fmt: skip
FTHETA_KEYS = ("ftheta_p0", "ftheta_p1", "ftheta_p2", "ftheta_p3", "ftheta_p4")
# Lenses by the key whose presence asks for them, whatever its value (C.2); of several, the first here.
LENS_OF_KEY = {
    "orthographic": _core.LensMode.Orthographic,
    "equirectangular": _core.LensMode.Equirectangular,
    "latlong": _core.LensMode.LatLong,
    "ftheta_p0": _core.LensMode.FTheta,
}
DISTORTION_KEYS = ("k1", "k2", "k3", "k4", "p1", "p2", "is_fisheye")
FRAME_KEYS = {
    "file_path", "transform_matrix", "sharpness", "camera_angle_x", "camera_angle_y", "fl_x", "fl_y", "x_fov",
    "y_fov", "w", "h", "cx", "cy", "depth_path", *DISTORTION_KEYS, *LENS_OF_KEY, *FTHETA_KEYS, "driver_parameters",
}  # fmt: skip
UNUSED_KEYS = {
    "rolling_shutter", "importance_sampling", "envmap", "transform_matrix_start", "transform_matrix_end",
}  # fmt: skip
MAX_EXTRA_DIMS = 256  # of latents (cpp/ngp/stages/encoding.h)
LENSES_WITHOUT_FOCAL_LENGTH = (_core.LensMode.FTheta, _core.LensMode.LatLong, _core.LensMode.Equirectangular)
DEFAULT_FOCAL_LENGTH = 1000.0  # of lenses that have no use for one (A.11)


class DatasetWarning(UserWarning):
    """Something about a scene that is not an error but that its owner should know."""


@dataclass
class Frame:
    """One view: camera-to-world (4,4) in OpenGL axes and world units, and its image file."""

    name: str
    file_path: str
    image_path: Path
    camera_to_world: NDArray[np.float64]
    keys: dict[str, Any]  # of the file, overridden by those of the frame
    source: str  # "FILE: frame I"
    files: ImageFiles | None = None  # None: the image, and what lies beside it
    depth_scale: float = 0.0  # integer_depth_scale: from a depth map's values to world units
    intrinsics: Intrinsics | None = None
    picture: Future[LoadedImage] | None = None  # what loading() has begun to decode
    # Of its image, once that is loaded.
    mask: NDArray[np.bool_] | None = None
    premultiplied: bool = False

    @property
    def image_files(self) -> ImageFiles:
        return self.files or ImageFiles.of(self.image_path, self.image_path)


@dataclass
class Intrinsics:
    """Focal length in pixels (orthographic: a unit of NGP space), principal point relative to the image size, lens."""

    width: int
    height: int
    focal_length: tuple[float, float]
    principal_point: tuple[float, float]
    lens: _core.Lens


@dataclass
class Scene:
    """Frames and scene-wide settings of one or several transforms files."""

    frames: list[Frame] = field(default_factory=list)
    scale: float = 0.33
    offset: tuple[float, float, float] = (0.5, 0.5, 0.5)
    aabb_scale: int = 1
    from_mitsuba: bool = False
    up: tuple[float, float, float] | None = None
    render_aabb: tuple[list[float], list[float]] | None = None
    n_extra_learnable_dims: int = 0
    sharpen: float | None = None
    images: ImageKeys = field(default_factory=lambda: ImageKeys())


@dataclass
class ImageKeys:
    """How a file's images are read (C.2); files without a key go on with what the one before had."""

    white_transparent: bool = False
    black_transparent: bool = False
    fix_premult: bool = False
    enable_ray_loading: bool = True
    enable_depth_loading: bool = True
    integer_depth_scale: float = -1.0

    def update(self, keys: dict[str, Any], source: str) -> None:
        for name in ("white_transparent", "black_transparent"):  # stay, once asked for
            setattr(self, name, getattr(self, name) or _flag(keys, name, source, False))
        for name in ("fix_premult", "enable_ray_loading", "enable_depth_loading"):
            setattr(self, name, _flag(keys, name, source, getattr(self, name)))
        scale = _number(keys, "integer_depth_scale", source)
        self.integer_depth_scale = self.integer_depth_scale if scale is None else scale

    def files(self, image: Path, as_written: Path, depth: Path | None) -> ImageFiles:
        files = ImageFiles.of(image, as_written)
        files.white_transparent, files.black_transparent = self.white_transparent, self.black_transparent
        files.straight_exr = self.fix_premult
        if self.enable_ray_loading:
            files.rays = image.parent / f"rays_{image.stem}.dat"
        if self.enable_depth_loading and self.integer_depth_scale > 0:
            files.depth = depth
        return files


def _strip_comments(text: str) -> str:
    """Blanks // and /* */ comments outside strings, keeping line numbers."""
    pattern = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)


def load_json(path: Path) -> Any:
    """Reads JSON that may contain comments. Raises RuntimeError that names the file, line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RuntimeError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeError(f"{path}: cannot be read: {error}") from error
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return json.loads(_strip_comments(text))
    except RecursionError:
        raise RuntimeError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # also integers of thousands of digits
        raise RuntimeError(f"{path}: is not valid JSON: {error}") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(keys: dict[str, Any], key: str, source: str) -> float | None:
    value = keys.get(key)
    if value is None:
        return None
    # 1e30: beyond, single precision overflows.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise RuntimeError(f"{source}: {key} is {_shown(value)}; it must be a number")
    return float(value)


def _flag(keys: dict[str, Any], key: str, source: str, default: bool) -> bool:
    value = keys.get(key, default)
    if value not in (True, False, 0, 1):
        raise RuntimeError(f"{source}: {key} is {_shown(value)}; it must be true or false")
    return bool(value)


def _vector(keys: dict[str, Any], key: str, source: str) -> tuple[float, float, float]:
    value = keys[key]
    if not isinstance(value, list):
        value = [value] * 3
    try:
        vector = tuple(_number({key: v}, key, source) for v in value)
    except RuntimeError:
        vector = ()
    if len(vector) != 3 or None in vector:
        raise RuntimeError(f"{source}: {key} is {_shown(keys[key])}; it must be three numbers")
    return vector  # type: ignore[return-value]


def _pose(keys: dict[str, Any], source: str) -> NDArray[np.float64]:
    if "transform_matrix" not in keys:
        if "transform_matrix_start" in keys:
            raise RuntimeError(
                f"{source}: rolling shutter (transform_matrix_start/_end) is not supported yet; "
                "give one transform_matrix"
            )
        raise RuntimeError(f"{source}: transform_matrix is missing")
    try:
        matrix = np.array(keys["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise RuntimeError(f"{source}: transform_matrix must be 4x4 or 3x4 finite numbers")
    pose = np.eye(4)
    pose[:3] = matrix[:3]
    return pose


def _depth_path(keys: dict[str, Any], folder: Path, source: str) -> Path | None:
    name = keys.get("depth_path")
    if name is not None and (not isinstance(name, str) or not name):
        raise RuntimeError(f"{source}: depth_path is {_shown(name)}; it must be the name of a file")
    return None if name is None else folder / name.replace("\\", "/")


def _natural_key(text: str) -> list[Any]:
    parts = re.split(r"([0-9]+)", text)  # the odd ones are numbers, compared by length and digits
    return [(0, len(n := p.lstrip("0")), n) if i % 2 else (1, 0, p) for i, p in enumerate(parts)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # names that no file can have
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return path.absolute()


def _resolve_image(folder: Path, file_path: str) -> Path:
    path = folder / file_path
    if path.suffix[1:].lower() in EXTENSIONS or _is_file(path) or not path.name:
        return path
    for extension in EXTENSIONS:
        candidate = path.with_name(f"{path.name}.{extension}")
        if _is_file(candidate):
            return candidate
    return path


def intrinsics_of(frame: Frame, width: int, height: int) -> Intrinsics:
    """Intrinsics of a frame for an image of the given size (C.2: fov > focal length > angle; one axis fills both)."""
    keys, source = frame.keys, frame.source

    def focal(axis: str, size: int) -> float | None:
        degrees, pixels = _number(keys, f"{axis}_fov", source), _number(keys, f"fl_{axis}", source)
        angle = _number(keys, f"camera_angle_{axis}", source)
        for name, value in ((f"{axis}_fov", degrees), (f"camera_angle_{axis}", angle)):
            limit = 180.0 if name.endswith("_fov") else math.pi
            if value is not None and not 1e-6 < value < limit:
                raise RuntimeError(f"{source}: {name} is {value}; it must be above 0 and below {limit:.4g}")
        if degrees is not None:
            return 0.5 * size / math.tan(math.radians(degrees) / 2)
        if pixels is not None:
            if pixels <= 0:
                raise RuntimeError(f"{source}: fl_{axis} is {pixels}; it must be positive")
            return pixels
        return None if angle is None else 0.5 * size / math.tan(angle / 2)

    lens = _lens(keys, source)
    fx, fy = focal("x", width), focal("y", height)
    if fx is None and fy is None and lens.mode in LENSES_WITHOUT_FOCAL_LENGTH:
        fx = DEFAULT_FOCAL_LENGTH
    if fx is None and fy is None:
        raise RuntimeError(
            f"{source}: no focal length; give camera_angle_x (radians), fl_x (pixels) or x_fov (degrees)"
        )
    center = []
    for key, size_key in (("cx", "w"), ("cy", "h")):
        value, size = _number(keys, key, source), _number(keys, size_key, source)
        if value is not None and (size is None or size <= 0):
            raise RuntimeError(f"{source}: {key} needs {size_key}, the size that it refers to")
        center.append(0.5 if value is None else value / size)  # type: ignore[operator]
    focal_length = (fx or fy or 0.0, fy or fx or 0.0)
    return Intrinsics(width, height, focal_length, (center[0], center[1]), lens)


def _lens(keys: dict[str, Any], source: str) -> _core.Lens:
    for key, mode in LENS_OF_KEY.items():
        if key not in keys:
            continue
        if keys[key] is False:
            warnings.warn(
                f"{source}: {key} is false, but its presence alone makes the lens {mode.name}; leave it out",
                DatasetWarning,
                stacklevel=2,
            )
        return _core.Lens(mode, _ftheta_params(keys, source) if mode == _core.LensMode.FTheta else [])
    fisheye = keys.get("is_fisheye") or keys.get("camera_model") == "OPENCV_FISHEYE"
    names = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2")
    params = [_number(keys, name, source) or 0.0 for name in names]
    if not any(params) and not fisheye:
        if any(_number(keys, name, source) for name in ("k3", "k4")):
            warnings.warn(
                f"{source}: k3 and k4 have no effect without is_fisheye",
                DatasetWarning,
                stacklevel=2,
            )
        return _core.Lens()
    mode = _core.LensMode.OpenCVFisheye if fisheye else _core.LensMode.OpenCV
    return _core.Lens(mode, params)


def lens_keys(lens: _core.Lens) -> dict[str, float | bool]:
    """The keys from which a frame's lens is read, but for FTheta's w and h."""
    params = [float(p) for p in lens.params]
    if lens.mode == _core.LensMode.Perspective:
        return {}
    if lens.mode in (_core.LensMode.OpenCV, _core.LensMode.OpenCVFisheye):
        fisheye = lens.mode == _core.LensMode.OpenCVFisheye
        names = ("k1", "k2", "k3", "k4") if fisheye else ("k1", "k2", "p1", "p2")
        return dict(zip(names, params, strict=False)) | {"is_fisheye": fisheye}
    if lens.mode == _core.LensMode.FTheta:
        return dict(zip(FTHETA_KEYS, params, strict=False))
    return {next(key for key, mode in LENS_OF_KEY.items() if mode == lens.mode): True}


def _ftheta_params(keys: dict[str, Any], source: str) -> list[float]:
    size = [_number(keys, key, source) for key in ("w", "h")]
    if None in size or min(size) <= 0:  # type: ignore[type-var]
        raise RuntimeError(f"{source}: ftheta_p0 to ftheta_p4 need w and h, the size in pixels that they refer to")
    return [_number(keys, key, source) or 0.0 for key in FTHETA_KEYS] + size  # type: ignore[operator]


def _read_settings(scene: Scene, keys: dict[str, Any], source: str) -> None:
    """Scene-wide keys of one file (C.2); later files override."""
    if "normal_mts_args" in keys or keys.get("from_mitsuba"):
        scene.from_mitsuba, scene.scale, scene.offset = True, 0.66, (0.25 * 0.66,) * 3
    if "aabb_scale" in keys:
        value = keys["aabb_scale"]
        if isinstance(value, bool) or value not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise RuntimeError(f"{source}: aabb_scale is {_shown(value)}; it must be a power of two from 1 to 128")
        scene.aabb_scale = int(value)
    if "scale" in keys:
        scene.scale = _number(keys, "scale", source) or 0.0
        if scene.scale < 1e-30:
            raise RuntimeError(f"{source}: scale is {_shown(keys['scale'])}; it must be positive")
    if "offset" in keys:
        scene.offset = _vector(keys, "offset", source)
    for key in ("aabb", "render_aabb"):
        if key not in keys:
            continue
        if not isinstance(keys[key], list) or len(keys[key]) != 2:
            raise RuntimeError(f"{source}: {key} must be [[min x, y, z], [max x, y, z]]")
        low = _vector({key: keys[key][0]}, key, source)
        high = _vector({key: keys[key][1]}, key, source)
        longest = max(h - lo for lo, h in zip(low, high, strict=True))
        if longest < 1e-30:
            raise RuntimeError(f"{source}: {key} is empty")
        if key == "render_aabb":
            scene.render_aabb = (list(low), list(high))
        else:
            scene.scale = 1.0 / longest
            scene.offset = tuple(0.5 - 0.5 * (lo + h) * scene.scale for lo, h in zip(low, high, strict=True))  # type: ignore[assignment]
    if "n_extra_learnable_dims" in keys:
        value = keys["n_extra_learnable_dims"]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_EXTRA_DIMS:
            raise RuntimeError(
                f"{source}: n_extra_learnable_dims is {_shown(value)}; it must be a whole number from 0 to "
                f"{MAX_EXTRA_DIMS}"
            )
        scene.n_extra_learnable_dims = value
    if "up" in keys:
        x, y, z = _vector(keys, "up", source)
        scene.up = (y, z, x)
    if "sharpen" in keys:
        scene.sharpen = _number(keys, "sharpen", source) or 0.0
        if scene.sharpen < 0:
            raise RuntimeError(f"{source}: sharpen is {_shown(keys['sharpen'])}; it must not be negative")
    scene.images.update(keys, source)


def light_direction_of(frame: Frame) -> tuple[float, float, float] | None:
    """A frame's driver_parameters{LightX, LightY, LightZ} (C.3), as they are: world frame, of any length."""
    keys, source = frame.keys, frame.source
    parameters = keys.get("driver_parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise RuntimeError(f"{source}: driver_parameters must be an object with LightX, LightY and LightZ")
    where = f"{source}: driver_parameters"
    x, y, z = (_number(parameters, f"Light{axis}", where) or 0.0 for axis in "XYZ")
    if not (any((x, y, z)) and math.isfinite(x * x + y * y + z * z)):
        raise RuntimeError(f"{where}: LightX, LightY and LightZ must not all be 0: they are the direction of the light")
    return x, y, z


def _drop_blurred(frames: list[Frame], threshold: float) -> tuple[list[Frame], int, int]:
    """The sharpness rule of C.2: frames without an image, or less sharp than `threshold` times the mean around them."""
    if not frames or "sharpness" not in frames[0].keys:
        return frames, 0, 0
    sharpness = [_number(f.keys, "sharpness", f.source) or 0.0 for f in frames]
    kept, missing, blurred = [], 0, 0
    for i, frame in enumerate(frames):
        near = sharpness[max(0, i - 3) : min(i + 3, len(frames) - 1)]
        mean = sum(near) / len(near) if near else 0.0
        if not _is_file(frame.image_path):
            missing += 1
        elif near and sharpness[i] <= threshold * mean and sharpness[i] < mean:
            blurred += 1
        else:
            kept.append(frame)
    return kept, missing, blurred


def _read_file(scene: Scene, path: Path, unused: set[str], need_images: bool) -> None:
    keys = load_json(path)
    if not isinstance(keys, dict):
        raise RuntimeError(f"{path}: must be a JSON object with a 'frames' array")
    source = str(path)
    _read_settings(scene, keys, source)
    shared = {k: v for k, v in keys.items() if k != "frames"}
    unused |= shared.keys() & UNUSED_KEYS
    listed = keys.get("frames")
    if listed is None:
        return
    if not isinstance(listed, list):
        raise RuntimeError(f"{path}: 'frames' must be an array")
    frames = []
    for i, entry in enumerate(listed):
        where = f"{path}: frame {i}"
        if not isinstance(entry, dict):
            raise RuntimeError(f"{where}: must be an object")
        name = entry.get("file_path")
        if not isinstance(name, str):
            raise RuntimeError(f"{where}: file_path is missing")
        name = name.replace("\\", "/") or f"{path.stem.rsplit('_', 1)[-1]}_{i:03d}/rgba.png"  # C.3
        where = f"{where} ({name})"
        unused |= entry.keys() & UNUSED_KEYS
        # A lens of the frame's own replaces the file's.
        own_lens = any(k in entry for k in LENS_OF_KEY) or any(entry.get(k) for k in DISTORTION_KEYS)
        merged = {k: v for k, v in shared.items() if not (own_lens and k in LENS_OF_KEY)}
        merged |= {k: v for k, v in entry.items() if k in FRAME_KEYS}
        image_path = _resolve_image(path.parent, name)
        files = scene.images.files(image_path, path.parent / name, _depth_path(merged, path.parent, where))
        frame = Frame(Path(name).name, name, image_path, _pose(entry, where), merged, where, files)
        frame.depth_scale = scene.images.integer_depth_scale
        frames.append(frame)
    frames.sort(key=lambda f: _natural_key(f.file_path))
    if (limit := _number(keys, "n_frames", source)) is not None:
        if limit < 0 or limit != int(limit):
            raise RuntimeError(f"{source}: n_frames is {_shown(keys['n_frames'])}; it must be a whole number")
        frames = frames[: int(limit)]
    if need_images:
        threshold = _number(keys, "sharpness_discard_threshold", source) or 0.0
        n_listed = len(frames)
        frames, missing, blurred = _drop_blurred(frames, threshold)
        if missing or blurred:
            parts = [f"{missing} without an image"] * bool(missing) + [f"{blurred} blurred"] * bool(blurred)
            warnings.warn(
                f"{path}: {n_listed} frames listed, {len(frames)} used "
                f"({', '.join(parts)} dropped by the sharpness rule)",
                DatasetWarning,
                stacklevel=3,
            )
        _check_files(frames, path, scene.images)
    scene.frames += frames


def _check_files(frames: list[Frame], path: Path, keys: ImageKeys) -> None:
    for frame in frames:
        if not _is_file(frame.image_path):
            raise RuntimeError(f"{frame.source}: its image {frame.image_path} does not exist")
        if frame.image_files.depth is not None and not _is_file(frame.image_files.depth):
            raise RuntimeError(f"{frame.source}: its depth map {frame.image_files.depth} does not exist")
    if keys.integer_depth_scale <= 0 and any("depth_path" in f.keys for f in frames):
        warnings.warn(
            f"{path}: depth_path has no effect without integer_depth_scale, which says what the maps' values are",
            DatasetWarning,
            stacklevel=4,
        )


def read_scene(
    path: str | os.PathLike[str],
    *,
    exclude: str | os.PathLike[str] | None = None,
    need_images: bool = True,
) -> Scene:
    """Reads a transforms file, or every *.json with frames directly inside a folder.

    Frames that the transforms file `exclude` lists are left out. With need_images=False, frames need no image files.
    Raises RuntimeError that names the file and the key; warns (DatasetWarning) of dropped frames and unused keys.
    """
    path = Path(path)
    excluded = {_resolved(f.image_path) for f in read_scene(exclude, need_images=False).frames} if exclude else set()
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if exclude:
            files = [f for f in files if f.resolve() != Path(exclude).resolve()]
        if not files:
            raise RuntimeError(f"{path}: the folder holds no .json file; expected transforms.json")
    elif path.exists():
        files = [path]
    else:
        raise RuntimeError(f"{path}: no such file or folder")
    scene = Scene()
    unused: set[str] = set()
    for file in files:
        _read_file(scene, file, unused, need_images)
    set_sharpening(scene, scene.sharpen or 0.0)
    if excluded:  # each path takes a dozen system calls to resolve
        scene.frames = [f for f in scene.frames if _resolved(f.image_path) not in excluded]
    if not scene.frames:
        raise RuntimeError(f"{path}: no frames to use" + (f" besides those of {exclude}" if exclude else ""))
    if unused:
        warnings.warn(f"{path}: not used yet: {', '.join(sorted(unused))}", DatasetWarning, stacklevel=2)
    return scene


def set_sharpening(scene: Scene, amount: float) -> None:
    """How much images that are loaded from now on are sharpened; 0: not."""
    for frame in scene.frames:
        frame.files = frame.image_files
        frame.files.sharpen = amount


@contextmanager
def loading(frames: Sequence[Frame]) -> Iterator[None]:
    """Decodes the frames' images meanwhile, for load_images() and build_dataset() inside this block."""
    with reader_threads(load_image) as read:
        try:
            for frame in frames:
                frame.picture = read(frame.image_files)
            yield
        finally:
            for frame in frames:
                frame.picture = None


def _load(frames: Sequence[Frame], progress: Callable[[int, int], None] | None) -> list[LoadedImage]:
    with reader_threads(load_image) as read:
        images = gather([f.picture or read(f.image_files) for f in frames], progress)
    for frame, image in zip(frames, images, strict=True):
        frame.intrinsics = intrinsics_of(frame, image.pixels.shape[1], image.pixels.shape[0])
        frame.mask, frame.premultiplied = image.mask, image.premultiplied
    return images


def load_images(frames: Sequence[Frame], progress: Callable[[int, int], None] | None = None) -> list[Pixels]:
    """Decodes the frames' images in parallel and fills in their intrinsics, mask and premultiplied.

    (H,W,3|4): uint8 sRGB, straight alpha; or float16 or float32 linear, premultiplied by alpha if the frame says so.
    """
    return [image.pixels for image in _load(frames, progress)]


def _rays_to_ngp(rays: NDArray[np.float32], scene: Scene) -> NDArray[np.float32]:
    """Origins scaled and moved, both cycled, whether the scene is from Mitsuba or not (C.4)."""
    origins = rays[..., :3] * np.float32(scene.scale) + np.asarray(scene.offset, np.float32)
    return np.concatenate([origins[..., [1, 2, 0]], rays[..., 3:][..., [1, 2, 0]]], axis=-1)


def build_dataset(scene: Scene, progress: Callable[[int, int], None] | None = None) -> _core.NerfDataset:
    """Loads the scene's images and packs everything for the library."""
    dataset = _core.NerfDataset()
    dataset.scale, dataset.offset = scene.scale, scene.offset
    dataset.from_mitsuba, dataset.aabb_scale = scene.from_mitsuba, scene.aabb_scale
    if scene.up is not None:
        dataset.up = scene.up
    if scene.render_aabb is not None:
        dataset.render_aabb = _core.BoundingBox(*scene.render_aabb)
    dataset.n_extra_learnable_dims = scene.n_extra_learnable_dims
    images = _load(scene.frames, progress)
    dataset.is_hdr = any(image.is_hdr for image in images)
    for n, (frame, image) in enumerate(zip(scene.frames, images, strict=True)):
        i = frame.intrinsics
        assert i is not None
        pose = frame.camera_to_world[:3].astype(np.float32)
        training_image = _core.TrainingImage(
            image.pixels,
            premultiplied=image.premultiplied,
            mask=image.mask,
            depth=image.depth,
            depth_scale=max(0.0, frame.depth_scale) * scene.scale,
            rays=None if image.rays is None else _rays_to_ngp(image.rays, scene),
            name=frame.source,
        )
        dataset.add_view(frame.file_path, pose, i.focal_length, i.principal_point, i.lens, training_image)
        if (light := light_direction_of(frame)) is not None:
            dataset.set_light_dir(n, light)
    return dataset
