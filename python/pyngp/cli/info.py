"""pyngp info: what is in a snapshot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from pyngp import Testbed
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


def info(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot (.ingp)", show_default=False)],
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Describe a snapshot."""
    output = Output(quiet)
    testbed = Testbed(device=device, seed=seed)
    testbed.load_snapshot(snapshot)
    facts = describe(testbed)
    table = Table("what", "value", title=str(snapshot))
    for key, value in facts.items():
        table.add_row(key, json.dumps(value) if isinstance(value, (dict, list)) else str(value))
    output.console.print(table)
    output.report(report, facts)
