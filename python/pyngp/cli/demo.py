"""pyngp demo: makes a scene, trains on it and shows what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from pyngp import Testbed
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.cli.render import depth_picture, normal_picture, picture
from pyngp.cli.train import Trainer, load_scene
from pyngp.dataset import Frame
from pyngp.demo_scene import write_demo_scene
from pyngp.evaluation import evaluate, evaluation_settings, render_frame
from pyngp.images import write_animation, write_image
from pyngp.orbit import orbit_cameras, subject_point
from pyngp.report import add_evaluation, process_seconds, training_report, write_report

BLACK = (0.0, 0.0, 0.0)


def _write_views(out: Path, frame: Frame, channels: dict[str, NDArray[np.float32]]) -> None:
    name = Path(frame.name).name
    write_image(out / "test" / name, picture(channels, BLACK))
    write_image(out / "depth" / name, depth_picture(channels["depth"], channels["alpha"]))
    np.save(out / "depth" / f"{Path(name).stem}.npy", channels["depth"])
    write_image(out / "normal" / name, normal_picture(channels["normal"], channels["alpha"]))


def _turntable(testbed: Testbed, output: Output, path: Path, like: Frame, n: int) -> None:
    assert like.intrinsics is not None
    pictures, cameras = [], testbed.cameras()
    with output.progress("turntable", n) as update, evaluation_settings(testbed):
        for i, pose in enumerate(orbit_cameras(cameras, n, subject_point(testbed, cameras))):
            frame = Frame("", "", Path(), np.vstack([pose, [0, 0, 0, 1]]), {}, "turntable")
            pictures.append(picture(render_frame(testbed, frame, like.intrinsics, ("rgb", "alpha")), BLACK))
            update(i + 1)
    write_animation(path, pictures, fps=15)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that the demo makes")] = Path("pyngp-demo"),
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Seconds to train")] = 60.0,
    size: Annotated[int, typer.Option("--size", min=64, max=1024, help="Width and height of the views")] = 224,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Ray-trace a small scene, train a NeRF on it, and render views that it never saw.

    Leaves scene/ (transforms and images), test/, depth/ and normal/ (held-out views as rendered, named as the scene's),
    turntable.webp, demo.ingp and report.json.
    """
    output = Output(quiet)
    scene = out / "scene"
    with output.progress("making a scene", None) as update:
        write_demo_scene(scene, size=size, seed=seed, progress=update)
    test = scene / "transforms_test.json"
    testbed, frames, images = load_scene(
        lambda: Testbed(device=device, seed=seed), output, scene / "transforms_train.json", test, None, "base"
    )
    startup_seconds = process_seconds()
    trainer = Trainer(testbed, output, frames, images)
    trainer.run(None, seconds, None, [])
    testbed.save_snapshot(out / "demo.ingp")

    result = training_report(testbed, "base", seed)
    with output.progress("held-out views", len(frames)) as update:
        evaluation = evaluate(
            testbed, frames, images, channels=("rgb", "alpha", "depth", "normal"), progress=update,
            on_view=lambda frame, channels: _write_views(out, frame, channels),
        )  # fmt: skip
    _turntable(testbed, output, out / "turntable.webp", frames[0], 60)
    add_evaluation(result, evaluation)
    result["startup_seconds"] = startup_seconds
    result["curve"] = [{"seconds": result["train_seconds"], "steps": result["steps"], "psnr": evaluation.psnr}]
    write_report(out / "report.json", result)
    output.report(report, result)
    output.say(
        f"PSNR {evaluation.psnr:.2f} on {len(frames)} held-out views after {result['train_seconds']:.0f} s of training "
        f"({result['steps']} steps).\n"
        f"Look at {out / 'turntable.webp'} and {out / 'test'}; the model is {out / 'demo.ingp'}."
    )
