"""The Testbed: instant-ngp's object, plus what it lacks — field queries, channels in one pass, world units."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyngp import _core
from pyngp._core import DeviceArray
from pyngp.arrays import AnyArray
from pyngp.dataset import (
    DEFAULT_FOCAL_LENGTH,
    LENSES_WITHOUT_FOCAL_LENGTH,
    build_dataset,
    lens_keys,
    load_json,
    read_scene,
    set_sharpening,
)
from pyngp.network import resolve_config
from pyngp.training_arrays import OneAnImage, one_an_image, training_image

FloatArray = NDArray[np.float32]
Channel = Literal["rgb", "alpha", "depth", "normal"]
CHANNELS: tuple[Channel, ...] = ("rgb", "alpha", "depth", "normal")
PathLike = str | os.PathLike[str]

_json_text = json.dumps
Region = Literal["left", "right", "top", "bottom"]

_CONFIG_KEYS = ("parent", "network", "encoding", "loss", "optimizer")


def region_mask(region: Region | ArrayLike, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels (height, width) of a picture's half, or of an array that says which."""
    if isinstance(region, str):
        x, y = np.arange(width)[None, :], np.arange(height)[:, None]
        halves = {"left": x < width // 2, "right": x >= width // 2, "top": y < height // 2, "bottom": y >= height // 2}
        if region not in halves:
            raise ValueError(f"region {region!r} is not known; it must be one of {', '.join(halves)}, or an array")
        return np.broadcast_to(halves[region], (height, width))
    mask = np.asarray(region)
    if mask.shape != (height, width) or mask.dtype != bool:
        raise ValueError(
            f"region must be an array of bools of shape ({height}, {width}), not {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise ValueError("region holds no pixel")
    return mask


def _appearance(image: int | None, latent: ArrayLike | None, light_direction: ArrayLike | None) -> _core.Appearance:
    if sum(choice is not None for choice in (image, latent, light_direction)) > 1:
        raise ValueError("give one of image, latent and light_direction")
    if image is not None and image < 0:
        raise ValueError(f"image is {image}; training views count from 0")
    values = [] if latent is None else np.asarray(latent, np.float64).ravel().tolist()
    if latent is not None and not values:
        raise ValueError("latent is empty")
    light = None if light_direction is None else np.asarray(light_direction, np.float32)
    return _core.Appearance(-1 if image is None else image, values, light)


class Testbed(_core.Testbed):
    """A radiance field with its training data, options and camera.

    Names and meanings are instant-ngp's where it has them. World frame and units are those of the input's poses
    (camera-to-world, OpenGL axes: x right, y up, z back); "NGP space" is the internal one in which the scene box is
    centred at (0.5, 0.5, 0.5).

    Arguments
    ---------
    mode: TestbedMode.Nerf, or None to let the data decide.
    data: scene to load (load_training_data).
    config: network configuration: name, file or dictionary.
    device: "cpu", "cuda", a certain one of several GPUs as "cuda:1", or "auto": the first GPU that can be used, else
        the CPU. pyngp.devices() lists them; the property `device` says which it became.
    seed: of every random number; on the CPU, the same seed gives the same bytes, whatever the number of threads.
    deterministic: the same on a GPU, for one card and version of this library; steps take longer. The CPU always is.
    max_device_bytes: GPU memory that may be taken; None: all that is free. Images that don't fit stay in the host's.

    Raises RuntimeError for anything that can't be used, naming the file and field.

    The attribute `jit_fusion` is there for instant-ngp's scripts and has no effect: nothing is compiled at run time.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    def __init__(
        self,
        mode: _core.TestbedMode | None = None,
        data: PathLike | None = None,
        config: PathLike | dict[str, Any] | None = None,
        *,
        device: str = "auto",
        seed: int = 1337,
        deterministic: bool = False,
        max_device_bytes: int | None = None,
    ) -> None:
        any_mode = getattr(_core.TestbedMode, "None")
        super().__init__(any_mode if mode is None else mode, device, seed, deterministic, max_device_bytes)
        self.root_dir = ""
        self.jit_fusion = False
        if data is not None:
            self.load_training_data(data)
        if config is not None:
            self.reload_network_from_json(config if isinstance(config, dict) else resolve_config(os.fspath(config)))

    # --- data -----------------------------------------------------------------------------------

    def load_training_data(
        self,
        path: PathLike,
        *,
        exclude: PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Loads a transforms.json, or a folder of them, with its images.

        Frames that the transforms file `exclude` lists are left out. `progress` gets (images done, images in all).
        Keeps the network unless aabb_scale changes. Images are sharpened by nerf.sharpen, which the scene may set.
        """
        scene = read_scene(path, exclude=exclude)
        if scene.sharpen is not None:
            self.nerf.sharpen = scene.sharpen
        set_sharpening(scene, self.nerf.sharpen)
        self.set_dataset(build_dataset(scene, progress))

    def set_images(
        self,
        images: AnyArray | Sequence[AnyArray],
        cameras: ArrayLike,
        intrinsics: ArrayLike,
        *,
        lens: _core.Lens | None = None,
        scale: float = 0.33,
        offset: ArrayLike = (0.5, 0.5, 0.5),
        aabb_scale: int = 1,
        masks: OneAnImage = None,
        depths: OneAnImage = None,
        n_extra_learnable_dims: int = 0,
        light_directions: ArrayLike | None = None,
    ) -> None:
        """Training data from arrays.

        images: (N,H,W,3|4), or a sequence of (H,W,3|4) of any sizes; uint8 is sRGB, float linear; straight alpha. On
            a GPU also arrays that lie there (DLPack or __cuda_array_interface__), uint8 or float32 and C-contiguous,
            which are copied there.
        cameras: (N,3,4) or (N,4,4) camera-to-world, OpenGL axes, world units.
        intrinsics: (fl_x, fl_y, cx, cy) in pixels, for all or (N,4) one an image.
        lens: of all images; Lens says what the parameters, and the focal length, are.
        masks: (N,H,W) bool, or a sequence with one, or None, an image: training leaves out pixels where it is True, as
            with instant-ngp's mask files and NumPy's masked arrays. (nerfstudio's say what to keep: pass ~mask.)
        depths: (N,H,W) float, or a sequence likewise: depth of each pixel along the camera's forward axis, world
            units, as render_channels() gives it; where it is not finite or not above 0, it is unknown. (FTheta and
            360 degree lenses: distance from the camera.) nerf.training.depth_supervision_lambda is their weight.
        scale, offset, aabb_scale: NGP space = world * scale + offset; the scene box is a cube of side aabb_scale there.

        n_extra_learnable_dims: values of a latent of each image's own, learned with the field; 0: none.
        light_directions: (N,3), world frame, of any length: what lights each image, an input of the field. Then there
            are no latents.

        Raises ValueError for other shapes and types, values that are not finite, and arrays that lie on another device
        than the Testbed.
        """
        pictures = self._pictures(images)
        poses = np.asarray(cameras, np.float32)
        if poses.ndim != 3 or poses.shape[0] != len(pictures) or poses.shape[1:] not in ((3, 4), (4, 4)):
            raise ValueError(f"cameras must have shape ({len(pictures)}, 3, 4), not {poses.shape}")
        values = np.asarray(intrinsics, np.float64)
        if values.shape == (4,):
            values = np.tile(values, (len(pictures), 1))
        if values.shape != (len(pictures), 4):
            raise ValueError(f"intrinsics must have shape (4,) or ({len(pictures)}, 4), not {values.shape}")
        masks = one_an_image(masks, "masks", len(pictures))
        depths = one_an_image(depths, "depths", len(pictures))
        lights = None if light_directions is None else np.asarray(light_directions, np.float32)
        if lights is not None and lights.shape != (len(pictures), 3):
            raise ValueError(f"light_directions must have shape ({len(pictures)}, 3), not {lights.shape}")
        dataset = _core.NerfDataset()
        dataset.n_extra_learnable_dims = n_extra_learnable_dims
        dataset.scale, dataset.offset, dataset.aabb_scale = (
            scale,
            np.asarray(offset, np.float32),
            aabb_scale,
        )
        for i, (picture, pose, (fl_x, fl_y, cx, cy)) in enumerate(zip(pictures, poses, values, strict=True)):
            image = training_image(picture, masks[i], depths[i], scale, f"image {i}")
            height, width = picture.shape[:2]
            center = (cx / width, cy / height)
            dataset.add_view(f"image {i}", pose[:3], (fl_x, fl_y), center, lens or _core.Lens(), image)
            if lights is not None:
                dataset.set_light_dir(i, lights[i])
        self.set_dataset(dataset)

    def _pictures(self, images: AnyArray | Sequence[AnyArray]) -> list[Any]:
        """Images one by one, as NumPy arrays; those that lie on the device as copies there."""
        if _core.is_device_array(images):
            copies: Any = self.keep_images(images, "images")
            return list(copies)
        pictures: Any = images
        return [
            self.keep_images(picture, f"image {i}") if _core.is_device_array(picture) else np.asarray(picture)
            for i, picture in enumerate(pictures)
        ]

    def load_file(self, path: PathLike) -> None:
        """Loads a snapshot, network configuration, camera path or training data, whichever the file is."""
        file = Path(path)
        if file.suffix.lower() in (".ingp", ".msgpack"):
            return self.load_snapshot(file)
        if file.suffix.lower() == ".json":
            if not file.exists():
                return self.reload_network_from_file(path)
            keys = load_json(file)
            if isinstance(keys, dict) and "snapshot" in keys:
                return self.load_snapshot(file)
            if isinstance(keys, dict) and any(key in keys for key in _CONFIG_KEYS):
                return self.reload_network_from_file(path)
            if isinstance(keys, dict) and "path" in keys:
                return self.load_camera_path(path)
        had_data = self.nerf.training.dataset.has_images
        self.load_training_data(path)
        if not had_data:
            self.shall_train = True
        return None

    # --- network and snapshots --------------------------------------------------------------------

    def reload_network_from_file(self, path: PathLike = "") -> None:
        """New network from a configuration file or a named one (default: base); training starts over."""
        name = os.fspath(path) or "base"
        in_root = Path(self.root_dir) / "configs" / "nerf" / name
        source = in_root if self.root_dir and not Path(name).is_file() and in_root.is_file() else name
        self.reload_network_from_json_text(json.dumps(resolve_config(source)), str(source))

    def reload_network_from_json(self, json: dict[str, Any], config_base_path: PathLike = "") -> None:
        """New network from a dictionary; its `parent`, if any, is relative to config_base_path."""
        folder = Path(config_base_path) if config_base_path else None
        self.reload_network_from_json_text(_json_text(resolve_config(json, folder)))

    def save_snapshot(self, path: PathLike, include_optimizer_state: bool = False, compress: bool = True) -> None:
        """Writes an .ingp snapshot atomically. With the optimizer's state, training resumes exactly."""
        super().save_snapshot(os.fspath(path), include_optimizer_state, compress)

    def load_snapshot(self, path: PathLike) -> None:
        """Loads an .ingp snapshot, ours or instant-ngp's. A file that can't be used changes nothing."""
        super().load_snapshot(os.fspath(path))

    # --- training ---------------------------------------------------------------------------------

    def want_repl(self) -> bool:
        """False: there is no window in which a user could ask for a prompt."""
        return False

    def fit(
        self,
        steps: int | None = None,
        seconds: float | None = None,
        batch_size: int | None = None,
        callback: Callable[[Testbed], bool | None] | None = None,
    ) -> None:
        """Trains for `steps` more steps or `seconds` of training, whichever comes first.

        batch_size: contributing samples a step; None picks one that suits the device. callback(testbed) runs when a
        step is done, for each; returning False stops. (On a GPU it costs speed, since the next step waits for it.)
        Ctrl-C stops after the step at hand, at most 20 ms later, and raises KeyboardInterrupt.
        """
        if steps is None and seconds is None and callback is None:
            raise ValueError("fit() needs steps, seconds or a callback to know when to stop")
        wrapped = None if callback is None else lambda: callback(self)
        self.fit_steps(steps, seconds, batch_size, wrapped)

    # --- rendering and queries ----------------------------------------------------------------------

    def load_camera_path(self, path: PathLike) -> None:
        """Replaces camera_path by that of a camera_path.json, for render(start_t=…)."""
        self.camera_path.load(os.fspath(path))

    def _camera_arguments(
        self,
        camera: ArrayLike,
        width: int,
        height: int,
        fov_x: float | None,
        intrinsics: ArrayLike | None,
        lens: _core.Lens | None,
    ) -> dict[str, Any]:
        if width < 1 or height < 1:
            raise ValueError(f"a picture of {width}x{height} pixels can't be rendered")
        lens = lens or _core.Lens()
        if intrinsics is not None:
            fl_x, fl_y, cx, cy = (float(v) for v in np.asarray(intrinsics, np.float64).reshape(4))
        elif fov_x is not None:
            if not 0 < fov_x < 180:
                raise ValueError(f"fov_x is {fov_x}; it must be above 0 and below 180 degrees")
            fl_x = fl_y = 0.5 * width / np.tan(np.radians(fov_x) / 2)
            cx, cy = width / 2, height / 2
        elif lens.mode in LENSES_WITHOUT_FOCAL_LENGTH:
            fl_x, fl_y, cx, cy = DEFAULT_FOCAL_LENGTH, DEFAULT_FOCAL_LENGTH, width / 2, height / 2
        else:
            raise ValueError("give fov_x (degrees) or intrinsics (fl_x, fl_y, cx, cy)")
        pose = np.asarray(camera, np.float32)
        return {
            "camera": pose,
            "width": width,
            "height": height,
            "focal_length": (fl_x, fl_y),
            "principal_point": (cx / width, cy / height),
            "lens": lens,
        }

    @overload
    def render_channels(
        self,
        camera: ArrayLike,
        width: int,
        height: int,
        *,
        fov_x: float | None = None,
        intrinsics: ArrayLike | None = None,
        lens: _core.Lens | None = None,
        channels: Sequence[Channel] = CHANNELS,
        spp: int = 1,
        image: int | None = None,
        latent: ArrayLike | None = None,
        light_direction: ArrayLike | None = None,
        out: Literal["numpy"] = "numpy",
    ) -> dict[str, FloatArray]: ...

    @overload
    def render_channels(
        self,
        camera: ArrayLike,
        width: int,
        height: int,
        *,
        fov_x: float | None = None,
        intrinsics: ArrayLike | None = None,
        lens: _core.Lens | None = None,
        channels: Sequence[Channel] = CHANNELS,
        spp: int = 1,
        image: int | None = None,
        latent: ArrayLike | None = None,
        light_direction: ArrayLike | None = None,
        out: Literal["device"],
    ) -> dict[str, DeviceArray]: ...

    def render_channels(
        self,
        camera: ArrayLike,
        width: int,
        height: int,
        *,
        fov_x: float | None = None,
        intrinsics: ArrayLike | None = None,
        lens: _core.Lens | None = None,
        channels: Sequence[Channel] = CHANNELS,
        spp: int = 1,
        image: int | None = None,
        latent: ArrayLike | None = None,
        light_direction: ArrayLike | None = None,
        out: Literal["numpy", "device"] = "numpy",
    ) -> dict[str, FloatArray] | dict[str, DeviceArray]:
        """Renders several channels in one pass.

        camera: (3,4) camera-to-world, OpenGL axes, world units. fov_x: degrees; or intrinsics (fl_x, fl_y, cx, cy)
        in pixels; a lens that has no use for a focal length (see Lens) needs neither. Returns float32 arrays: rgb
        (H,W,3), linear, premultiplied by alpha, no background; alpha (H,W); depth (H,W), expected z along the
        camera's forward axis divided by alpha, world units, NaN where alpha < 1e-3, negative behind a 360 degree
        camera; normal (H,W,3), unit, world axes, zero where alpha < 1e-3. Pixels that the lens does not see are empty.

        image: training view whose latent or light direction the picture gets; or latent: the values themselves, as
        fit_latent() gives them; or light_direction: (3,), world frame, of any length. Without, it is what
        nerf.set_rendering_extra_dims() and the like chose, training view 0 at first.

        out: "numpy", or, on a GPU, "device": DeviceArrays there, which PyTorch, CuPy and JAX take without a copy.
        """
        if out not in ("numpy", "device"):
            raise ValueError(f'out is {out!r}; it must be "numpy" or "device"')
        if out == "device" and self.device == "cpu":
            raise ValueError('out="device" needs a Testbed on a GPU; this one runs on the CPU')
        for channel in channels:
            if channel not in CHANNELS:
                raise ValueError(f"channel {channel!r} is not known; channels are {', '.join(CHANNELS)}")
        arguments = self._camera_arguments(camera, width, height, fov_x, intrinsics, lens)
        images: dict[str, Any] = self.render_camera(
            **arguments,
            channels=list(channels),
            spp=spp,
            on_device=out == "device",
            appearance=_appearance(image, latent, light_direction),
        )
        return {str(channel): images[channel] for channel in channels}

    def ray_samples(
        self,
        camera: ArrayLike,
        width: int,
        height: int,
        x: int,
        y: int,
        *,
        fov_x: float | None = None,
        intrinsics: ArrayLike | None = None,
        lens: _core.Lens | None = None,
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Where render_channels(…, spp=1) samples the field for pixel (x, y).

        Returns positions (n,3) in the world frame, the unit direction (3,) and step lengths (n,) in world units;
        all of them in occupied cells, in marching order, without early termination. Where the lens sees nothing, there
        are none and the direction is zero.
        """
        arguments = self._camera_arguments(camera, width, height, fov_x, intrinsics, lens)
        origin, direction, t, dt = self.ray_samples_of_pixel(**arguments, x=x, y=y)
        positions = origin.astype(np.float64) + t[:, None].astype(np.float64) * direction.astype(np.float64)
        return positions.astype(np.float32), direction, dt

    def query(
        self,
        positions: AnyArray,
        directions: AnyArray | None = None,
        image: int | None = None,
        occupancy: bool = False,
        *,
        latent: ArrayLike | None = None,
        light_direction: ArrayLike | None = None,
    ) -> Any:
        """The field at world positions (N,3).

        Returns density (N,) per world unit of length; with unit directions (N,3) along the ray, (rgb, density) with
        rgb (N,3) as the network composites it (sRGB unless nerf.training.linear_colors). Zero outside the scene
        box, and with occupancy=True also in cells that the occupancy grid holds empty. `image`, `latent` and
        `light_direction` are as in render_channels(); models that have none of them ignore `image`.

        Results are float32 NumPy arrays. On a GPU, positions and directions may also be float32, C-contiguous arrays
        that lie there (DLPack or __cuda_array_interface__); then so do the results, as DeviceArrays. Raises ValueError
        for other shapes and types, and for arrays that lie on another device than the Testbed.
        """
        return self.query_field(positions, directions, occupancy, _appearance(image, latent, light_direction))

    def fit_latent(
        self,
        image: ArrayLike,
        camera: ArrayLike,
        *,
        fov_x: float | None = None,
        intrinsics: ArrayLike | None = None,
        lens: _core.Lens | None = None,
        region: Region | ArrayLike | None = None,
        steps: int = 200,
        rays_per_step: int = 1024,
        learning_rate: float = 0.02,
        initial: ArrayLike | None = None,
    ) -> FloatArray:
        """The latent (n_extra_dims,) with which the field, as it is, looks most like a picture, or like a part of it.

        image: (H,W,3|4), uint8 (sRGB) or float (linear), straight alpha; camera, fov_x, intrinsics and lens as in
        render_channels(). region: "left", "right", "top" or "bottom" half, or an (H,W) array of bools: the pixels that
        count; None: all. steps of Adam, whose learning rate falls linearly to zero, on rays_per_step random pixels
        each, from `initial` or the mean of the training views' latents. Of a model with light directions, it is the
        light's that is fitted.

        Pass the result as `latent` to render_channels() or query(), or to nerf.set_rendering_extra_dims(). Raises
        RuntimeError for models without latents.
        """
        picture = np.asarray(image)
        if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.size == 0:
            raise ValueError(f"image must have shape (height, width, 3 or 4), not {picture.shape}")
        if picture.dtype != np.uint8:
            if not np.issubdtype(picture.dtype, np.floating):
                raise ValueError(f"image is {picture.dtype}; it must be uint8 (sRGB) or float (linear)")
            if not np.isfinite(picture).all():
                raise ValueError("image holds values that are not finite")
        height, width = picture.shape[:2]
        arguments = self._camera_arguments(camera, width, height, fov_x, intrinsics, lens)
        keys = ("camera", "focal_length", "principal_point", "lens")
        fit = _core.LatentFit(picture, **{key: arguments[key] for key in keys})
        fit.pixels = [] if region is None else np.flatnonzero(region_mask(region, height, width)).tolist()
        fit.initial = [] if initial is None else np.asarray(initial, np.float64).ravel().tolist()
        fit.steps, fit.rays_per_step, fit.learning_rate = steps, rays_per_step, learning_rate
        latent, _ = self.fit_latent_to(fit)
        return latent

    def export_cameras(self, path: PathLike) -> None:
        """Writes the training views' cameras, in the input's frame, as a transforms-style JSON file."""
        frames = []
        for pose, view in zip(self.cameras(), self.nerf.training.dataset.metadata, strict=True):
            matrix = np.vstack([pose.astype(np.float64), [0, 0, 0, 1]]).tolist()
            fl_x, fl_y = view.focal_length.tolist()
            # w and h are what an FTheta lens is for, too, and the principal point relates to them.
            ftheta = view.lens.mode == _core.LensMode.FTheta
            size = np.asarray(view.lens.params[5:7] if ftheta else view.resolution, np.float64)
            width, height = (int(s) if s == int(s) else s for s in size.tolist())
            cx, cy = (view.principal_point * size).tolist()
            frame = {"file_path": view.path, "transform_matrix": matrix, "w": width, "h": height}
            frame |= {"fl_x": fl_x, "fl_y": fl_y, "cx": cx, "cy": cy}
            frames.append(frame | lens_keys(view.lens))
        Path(path).write_text(json.dumps({"frames": frames}, indent=1), encoding="utf-8")
