"""OpenEXR images, through the package OpenEXR (extra `exr`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_HALF = 65504.0
_COLOURS = ("R", "G", "B")
_KINDS = (np.dtype(np.float16), np.dtype(np.float32))


def as_stored(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """float16 where that holds the values, else float32; what instant-ngp keeps as halves, it would clip."""
    if values.dtype == np.float16 or np.abs(values).max(initial=0) > LARGEST_HALF:
        return values
    return values.astype(np.float16)


def _channels(path: Path) -> dict[str, NDArray[Any]]:
    try:
        import OpenEXR
    except ImportError:
        raise RuntimeError(f"{path}: EXR images need OpenEXR: pip install 'pyngp[exr]'") from None
    if not path.exists():
        raise RuntimeError(f"{path}: no such image file")
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            if not file.parts:  # OpenEXR leaves out parts that it can't decode
                raise ValueError("its pixels are damaged, or compressed in an unknown way")
            return {name: channel.pixels for name, channel in file.channels().items()}
    except Exception as error:  # OpenEXR raises many kinds for damaged files
        message = " ".join(str(error).split())
        raise RuntimeError(f"{path}: cannot be read as an OpenEXR image: {message}") from error


def read_exr(path: Path) -> NDArray[np.floating]:
    """Reads R, G, B (or Y) and A of an image's first part: (height, width, 3 or 4) linear, as the file has them.

    float16, or float32 for values that halves can't hold. By OpenEXR's convention, colours are premultiplied by alpha.
    Raises RuntimeError that names the file, for other channels, sizes and types than those, and without the extra.
    """
    channels = _channels(path)
    names = _COLOURS if all(name in channels for name in _COLOURS) else ("Y",) * 3 if "Y" in channels else ()
    if not names:
        listed = ", ".join(sorted(channels)) or "none"
        raise RuntimeError(f"{path}: has no channels R, G and B, nor Y; its channels are {listed}")
    planes = [channels[name] for name in (*names, *(("A",) if "A" in channels else ()))]
    if len({(plane.shape, plane.dtype) for plane in planes}) > 1:
        raise RuntimeError(f"{path}: its channels must have the same type and size")
    if planes[0].dtype not in _KINDS:
        raise RuntimeError(f"{path}: its channels are {planes[0].dtype}; they must be half or float")
    pixels = np.stack(planes, axis=-1)
    if not np.isfinite(pixels).all():
        raise RuntimeError(f"{path}: holds values that are not finite")
    return as_stored(pixels)
