"""Image quality: PSNR and SSIM as instant-ngp's evaluation computes them (specification B, design section 7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.floating]
Mask = NDArray[np.bool_]  # (H,W), True: left out

_BLUR = np.array([0.120078, 0.233881, 0.292082, 0.233881, 0.120078])
_LEAST_ERROR = 1e-20  # identical images have 200 dB
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def psnr(prediction: FloatImage, reference: FloatImage, mask: Mask | None = None) -> float:
    """-10 log10(mean squared error) of (H,W,3) sRGB values, both clipped to [0, 1]; NaN if all is masked."""
    difference = np.clip(prediction, 0, 1).astype(np.float64) - np.clip(reference, 0, 1)
    if mask is not None:
        difference = difference[~mask]
        if difference.size == 0:
            return float("nan")
    return float(-10 * np.log10(max(float(np.mean(difference**2)), _LEAST_ERROR)))


def _blur(image: FloatImage) -> FloatImage:
    for axis in (0, 1):
        padded = np.pad(image, [(2, 2) if a == axis else (0, 0) for a in (0, 1)], mode="symmetric")
        n = image.shape[axis]
        shifted = [np.take(padded, range(i, i + n), axis) for i in range(len(_BLUR))]
        image = np.tensordot(_BLUR, np.stack(shifted), 1)
    return image


def ssim(prediction: FloatImage, reference: FloatImage, mask: Mask | None = None) -> float:
    """Mean structural similarity of the Rec. 709 luminance of (H,W,3) sRGB values; 5-tap window.

    Masked pixels don't count, and windows see black there; NaN if all is masked.
    """
    if mask is not None:
        prediction, reference = (np.where(mask[..., None], 0, image) for image in (prediction, reference))
    a, b = (np.clip(image, 0, 1).astype(np.float64) @ _LUMINANCE for image in (prediction, reference))
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    if mask is not None and mask.all():
        return float("nan")
    return float(np.mean(similarity if mask is None else similarity[~mask]))
