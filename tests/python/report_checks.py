"""What every report of a training must hold (design section 7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyngp import __version__

REPORT_KEYS = {
    "version", "device", "task", "config", "seed", "steps", "train_seconds", "ms_per_step", "samples_per_step",
    "rays_per_step", "loss", "psnr", "ssim", "psnr_per_image", "background", "color_space", "n_test_images",
    "peak_host_bytes", "peak_device_bytes", "curve",
}  # fmt: skip


def check_report(path: Path, **expected: Any) -> dict[str, Any]:
    """A JSON object with the keys of design section 7."""
    report = json.loads(path.read_text())
    assert report.keys() >= REPORT_KEYS
    assert report["version"] == __version__ and report["task"] == "nerf"
    assert report["device"]["backend"] in ("cpu", "cuda") and report["device"]["name"]
    assert report["background"] == [0, 0, 0, 1] and report["color_space"] in ("Linear", "SRGB")
    assert report["peak_host_bytes"] > 1e7
    assert (report["peak_device_bytes"] > 0) == (report["device"]["backend"] == "cuda")
    for key, value in expected.items():
        assert report[key] == value, key
    return report
