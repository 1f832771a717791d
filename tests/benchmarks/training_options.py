"""Prints what training options do to quality at equal steps: train modes, importance sampling, random levels.

    python tests/benchmarks/training_options.py SCENE.json [--test TEST.json] [--options nerf,rflrelax,error,…]
        [--steps 1000] [--batch-size 32768] [--config base] [--views 10] [--seeds 1337,…] [--device cpu]

PSNR as in design section 7, over the first --views frames of TEST (which are not trained on), mean over --seeds; the
second column is the lowest of them. Rays with large errors are a small part of a picture: `worst 1 %` is the root of
the mean squared error over the worst hundredth of the pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pyngp import Testbed, TrainMode
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate, on_black
from pyngp.images import linear_to_srgb


def mode(value: TrainMode) -> Callable[[Testbed], None]:
    def set_mode(testbed: Testbed) -> None:
        testbed.nerf.training.train_mode = value

    return set_mode


def errors(*names: str) -> Callable[[Testbed], None]:
    def set_options(testbed: Testbed) -> None:
        for name in names:
            setattr(testbed.nerf.training, name, True)

    return set_options


def random_levels(testbed: Testbed) -> None:
    testbed.max_level_rand_training = True


# Settings at a fraction of the training. run.py has RflRelax from step 15000 to 30000 of 35000, and Nerf otherwise.
Schedule = dict[float, Callable[[Testbed], None]]
RUN_PY: Schedule = {0.0: mode(TrainMode.Nerf), 15 / 35: mode(TrainMode.RflRelax), 30 / 35: mode(TrainMode.Nerf)}
IMAGE, PIXEL = "sample_image_proportional_to_error", "sample_focal_plane_proportional_to_error"
OPTIONS: dict[str, Callable[[Testbed], None] | Schedule] = {
    "nerf": mode(TrainMode.Nerf),
    "rfl": mode(TrainMode.Rfl),
    "rflrelax": mode(TrainMode.RflRelax),
    "rflrelax-run.py": RUN_PY,
    "error": errors(IMAGE, PIXEL),
    "error-image": errors(IMAGE),
    "error-pixel": errors(PIXEL),
    "error-sharpness": errors(IMAGE, PIXEL, "include_sharpness_in_error"),
    "random-levels": random_levels,
}


def train(testbed: Testbed, option: Callable[[Testbed], None] | Schedule, steps: int, batch_size: int) -> None:
    schedule = option if isinstance(option, dict) else {0.0: option}
    ends = [*(round(fraction * steps) for fraction in schedule), steps][1:]
    for setting, end in zip(schedule.values(), ends, strict=True):
        setting(testbed)
        testbed.fit(end - testbed.training_step, batch_size=batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--options", default="nerf,rfl,rflrelax,error")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=1 << 15)
    parser.add_argument("--config", default="base")
    parser.add_argument("--views", type=int, default=10)
    parser.add_argument("--seeds", default="1337")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    names = arguments.options.split(",")
    if unknown := set(names) - set(OPTIONS):
        parser.error(f"options are {', '.join(OPTIONS)}, not {', '.join(sorted(unknown))}")

    test = arguments.test or arguments.scene
    frames = read_scene(test).frames[: arguments.views]
    images = load_images(frames)
    print("option            PSNR    lowest  SSIM    worst 1 %  ms a step", flush=True)
    for name in names:
        psnrs, ssims, worst, spent = [], [], [], 0.0
        for seed in map(int, arguments.seeds.split(",")):
            testbed = Testbed(config=arguments.config, device=arguments.device, seed=seed)
            testbed.load_training_data(arguments.scene, exclude=arguments.test)
            train(testbed, OPTIONS[name], arguments.steps, arguments.batch_size)
            pictures: list[np.ndarray] = []
            result = evaluate(testbed, frames, images, on_view=lambda _, r, p=pictures: p.append(r["rgb"]))
            pairs = zip(pictures, images, strict=True)
            squares = np.concatenate(
                [((linear_to_srgb(p).clip(0, 1) - on_black(image)) ** 2).mean(-1).ravel() for p, image in pairs]
            )
            worst.append(np.sqrt(np.sort(squares)[-max(1, squares.size // 100) :].mean()))
            psnrs.append(result.psnr)
            ssims.append(result.ssim)
            spent += testbed.stats()["train_seconds"]
        milliseconds = 1000 * spent / (arguments.steps * len(psnrs))
        print(
            f"{name:16}  {np.mean(psnrs):6.2f}  {min(psnrs):6.2f}  {np.mean(ssims):.4f}  {np.mean(worst):9.4f}"
            f"  {milliseconds:9.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
