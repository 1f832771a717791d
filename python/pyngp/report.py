"""Reports: one JSON object with stable keys for each run of a command (design section 7)."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyngp.devices import device_name

if TYPE_CHECKING:
    from pyngp.evaluation import Evaluation
    from pyngp.testbed import Testbed

_IMPORTED = time.time()


def process_seconds() -> float:
    """Seconds since this process started."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.time() - _IMPORTED


def peak_host_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def training_report(testbed: Testbed, config: str, seed: int) -> dict[str, Any]:
    """What a training run can say of itself; evaluation keys are null until add_evaluation().

    `steps` are those of `train_seconds`, this run's; of a snapshot that was only loaded, all that it was trained for.
    """
    from pyngp import __version__

    stats = testbed.stats()
    steps, seconds = stats["steps"], stats["train_seconds"]
    return {
        "version": __version__,
        "device": {"name": device_name(testbed.device), "backend": testbed.device.split(":")[0]},
        "task": "nerf",
        "config": config,
        "seed": seed,
        "steps": steps or testbed.training_step,
        "training_step": testbed.training_step,
        "train_seconds": seconds,
        "ms_per_step": 1000 * seconds / steps if steps else None,
        "samples_per_step": stats["samples_per_step"],
        "rays_per_step": stats["rays_per_step"],
        "loss": testbed.loss,
        "psnr": None,
        "ssim": None,
        "psnr_per_image": None,
        "background": [0, 0, 0, 1],
        "color_space": testbed.color_space.name,
        "n_test_images": 0,
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": stats["peak_device_bytes"],
        "curve": [],
    }


def add_evaluation(report: dict[str, Any], evaluation: Evaluation) -> None:
    report.update(
        psnr=evaluation.psnr,
        ssim=evaluation.ssim,
        psnr_per_image=evaluation.psnr_per_image,
        n_test_images=len(evaluation.psnr_per_image),
    )


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
