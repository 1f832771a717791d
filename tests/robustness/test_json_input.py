"""Mutated transforms.json and network configurations: RuntimeError or success, never anything else."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyngp import Testbed, _core
from pyngp.dataset import FILE_KEYS, FRAME_KEYS, UNUSED_KEYS, read_scene

FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
HUGE = [10**400, -(10**400), 1e308, -1e308, 5e-324, 2**63, float("nan"), float("inf"), -0.0]
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 300), st.floats(-10, 10), st.sampled_from(HUGE),
        st.text(max_size=6),
        st.sampled_from(["a.png", "missing.png", "²", "\ud800", "a\0b", "x" * 300, "..", "/", "1"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip
KEYS = sorted(FILE_KEYS | FRAME_KEYS | UNUSED_KEYS)
POSE = [[1.0, 0, 0, 0.1], [0, 1, 0, 0.2], [0, 0, 1, 3], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scene")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.full((4, 4, 3), 99, np.uint8)).save(path / name)
    return path


def scene() -> dict[str, Any]:
    frames = [{"file_path": name, "transform_matrix": POSE} for name in ("a.png", "b.png")]
    return {"camera_angle_x": 0.7, "frames": frames}


def load(path: Path) -> Testbed | None:
    testbed = Testbed(device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            testbed.load_training_data(path)
        except RuntimeError as error:
            message = str(error)
            assert not isinstance(error, RecursionError) and len(message) < 1500
            assert str(path) in message or "a.png" in message or "b.png" in message, message
            return None
    return testbed


def test_the_scene_as_it_is(folder):
    path = folder / "plain.json"
    path.write_text(json.dumps(scene()))
    assert load(path) is not None


ODD: list[Any] = [
    None, True, 0, -1, 3, 0.5, 7.0, *HUGE, "", "x", "²", "\ud800", "a\0b", "x" * 300, "..", "123", [], [1], [1, 2, 3],
    [10**400, 0, 0], ["1", "2", "3"], [[0, 0, 0], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]], [[1e300] * 4] * 4,
    [[10**400] * 4] * 4, [[0] * 4] * 3, {}, {"a": 1}, [[], []], [None, None],
]  # fmt: skip


@pytest.mark.parametrize("where", ["file", "frame"])
def test_odd_values_of_every_key(where, folder):
    """All keys times all of ODD; some mean something, which must then be usable."""
    path = folder / f"odd_{where}.json"
    accepted = 0
    for key in KEYS:
        for value in ODD:
            document = scene()
            (document if where == "file" else document["frames"][0])[key] = value
            path.write_text(json.dumps(document))
            testbed = load(path)
            if testbed is not None:
                accepted += 1
                assert np.isfinite(testbed.cameras()).all(), (key, value)
            read_scene_for_views(path)
    assert 0 < accepted < len(KEYS) * len(ODD)


@FUZZ
@given(where=st.sampled_from(["file", "frame"]), key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_key(where, key, value, folder):
    document = scene()
    (document if where == "file" else document["frames"][0])[key] = value
    path = folder / "mutated.json"
    path.write_text(json.dumps(document))
    testbed = load(path)
    if testbed is not None:
        data = testbed.nerf.training.dataset
        assert data.n_images >= 1 and np.isfinite(testbed.cameras()).all()
    read_scene_for_views(path)


def read_scene_for_views(path: Path) -> None:
    """As `render --views` does: without images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_scene(path, need_images=False)
        except RuntimeError as error:
            assert str(path) in str(error)


@FUZZ
@given(position=st.integers(0, 10**6), junk=st.binary(min_size=1, max_size=3), cut=st.integers(0, 3))
def test_any_bytes(position, junk, cut, folder):
    """Bytes replaced or removed anywhere in the text."""
    text = bytearray(json.dumps(scene() | {"aabb_scale": 2, "offset": [0.5, 0.5, 0.5]}).encode())
    at = position % len(text)
    text[at : at + cut] = junk
    path = folder / "bytes.json"
    path.write_bytes(text)
    load(path)


@pytest.mark.parametrize("text", [
    "[" * 100_000, '{"a":' * 100_000, '{"frames": ' + "[" * 50_000, '{"scale": ' + "9" * 5000 + "}",
    '"' + "\\" * 100_001, "/*" * 100_000, '{"frames": [{}]}', '{"frames": {}}', '{"frames": 3}', "null", "3",
])  # fmt: skip
def test_odd_texts(text, folder):
    path = folder / "odd.json"
    path.write_text(text)
    assert load(path) is None


def configuration() -> dict[str, Any]:
    return json.loads(_core.base_nerf_config()) | {"encoding": {
        "otype": "HashGrid", "n_levels": 2, "n_features_per_level": 2, "log2_hashmap_size": 8,
        "base_resolution": 4, "per_level_scale": 1.5, "interpolation": "Linear",
    }}  # fmt: skip


