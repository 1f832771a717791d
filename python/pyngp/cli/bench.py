"""pyngp bench: times training, stage by stage and in whole steps, and rendering.

On the CPU, beside a PyTorch version of the same work where torch is installed.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from pyngp import Testbed, _core
from pyngp.cli.common import DeviceOption, Output, QuietOption, ReportOption, SeedOption
from pyngp.cli.train import Trainer, load_scene, parse_seconds
from pyngp.dataset import Frame, read_scene
from pyngp.demo_scene import write_demo_scene
from pyngp.evaluation import EVALUATION_MIN_TRANSMITTANCE
from pyngp.images import Pixels
from pyngp.report import process_seconds, training_report

SAMPLES_PER_RAY = 16
WARMUP_STEPS = 256
# Of the base configuration:
N_LEVELS, N_FEATURES = 8, 4
N_WEIGHTS = 32 * 64 + 64 * 16 + 32 * 64 + 64 * 64 + 64 * 3  # of both networks, padding left out
RENDER_SIZES = ((800, 800), (1920, 1080))


@dataclass(frozen=True)
class Plan:
    """How much to do on a device."""

    batch: int  # samples a step
    steps: int  # to time, after WARMUP_STEPS
    repeats: int  # of the model's stages
    renderings: int  # of a frame
    further_spp: int  # samples per pixel beyond the first that are timed
    eval_at: tuple[float, ...]  # training seconds


PLANS = {
    "cpu": Plan(65536, 96, 15, 1, 1, ()),
    "cuda": Plan(2**18, 4000, 50, 10, 8, (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)),
}


class Task(str, Enum):
    nerf = "nerf"


def samples_along_rays(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Positions and directions (n,3), NGP space: runs of 16 march steps from random points, random directions."""
    rng = np.random.default_rng(seed)
    rays = -(-n // SAMPLES_PER_RAY)
    origin = rng.uniform(0.25, 0.75, (rays, 3))
    direction = rng.normal(size=(rays, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    t = np.arange(SAMPLES_PER_RAY) * np.sqrt(3) / 1024
    positions = origin[:, None] + direction[:, None] * t[None, :, None]
    directions = np.repeat(direction, SAMPLES_PER_RAY, axis=0)
    return positions.reshape(-1, 3)[:n].astype(np.float32), directions[:n].astype(np.float32)


def _median_ms(
    functions: dict[str, Callable[[], Any]], wait: Callable[[], Any], repeats: int, warmup: int = 2
) -> dict[str, float]:
    """Median time of each function, called in sequence as in a training step; launch and wait included."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            wait()
            if i >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def bench_model(plan: Plan, device: str, seed: int) -> _core.stages.Model:
    positions, directions = samples_along_rays(plan.batch, seed)
    gradient = np.random.default_rng(seed).normal(size=(plan.batch, 4)).astype(np.float32) * 1e-3
    return _core.stages.Model(_core.base_nerf_config(), 1, positions, directions, gradient, seed, device=device)


def model_times(plan: Plan, model: _core.stages.Model, on_gpu: bool) -> dict[str, float]:
    """Stage times of the model's work on a batch of samples (ms). On a GPU encoding and networks are one kernel."""
    parts = {"forward": model.forward} if on_gpu else {"encode": model.encode, "forward": model.forward}
    alone = _median_ms(parts, model.wait, plan.repeats)
    whole = _median_ms(
        {"both": model.forward_backward, "scatter": model.scatter, "optimizer": model.optimize},
        model.wait,
        plan.repeats,
    )
    if on_gpu:
        return {
            "forward": alone["forward"],
            "backward": whole["both"] - alone["forward"],
            "scatter": whole["scatter"],
            "optimizer": whole["optimizer"],
            "total": sum(whole.values()),
        }
    return {
        "grid_forward": alone["encode"],
        "mlp_forward": alone["forward"] - alone["encode"],
        "mlp_backward": whole["both"] - alone["forward"],
        "grid_backward": whole["scatter"],
        "optimizer": whole["optimizer"],
        "total": sum(whole.values()),
    }


def touched_entries(model: _core.stages.Model, n_encoding_params: int) -> int:
    """Table entries that get a gradient from the model's batch."""
    model.forward_backward()
    model.scatter()
    table = model.gradient()[-n_encoding_params:].reshape(-1, N_FEATURES)
    return int(np.count_nonzero(table.any(axis=1)))


def achieved(plan: Plan, model_ms: dict[str, float]) -> dict[str, Any]:
    """What the networks reach on the CPU, and what the machine reaches at most."""
    matrix_gflop = plan.batch * 6 * N_WEIGHTS * 1e-9  # forward, input gradients, weight gradients
    return {
        "mlp_gflops": matrix_gflop / (model_ms["mlp_forward"] + model_ms["mlp_backward"]) * 1000,
        "peak_gflops": _core.stages.gemm_peak_gflops(0.5),
    }


def achieved_on_gpu(testbed: Testbed, step: dict[str, float], optimizer_ms: float, touched: int) -> dict[str, Any]:
    """What stages of training steps do a second, beside what the device reaches when it does nothing else.

    `optimizer_ms`: of the model's optimizer alone, launch and wait included, with `touched` entries.
    """
    ceilings = _core.stages.cuda_ceilings(testbed.device)
    stats = testbed.stats()
    evaluated, contributing = stats["samples_evaluated_per_step"], stats["samples_per_step"]
    corners = N_LEVELS * 8
    entries = testbed.n_encoding_params() // N_FEATURES
    # Halves of the gradient are read of all entries; where there is one it is zeroed, the 64-byte record is read and
    # written, and the halves that kernels read are written.
    gradient_bytes, entry_bytes = 8 * entries, 8 + 64 + 64 + 8
    rows: list[dict[str, Any]] = []

    def row(stage: str, ms: float, work: str, amount: float, ceiling: str) -> None:
        per_second = amount / max(ms, 1e-9) * 1000
        share = per_second / ceilings[ceiling]
        rows.append(
            {"stage": stage, "ms": ms, "work": work, "per_second": per_second, "bound": ceiling, "share": share}
        )

    row("forward", step["forward_ms"], "gathers: evaluated x levels x 8", evaluated * corners, "gather_per_second")
    row("forward", step["forward_ms"], "FLOP: evaluated x 2 x weights", evaluated * 2 * N_WEIGHTS, "tensor_flops")
    row("backward", step["backward_ms"], "FLOP: samples x 6 x weights", contributing * 6 * N_WEIGHTS, "tensor_flops")
    adds = contributing * corners * (N_FEATURES // 2)
    row("scatter", step["scatter_ms"], "half2 adds before merging, at most", adds, "add_per_second")
    most = gradient_bytes + entries * entry_bytes
    row("optimizer", step["optimizer_ms"], "bytes at least: gradient", gradient_bytes, "copy_bytes_per_second")
    row("optimizer", step["optimizer_ms"], "bytes at most: all entries", most, "copy_bytes_per_second")
    counted = gradient_bytes + touched * entry_bytes
    row("optimizer alone", optimizer_ms, "bytes, entries counted", counted, "copy_bytes_per_second")
    return {"ceilings": ceilings, "achieved": rows, "entries": entries, "touched_entries": touched}


def find_twin(path: Path | None) -> ModuleType | None:
    """The PyTorch twin, tests/benchmarks/torch_twin.py of the source tree, if it and torch are there."""
    if path is None:
        path = Path("tests/benchmarks/torch_twin.py")
    if not path.is_file() or importlib.util.find_spec("torch") is None:
        return None
    spec = importlib.util.spec_from_file_location("torch_twin", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def step_times(testbed: Testbed, plan: Plan) -> dict[str, float]:
    """Whole training steps (ms a step, and by stage), after a warm-up."""
    testbed.fit(WARMUP_STEPS, batch_size=plan.batch)
    before = testbed.stats()
    testbed.fit(plan.steps, batch_size=plan.batch)
    after = testbed.stats()
    whole = 1000 * (after["train_seconds"] - before["train_seconds"]) / plan.steps
    n, earlier = plan.steps, before["stages"]
    if testbed.device != "cpu":  # stages are timed in steps of their own, which take longer for it
        n, earlier = max(16, plan.steps // 16), dict.fromkeys(before["stages"], 0.0)
        testbed.set_profiling(True)
        testbed.fit(n, batch_size=plan.batch)
        after = testbed.stats()
        testbed.set_profiling(False)
    stages = {k: (v - earlier[k]) / n for k, v in after["stages"].items()}
    return {**stages, "ms_per_step": whole}


def render_times(testbed: Testbed, test: Frame, plan: Plan) -> list[dict[str, float]]:
    """Pictures of a test view as NumPy arrays: ms of one with a sample a pixel, and of each further sample."""
    testbed.set_camera_to_training_view(0)
    testbed.set_nerf_camera_matrix(test.camera_to_world[:3])
    least, testbed.nerf.render_min_transmittance = testbed.nerf.render_min_transmittance, EVALUATION_MIN_TRANSMITTANCE
    times = []

    def median(width: int, height: int, spp: int) -> float:
        def render() -> None:
            testbed.render(width, height, spp, True)

        return _median_ms({"render": render}, lambda: None, plan.renderings, min(2, plan.renderings - 1))["render"]

    for width, height in RENDER_SIZES:
        first = median(width, height, 1)
        more = median(width, height, 1 + plan.further_spp)
        further = (more - first) / plan.further_spp
        times.append({"width": width, "height": height, "first_ms": first, "further_ms": further})
    testbed.nerf.render_min_transmittance = least
    return times


def quality_over_time(
    testbed: Testbed, output: Output, frames: list[Frame], images: list[Pixels], eval_at: list[float]
) -> list[dict[str, float]]:
    """PSNR of the test views as training goes on from nothing."""
    if not frames or not eval_at:
        return []
    testbed.reset()
    trainer = Trainer(testbed, output, frames, images)
    trainer.run(None, max(eval_at), None, eval_at)
    trainer.evaluate()
    return trainer.curve


def _show_achieved(output: Output, result: dict[str, Any]) -> None:
    units = {
        "copy_bytes_per_second": (1e9, "GB/s"),
        "tensor_flops": (1e12, "TFLOP/s"),
        "gather_per_second": (1e9, "G/s"),
        "add_per_second": (1e9, "G/s"),
    }
    table = Table("stage", "ms", "work", "achieved", "ceiling", "share", title="Achieved, of ceilings measured here")
    for row in result["achieved"]:
        unit, name = units[row["bound"]]
        reached, ceiling = row["per_second"] / unit, result["ceilings"][row["bound"]] / unit
        shares = f"{reached:.4g} {name}", f"{ceiling:.4g} {name}", f"{100 * row['share']:.0f}%"
        table.add_row(row["stage"], f"{row['ms']:.3g}", row["work"], *shares)
    output.console.print(table)
    share = 100 * result["touched_entries"] / result["entries"]
    output.say(
        "ceilings: 512 MiB copied; m16n8k16 products of halves; 8-byte gathers and half2 adds at random in 24 MiB.\n"
        "Gathers and adds of neighbouring samples meet in caches or are merged, so their shares may exceed 100%.\n"
        f"backward: forward again, input and weight gradients, 2 x {N_WEIGHTS} weights each.\n"
        f"optimizer alone: on random samples, which touch {share:.0f}% of {result['entries']} entries;\n"
        "launch and wait included. The networks' own update is in no count."
    )


def _show(output: Output, result: dict[str, Any]) -> None:
    others, whole = result["twins_ms"], result["stages_ms"]
    table = Table("stage", "ms", *others, title=f"{result['batch_size']} samples, ms")
    for stage, ms in result["model_stages_ms"].items():
        cells = [f"{o[stage]:.1f} ({o[stage] / ms:.1f}x)" for o in others.values()]
        table.add_row(stage, f"{ms:.3g}", *cells)
    output.console.print(table)
    if "mlp_gflops" in result:
        reached, peak = result["mlp_gflops"], result["peak_gflops"]
        output.say(f"networks: {reached:.0f} GFLOP/s, {100 * reached / peak:.0f}% of the {peak:.0f} measured here")
    if "achieved" in result:
        _show_achieved(output, result)
    output.say(
        f"whole step: {whole['ms_per_step']:.4g} ms over {result['steps']} steps, "
        f"{result['samples_per_step']} samples, {result['rays_per_step']} rays"
    )
    parts = ("marching", "forward", "compositing", "backward")
    inside = ", ".join(f"{part} {whole[f'{part}_ms']:.3g}" for part in parts if whole[f"{part}_ms"] > 0)
    stages = {name: whole[f"{name}_ms"] for name in ("occupancy", "rays_to_gradients", "scatter", "optimizer")}
    overhead = (whole["marching_ms"] + whole["occupancy_ms"]) / max(sum(stages.values()), 1e-9)
    output.say(
        f"occupancy {stages['occupancy']:.3g}, rays to gradients {stages['rays_to_gradients']:.3g} ({inside}), "
        f"scatter {stages['scatter']:.3g}, optimizer {stages['optimizer']:.3g}\n"
        f"marching and occupancy: {100 * overhead:.0f}% of the stages"
    )
    for r in result["render"]:
        output.say(
            f"rendering {r['width']}x{r['height']}: {r['first_ms']:.1f} ms a frame, "
            f"{r['further_ms']:.1f} ms a further sample per pixel"
        )
    for point in result["curve"]:
        output.say(f"PSNR {point['psnr']:.2f} dB after {point['seconds']:.1f} s, {point['steps']} steps")
    if result["device"]["backend"] != "cpu":
        output.say(f"device memory at most: {result['peak_device_bytes'] / 2**20:.0f} MiB")


def bench(
    task: Annotated[Task, typer.Option("--task", help="What to time")] = Task.nerf,
    scene: Annotated[Path | None, typer.Option("--scene", help="Scene to train on [default: the demo's]")] = None,
    test: Annotated[Path | None, typer.Option("--test", metavar="JSON", help="Its held-out views")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps to time, after 256 to warm up [default: 96, GPU: 4000]")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", min=1, help="Of each stage [default: 15, GPU: 50]")
    ] = None,
    eval_at: Annotated[
        str | None,
        typer.Option("--eval-at", metavar="1,2,5", help="Measure PSNR at these seconds [default: none, GPU: up to 10]"),
    ] = None,
    twin: Annotated[Path | None, typer.Option("--twin", help="PyTorch version [default: the source tree's]")] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 1337,
    quiet: QuietOption = False,
    report: ReportOption = None,
) -> None:
    """Time training by stage and in whole steps, rendering, and how fast PSNR rises.

    A step has 262,144 samples on a GPU, and 65,536 on the CPU, where PyTorch does the same work if it is there.
    """
    output = Output(quiet)
    points = parse_seconds(eval_at)
    if scene is None and test is not None:
        raise typer.BadParameter("needs --scene", param_hint="--test")
    if scene is not None and test is None and points:
        raise typer.BadParameter("needs --test", param_hint="--eval-at")
    testbed = Testbed(device=device, seed=seed)
    plan = PLANS[testbed.device.split(":")[0]]
    plan = replace(plan, steps=steps or plan.steps, repeats=repeats or plan.repeats)
    with tempfile.TemporaryDirectory() as folder:
        if scene is None:
            scene, test = Path(folder) / "transforms_train.json", Path(folder) / "transforms_test.json"
            write_demo_scene(Path(folder), size=160, n_train=48, n_test=4, seed=seed)
        _, frames, images = load_scene(lambda: testbed, output, scene, test, None, "base")
        views = frames or read_scene(scene).frames
    startup_seconds = process_seconds()
    stages = bench_model(plan, testbed.device, seed)
    on_cpu = testbed.device == "cpu"
    model = model_times(plan, stages, on_gpu=not on_cpu)
    touched = 0 if on_cpu else touched_entries(stages, testbed.n_encoding_params())
    del stages  # its memory
    whole = step_times(testbed, plan)
    stats = testbed.stats()
    reached = achieved(plan, model) if on_cpu else achieved_on_gpu(testbed, whole, model["optimizer"], touched)
    render = render_times(testbed, views[0], plan)
    result = training_report(testbed, "base", seed)
    curve = quality_over_time(testbed, output, frames, images, points or list(plan.eval_at))
    torch_twin = find_twin(twin) if on_cpu else None
    others: dict[str, dict[str, float]] = {}
    if torch_twin is not None:
        for scatter in ("levels", "atomic"):
            run = torch_twin.run(repeats=plan.repeats, n_samples=plan.batch, scatter=scatter)
            others[f"PyTorch {run['torch']}, {scatter}"] = {**run["stages"], "total": run["total"]}
    result |= {
        "startup_seconds": startup_seconds,
        "steps": plan.steps,
        "batch_size": plan.batch,
        "train_seconds": whole["ms_per_step"] * plan.steps / 1000,
        "ms_per_step": whole["ms_per_step"],
        "samples_per_step": stats["samples_per_step"],
        "rays_per_step": stats["rays_per_step"],
        "model_ms_per_step": model["total"],
        "model_stages_ms": model,
        "stages_ms": whole,
        **reached,
        "render": render,
        "curve": curve,
        "peak_device_bytes": testbed.stats()["peak_device_bytes"],
        "twins_ms": others,
    }
    _show(output, result)
    output.report(report, result)
