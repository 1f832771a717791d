"""Rendering test views and measuring them against their images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyngp.dataset import Frame, Intrinsics, load_images
from pyngp.images import linear_to_srgb
from pyngp.metrics import psnr, ssim
from pyngp.testbed import CHANNELS, Channel, Testbed

EVALUATION_MIN_TRANSMITTANCE = 1e-4


@dataclass
class Evaluation:
    """Quality of rendered test views on opaque black."""

    psnr_per_image: dict[str, float] = field(default_factory=dict)
    ssim_per_image: dict[str, float] = field(default_factory=dict)

    @property
    def psnr(self) -> float:
        """Mean over images of the PSNR of each."""
        return float(np.mean(list(self.psnr_per_image.values())))

    @property
    def ssim(self) -> float:
        return float(np.mean(list(self.ssim_per_image.values())))


@contextmanager
def evaluation_settings(testbed: Testbed) -> Iterator[None]:
    """One ray through each pixel centre, followed until 1e-4 shines through; restored afterwards.

    Test views are taken to have the training views' lens, with what was learned about its distortion.
    """
    snap, least = testbed.snap_to_pixel_centers, testbed.nerf.render_min_transmittance
    bent = testbed.render_with_lens_distortion
    testbed.snap_to_pixel_centers = testbed.render_with_lens_distortion = True
    testbed.nerf.render_min_transmittance = EVALUATION_MIN_TRANSMITTANCE
    try:
        yield
    finally:
        testbed.snap_to_pixel_centers = snap
        testbed.nerf.render_min_transmittance = least
        testbed.render_with_lens_distortion = bent


def render_frame(
    testbed: Testbed,
    frame: Frame,
    intrinsics: Intrinsics,
    channels: Sequence[Channel] = CHANNELS,
    spp: int = 1,
) -> dict[str, NDArray[np.float32]]:
    """Renders a frame's camera with its own lens."""
    width, height = intrinsics.width, intrinsics.height
    (fl_x, fl_y), (cx, cy) = intrinsics.focal_length, intrinsics.principal_point
    return testbed.render_channels(
        frame.camera_to_world[:3], width, height,
        intrinsics=(fl_x, fl_y, cx * width, cy * height), lens=intrinsics.lens, channels=channels, spp=spp,
    )  # fmt: skip


def on_black(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
    """Reference picture: the file's sRGB value times its alpha, (H,W,3) in [0, 1]."""
    rgb = pixels[..., :3] / 255.0
    return rgb * (pixels[..., 3:] / 255.0) if pixels.shape[-1] == 4 else rgb


def evaluate(
    testbed: Testbed,
    frames: Sequence[Frame],
    images: Sequence[NDArray[np.uint8]] | None = None,
    *,
    on_view: Callable[[Frame, dict[str, NDArray[np.float32]]], None] | None = None,
    channels: Sequence[Channel] = ("rgb",),
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Renders every frame through its own lens and compares with its image (design section 7).

    on_view gets each frame and its rendered channels.
    """
    images = load_images(frames) if images is None else images
    result = Evaluation()
    with evaluation_settings(testbed):
        for i, (frame, image) in enumerate(zip(frames, images, strict=True)):
            assert frame.intrinsics is not None
            rendered = render_frame(testbed, frame, frame.intrinsics, channels)
            prediction, reference = linear_to_srgb(rendered["rgb"]), on_black(image)
            result.psnr_per_image[frame.file_path] = psnr(prediction, reference)
            result.ssim_per_image[frame.file_path] = ssim(prediction, reference)
            if on_view:
                on_view(frame, rendered)
            if progress:
                progress(i + 1, len(frames))
    return result
