"""Rendering test views and measuring them against their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyngp.dataset import Frame, Intrinsics, light_direction_of, load_images
from pyngp.images import Pixels, linear_to_srgb
from pyngp.metrics import psnr, ssim
from pyngp.testbed import CHANNELS, Channel, Region, Testbed, region_mask

EVALUATION_MIN_TRANSMITTANCE = 1e-4


@dataclass
class Evaluation:
    """Quality of rendered test views on opaque black."""

    psnr_per_image: dict[str, float] = field(default_factory=dict)
    ssim_per_image: dict[str, float] = field(default_factory=dict)

    @property
    def psnr(self) -> float:
        """Mean over images of the PSNR of each; those that are masked all over don't count."""
        return float(np.nanmean(list(self.psnr_per_image.values())))

    @property
    def ssim(self) -> float:
        return float(np.nanmean(list(self.ssim_per_image.values())))


@contextmanager
def evaluation_settings(testbed: Testbed) -> Iterator[None]:
    """One ray through each pixel centre, followed until 1e-4 shines through; restored afterwards."""
    snap, least = testbed.snap_to_pixel_centers, testbed.nerf.render_min_transmittance
    testbed.snap_to_pixel_centers = True
    testbed.nerf.render_min_transmittance = EVALUATION_MIN_TRANSMITTANCE
    try:
        yield
    finally:
        testbed.snap_to_pixel_centers = snap
        testbed.nerf.render_min_transmittance = least


def render_frame(
    testbed: Testbed,
    frame: Frame,
    intrinsics: Intrinsics,
    channels: Sequence[Channel] = CHANNELS,
    spp: int = 1,
    latent: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Renders a frame's camera with its own lens, in its own light if the model knows about lights."""
    width, height = intrinsics.width, intrinsics.height
    (fl_x, fl_y), (cx, cy) = intrinsics.focal_length, intrinsics.principal_point
    has_lights = testbed.nerf.training.dataset.has_light_dirs
    light = light_direction_of(frame) if has_lights and latent is None else None
    return testbed.render_channels(
        frame.camera_to_world[:3], width, height,
        intrinsics=(fl_x, fl_y, cx * width, cy * height), lens=intrinsics.lens, channels=channels, spp=spp,
        latent=latent, light_direction=light,
    )  # fmt: skip


def render_mode_frame(
    testbed: Testbed, frame: Frame, intrinsics: Intrinsics, spp: int = 1
) -> dict[str, NDArray[np.float32]]:
    """rgb and alpha of a frame's camera in the Testbed's render_mode, with its own lens; moves the render camera."""
    testbed.set_nerf_camera_matrix(frame.camera_to_world[:3])
    testbed.fov_axis, testbed.zoom = 0, 1.0
    testbed.relative_focal_length = np.asarray(intrinsics.focal_length) / intrinsics.width
    testbed.screen_center = 1 - np.asarray(intrinsics.principal_point)
    testbed.render_lens = intrinsics.lens
    rgba = testbed.render(intrinsics.width, intrinsics.height, spp, True)
    return {"rgb": rgba[..., :3], "alpha": rgba[..., 3]}


def fit_frame(testbed: Testbed, frame: Frame, image: Pixels, region: Region) -> NDArray[np.float32]:
    """The latent with which the field looks most like that part of a frame's image."""
    i = frame.intrinsics
    assert i is not None
    (fl_x, fl_y), (cx, cy) = i.focal_length, i.principal_point
    intrinsics = (fl_x, fl_y, cx * i.width, cy * i.height)
    pose = frame.camera_to_world[:3]
    return testbed.fit_latent(image, pose, intrinsics=intrinsics, lens=i.lens, region=region)


def on_black(pixels: Pixels, premultiplied: bool = False) -> NDArray[np.floating]:
    """Reference picture, (H,W,3) sRGB: the file's sRGB value times its alpha; for linear files, encoded after that."""
    if pixels.dtype != np.uint8:
        linear = pixels.astype(np.float64)
        straight = pixels.shape[-1] == 4 and not premultiplied
        return linear_to_srgb(linear[..., :3] * linear[..., 3:] if straight else linear[..., :3])
    rgb = pixels[..., :3] / 255.0
    return rgb * (pixels[..., 3:] / 255.0) if pixels.shape[-1] == 4 else rgb


def evaluate(
    testbed: Testbed,
    frames: Sequence[Frame],
    images: Sequence[Pixels] | None = None,
    *,
    on_view: Callable[[Frame, dict[str, NDArray[np.float32]]], None] | None = None,
    channels: Sequence[Channel] = ("rgb",),
    progress: Callable[[int, int], None] | None = None,
    fit_latents: Region | None = None,
) -> Evaluation:
    """Renders every frame through its own lens and compares with its image (design section 7).

    Masked pixels don't count. on_view gets each frame and its rendered channels. fit_latents: half of each image that a
    latent is fitted to first (Testbed.fit_latent); the other half alone is compared then, as is usual for models with
    per-image appearances.
    """
    images = load_images(frames) if images is None else images
    result = Evaluation()
    with evaluation_settings(testbed):
        for i, (frame, image) in enumerate(zip(frames, images, strict=True)):
            assert frame.intrinsics is not None
            latent = None if fit_latents is None else fit_frame(testbed, frame, image, fit_latents)
            rendered = render_frame(testbed, frame, frame.intrinsics, channels, latent=latent)
            prediction, reference = linear_to_srgb(rendered["rgb"]), on_black(image, frame.premultiplied)
            mask = frame.mask
            if fit_latents is not None:
                rows, columns = np.nonzero(~region_mask(fit_latents, *image.shape[:2]))
                other = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                prediction, reference = prediction[other], reference[other]
                mask = None if mask is None else mask[other]
            result.psnr_per_image[frame.file_path] = psnr(prediction, reference, mask)
            result.ssim_per_image[frame.file_path] = ssim(prediction, reference, mask)
            if on_view:
                on_view(frame, rendered)
            if progress:
                progress(i + 1, len(frames))
    return result
