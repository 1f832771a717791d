"""pyngp eval: a snapshot against test views."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, cast

import typer

from pyngp import Testbed
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate
from pyngp.report import add_evaluation, training_report
from pyngp.testbed import Region


class Half(str, Enum):
    left = "left"
    right = "right"
    top = "top"
    bottom = "bottom"


def evaluate_snapshot(
    snapshot: Annotated[Path, typer.Argument(help="Snapshot (.ingp)", show_default=False)],
    test: Annotated[Path, typer.Option("--test", metavar="JSON", help="Views with images", show_default=False)],
    fit_latents: Annotated[
        Half | None,
        typer.Option(help="Fit a latent to this half of each image, and measure the other", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Measure a snapshot against test views: PSNR and SSIM on black, one ray through each pixel centre."""
    output = Output(quiet)
    testbed = Testbed(device=device, seed=seed)
    testbed.load_snapshot(snapshot)
    frames = read_scene(test).frames
    with output.progress("loading images", len(frames)) as update:
        images = load_images(frames, update)
    with output.progress("rendering", len(frames)) as update:
        region = None if fit_latents is None else cast(Region, fit_latents.value)
        result = evaluate(testbed, frames, images, progress=update, fit_latents=region)
    for name, value in result.psnr_per_image.items():
        output.say(f"{name}: PSNR {value:.2f}, SSIM {result.ssim_per_image[name]:.4f}")
    values = result.psnr_per_image.values()
    output.say(f"PSNR {result.psnr:.2f} [min {min(values):.2f}, max {max(values):.2f}], SSIM {result.ssim:.4f}")
    summary = training_report(testbed, "snapshot", seed)
    add_evaluation(summary, result)
    output.report(report, summary)
