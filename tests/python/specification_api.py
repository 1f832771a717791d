"""The members of parts A.5 to A.11 and A.13, typed from the specification alone: what instant-ngp's users rely on.

A row of MEMBERS is (part, owner, name, access, default, type); one of METHODS (part, owner, name, parameters). Nothing
here is taken from the library.

Owners: testbed is Testbed(); nerf, training and dataset its parts; view a TrainingImageMetadata; the others are objects
of the classes of A.13 as their constructor makes them. Access: rw or ro. Default: NO where the specification names none
or it depends on what was loaded. Types: a Python type, or "number" for int or float; an enum's name; "box" or "lens";
the name of another class; "object" for any; or float32[…] and int32[…], arrays of that shape. Parameters: names and,
after "=", defaults; a positional one, to which the specification gives no name, is an underscore.

Left out: members that raise TypeError in instant-ngp, because their type is not registered (B5: `transforms`,
CameraKeyframe.R, render_start_time), and what A.8 has in builds with a window only.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class _No:
    def __repr__(self) -> str:
        return "NO"


NO: Any = _No()
IDENTITY = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
UNIT_BOX = [[0, 0, 0], [1, 1, 1]]  # of a scene with aabb_scale 1
NORMALISED_ONE = 0.57735026


class Member(NamedTuple):
    part: str
    owner: str
    name: str
    access: str
    default: Any
    type: str


class Method(NamedTuple):
    part: str
    owner: str
    name: str
    parameters: str = ""


def _members(part: str, owner: str, rows: list[tuple[str, str, Any, str]]) -> list[Member]:
    return [Member(part, owner, *row) for row in rows]


MEMBERS = [
    *_members("A.5", "testbed", [
        ("mode", "ro", "None", "TestbedMode"),
        ("root_dir", "rw", NO, "str"),
        ("jit_fusion", "rw", NO, "bool"),
        ("shall_train", "rw", False, "bool"),
        ("shall_train_encoding", "rw", True, "bool"),
        ("shall_train_network", "rw", True, "bool"),
        ("training_batch_size", "rw", 262144, "int"),
        ("max_level_rand_training", "rw", False, "bool"),
        ("training_step", "ro", 0, "int"),
        ("loss", "ro", 0.0, "float"),
    ]),
    *_members("A.6", "testbed", [
        ("background_color", "rw", [0, 0, 0, 1], "float32[4]"),
        ("render_transparency_as_checkerboard", "rw", False, "bool"),
        ("render_ground_truth", "rw", False, "bool"),
        ("render_groundtruth", "rw", False, "bool"),
        ("groundtruth_render_mode", "rw", "Shade", "GroundTruthRenderMode"),
        ("render_mode", "rw", "Shade", "RenderMode"),
        ("render_near_distance", "rw", 0.0, "float"),
        ("slice_plane_z", "rw", 0.0, "float"),
        ("aperture_size", "rw", 0.0, "float"),
        ("dof", "rw", 0.0, "float"),
        ("autofocus", "rw", False, "bool"),
        ("autofocus_target", "rw", [0.5, 0.5, 0.5], "float32[3]"),
        ("floor_enable", "rw", False, "bool"),
        ("exposure", "rw", 0.0, "float"),
        ("color_space", "rw", "Linear", "ColorSpace"),
        ("tonemap_curve", "rw", "Identity", "TonemapCurve"),
        ("snap_to_pixel_centers", "rw", False, "bool"),
        ("parallax_shift", "rw", [0, 0, 0], "float32[3]"),
        ("render_aabb", "rw", UNIT_BOX, "box"),
        ("aabb", "rw", UNIT_BOX, "box"),
        ("raw_aabb", "rw", NO, "box"),
        ("render_aabb_to_local", "rw", IDENTITY, "float32[3,3]"),
        ("is_rendering", "rw", True, "bool"),
        ("render_with_lens_distortion", "rw", False, "bool"),
        ("render_lens", "rw", "Perspective", "lens"),
        ("visualized_dimension", "rw", -1, "int"),
        ("visualized_layer", "rw", 0, "int"),
        ("bounding_radius", "ro", 1.0, "float"),
        ("dynamic_res", "rw", True, "bool"),
        ("dynamic_res_target_fps", "rw", 20, "number"),
        ("fixed_res_factor", "rw", 8, "number"),
        ("dlss", "rw", False, "bool"),
        ("dlss_sharpening", "rw", 0.0, "float"),
        ("display_gui", "rw", True, "bool"),
        ("visualize_unit_cube", "rw", False, "bool"),
        ("record_camera_path", "rw", False, "bool"),
        ("camera_prediction_mode", "rw", "MatLogQuadratic", "CameraPredictionMode"),
    ]),
    *_members("A.7", "testbed", [
        ("camera_matrix", "rw", NO, "float32[3,4]"),
        ("default_camera", "rw", [[1, 0, 0, 0.5], [0, -1, 0, 0.5], [0, 0, -1, 0.5]], "float32[3,4]"),
        ("fov", "rw", 50.625, "float"),
        ("fov_xy", "rw", NO, "float32[2]"),
        ("fov_axis", "rw", 1, "int"),
        ("relative_focal_length", "rw", NO, "float32[2]"),
        ("zoom", "rw", 1.0, "float"),
        ("screen_center", "rw", [0.5, 0.5], "float32[2]"),
        ("scale", "rw", 1.5, "float"),
        ("look_at", "rw", NO, "float32[3]"),
        ("view_dir", "rw", NO, "float32[3]"),
        ("up_dir", "rw", [0, 1, 0], "float32[3]"),
        ("sun_dir", "rw", [NORMALISED_ONE] * 3, "float32[3]"),
        ("camera_smoothing", "rw", False, "bool"),
        ("camera_path", "rw", NO, "CameraPath"),
        ("loop_animation", "rw", NO, "bool"),
    ]),
    *_members("A.9", "testbed", [("nerf", "ro", NO, "object")]),
    *_members("A.9", "nerf", [
        ("training", "ro", NO, "object"),
        ("rgb_activation", "rw", "Exponential", "NerfActivation"),
        ("density_activation", "rw", "Exponential", "NerfActivation"),
        ("sharpen", "rw", 0.0, "float"),
        ("render_min_transmittance", "rw", 0.01, "float"),
        ("rendering_min_transmittance", "rw", 0.01, "float"),
        ("cone_angle_constant", "rw", 1 / 256, "float"),
        ("visualize_cameras", "rw", False, "bool"),
        ("render_gbuffer_hard_edges", "rw", False, "bool"),
        ("rendering_extra_dims_from_training_view", "rw", 0, "int"),
    ]),
    *_members("A.10", "training", [
        ("random_bg_color", "rw", True, "bool"),
        ("n_images_for_training", "rw", 0, "int"),
        ("linear_colors", "rw", False, "bool"),
        ("loss_type", "rw", "L2", "LossType"),
        ("depth_loss_type", "rw", "L1", "LossType"),
        ("snap_to_pixel_centers", "rw", True, "bool"),
        ("optimize_extrinsics", "rw", False, "bool"),
        ("optimize_extra_dims", "rw", False, "bool"),
        ("optimize_per_image_latents", "rw", False, "bool"),
        ("optimize_exposure", "rw", False, "bool"),
        ("optimize_distortion", "rw", False, "bool"),
        ("optimize_focal_length", "rw", False, "bool"),
        ("n_steps_between_cam_updates", "rw", 16, "int"),
        ("sample_focal_plane_proportional_to_error", "rw", False, "bool"),
        ("sample_image_proportional_to_error", "rw", False, "bool"),
        ("include_sharpness_in_error", "rw", False, "bool"),
        ("near_distance", "rw", 0.1, "float"),
        ("density_grid_decay", "rw", 0.95, "float"),
        ("train_mode", "rw", "RflRelax", "TrainMode"),
        ("extrinsic_l2_reg", "rw", 1e-4, "float"),
        ("extrinsic_learning_rate", "rw", 1e-3, "float"),
        ("intrinsic_l2_reg", "rw", 1e-4, "float"),
        ("exposure_l2_reg", "rw", 0.0, "float"),
        ("depth_supervision_lambda", "rw", 0.0, "float"),
        ("dataset", "ro", NO, "NerfDataset"),
    ]),
    *_members("A.11", "dataset", [
        ("metadata", "ro", NO, "list"),
        ("paths", "ro", NO, "list"),
        ("render_aabb", "ro", NO, "box"),
        ("render_aabb_to_local", "ro", IDENTITY, "float32[3,3]"),
        ("up", "ro", NO, "float32[3]"),
        ("offset", "ro", [0.5, 0.5, 0.5], "float32[3]"),
        ("n_images", "ro", 0, "int"),
        ("envmap_resolution", "ro", NO, "int32[2]"),
        ("scale", "ro", 0.33, "float"),
        ("aabb_scale", "ro", 1, "int"),
        ("from_mitsuba", "ro", False, "bool"),
        ("is_hdr", "ro", False, "bool"),
    ]),
    *_members("A.11", "view", [
        ("lens", "rw", "Perspective", "lens"),
        ("camera_distortion", "rw", "Perspective", "lens"),
        ("resolution", "rw", NO, "int32[2]"),
        ("principal_point", "rw", [0.5, 0.5], "float32[2]"),
        ("focal_length", "rw", NO, "float32[2]"),
        ("rolling_shutter", "rw", [0, 0, 0, 0], "float32[4]"),
        ("light_dir", "rw", [0, 0, 0], "float32[3]"),
    ]),
    *_members("A.13", "CameraKeyframe", [
        ("T", "rw", NO, "float32[3]"),
        ("slice", "rw", NO, "float"),
        ("scale", "rw", NO, "float"),
        ("fov", "rw", NO, "float"),
        ("aperture_size", "rw", NO, "float"),
        ("timestamp", "rw", NO, "float"),
    ]),
    *_members("A.13", "CameraPathRenderSettings", [
        ("resolution", "rw", [1920, 1080], "int32[2]"),
        ("spp", "rw", 8, "int"),
        ("fps", "rw", 60.0, "float"),
        ("duration_seconds", "rw", 5.0, "float"),
        ("shutter_fraction", "rw", 0.5, "float"),
        ("quality", "rw", 10, "int"),
    ]),
    *_members("A.13", "CameraPathPos", [
        ("kfidx", "rw", NO, "int"),
        ("t", "rw", NO, "float"),
    ]),
    *_members("A.13", "CameraPath", [
        ("keyframes", "rw", NO, "list"),
        ("update_cam_from_path", "rw", False, "bool"),
        ("play_time", "rw", 0.0, "float"),
        ("auto_play_speed", "rw", 0.0, "float"),
        ("loop", "rw", False, "bool"),
        ("keyframe_subsampling", "rw", 1, "int"),
        ("duration_seconds", "rw", 0.0, "float"),
        ("camera_prediction_duration_seconds", "rw", 0.0, "float"),
        ("camera_prediction_dt", "rw", 0.005, "float"),
        ("editing_kernel_type", "rw", "None", "EditingKernel"),
        ("editing_kernel_radius", "rw", 0.1, "float"),
        ("spline_order", "rw", 3, "int"),
        ("render_settings", "rw", NO, "CameraPathRenderSettings"),
        ("rendering", "rw", False, "bool"),
        ("render_frame_idx", "rw", 0, "int"),
        ("render_frame_end_camera", "rw", NO, "float32[3,4]"),
    ]),
]  # fmt: skip


def _methods(part: str, owner: str, rows: list[tuple[str, ...]]) -> list[Method]:
    return [Method(part, owner, *row) for row in rows]


_RENDER = "width=1920, height=1080, spp=1, linear=True, start_t=-1.0, end_t=-1.0, fps=30.0, shutter_fraction=1.0"
METHODS = [
    *_methods("A.5", "testbed", [
        ("load_training_data", "path"),
        ("load_file", "path"),
        ("clear_training_data",),
        ("create_empty_nerf_dataset", "n_images, aabb_scale=1, is_hdr=False"),
        ("reload_network_from_file", "path=''"),
        ("reload_network_from_json", "json, config_base_path=''"),
        ("reset", "reset_density_grid=True"),
        ("train", "batch_size"),
        ("frame",),
        ("want_repl",),
        ("n_params",),
        ("n_encoding_params",),
        ("save_snapshot", "path, include_optimizer_state=False, compress=True"),
        ("load_snapshot", "path"),
        ("override_sdf_training_data", "points, distances"),
        ("calculate_iou", "n_samples=134217728, scale_existing_results_factor=0.0, blocking=True, "
                          "force_use_octree=True"),
        ("compute_image_mse", "quantize=False"),
    ]),
    *_methods("A.6", "testbed", [
        ("render", _RENDER),
        ("render_with_depth", _RENDER),
        ("reset_accumulation", "due_to_camera_movement=False, immediate_redraw=True"),
        ("compute_marching_cubes_mesh", "resolution, aabb, thresh"),
        ("compute_and_save_marching_cubes_mesh", "filename, resolution, aabb, thresh, generate_uvs_for_obj_file=False"),
        ("compute_and_save_png_slices", "filename, resolution=256, aabb, thresh, density_range=4.0, "
                                        "flip_y_and_z_axes=False"),
        ("crop_box", "nerf_space=True"),
        ("set_crop_box", "matrix, nerf_space=True"),
        ("crop_box_corners", "nerf_space=True"),
    ]),
    *_methods("A.7", "testbed", [
        ("set_nerf_camera_matrix", "_"),
        ("set_camera_to_training_view", "_"),
        ("first_training_view",),
        ("last_training_view",),
        ("previous_training_view",),
        ("next_training_view",),
        ("reset_camera",),
        ("load_camera_path", "_"),
    ]),
    *_methods("A.8", "testbed", [
        ("init_window", "width, height, hidden=False, second_window=False"),
        ("destroy_window",),
        ("init_vr",),
        ("view", "linear=True, view=0"),
        ("view_camera", "view=0"),
        ("predict_view_camera", "view, dt"),
    ]),
    *_methods("A.9", "nerf", [
        ("find_closest_training_view", "_"),
        ("set_rendering_extra_dims_from_training_view", "_"),
        ("set_rendering_extra_dims", "_"),
        ("get_rendering_extra_dims",),
    ]),
    *_methods("A.10", "training", [
        ("get_extra_dims", "_"),
        ("set_camera_intrinsics", "frame_idx, fx=0.0, fy=0.0, cx=-0.5, cy=-0.5, k1=0.0, k2=0.0, p1=0.0, p2=0.0, "
                                  "k3=0.0, k4=0.0, is_fisheye=False"),
        ("set_camera_extrinsics", "frame_idx, camera_to_world, convert_to_ngp=True"),
        ("get_camera_extrinsics", "frame_idx"),
        ("set_image", "frame_idx, img, depth_img, depth_scale=1.0"),
    ]),
    *_methods("A.13", "CameraKeyframe", [("m",), ("from_m", "_"), ("same_pos_as", "_")]),
    *_methods("A.13", "CameraPath", [
        ("clear",),
        ("has_valid_timestamps",),
        ("make_keyframe_timestamps_equidistant",),
        ("sanitize_keyframes",),
        ("get_pos", "playtime"),
        ("get_playtime", "i"),
        ("get_keyframe", "i"),
        ("eval_camera_path", "t"),
        ("save", "path"),
        ("load", "path, first_xform"),
        ("add_camera", "camera, slice_plane_z, scale, fov, aperture_size, bounding_radius, timestamp"),
    ]),
]  # fmt: skip
