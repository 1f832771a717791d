"""Image files in and out, through Pillow: decoding in parallel, PNG, WebP and animations."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Tried in this order for a path without an extension: those of specification C.4 that Pillow and OpenEXR read.
EXTENSIONS = ("png", "jpg", "jpeg", "bmp", "gif", "tga", "pnm", "psd", "exr", "webp")

# Of an image: uint8 sRGB, or floating linear.
Pixels = NDArray[np.uint8] | NDArray[np.floating]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def _with_one_idat(png: bytes) -> bytes:
    """The same PNG with its pixels in one chunk instead of many of 8 KiB; anything unusual comes back unchanged.

    Pillow reads and decodes chunk by chunk and takes the GIL for each, which costs many threads more than decoding.
    """
    view, at, parts, first = memoryview(png), len(_PNG_SIGNATURE), [], 0
    while at + 12 <= len(png):
        end = at + 8 + int.from_bytes(view[at : at + 4], "big")
        if view[at + 4 : at + 8] == b"IDAT":
            first = first or at
            parts.append(view[at + 8 : end])
        elif parts:
            break
        at = end + 4  # past the checksum
    if len(parts) < 2 or at > len(png):
        return png
    body = b"".join([b"IDAT", *parts])
    length, checksum = (len(body) - 4).to_bytes(4, "big"), zlib.crc32(body).to_bytes(4, "big")
    return b"".join([view[:first], length, body, checksum, view[at:]])


def _loaded_in_place(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an RGBA image that is not loaded yet; Pillow decodes straight into the array, without copies."""
    pixels = np.zeros((image.height, image.width, 4), np.uint8)
    target = Image.frombuffer("RGBA", image.size, pixels, "raw", "RGBA", 0, 1).im
    image.im = target
    image.load()
    return pixels if image.im is target else np.asarray(image)


def _decoded(data: bytes) -> NDArray[np.uint8]:
    is_png = data.startswith(_PNG_SIGNATURE)
    with Image.open(io.BytesIO(_with_one_idat(data) if is_png else data)) as file:
        file.decodermaxblock = max(file.decodermaxblock, len(data))  # all in one call, as above
        image: Image.Image = file
        if is_png and image.mode == "RGBA":
            return _loaded_in_place(image)
        alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if image.mode.startswith("I;16") or image.mode == "I":
            grey = np.asarray(image, np.uint32) >> 8
            image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
        mode = "RGBA" if alpha else "RGB"
        return np.asarray(image if image.mode == mode else image.convert(mode))


def read_image(path: Path) -> NDArray[np.uint8]:
    """Reads an image as (height, width, 3 or 4) uint8, sRGB, straight alpha.

    Palette images become RGB, and of 16-bit channels the upper 8 bits are kept, as in instant-ngp: training images stay
    a quarter of what floats would take. (EXR is for more.) Raises RuntimeError that names the file.
    """
    try:
        # At once: Pillow would read and seek a few hundred times, and each call switches threads.
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        return _decoded(data)
    except FileNotFoundError:
        raise RuntimeError(f"{path}: no such image file") from None
    except UnidentifiedImageError:
        if data.startswith(b"#?"):
            raise RuntimeError(f"{path}: Radiance images (.hdr) can't be read; convert it to OpenEXR (.exr)") from None
        # Pillow's message names the buffer instead of the file.
        raise RuntimeError(f"{path}: cannot be read as an image: cannot identify image file {str(path)!r}") from None
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise RuntimeError(f"{path}: cannot be read as an image: {error}") from error


Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


@contextmanager
def reader_threads(read: Callable[[Item], Loaded]) -> Iterator[Callable[[Item], Future[Loaded]]]:
    """Threads for `read`. What they have not begun when the block ends, if by Ctrl-C, is not done."""
    workers = max(1, min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    pool = ThreadPoolExecutor(workers)
    try:
        yield lambda item: pool.submit(read, item)
    finally:
        pool.shutdown(cancel_futures=True)


def gather(pictures: Sequence[Future[Loaded]], progress: Callable[[int, int], None] | None = None) -> list[Loaded]:
    """Waits for images in order. `progress` is called with (done, total)."""
    images: list[Loaded] = []
    for picture in pictures:
        images.append(picture.result())
        if progress:
            progress(len(images), len(pictures))
    return images


def read_images(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> list[NDArray[np.uint8]]:
    """Reads images in parallel, in order. `progress` is called with (done, total)."""
    with reader_threads(read_image) as read:
        return gather([read(path) for path in paths], progress)


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


def check_animation(path: Path) -> None:
    """Raises RuntimeError, before any work is done, if write_animation() can't write such a file here."""
    if path.suffix.lower() != ".webp" and find_spec("av") is None:
        raise RuntimeError(
            f"{path}: videos need PyAV: pip install 'pyngp[video]' (or choose a name that ends in .webp, or a folder "
            "for single pictures)"
        )


def write_animation(path: Path, frames: Iterable[NDArray[np.floating]], fps: float) -> None:
    """Writes (H, W, 3) sRGB frames as animated WebP, or as MP4 with the extra `video` (PyAV): one by one."""
    check_animation(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = (to_bytes(frame) for frame in frames)
    first = next(pictures, None)
    if first is None:
        raise RuntimeError(f"{path}: no frames to write")
    if path.suffix.lower() == ".webp":
        rest = [Image.fromarray(p) for p in pictures]
        Image.fromarray(first).save(
            path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=85
        )
        return
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        height, width = (s // 2 * 2 for s in first.shape[:2])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in chain([first], pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
