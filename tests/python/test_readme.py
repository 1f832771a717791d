"""What README.md tells people to type works, on the tiny scene and with less patience."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from fields.tiny_scene import TinyScene, write_scene
from pyngp import Testbed
from pyngp.images import read_image

README = Path(__file__).resolve().parents[2] / "README.md"
QUICKER = [
    (r"--seconds \d+", "--steps 80 --batch-size 8192 --config base_12"),
    (r"--orbit \d+", "--orbit 3 --width 16"),
    (r"seconds=\d+", "seconds=0.1"),
]


def blocks(language: str) -> list[str]:
    if not README.is_file():
        pytest.skip("there is no README.md here")
    text = README.read_text(encoding="utf-8")
    for pattern, quick in QUICKER:
        text = re.sub(pattern, quick, text)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> TinyScene:
    """photos/transforms.json and transforms_test.json in the working directory."""
    scene = write_scene(tmp_path / "photos")
    scene.train.rename(scene.folder / "transforms.json")
    monkeypatch.chdir(tmp_path)
    return scene


def test_commands(photos, cli):
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("pyngp ")]
    assert {line.split()[1] for line in lines} >= {"train", "render", "eval"}
    for line in lines:
        code, _, err = cli(*shlex.split(line, comments=True)[1:])
        assert code == 0, line + "\n" + err
    assert Path("scene.ingp").is_file() and Path("turntable.webp").is_file()
    assert len(list(Path("views").glob("*_normal.png"))) == 3
    assert read_image(Path("views/000.png")).shape == (16, 16, 3)


def test_python(photos):
    code = "\n".join(block for block in blocks("python") if "cuda" not in block and "latent" not in block)
    positions = np.zeros((5, 3))
    names = {"positions": positions, "directions": np.tile([0.0, 0.0, 1.0], (5, 1)), "camera": photos.test_poses[0]}
    exec(compile(code.replace("800, 600", "32, 24"), str(README), "exec"), names)
    assert names["rgb"].shape == (5, 3) and names["density"].shape == (5,)
    assert names["views"]["normal"].shape == (24, 32, 3)
    assert Path("scene.ingp").is_file()


def test_latents(photos):
    (code,) = (block for block in blocks("python") if "latent" in block)
    testbed = Testbed(data="photos/transforms.json", device="cpu")
    testbed.nerf.training.optimize_extra_dims = True
    testbed.fit(2, batch_size=512)
    names = {"testbed": testbed, "photo": photos.images[0], "camera": photos.poses[0]}
    exec(compile(code.replace("800, 600", "32, 24"), str(README), "exec"), names)
    assert names["latent"].shape == (16,) and names["views"]["rgb"].shape == (24, 32, 3)


def test_python_on_a_gpu(photos, cuda):
    torch = pytest.importorskip("torch")
    (code,) = (block for block in blocks("python") if "cuda" in block)
    directions = torch.tensor([[0.0, 0.0, 1.0]], device=cuda).repeat(5, 1)
    names = {
        "Testbed": Testbed,
        "torch_positions": torch.zeros((5, 3), device=cuda),
        "torch_directions": directions,
        "camera": photos.test_poses[0],
    }
    exec(compile(code.replace("1920, 1080", "32, 24"), str(README), "exec"), names)
    assert names["rgb"].shape == (5, 3) and names["views"]["normal"].shape == (24, 32, 3)
