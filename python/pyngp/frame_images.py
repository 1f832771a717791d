"""A training view's image with what lies beside it: alpha, mask, depth map and rays (specification C.2, C.4)."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import isfile  # unlike Path's, it takes names that no file can have
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pyngp.exr import read_exr
from pyngp.images import Pixels, read_image, srgb_to_linear, to_bytes

# RGBA of a pixel that is masked in the image itself.
MASKED = (255, 0, 255, 0)
RAY_FLOATS = 6

_LINEAR = srgb_to_linear(np.arange(256) / 255.0).astype(np.float32)


@dataclass
class ImageFiles:
    """Where a view's image comes from, and how it is read. Files that do not exist are left out but for depth."""

    image: Path
    alpha: Path
    mask: Path
    rays: Path | None = None
    depth: Path | None = None
    white_transparent: bool = False
    black_transparent: bool = False
    straight_exr: bool = False  # fix_premult
    sharpen: float = 0.0

    @staticmethod
    def of(image: Path, as_written: Path) -> ImageFiles:
        """By the names of C.4; `as_written`: the image's path as the transforms file has it."""
        return ImageFiles(
            image,
            Path(f"{as_written}.alpha{image.suffix}"),
            image.parent / f"dynamic_mask_{image.stem}.png",
        )


@dataclass
class LoadedImage:
    """Arrays of one size, as _core.TrainingImage takes them."""

    pixels: Pixels  # (H,W,3|4): uint8 sRGB, else linear
    premultiplied: bool = False
    is_hdr: bool = False
    mask: NDArray[np.bool_] | None = None  # (H,W), True: left out
    depth: NDArray[np.uint16] | None = None  # (H,W), as stored in the file
    rays: NDArray[np.float32] | None = None  # (H,W,6), as stored in the file


def _expect_size(path: Path, shape: tuple[int, ...], files: ImageFiles, wanted: tuple[int, ...]) -> None:
    if shape[:2] != wanted[:2]:
        raise RuntimeError(
            f"{path}: is {shape[1]}x{shape[0]} pixels, but its image {files.image.name} is {wanted[1]}x{wanted[0]}"
        )


def _with_alpha_file(pixels: NDArray[np.uint8], files: ImageFiles) -> NDArray[np.uint8]:
    sidecar = read_image(files.alpha)
    _expect_size(files.alpha, sidecar.shape, files, pixels.shape)
    return np.dstack([pixels[..., :3], to_bytes(_LINEAR[sidecar[..., 0]])])


def _with_transparency(pixels: NDArray[np.uint8], files: ImageFiles) -> NDArray[np.uint8]:
    """Alpha 0 where the colour is exactly white, or black."""
    clear = np.zeros(pixels.shape[:2], bool)
    for wanted, value in ((files.white_transparent, 255), (files.black_transparent, 0)):
        if wanted:
            clear |= (pixels[..., :3] == value).all(-1)
    if not clear.any():
        return pixels
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else np.full(pixels.shape[:2], 255, np.uint8)
    return np.dstack([pixels[..., :3], np.where(clear, 0, alpha).astype(np.uint8)])


