"""pyngp render: pictures of a snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from pyngp import LensMode, Testbed
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.dataset import LENSES_WITHOUT_FOCAL_LENGTH, Frame, Intrinsics, intrinsics_of, read_scene
from pyngp.evaluation import render_frame
from pyngp.images import linear_to_srgb, srgb_to_linear, write_animation, write_image
from pyngp.orbit import orbit_cameras, subject_point
from pyngp.report import training_report
from pyngp.testbed import CHANNELS

ANIMATIONS = (".webp", ".mp4", ".mov", ".mkv", ".gif")
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


def render(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot (.ingp)", show_default=False)],
    views: Annotated[Path | None, typer.Option("--views", metavar="JSON", help="Cameras, as a transforms file")] = None,
    orbit: Annotated[int | None, typer.Option("--orbit", min=1, help="N cameras around the scene")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder, or an animation (.webp, .mp4)")] = Path("renders"),
    channels: Annotated[str, typer.Option("--channels", help="Of rgb,alpha,depth,normal")] = "rgb",
    width: Annotated[int | None, typer.Option("--width", min=1, help="Picture width [default: the views']")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1)] = None,
    spp: Annotated[int, typer.Option("--spp", min=1, help="Samples per pixel")] = 1,
    background: Annotated[str, typer.Option("--background", help="black, white, transparent or R,G,B")] = "black",
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Of an animation")] = 24.0,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Render pictures: NAME.png, NAME_alpha.png, NAME_depth.png with .npy in world units, NAME_normal.png."""
    output = Output(quiet)
    wanted = [c.strip() for c in channels.split(",") if c.strip()]
    for channel in wanted:
        if channel not in CHANNELS:
            raise typer.BadParameter(f"'{channel}' is not one of {', '.join(CHANNELS)}", param_hint="--channels")
    if (views is None) == (orbit is None):
        raise typer.BadParameter("give one of --views and --orbit", param_hint="--views / --orbit")
    animated = out.suffix.lower() in ANIMATIONS
    fill = parse_background(background)
    testbed = Testbed(device=device, seed=seed)
    testbed.load_snapshot(snapshot)
    testbed.nerf.render_min_transmittance = 1e-4
    cameras = list(_orbit_frames(testbed, orbit) if orbit is not None else _view_frames(views))  # type: ignore[arg-type]
    needed = tuple(dict.fromkeys(["rgb", "alpha", *wanted]))
    pictures = []
    with output.progress("rendering", len(cameras)) as update:
        for i, (frame, intrinsics) in enumerate(cameras):
            rendered = render_frame(testbed, frame, _resized(intrinsics, width, height), needed, spp)  # type: ignore[arg-type]
            if animated:
                pictures.append(picture(rendered, fill or (0.0, 0.0, 0.0)))
            else:
                name = frame.name if orbit is not None else Path(frame.name).stem
                write_channels(out, name, rendered, wanted, fill)
            update(i + 1)
    if animated:
        write_animation(out, pictures, fps)
    output.say(f"{len(cameras)} views rendered to {out}")
    output.report(report, training_report(testbed, "snapshot", seed))
