"""pyngp render: pictures of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from pyngp import LensMode, RenderMode, Testbed
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.dataset import LENSES_WITHOUT_FOCAL_LENGTH, Frame, Intrinsics, intrinsics_of, read_scene
from pyngp.evaluation import render_frame, render_mode_frame
from pyngp.images import check_animation, linear_to_srgb, srgb_to_linear, write_animation, write_image
from pyngp.orbit import orbit_cameras, subject_point
from pyngp.report import training_report
from pyngp.testbed import CHANNELS

ANIMATIONS = (".webp", ".mp4", ".mov", ".mkv", ".gif")
MODES = {name.lower(): mode for name, mode in RenderMode.__members__.items()}
COLOR_MODES = ("shade", "slice")  # of linear light; the others' values are written as they are
DEFAULT_SECONDS, DEFAULT_SHUTTER = 5.0, 0.5  # of a camera path
BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}


def parse_background(text: str) -> tuple[float, float, float] | None:
    """A name or sRGB values 0..1 "R,G,B"; None is transparent."""
    if text == "transparent":
        return None
    try:
        values = BACKGROUNDS.get(text) or tuple(float(v) for v in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise typer.BadParameter(f"'{text}' must be black, white, transparent or R,G,B", param_hint="--background")
    return values  # type: ignore[return-value]


def picture(
    channels: dict[str, NDArray[np.float32]], background: tuple[float, float, float] | None
) -> NDArray[np.floating]:
    """sRGB picture of rendered rgb and alpha: over a background, or with straight alpha."""
    rgb, alpha = channels["rgb"], channels["alpha"][..., None]
    if background is None:
        straight = np.divide(rgb, alpha, out=np.zeros_like(rgb), where=alpha > 1e-3)
        return np.concatenate([linear_to_srgb(straight), alpha], axis=-1)
    return linear_to_srgb(rgb + (1 - alpha) * srgb_to_linear(np.array(background)))


def mode_picture(
    channels: dict[str, NDArray[np.float32]], mode: str, background: tuple[float, float, float] | None
) -> NDArray[np.floating]:
    """Picture of a render mode: colours as picture(), values on black, depth as depth_picture()."""
    if mode in COLOR_MODES:
        return picture(channels, background)
    rgb, alpha = channels["rgb"], channels["alpha"]
    if mode == "depth":
        depth = np.divide(rgb[..., 0], alpha, out=np.full_like(alpha, np.nan), where=alpha > 1e-3)
        return np.repeat(depth_picture(depth, alpha)[..., None], 3, axis=-1)
    return rgb


def depth_picture(depth: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.floating]:
    """Grey picture, near is bright, faded by alpha; the 1st and 99th percentile of solid depths span it."""
    solid = np.isfinite(depth) & (alpha > 0.5)
    if not solid.any():
        return np.zeros(depth.shape)
    near, far = np.percentile(depth[solid], [1, 99])
    grey = 1.0 - 0.85 * np.clip((np.nan_to_num(depth) - near) / max(far - near, 1e-9), 0, 1)
    return grey * alpha


def normal_picture(normal: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.floating]:
    """Normals as colours n/2 + 1/2, faded by alpha."""
    return (0.5 * normal + 0.5) * alpha[..., None]


def write_channels(folder: Path, name: str, channels: dict[str, NDArray[np.float32]], wanted: list[str],
                   background: tuple[float, float, float] | None) -> None:  # fmt: skip
    """NAME.png (rgb), NAME_alpha.png, NAME_depth.png with NAME_depth.npy in world units, NAME_normal.png."""
    if "rgb" in wanted:
        write_image(folder / f"{name}.png", picture(channels, background))
    if "alpha" in wanted:
        write_image(folder / f"{name}_alpha.png", channels["alpha"])
    if "depth" in wanted:
        write_image(folder / f"{name}_depth.png", depth_picture(channels["depth"], channels["alpha"]))
        np.save(folder / f"{name}_depth.npy", channels["depth"])
    if "normal" in wanted:
        write_image(folder / f"{name}_normal.png", normal_picture(channels["normal"], channels["alpha"]))


def _resized(i: Intrinsics, width: int | None, height: int | None) -> Intrinsics:
    if width is None and height is None:
        return i
    sx = (width or i.width * height / i.height) / i.width  # type: ignore[operator]
    sy = (height or i.height * sx) / i.height
    size = (max(1, round(i.width * sx)), max(1, round(i.height * sy)))
    focal = (i.focal_length[0] * size[0] / i.width, i.focal_length[1] * size[1] / i.height)
    return Intrinsics(*size, focal, i.principal_point, i.lens)


def _orbit_frames(testbed: Testbed, n: int) -> Iterator[tuple[Frame, Intrinsics]]:
    data = testbed.nerf.training.dataset
    if data.n_images == 0:
        raise RuntimeError("the snapshot lists no training views to orbit between; use --views")
    view = data.metadata[0]
    width, height = view.resolution.tolist()
    focal_length = tuple(view.focal_length.tolist())
    if view.lens.mode in (*LENSES_WITHOUT_FOCAL_LENGTH, LensMode.Orthographic):
        focal_length = (width,) * 2  # the pictures are perspective: 53 degrees wide
    intrinsics = Intrinsics(width, height, focal_length, (0.5, 0.5), type(view.lens)())
    cameras = testbed.cameras()
    for i, pose in enumerate(orbit_cameras(cameras, n, subject_point(testbed, cameras))):
        matrix = np.vstack([pose, [0, 0, 0, 1]])
        yield Frame(f"{i:03d}", f"{i:03d}", Path(), matrix, {}, f"orbit view {i}"), intrinsics


def _view_frames(path: Path) -> Iterator[tuple[Frame, Intrinsics]]:
    for frame in read_scene(path, need_images=False).frames:
        size = frame.keys.get("w"), frame.keys.get("h")
        if not all(isinstance(s, (int, float)) and 1 <= s < 1e6 for s in size):
            if not frame.image_path.is_file():
                raise RuntimeError(f"{frame.source}: no picture size; give w and h in the file, or keep its image")
            from PIL import Image

            with Image.open(frame.image_path) as image:
                size = image.size
        yield frame, intrinsics_of(frame, int(size[0]), int(size[1]))  # type: ignore[arg-type]


Rendered = Iterator[tuple[str, dict[str, NDArray[np.float32]]]]


def _path_frames(testbed: Testbed, path: Path, size: tuple[int | None, int | None], spp: int, fps: float,
                 seconds: float | None, shutter: float) -> tuple[int, Rendered]:  # fmt: skip
    """Number of frames along a camera path, and their names and pictures."""
    testbed.load_camera_path(path)
    if not testbed.camera_path.keyframes:
        raise RuntimeError(f"{path}: has no keyframes")
    duration = seconds or testbed.camera_path.duration_seconds or DEFAULT_SECONDS
    n = max(1, round(duration * fps))
    views = testbed.nerf.training.dataset.metadata
    own = views[0].resolution.tolist() if views else (1920, 1080)
    width, height = size
    if width is None and height is None:
        width, height = own
    width = width or max(1, round(own[0] * height / own[1]))  # type: ignore[operator]
    height = height or max(1, round(own[1] * width / own[0]))

    def frames() -> Rendered:
        for i in range(n):
            rgba = testbed.render(width, height, spp, True, i / n, (i + 1) / n, fps, shutter)
            yield f"{i:04d}", {"rgb": rgba[..., :3], "alpha": rgba[..., 3]}

    return n, frames()


def _camera_frames(testbed: Testbed, cameras: list[tuple[Frame, Intrinsics]], mode: str | None,
                   needed: tuple[str, ...], spp: int) -> Rendered:  # fmt: skip
    for frame, intrinsics in cameras:
        name = Path(frame.name).stem if frame.image_path.name else frame.name
        if mode is not None:
            yield name, render_mode_frame(testbed, frame, intrinsics, spp)
        else:
            yield name, render_frame(testbed, frame, intrinsics, needed, spp)  # type: ignore[arg-type]


def _write(out: Path, rendered: Rendered, wanted: list[str], mode: str | None,
           fill: tuple[float, float, float] | None, fps: float, update: Callable[[int], None]) -> None:  # fmt: skip
    """An animation, or pictures in a folder; made one by one."""

    def pictures() -> Iterator[NDArray[np.floating]]:
        for i, (_, made) in enumerate(rendered):
            yield mode_picture(made, mode or "shade", fill or (0.0, 0.0, 0.0))
            update(i + 1)

    if out.suffix.lower() in ANIMATIONS:
        write_animation(out, pictures(), fps)
        return
    for i, (name, made) in enumerate(rendered):
        if mode is not None:
            write_image(out / f"{name}.png", mode_picture(made, mode, fill))
        else:
            write_channels(out, name, made, wanted, fill)
        update(i + 1)


def render(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot (.ingp)", show_default=False)],
    views: Annotated[Path | None, typer.Option("--views", metavar="JSON", help="Cameras, as a transforms file")] = None,
    path: Annotated[Path | None, typer.Option("--path", metavar="JSON", help="Camera path (camera_path.json)")] = None,
    orbit: Annotated[int | None, typer.Option("--orbit", min=1, help="N cameras around the scene")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder, or an animation (.webp, .mp4)")] = Path("renders"),
    channels: Annotated[str, typer.Option("--channels", help="Of rgb,alpha,depth,normal")] = "rgb",
    mode: Annotated[str | None, typer.Option("--mode", help=f"Instead of channels: {', '.join(MODES)}")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Picture width [default: the views']")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1)] = None,
    spp: Annotated[int, typer.Option("--spp", min=1, help="Samples per pixel")] = 1,
    background: Annotated[str, typer.Option("--background", help="black, white, transparent or R,G,B")] = "black",
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Of an animation")] = 24.0,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0.01, help="Of --path [default: its own]")] = None,
    shutter: Annotated[
        float, typer.Option("--shutter", min=0, max=1, help="Share of a frame's time that --path is blurred over")
    ] = DEFAULT_SHUTTER,
    smooth: Annotated[bool, typer.Option("--smooth", help="Smooth the camera of --path")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Render pictures: NAME.png, NAME_alpha.png, NAME_depth.png with .npy in world units, NAME_normal.png.

    Along a camera path, a video, or pictures 0000.png, 0001.png, …
    """
    output = Output(quiet)
    wanted = [c.strip() for c in channels.split(",") if c.strip()]
    for channel in wanted:
        if channel not in CHANNELS:
            raise typer.BadParameter(f"'{channel}' is not one of {', '.join(CHANNELS)}", param_hint="--channels")
    if sum(source is not None for source in (views, path, orbit)) != 1:
        raise typer.BadParameter("give one of --views, --path and --orbit", param_hint="--views / --path / --orbit")
    if mode is not None and mode not in MODES:
        raise typer.BadParameter(f"'{mode}' is not one of {', '.join(MODES)}", param_hint="--mode")
    if wanted != ["rgb"] and (mode is not None or path is not None):
        raise typer.BadParameter("--mode and --path render colours only", param_hint="--channels")
    if out.suffix.lower() in ANIMATIONS:
        check_animation(out)
    fill = parse_background(background)
    testbed = Testbed(device=device, seed=seed)
    testbed.load_snapshot(snapshot)
    testbed.nerf.render_min_transmittance = 1e-4
    testbed.background_color = [0, 0, 0, 0]
    testbed.camera_smoothing = smooth
    testbed.render_mode = MODES[mode or "shade"]
    if mode == "slice":  # through the middle of the scene, whatever the camera
        testbed.autofocus, testbed.autofocus_target = True, [0.5, 0.5, 0.5]
    if path is not None:
        n, rendered = _path_frames(testbed, path, (width, height), spp, fps, seconds, shutter)
    else:
        cameras = list(_orbit_frames(testbed, orbit) if orbit is not None else _view_frames(views))  # type: ignore[arg-type]
        cameras = [(frame, _resized(intrinsics, width, height)) for frame, intrinsics in cameras]
        n = len(cameras)
        needed = tuple(dict.fromkeys(["rgb", "alpha", *wanted]))
        rendered = _camera_frames(testbed, cameras, mode, needed, spp)
    with output.progress("rendering", n) as update:
        _write(out, rendered, wanted, mode, fill, fps, update)
    output.say(f"{n} views rendered to {out}")
    output.report(report, training_report(testbed, "snapshot", seed))
