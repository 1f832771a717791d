"""The command line: exit codes, messages, and what eval, render, info and bench do."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fields.tiny_scene import FOV_X, SIZE, srgb
from PIL import Image
from pyngp import __version__, _core, devices
from pyngp.images import read_image
from pyngp.metrics import psnr
from report_checks import check_report


def error_line(result: tuple[int, str, str], code: int = 1) -> str:
    """The one line of a failed command."""
    assert result[0] == code and result[1] == "" and "Traceback" not in result[2]
    lines = result[2].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result[2]
    return lines[0]


def test_version_and_help(cli):
    assert cli("--version") == (0, f"pyngp {__version__}\n", "")
    code, out, _ = cli("--help")
    assert code == 0 and all(name in out for name in ("train", "eval", "render", "info", "bench", "demo"))
    for command in ("train", "eval", "render", "info", "bench", "demo"):
        for flag in ("--help", "-h"):
            code, out, _ = cli(command, flag)
            assert code == 0 and "--device" in out and "--quiet" in out and "--report" in out, command
            assert "--seed" in out, command


USAGE = [
    ["frobnicate"], ["train"], ["train", "x", "--steps", "many"], ["train", "x", "--nonsense"],
    ["train", "x", "--steps", "-1"], ["train", "x", "--seconds", "-1"], ["train", "x", "--seed", "-1"],
    ["train", "x", "--eval-at", "1,2"], ["train", "x", "--eval-at", "1,x", "--test", "y"],
    ["train", "x", "--eval-at", "0", "--test", "y"], ["train", "x", "--save", "/nowhere/a.ingp"],
    ["train", "x", "--save", "/tmp"], ["train", "x", "--occupancy", "never"], ["eval"], ["eval", "x"],
    ["render", "x"], ["render", "x", "--orbit", "2", "--views", "y"], ["render", "x", "--orbit", "0"],
    ["render", "x", "--orbit", "2", "--channels", "rgb,smell"], ["render", "x", "--orbit", "2", "--spp", "0"],
    ["render", "x", "--orbit", "2", "--background", "mauve"], ["render", "x", "--orbit", "2", "--width", "0"],
    ["info", "x.ingp", "--devices"], ["bench", "--task", "cooking"], ["bench", "--test", "x"],
    ["bench", "--scene", "x", "--eval-at", "1"], ["bench", "--eval-at", "x"], ["demo", "--size", "8"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage_is_exit_code_2(arguments, cli):
    code, out, err = cli(*arguments)
    assert code == 2 and out == ""
    assert "Usage: " in err and "Error" in err and "Traceback" not in err


def test_no_command_shows_the_help(cli):
    code, out, err = cli()
    assert code == 2 and "train" in out + err


def test_processes_exit_with_the_codes(cli_process, tmp_path, trained_snapshot):
    """As a shell sees them."""
    assert cli_process("info", trained_snapshot, "--quiet").returncode == 0
    missing = cli_process("info", tmp_path / "none.ingp")
    assert missing.returncode == 1 and missing.stdout == ""
    assert missing.stderr == f"error: {tmp_path}/none.ingp: cannot be opened: No such file or directory\n"
    usage = cli_process("train")
    assert usage.returncode == 2 and "Usage" in usage.stderr


def test_failures_are_one_line_with_file_and_field(cli, tiny, tmp_path, trained_snapshot):
    broken = tmp_path / "broken.ingp"
    broken.write_bytes(trained_snapshot.read_bytes()[:1000])
    empty = tmp_path / "empty"
    empty.mkdir()
    scene = tmp_path / "scene.json"
    scene.write_text('{"aabb_scale": 3, "frames": []}')
    config = tmp_path / "config.json"
    config.write_text('{"parent": "base.json", "encoding": {"n_levels": 99}}')
    odd = tmp_path / "odd.json"
    odd.write_text(json.dumps({"camera_angle_x": 1, "frames": [{"file_path": "\ud800\u00e4\n.png"}]}))
    cases = [
        (["info", broken], [str(broken), "truncated"]),
        (["train", tmp_path / "none"], [str(tmp_path / "none"), "no such file or folder"]),
        (["train", empty], [str(empty), "holds no .json file"]),
        (["train", scene], [str(scene), "aabb_scale is 3"]),
        (["train", tiny.train, "--config", config], [str(config), "n_levels"]),
        (["train", tiny.train, "--config", "huge"], ["huge", "base_N"]),
        (["train", tiny.train, "--steps", 1, "--batch-size", 100], ["batch_size is 100", "256"]),
        (["train", tiny.train, "--resume", broken], [str(broken)]),
        (["train", tiny.train, "--test", tmp_path / "t.json"], [str(tmp_path / "t.json"), "no such file"]),
        (["train", tiny.train, "--device", "tpu"], ["device 'tpu'"]),
        (["train", odd], [str(odd), "transform_matrix"]),
        (["eval", trained_snapshot, "--test", scene], [str(scene), "aabb_scale"]),
        (["render", trained_snapshot, "--views", tmp_path / "v.json"], ["v.json", "no such file"]),
        (["render", trained_snapshot, "--orbit", 1, "--out", broken / "x"], [str(broken)]),
    ]  # fmt: skip
    for arguments, words in cases:
        line = error_line(cli(*arguments, "--quiet"))
        assert all(word in line for word in words), line


def test_an_unwritable_report(cli, trained_snapshot, tmp_path):
    assert str(tmp_path) in error_line(cli("info", trained_snapshot, "--quiet", "--report", tmp_path))


def test_eval(cli, trained_snapshot, tiny, tmp_path):
    report_path = tmp_path / "deep" / "report.json"
    code, out, _ = cli("eval", trained_snapshot, "--test", tiny.test, "--report", report_path)
    assert code == 0
    report = check_report(report_path, n_test_images=4, steps=300)
    assert report["psnr_per_image"].keys() == {f"test/r_{i}.png" for i in range(4)}
    assert report["psnr"] == pytest.approx(np.mean(list(report["psnr_per_image"].values())))
    assert report["psnr"] > 28 and 0.7 < report["ssim"] <= 1
    lines = out.splitlines()
    assert lines[0].startswith("test/r_0.png: PSNR ") and f"PSNR {report['psnr']:.2f} [min " in lines[4]


def render(cli, snapshot: Path, out: Path, *more: object) -> None:
    code, text, err = cli("render", snapshot, "--out", out, *more)
    assert code == 0, err
    assert f"rendered to {out}" in text


def test_render_views_is_what_eval_measures(cli, trained_snapshot, tiny, tmp_path):
    """Views with their images absent; names are kept; PSNR recomputed from the files."""
    views = json.loads(tiny.test.read_text()) | {"w": SIZE, "h": SIZE}
    (tmp_path / "views.json").write_text(json.dumps(views))
    render(
        cli,
        trained_snapshot,
        tmp_path / "out",
        "--views",
        tmp_path / "views.json",
        "--channels",
        "rgb,alpha,depth,normal",
    )
    names = {
        f"r_{i}{kind}" for i in range(4) for kind in (".png", "_alpha.png", "_depth.png", "_depth.npy", "_normal.png")
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    values = []
    for i in range(4):
        picture = read_image(tmp_path / "out" / f"r_{i}.png") / 255.0
        reference = tiny.test_images[i][..., :3] / 255.0 * (tiny.test_images[i][..., 3:] / 255.0)
        values.append(psnr(picture, reference))
    report = tmp_path / "report.json"
    cli("eval", trained_snapshot, "--test", tiny.test, "--report", report, "--quiet")
    assert np.mean(values) == pytest.approx(json.loads(report.read_text())["psnr"], abs=0.05)


def test_render_writes_the_channels(cli, trained, trained_snapshot, tiny, tmp_path):
    """Pictures, and depth in world units, as render_channels has them."""
    views = json.loads(tiny.test.read_text())
    views["frames"] = views["frames"][1:2]
    views |= {"w": 24, "h": 24}
    path = tmp_path / "views.json"
    path.write_text(json.dumps(views))
    render(cli, trained_snapshot, tmp_path, "--views", path, "--channels", "depth, rgb", "--background", "white")
    trained.nerf.render_min_transmittance = 1e-4
    expected = trained.render_channels(tiny.test_poses[1], 24, 24, fov_x=FOV_X)
    depth = np.load(tmp_path / "r_1_depth.npy")
    np.testing.assert_allclose(depth, expected["depth"], atol=1e-3)
    picture = read_image(tmp_path / "r_1.png") / 255.0
    np.testing.assert_allclose(picture, srgb(expected["rgb"] + 1 - expected["alpha"][..., None]), atol=0.006)
    grey = read_image(tmp_path / "r_1_depth.png")
    assert (grey[np.isnan(depth)] == 0).all()
    solid = expected["alpha"] > 0.99
    assert (
        grey[solid].min() > 30 and grey[solid][depth[solid].argmin()].min() > grey[solid][depth[solid].argmax()].max()
    )
    render(cli, trained_snapshot, tmp_path, "--views", path, "--background", "transparent")
    clear = read_image(tmp_path / "r_1.png")
    assert clear.shape == (24, 24, 4) and np.abs(clear[..., 3] / 255 - expected["alpha"]).max() < 0.01
    render(cli, trained_snapshot, tmp_path, "--views", path, "--background", "0,1,0")
    assert read_image(tmp_path / "r_1.png")[0, 0].tolist() == [0, 255, 0]


def test_render_orbit(cli, trained_snapshot, tmp_path):
    render(cli, trained_snapshot, tmp_path / "o", "--orbit", 5, "--width", 20, "--spp", 2)
    files = sorted((tmp_path / "o").iterdir())
    assert [f.name for f in files] == [f"00{i}.png" for i in range(5)]
    pictures = [read_image(f) for f in files]
    assert all(p.shape == (20, 20, 3) for p in pictures)
    assert all(p.max() > 20 and (p.max(-1) > 20).mean() > 0.05 for p in pictures), "the subject is in view"
    assert not np.array_equal(pictures[0], pictures[1])
    render(cli, trained_snapshot, tmp_path / "turn.webp", "--orbit", 4, "--width", 24, "--height", 12)
    with Image.open(tmp_path / "turn.webp") as image:
        assert image.n_frames == 4 and image.size == (24, 12)


def test_render_needs_sizes(cli, trained_snapshot, tiny, tmp_path):
    """Of the file, or of images that exist."""
    views = json.loads(tiny.test.read_text())
    for frame in views["frames"]:
        frame["file_path"] = str(tiny.folder / frame["file_path"])
    path = tmp_path / "views.json"
    path.write_text(json.dumps(views))
    render(cli, trained_snapshot, tmp_path / "a", "--views", path)
    assert read_image(tmp_path / "a" / "r_0.png").shape == (SIZE, SIZE, 3)
    views["frames"][2]["file_path"] = "gone.png"
    for size in ({}, {"w": math.inf, "h": 5}, {"w": 0, "h": 5}, {"w": "x", "h": 5}):
        path.write_text(json.dumps(views | size))
        line = error_line(cli("render", trained_snapshot, "--views", path, "--out", tmp_path / "b", "--quiet"))
        assert str(path) in line and ("no picture size" in line or " w is " in line), line


def test_info(cli, trained_snapshot, tmp_path):
    code, out, _ = cli("info", trained_snapshot, "--report", tmp_path / "r.json")
    facts = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and str(trained_snapshot) in out.replace("\n", "") and "HashGrid" in out
    assert facts["training_step"] == 300 and facts["n_images"] == 20 and facts["image_sizes"] == ["48x48"]
    assert facts["n_params"] == facts["n_encoding_params"] + 10240
    assert facts["aabb_scale"] == 1 and facts["scale"] == pytest.approx(0.33)
    assert 0 < facts["occupied_fraction"] < 0.3


def test_info_lists_devices(cli, tmp_path):
    """Without a snapshot, or asked to."""
    for arguments in ([], ["--devices"]):
        code, out, _ = cli("info", *arguments, "--report", tmp_path / "r.json")
        report = json.loads((tmp_path / "r.json").read_text())
        expected = [asdict(d) for d in devices()]
        for one in (*report["devices"], *expected):
            free = one.pop("free_bytes")  # changes with whatever else runs on the device
            assert free is None if one["total_bytes"] is None else 0 <= free <= one["total_bytes"]
        assert code == 0 and report["devices"] == expected
        assert all(d["id"] in out and d["name"].split()[0] in out for d in report["devices"])
        reason = report["cuda_unavailable_reason"]
        assert (reason is None) == _core.has_cuda and (reason is None or reason in out.replace("\n", " "))


def test_quiet_prints_nothing(cli, trained_snapshot, tiny, tmp_path, small_config):
    """Not even warnings."""
    scene = json.loads(tiny.train.read_text()) | {"envmap": "sky.png"}
    for frame in scene["frames"]:
        frame["file_path"] = str(tiny.folder / frame["file_path"])
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    (tmp_path / "config.json").write_text(json.dumps(small_config))
    train = ["train", tmp_path / "scene.json", "--config", tmp_path / "config.json", "--steps", 2, "--batch-size", 512]
    code, out, err = cli(*train)
    assert code == 0 and "step 2" in out and "warning: " in err and "not used yet: envmap" in err
    for arguments in (
        [*train, "--save", tmp_path / "s.ingp", "--report", tmp_path / "r.json", "--test", tiny.test],
        ["eval", trained_snapshot, "--test", tiny.test], ["info", trained_snapshot],
        ["render", trained_snapshot, "--orbit", 1, "--width", 8, "--out", tmp_path / "o"],
    ):  # fmt: skip
        assert cli(*arguments, "--quiet") == (0, "", ""), arguments[0]
        assert cli(*arguments, "-q") == (0, "", ""), arguments[0]


def test_bench(cli, tiny, tmp_path, monkeypatch, device):
    """With fewer samples and pixels: the report's keys and what must add up."""
    from pyngp.cli import bench

    backend = device.split(":")[0]
    monkeypatch.setitem(bench.PLANS, backend, replace(bench.PLANS[backend], batch=4096, renderings=1, further_spp=1))
    monkeypatch.setattr(bench, "WARMUP_STEPS", 4)
    monkeypatch.setattr(bench, "RENDER_SIZES", ((32, 24), (16, 16)))
    arguments = ["--scene", tiny.train, "--test", tiny.test, "--eval-at", "0.1,1.5", "--steps", 4, "--repeats", 2]
    arguments += ["--twin", tmp_path / "none.py", "--report", tmp_path / "r.json"]
    code, out, err = cli("bench", "--task", "nerf", "--device", device, *arguments)
    assert code == 0, err
    report = check_report(tmp_path / "r.json", steps=4)
    assert report["model_ms_per_step"] > 0
    stages = report["model_stages_ms"]
    on_cpu = {"grid_forward", "mlp_forward", "mlp_backward", "grid_backward", "optimizer", "total"}
    assert set(stages) == (on_cpu if backend == "cpu" else {"forward", "backward", "scatter", "optimizer", "total"})
    assert report["model_ms_per_step"] == pytest.approx(stages["total"])
    assert report["ms_per_step"] == pytest.approx(1000 * report["train_seconds"] / 4)
    assert report["batch_size"] == 4096 and report["twins_ms"] == {} and "backward" in out
    if backend == "cpu":
        assert report["peak_gflops"] > 1 and "GFLOP/s" in out
    else:
        assert len(report["ceilings"]) == 4 and all(c > 1e9 for c in report["ceilings"].values())
        assert {row["stage"] for row in report["achieved"]} >= {"forward", "backward", "scatter", "optimizer"}
        assert all(row["share"] > 0 for row in report["achieved"]) and "TFLOP/s" in out
        assert 0 < report["touched_entries"] <= report["entries"]
    assert [(r["width"], r["height"]) for r in report["render"]] == [(32, 24), (16, 16)]
    assert all(r["first_ms"] > 0 and np.isfinite(r["further_ms"]) for r in report["render"])
    seconds, psnr = zip(*((point["seconds"], point["psnr"]) for point in report["curve"]), strict=True)
    assert len(seconds) == 2 and seconds[0] >= 0.1 and seconds[1] >= 1.5 and all(p > 5 for p in psnr)
    assert "PSNR" in out and "rendering 32x24" in out
