"""pyngp train: a scene to a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from pyngp import ColorSpace, OccupancySchedule, Testbed
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.dataset import Frame, build_dataset, load_images, loading, read_scene
from pyngp.evaluation import Evaluation, evaluate
from pyngp.images import Pixels
from pyngp.report import add_evaluation, process_seconds, training_report

DEFAULT_SECONDS = 120.0
SHOWN_SECONDS = 0.1  # of training between changes of the progress bar


class Occupancy(str, Enum):
    auto = "auto"  # what suits the device
    budgeted = "budgeted"
    specification = "specification"


@dataclass
class Trainer:
    """Trains in legs between evaluations and keeps the curve."""

    testbed: Testbed
    output: Output
    test_frames: list[Frame] = field(default_factory=list)
    test_images: list[Pixels] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)

    def seconds(self) -> float:
        return self.testbed.stats()["train_seconds"]

    def run(self, steps: int | None, seconds: float | None, batch_size: int | None, eval_at: list[float]) -> None:
        """Trains for `steps` or `seconds` more; evaluates when `eval_at` training seconds of this run have passed."""
        testbed = self.testbed
        first_step, started = testbed.training_step, self.seconds()
        with self.output.progress("training", steps if seconds is None else seconds) as update:

            def train_until(end: float | None) -> None:
                # No callback, which would make a GPU wait for Python in every step.
                while True:
                    done, spent = testbed.training_step - first_step, self.seconds() - started
                    left = None if steps is None else steps - done
                    time = SHOWN_SECONDS if end is None else min(end - spent, SHOWN_SECONDS)
                    if (left is not None and left <= 0) or time <= 0:
                        break
                    testbed.fit(left, time, batch_size)
                    update(
                        testbed.training_step - first_step if seconds is None else self.seconds() - started,
                        note=f"step {testbed.training_step}  loss {testbed.loss:.5f}",
                    )

            for at in sorted(eval_at):
                if seconds is None or at < seconds:
                    train_until(at)
                    self.evaluate()
            train_until(seconds)

    def evaluate(self) -> Evaluation | None:
        if not self.test_frames:
            return None
        with self.output.progress("evaluating", len(self.test_frames)) as update:
            result = evaluate(self.testbed, self.test_frames, self.test_images, progress=update)
        point = {
            "seconds": self.seconds(),
            "steps": self.testbed.training_step,
            "psnr": result.psnr,
        }
        if not self.curve or self.curve[-1]["steps"] != point["steps"]:
            self.curve.append(point)
        self.output.say(
            f"{point['seconds']:.1f} s, step {point['steps']}: PSNR {result.psnr:.2f}, SSIM {result.ssim:.4f}"
        )
        return result


def parse_seconds(text: str | None) -> list[float]:
    """Comma-separated training seconds."""
    if not text:
        return []
    try:
        values = [float(t) for t in text.split(",")]
    except ValueError:
        values = [-1.0]
    if any(not 0 < v < float("inf") for v in values):
        raise typer.BadParameter(f"'{text}' must be positive numbers separated by commas", param_hint="--eval-at")
    return values


def load_scene(
    start: Callable[[], Testbed],
    output: Output,
    scene: Path,
    test: Path | None,
    resume: Path | None,
    config: str,
) -> tuple[Testbed, list[Frame], list[Pixels]]:
    """Starts a testbed and loads training data (without the test frames), network or snapshot, and the test frames.

    The images are decoded while the device starts, which takes a GPU about as long.
    """
    training = read_scene(scene, exclude=test)
    test_frames = read_scene(test).frames if test else []
    with loading([*training.frames, *test_frames]):
        testbed = start()
        with output.progress("loading images", len(training.frames) + len(test_frames)) as update:
            testbed.set_dataset(build_dataset(training, lambda done, _: update(done)))
            test_images = load_images(test_frames, lambda done, _: update(len(training.frames) + done))
    if resume is not None:
        testbed.load_snapshot(resume)
    else:
        testbed.reload_network_from_file(config)
    return testbed, test_frames, test_images


def train(
    scene: Annotated[Path, typer.Argument(help="transforms.json, or a folder that holds it", show_default=False)],
    config: Annotated[str, typer.Option("--config", help="Network: base, base_14, … or a JSON file")] = "base",
    steps: Annotated[int | None, typer.Option("--steps", min=0, help="Steps to train")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", min=0, help="Seconds to train [default: 120]")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Samples a step; a multiple of 256")] = None,
    eval_at: Annotated[str | None, typer.Option("--eval-at", metavar="1,2,5", help="Evaluate at these seconds")] = None,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="JSON", help="Held-out views; never trained on")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Snapshot to write (.ingp)")] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Save without the state that exact resuming needs")
    ] = False,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="SNAPSHOT", help="Go on from a snapshot")] = None,
    nerf_compatibility: Annotated[
        bool,
        typer.Option("--nerf-compatibility", help="sRGB compositing, constant steps, black background"),
    ] = False,
    occupancy: Annotated[
        Occupancy,
        typer.Option("--occupancy", help="Update schedule: budgeted (a tenth of a CPU's time) or instant-ngp's"),
    ] = Occupancy.auto,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On a GPU: the same seed gives the same bytes")
    ] = False,
    max_device_bytes: Annotated[
        int | None, typer.Option("--max-device-bytes", min=1, help="GPU memory to take [default: what is free]")
    ] = None,
    depth_lambda: Annotated[
        float, typer.Option("--depth-lambda", min=0, help="Weight of the scene's depth maps; 0: unused")
    ] = 0.0,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Train a NeRF from photos with known cameras.

    Ctrl-C stops after the step at hand; with --save, the snapshot so far is written.
    """
    output = Output(quiet)
    evaluations = parse_seconds(eval_at)
    if evaluations and test is None:
        raise typer.BadParameter("needs --test", param_hint="--eval-at")
    if save is not None and not save.parent.resolve().is_dir():
        raise typer.BadParameter(f"the folder {save.parent} does not exist", param_hint="--save")
    if save is not None and save.is_dir():
        raise typer.BadParameter(f"{save} is a folder", param_hint="--save")
    testbed, test_frames, test_images = load_scene(
        lambda: Testbed(device=device, seed=seed, deterministic=deterministic, max_device_bytes=max_device_bytes),
        output, scene, test, resume, config,
    )  # fmt: skip
    trainer = Trainer(testbed, output, test_frames, test_images)
    if resume is None:
        testbed.nerf.training.depth_supervision_lambda = depth_lambda
        if nerf_compatibility:
            testbed.color_space = ColorSpace.SRGB
            testbed.nerf.cone_angle_constant = 0.0
            testbed.nerf.training.random_bg_color = False
        if occupancy != Occupancy.auto:
            schedule = {"budgeted": OccupancySchedule.Budgeted, "specification": OccupancySchedule.Specification}
            testbed.nerf.training.occupancy_schedule = schedule[occupancy.value]
    if steps is None and seconds is None:
        seconds = DEFAULT_SECONDS
    startup_seconds = process_seconds()
    interrupted = False
    try:
        trainer.run(steps, seconds, batch_size, evaluations)
    except KeyboardInterrupt:
        interrupted = True
    if save is not None:
        testbed.save_snapshot(save, include_optimizer_state=not compact)
        output.say(f"saved {save} at step {testbed.training_step}")
    if interrupted:
        raise KeyboardInterrupt
    finish(trainer, config, seed, startup_seconds, report)


def finish(trainer: Trainer, config: str, seed: int, startup_seconds: float, report: Path | None) -> dict[str, Any]:
    """Final evaluation, summary and report."""
    result = training_report(trainer.testbed, config, seed)
    result["startup_seconds"] = startup_seconds
    evaluation = trainer.evaluate()
    if evaluation is not None:
        add_evaluation(result, evaluation)
    result["curve"] = trainer.curve
    if result["ms_per_step"]:
        trainer.output.say(
            f"step {result['steps']}, {result['train_seconds']:.1f} s of training, "
            f"{result['ms_per_step']:.1f} ms a step, loss {result['loss']:.5f}"
        )
    trainer.output.report(report, result)
    return result
