"""Training images that are given as arrays: checks, and what the library takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyngp import _core

# One array an image, or None for images without one; or a single array (N, …).
OneAnImage = Sequence[ArrayLike | None] | NDArray[Any] | None


def one_an_image(values: OneAnImage, name: str, n: int) -> list[Any]:
    """n arrays, or None. Raises ValueError for another number, and for arrays on a device."""
    if values is None:
        return [None] * n
    if _core.is_device_array(values) or any(_core.is_device_array(v) for v in values if v is not None):
        raise ValueError(f"{name} must lie in host memory, as NumPy arrays")
    if len(values) != n:
        raise ValueError(f"{name} must be one an image: {n}, not {len(values)}")
    return list(values)


def _checked_pixels(picture: Any, name: str) -> Any:
    if picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.size == 0:
        raise ValueError(f"{name} must have shape (height, width, 3 or 4), not {picture.shape}")
    if isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
        if not np.issubdtype(picture.dtype, np.floating):
            raise ValueError(f"{name} is {picture.dtype}; it must be uint8 (sRGB) or float (linear)")
        picture = np.ascontiguousarray(picture, np.float32)
        if not np.isfinite(picture).all():
            raise ValueError(f"{name} holds values that are not finite")
    return picture


def _checked_mask(mask: Any, name: str) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise ValueError(f"{name}: the mask is {mask.dtype}; it must be bool, True for pixels to leave out")
    return mask


def _checked_depth(depth: Any, name: str) -> NDArray[np.float32] | None:
    if depth is None:
        return None
    depth = np.asarray(depth)
    if not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(f"{name}: the depth map is {depth.dtype}; it must be float, in world units")
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def training_image(picture: Any, mask: Any, depth: Any, scale: float, name: str) -> _core.TrainingImage:
    """A view's image from arrays; `scale`: NGP units in a unit of depth. Raises ValueError that begins with `name`."""
    return _core.TrainingImage(
        _checked_pixels(picture, name),
        mask=_checked_mask(mask, name),
        depth=_checked_depth(depth, name),
        depth_scale=scale if depth is not None else 1.0,
        name=name,
    )