def _read_mask(files: ImageFiles, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = read_image(files.mask)
    _expect_size(files.mask, mask.shape, files, shape)
    return (mask[..., :3] != 0).any(-1)


def _masked_in_place(pixels: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    if pixels.shape[2] < 4:
        return None
    as_words = np.ascontiguousarray(pixels).view(np.uint32)[..., 0]
    mask = as_words == np.array(MASKED, np.uint8).view(np.uint32)
    return mask if mask.any() else None


def read_depth(path: Path) -> NDArray[np.uint16]:
    """(H,W) raw values of a 16-bit image with one channel. Raises RuntimeError that names the file."""
    try:
        with Image.open(path) as image:
            if not image.mode.startswith("I;16") and image.mode != "I":
                raise RuntimeError(
                    f"{path}: a depth map must be a 16-bit image with one channel, not of mode {image.mode}"
                )
            values = np.asarray(image).astype(np.int64)
    except FileNotFoundError:
        raise RuntimeError(f"{path}: no such depth map") from None
    except UnidentifiedImageError:
        raise RuntimeError(f"{path}: cannot be read as a depth map: it is no image that Pillow knows") from None
    except RuntimeError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise RuntimeError(f"{path}: cannot be read as a depth map: {error}") from error
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise RuntimeError(f"{path}: holds depths beyond 16 bits")
    return values.astype(np.uint16)


def read_rays(path: Path, width: int, height: int) -> NDArray[np.float32]:
    """(H,W,6): origins and directions of a ray file, as they are there. Raises RuntimeError that names the file."""
    size, wanted = path.stat().st_size, 4 * RAY_FLOATS * width * height
    if size != wanted:
        raise RuntimeError(
            f"{path}: has {size} bytes; rays of {width}x{height} pixels, 24 bytes each, would be {wanted}"
        )
    rays = np.fromfile(path, "<f4").reshape(height, width, RAY_FLOATS)
    if not np.isfinite(rays).all():
        raise RuntimeError(f"{path}: holds values that are not finite")
    return rays.astype(np.float32, copy=False)


def linear_premultiplied(image: LoadedImage) -> NDArray[np.float32]:
    """(H,W,4) float32: linear light premultiplied by alpha, and alpha."""
    pixels = image.pixels
    is_bytes = pixels.dtype == np.uint8
    rgb = _LINEAR[pixels[..., :3]] if is_bytes else pixels[..., :3].astype(np.float32)
    if pixels.shape[2] < 4:
        return np.concatenate([rgb, np.ones((*rgb.shape[:2], 1), np.float32)], axis=-1)
    alpha = pixels[..., 3:].astype(np.float32) / np.float32(255 if is_bytes else 1)
    return np.concatenate([rgb if image.premultiplied else rgb * alpha, alpha], axis=-1)


def sharpened(image: LoadedImage, amount: float) -> NDArray[np.floating]:
    """(H,W,4) linear, premultiplied, as halves: amount * ((4 + 1/amount) * pixel - its 4 neighbours), at least 0 (C.4).

    As in instant-ngp, rows are one after the other: beside the first pixel of a row lies the last one of the row
    before. Beyond the first and the last pixel, and where a neighbour is masked, stands the pixel itself, so that
    nothing masked is seen; and alpha is at most 1.
    """
    pixels = linear_premultiplied(image)
    height, width = pixels.shape[:2]
    flat = pixels.reshape(-1, 4)
    own = np.arange(len(flat))
    total = np.zeros_like(flat)
    for step in (-1, 1, -width, width):
        other = own + step
        outside = (other < 0) | (other >= len(flat))
        other[outside] = own[outside]
        if image.mask is not None:
            other = np.where(image.mask.reshape(-1)[other], own, other)
        total += flat[other]
    result = np.maximum((4 * np.float32(amount) + 1) * flat - np.float32(amount) * total, 0)
    result[:, 3] = np.minimum(result[:, 3], 1)
    return result.reshape(height, width, 4).clip(max=65504).astype(np.float16)


def load_image(files: ImageFiles) -> LoadedImage:
    """Reads a view's image and everything beside it. Raises RuntimeError that names the file at fault."""
    if files.image.suffix.lower() == ".exr":
        image = LoadedImage(read_exr(files.image), premultiplied=not files.straight_exr, is_hdr=True)
    else:
        pixels = read_image(files.image)
        if isfile(files.alpha):
            pixels = _with_alpha_file(pixels, files)
        image = LoadedImage(pixels, mask=_masked_in_place(pixels))
        if files.white_transparent or files.black_transparent:
            image.pixels = _with_transparency(pixels, files)
    height, width = image.pixels.shape[:2]
    if isfile(files.mask):
        mask = _read_mask(files, image.pixels.shape)
        image.mask = mask if image.mask is None else mask | image.mask
    if files.depth is not None:
        image.depth = read_depth(files.depth)
        _expect_size(files.depth, image.depth.shape, files, image.pixels.shape)
    if files.rays is not None and isfile(files.rays):
        image.rays = read_rays(files.rays, width, height)
    if files.sharpen > 0:
        image.pixels, image.premultiplied = sharpened(image, files.sharpen), True
    return image
