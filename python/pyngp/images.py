"""Image files in and out, through Pillow: decoding in parallel, PNG, WebP and animations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Tried in this order for a path without an extension (specification C.4), as far as Pillow reads them.
EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "tga", "webp")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image as (height, width, 3 or 4) uint8, sRGB, straight alpha.

    16-bit and palette images are reduced to 8 bits a channel. Raises RuntimeError that names the file.
    """
    try:
        with Image.open(path) as image:
            alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            if image.mode.startswith("I;16") or image.mode == "I":
                grey = np.asarray(image, np.uint32) >> 8
                image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
            return np.asarray(image.convert("RGBA" if alpha else "RGB"))
    except FileNotFoundError:
        raise RuntimeError(f"{path}: no such image file") from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise RuntimeError(f"{path}: cannot be read as an image: {error}") from error


def read_images(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[NDArray[np.uint8]]:
    """Reads images in parallel, in order. `progress` is called with (done, total)."""
    workers = max(1, min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    images: list[NDArray[np.uint8]] = []
    pool = ThreadPoolExecutor(workers)
    try:
        for image in pool.map(read_image, paths):
            images.append(image)
            if progress:
                progress(len(images), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def to_bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values in [0, 1] to 8 bits, rounded."""
    return (np.clip(np.nan_to_num(values), 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def linear_to_srgb(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """sRGB transfer function (IEC 61966-2-1), elementwise; values below 0 are clipped."""
    values = np.maximum(values, 0.0)
    return np.where(values < 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def srgb_to_linear(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Inverse of linear_to_srgb."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def write_image(path: Path, srgb: NDArray[np.floating]) -> None:
    """Writes (H, W), (H, W, 3) or straight-alpha (H, W, 4) values in [0, 1]; the suffix picks the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_bytes(srgb)).save(path)


def write_animation(path: Path, frames: Iterable[NDArray[np.floating]], fps: float) -> None:
    """Writes (H, W, 3) sRGB frames as animated WebP, or as MP4 with the extra `video` (PyAV)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [to_bytes(frame) for frame in frames]
    if not pictures:
        raise RuntimeError(f"{path}: no frames to write")
    if path.suffix.lower() == ".webp":
        first, *rest = [Image.fromarray(p) for p in pictures]
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=85)
        return
    try:
        import av
    except ImportError:
        raise RuntimeError(
            f"{path}: videos need PyAV: pip install 'pyngp[video]' (or choose a name that ends in .webp)"
        ) from None
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        height, width = (s // 2 * 2 for s in pictures[0].shape[:2])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
