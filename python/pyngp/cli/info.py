"""pyngp info: what is in a snapshot, and the devices here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from pyngp import Testbed, _core, devices
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption


def describe(testbed: Testbed) -> dict[str, Any]:
    """Facts about a loaded snapshot."""
    config = json.loads(testbed.network_config)
    data = testbed.nerf.training.dataset
    grid = testbed.density_grid()
    sizes = sorted({tuple(view.resolution.tolist()) for view in data.metadata})
    return {
        "task": "nerf",
        "training_step": testbed.training_step,
        "loss": testbed.loss,
        "n_params": testbed.n_params(),
        "n_encoding_params": testbed.n_encoding_params(),
        "encoding": config["encoding"],
        "network": config["network"],
        "rgb_network": config.get("rgb_network"),
        "n_images": data.n_images,
        "image_sizes": [f"{w}x{h}" for w, h in sizes],
        "scale": data.scale,
        "offset": data.offset.tolist(),
        "aabb_scale": data.aabb_scale,
        "render_aabb": [testbed.render_aabb.min.tolist(), testbed.render_aabb.max.tolist()],
        "color_space": testbed.color_space.name,
        "occupied_fraction": float(np.mean(grid > min(0.01, float(np.maximum(grid[: 128**3], 0).mean())))),
    }


def _mib(n: int | None) -> str:
    return "" if n is None else f"{n / 2**20:.0f} MiB"


def _show_devices(output: Output, report: Path | None) -> None:
    found = devices()
    table = Table("device", "name", "compute capability", "memory", "free", title="devices, the best first")
    for d in found:
        table.add_row(d.id, d.name, d.compute_capability or "", _mib(d.total_bytes), _mib(d.free_bytes))
    output.console.print(table)
    reason = _core.cuda_unavailable_reason()
    if reason:
        output.say(f"no CUDA device: {reason}")
    output.report(report, {"devices": [asdict(d) for d in found], "cuda_unavailable_reason": reason or None})


def info(
    snapshot: Annotated[Path | None, typer.Argument(help="Snapshot (.ingp)", show_default=False)] = None,
    list_devices: Annotated[bool, typer.Option("--devices", help="List the devices that --device can name")] = False,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Describe a snapshot, or the devices of this machine if none is given."""
    output = Output(quiet)
    if snapshot is None or list_devices:
        if snapshot is not None:
            raise typer.BadParameter("needs no snapshot", param_hint="--devices")
        _show_devices(output, report)
        return
    testbed = Testbed(device=device, seed=seed)
    testbed.load_snapshot(snapshot)
    facts = describe(testbed)
    table = Table("what", "value", title=str(snapshot))
    for key, value in facts.items():
        table.add_row(key, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
    output.console.print(table)
    output.report(report, facts)