# What each key of the configuration must not be.
WRONG = [
    (("encoding", "otype"), ["HashGird", 3, True, [], {}]),
    (("encoding", "n_levels"), [0, -1, 33, 1.5, "8", True, [], 1e30]),
    (("encoding", "n_features_per_level"), [0, 3, 16, "2"]),
    (("encoding", "log2_hashmap_size"), [0, 2, 40, "19", 1e300]),
    (("encoding", "base_resolution"), [0, -16, 1 << 20, 0.5]),
    (("encoding", "per_level_scale"), [-1, 100, "2", [1]]),
    (("encoding", "interpolation"), ["Cubic", 1]),
    (("network", "otype"), ["Fused", 1]),
    (("network", "n_neurons"), [0, -64, 48, 1 << 20, "64"]),
    (("network", "n_hidden_layers"), [0, -1, 1000, 0.5]),
    (("network", "activation"), ["Sine", 1]),
    (("network", "output_activation"), ["ReLU", 1]),
    (("rgb_network", "n_neurons"), [24]),
    (("dir_encoding", "nested"), [3, "x", {}]),
    (("dir_encoding", "otype"), ["OneBlobs", "Takikawa", 7]),
    (("dir_encoding",), [
        {"otype": "SphericalHarmonics", "degree": 0}, {"otype": "SphericalHarmonics", "degree": 9},
        {"otype": "OneBlob", "n_bins": 0}, {"otype": "OneBlob", "n_bins": 257}, {"otype": "OneBlob", "n_bins": "4"},
        {"otype": "TriangleWave", "n_frequencies": 0}, {"otype": "TriangleWave", "n_frequencies": 25},
    ]),
    (("loss", "otype"), ["L3", 2]),
    (("optimizer", "otype"), ["Shampoo"]),
    (("optimizer", "decay"), [1, -0.1, "0.95"]),
    (("optimizer", "nested", "decay_start"), [-1, "x"]),
    (("optimizer", "nested", "decay_interval"), [0, 0.5]),
    (("optimizer", "nested", "nested", "learning_rate"), [-1, "x", []]),
    (("optimizer", "nested", "nested", "beta1"), [1, -0.1]),
    (("optimizer", "nested", "nested", "beta2"), [1.5]),
]  # fmt: skip


@pytest.mark.parametrize("path,values", WRONG, ids=lambda v: ".".join(v) if isinstance(v, tuple) else "")
def test_wrong_configurations_name_the_key(path, values, tmp_path, small_config):
    """From a file: its name, the key, and the network stays."""
    testbed = Testbed(config=small_config, device="cpu")
    before = testbed.network_config
    file = tmp_path / "config.json"
    for value in values:
        config = configuration()
        part = config
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        file.write_text(json.dumps(config))
        with pytest.raises(RuntimeError) as raised:
            testbed.reload_network_from_file(file)
        message = str(raised.value)
        assert str(file) in message and (path[-1] in message or path[-1].startswith("beta")), message
        assert testbed.network_config == before


@pytest.mark.parametrize("section", ["encoding", "network", "optimizer"])
def test_missing_sections(section, tmp_path):
    config = configuration()
    del config[section]
    with pytest.raises(RuntimeError, match=section):
        Testbed(device="cpu").reload_network_from_json(config)


@settings(FUZZ, max_examples=100)
@given(choose=st.data())
def test_configurations_at_random(choose, device):
    """Whatever is accepted builds a network (of at most some megabytes: large tables are not drawn)."""
    config = copy.deepcopy(configuration())
    part: Any = config
    while isinstance(part, dict) and part:
        key = choose.draw(st.sampled_from(sorted(part)))
        if not isinstance(part[key], (dict, list)) or choose.draw(st.booleans()):
            small = VALUES.filter(lambda v: not isinstance(v, int) or v < 16)
            part[key] = choose.draw(small)
            break
        part = part[key] if isinstance(part[key], dict) else part[key][0]
    try:
        testbed = Testbed(config=config, device=device)
        assert testbed.n_params() > 0
        assert np.all(np.isfinite(testbed.query(np.zeros((3, 3)))))
    except RuntimeError as error:
        assert "network configuration" in str(error) or "encoding" in str(error), error


def test_parents(tmp_path):
    def write(name: str, content: Any) -> Path:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    write("base.json", configuration())
    (tmp_path / "more").mkdir()
    write("more/child.json", {"parent": "../base.json", "encoding": {"n_levels": 3, "interpolation": None}})
    child = write("more/grand.json", {"parent": "child.json", "loss": {"otype": "L1"}})
    testbed = Testbed(device="cpu")
    testbed.reload_network_from_file(child)
    config = json.loads(testbed.network_config)
    assert config["encoding"]["n_levels"] == 3 and config["encoding"]["base_resolution"] == 4
    assert "interpolation" not in config["encoding"] and config["loss"]["otype"] == "L1"

    loop = write("loop.json", {"parent": "loop.json"})
    for path, words in (
        (loop, "loop.json"), (write("gone.json", {"parent": "nowhere.json"}), "nowhere.json"),
        (write("odd.json", {"parent": 3}), "parent"), (write("list.json", [1]), "list.json"),
        (tmp_path / "none.json", "none.json"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=words) as raised:
            testbed.reload_network_from_file(path)
        assert not isinstance(raised.value, RecursionError)


def test_comments_in_configurations(tmp_path):
    path = tmp_path / "config.json"
    text = json.dumps(configuration(), indent=1)
    path.write_text("// one\n" + text.replace('"network"', '/* two " */ "network"', 1))
    testbed = Testbed(device="cpu")
    testbed.reload_network_from_file(path)
    assert json.loads(testbed.network_config)["encoding"]["n_levels"] == 2
