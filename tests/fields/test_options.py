"""Option x device: every option of training and rendering, off its default, has an effect on every device.

An option is one line in TRAINING or RENDERING: its path from the Testbed, a value off the default, and, where it needs
them, other options that are set with and without it. test_every_option_is_here fails for a property that has no line.
A training option must change parameters, a rendering option a picture; all runs are deterministic, so that nothing
else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
from fields.tiny_scene import TinyScene
from pyngp import (
    BoundingBox,
    ColorSpace,
    Lens,
    LensMode,
    LossType,
    NerfActivation,
    OccupancySchedule,
    RenderMode,
    Testbed,
    TonemapCurve,
    TrainMode,
    _core,
)

TRAIN, NERF = "nerf.training.", "nerf."
BATCH, STEPS = 512, 3
WIDTH, HEIGHT = 40, 24


@dataclass(frozen=True)
class Option:
    path: str
    value: Any
    given: dict[str, Any] = field(default_factory=dict)  # set in both runs
    steps: int = STEPS

    def __str__(self) -> str:
        value = getattr(self.value, "name", self.value)
        text = str(value if isinstance(value, (bool, int, float, str)) else "")
        return f"{self.path.rpartition('.')[2]} {text}".strip()


NONE = getattr(NerfActivation, "None")
# A schedule that updates in every step, and one map of errors.
UPDATES = {TRAIN + "occupancy_schedule": OccupancySchedule.Specification}
BY_PIXEL = {TRAIN + "sample_focal_plane_proportional_to_error": True}
FOCAL, POSES, EXPOSURE = ({TRAIN + f"optimize_{what}": True} for what in ("focal_length", "extrinsics", "exposure"))
FIXED_BACKGROUND = {TRAIN + "random_bg_color": False}

TRAINING = [
    Option("color_space", ColorSpace.SRGB),
    Option("background_color", [0.3, 0.6, 0.1, 1.0], FIXED_BACKGROUND),
    Option("shall_train_encoding", False),
    Option("shall_train_network", False),
    Option("training_batch_size", 1 << 14),
    Option("max_level_rand_training", True),
    *(Option(NERF + "rgb_activation", a) for a in (NONE, NerfActivation.ReLU, NerfActivation.Exponential)),
    *(Option(NERF + "density_activation", a) for a in (NONE, NerfActivation.ReLU, NerfActivation.Logistic)),
    Option(NERF + "cone_angle_constant", 1 / 32),
    Option(TRAIN + "random_bg_color", False),
    Option(TRAIN + "n_images_for_training", 3),
    Option(TRAIN + "linear_colors", True),
    *(Option(TRAIN + "loss_type", loss) for loss in LossType.__members__.values() if loss != LossType.Huber),
    *(Option(TRAIN + "train_mode", m) for m in (TrainMode.Rfl, TrainMode.RflRelax)),
    Option(TRAIN + "snap_to_pixel_centers", False),
    Option(TRAIN + "near_distance", 1.0),  # the cameras are 1.1 from the centre of the box
    Option(TRAIN + "density_grid_decay", 1.0, UPDATES, steps=5),
    Option(TRAIN + "occupancy_schedule", OccupancySchedule.Budgeted, UPDATES, steps=5),
    # The first maps are drawn from after 128 steps.
    Option(TRAIN + "sample_image_proportional_to_error", True, steps=132),
    Option(TRAIN + "sample_focal_plane_proportional_to_error", True, steps=132),
    Option(TRAIN + "include_sharpness_in_error", True, BY_PIXEL, steps=132),
    # Cameras are updated after every 16 steps, poses from step 271 on; a step later, that is in the parameters.
    *(Option(TRAIN + f"optimize_{what}", True, steps=17) for what in ("exposure", "distortion", "focal_length")),
    Option(TRAIN + "optimize_extrinsics", True, steps=273),
    Option(TRAIN + "n_steps_between_cam_updates", 4, FOCAL, steps=5),
    Option(TRAIN + "extrinsic_learning_rate", 1e-2, POSES, steps=273),
    # From the second update on: there is nothing to pull back before.
    Option(TRAIN + "extrinsic_l2_reg", 1.0, POSES, steps=289),
    Option(TRAIN + "intrinsic_l2_reg", 1.0, FOCAL, steps=33),
    Option(TRAIN + "exposure_l2_reg", 1.0, EXPOSURE, steps=65),
]

TURNED = [[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]
SMALL_BOX = BoundingBox([0.45, 0.4, 0.4], [0.6, 0.6, 0.6])
AWAY = [[0, 0, -1, 1.4], [0, -1, 0, 0.5], [-1, 0, 0, 0.5]]

RENDERING = [
    Option("color_space", ColorSpace.SRGB),
    Option("background_color", [0.3, 0.6, 0.1, 0.5]),
    Option("exposure", 0.5),
    *(Option("tonemap_curve", c) for c in TonemapCurve.__members__.values() if c != TonemapCurve.Identity),
    Option("snap_to_pixel_centers", True),
    Option("render_near_distance", 1.0),
    Option("render_aabb", SMALL_BOX),
    Option("aabb", SMALL_BOX),
    Option("render_aabb_to_local", TURNED, {"render_aabb": SMALL_BOX}),
    Option("camera_matrix", AWAY),
    Option("fov", 30.0),
    Option("fov_xy", [30.0, 50.0]),
    Option("fov_axis", 0),
    Option("relative_focal_length", [1.5, 1.2]),
    Option("screen_center", [0.4, 0.6]),
    Option("zoom", 1.5),
    Option(NERF + "render_min_transmittance", 0.5),
    Option(NERF + "rendering_min_transmittance", 0.5),
    Option(NERF + "cone_angle_constant", 1 / 32),
    *(Option(NERF + "rgb_activation", a) for a in (NONE, NerfActivation.ReLU, NerfActivation.Exponential)),
    *(Option(NERF + "density_activation", a) for a in (NONE, NerfActivation.ReLU, NerfActivation.Logistic)),
    Option(TRAIN + "linear_colors", True),
    *(Option("render_mode", m) for m in RenderMode.__members__.values() if m != RenderMode.Shade),
    Option(NERF + "render_gbuffer_hard_edges", True, {"render_mode": RenderMode.Positions}),
    Option("aperture_size", 0.1),
    Option("dof", 0.1),
    Option("parallax_shift", [0.2, 0.0, 1.0]),
    Option("render_transparency_as_checkerboard", True, {"background_color": [0.0, 0.0, 0.0, 0.0]}),
    Option("render_lens", Lens(LensMode.OpenCV, [0.2, 0.0, 0.0, 0.0])),
    Option("render_with_lens_distortion", False, {"render_lens": Lens(LensMode.OpenCV, [0.2, 0.0, 0.0, 0.0])}),
    *(Option("visualized_dimension", 3, {"visualized_layer": layer}) for layer in range(5)),  # encoding to output
]

# Writable, but no options: what they do is tested where they belong.
NOT_OPTIONS = {
    "shall_train",  # whether frame() trains: test_training.py
    "up_dir", "sun_dir",  # of navigation and of other tasks; kept in snapshots
    # Of the camera, of paths and of training images: test_render_modes.py, test_camera_paths.py
    "scale", "look_at", "view_dir", "default_camera", "camera_path", "camera_smoothing", "loop_animation", "raw_aabb",
    "autofocus", "autofocus_target", "slice_plane_z", "render_ground_truth", "render_groundtruth",
    "groundtruth_render_mode", "visualized_layer",
    # With data of their own: test_frame_images.py, test_masks_and_depth.py, test_latents.py
    NERF + "sharpen", TRAIN + "depth_supervision_lambda", TRAIN + "depth_loss_type", TRAIN + "optimize_extra_dims",
    TRAIN + "optimize_per_image_latents", NERF + "rendering_extra_dims_from_training_view",
    # Kept for scripts; only a window has a use for them
    "camera_prediction_mode", "display_gui", "dlss", "dlss_sharpening", "dynamic_res", "dynamic_res_target_fps",
    "fixed_res_factor", "floor_enable", "is_rendering", "record_camera_path", "visualize_unit_cube",
    NERF + "visualize_cameras",
}  # fmt: skip


def set_options(testbed: Testbed, options: dict[str, Any]) -> None:
    for path, value in options.items():
        owner: Any = testbed
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)


def get_option(testbed: Testbed, path: str) -> Any:
    value: Any = testbed
    for name in path.split("."):
        value = getattr(value, name)
    return value


def test_every_option_is_here():
    classes = {"": _core.Testbed, NERF: _core.NerfSettings, TRAIN: _core.NerfTraining}
    writable = {
        prefix + name
        for prefix, owner in classes.items()
        for name, member in vars(owner).items()
        if isinstance(member, property) and member.fset is not None
    }
    listed = {option.path for option in (*TRAINING, *RENDERING)}
    assert listed | NOT_OPTIONS == writable, "an option needs a line in TRAINING or RENDERING"


@pytest.fixture(scope="module")
def train(tiny: TinyScene, small_config: dict[str, Any]) -> Callable[..., np.ndarray]:
    """train(device, options, steps): parameters after a few steps with them."""

    def run(device: str, options: dict[str, Any], steps: int) -> np.ndarray:
        testbed = Testbed(data=tiny.train, config=small_config, device=device, deterministic=True)
        testbed.n_params()  # a new network sets the loss
        testbed.training_batch_size, testbed.shall_train = BATCH, True
        set_options(testbed, options)
        for _ in range(steps):
            testbed.frame()
        assert testbed.training_step == steps and np.isfinite(testbed.loss)
        return testbed.params()

    defaults: dict[tuple[str, str, int], np.ndarray] = {}

    def cached(device: str, given: dict[str, Any], steps: int, changes: dict[str, Any] | None = None) -> np.ndarray:
        if changes is not None:
            return run(device, given | changes, steps)
        key = (device, repr(given), steps)
        if key not in defaults:
            defaults[key] = run(device, given, steps)
        return defaults[key]

    return cached


@pytest.mark.parametrize("option", TRAINING, ids=str)
def test_training(option, device, train, tiny):
    plain = train(device, option.given, option.steps)
    changed = train(device, option.given, option.steps, {option.path: option.value})
    assert np.all(np.isfinite(changed)) and not np.array_equal(plain, changed)


@pytest.fixture(scope="module")
def model(tiny: TinyScene, small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """model(device): a Testbed of its own with a model that was trained there, and a view of it."""

    @cache
    def snapshot(device: str) -> Any:
        testbed = Testbed(data=tiny.train, config=small_config, device=device, deterministic=True)
        testbed.fit(150, batch_size=2048)
        path = tmp_path_factory.mktemp("options") / "model.ingp"
        testbed.save_snapshot(path)
        return path

    def load(device: str) -> Testbed:
        testbed = Testbed(device=device)
        testbed.load_snapshot(snapshot(device))
        testbed.set_nerf_camera_matrix(tiny.test_poses[0])
        testbed.fov = 40.0
        return testbed

    return load


def picture(testbed: Testbed) -> np.ndarray:
    return np.asarray(testbed.render(WIDTH, HEIGHT, 2, False))


@pytest.mark.parametrize("option", RENDERING, ids=str)
def test_rendering(option, device, model):
    testbed = model(device)
    set_options(testbed, option.given)
    plain = picture(testbed)
    assert np.array_equal(plain, picture(testbed)), "nothing else changes a picture"
    set_options(testbed, {option.path: option.value})
    changed = picture(testbed)
    assert np.all(np.isfinite(changed)) and np.abs(changed - plain).max() > 1e-3


def test_options_are_off_their_defaults(tiny, small_config):
    """Or their lines would show nothing."""
    for option in (*TRAINING, *RENDERING):
        testbed = Testbed(data=tiny.train, config=small_config, device="cpu")
        testbed.n_params()
        set_options(testbed, option.given)
        assert not np.array_equal(get_option(testbed, option.path), option.value), option.path
