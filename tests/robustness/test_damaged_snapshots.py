"""Damaged snapshots: always one RuntimeError that names the file, nothing changed, never a crash."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyngp import Testbed
from reference.snapshot import decompress

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def document(tiny, device, small_config, tmp_path_factory) -> dict[str, Any]:
    """A small exact snapshot, without its occupancy grid, which is legal and makes copies cheap."""
    testbed = Testbed(data=tiny.train, config=small_config, device=device)
    testbed.fit(3, batch_size=512)
    path = tmp_path_factory.mktemp("small") / "small.msgpack"
    testbed.save_snapshot(path, include_optimizer_state=True)
    whole = msgpack.unpackb(path.read_bytes())
    whole["snapshot"]["density_grid_binary"] = b""
    state = whole["snapshot"]["pyngp"]["train_state"]
    state |= {key: b"" for key, value in state.items() if isinstance(value, bytes) and len(value) == 4 * 128**3}
    return Document(whole)


class Document(dict[str, Any]):
    """Failures must not print megabytes of weights."""

    def __repr__(self) -> str:
        return "the small snapshot"


class Target:
    """A Testbed with something in it, that failed loads must not change."""

    def __init__(self, device: str, snapshot: Path, folder: Path) -> None:
        self.testbed = Testbed(device=device)
        self.testbed.load_snapshot(snapshot)
        self.path = folder / "damaged.ingp"
        self.before = self.state()

    def state(self) -> tuple[Any, ...]:
        t = self.testbed
        return (
            t.params().tobytes(), t.density_grid().tobytes(), t.training_step, t.loss, t.network_config,
            t.nerf.training.dataset.paths, t.camera_matrix.tobytes(), t.fov, t.exposure, t.color_space,
            repr(t.aabb), repr(t.render_aabb), t.nerf.training.near_distance, tuple(t.background_color),
        )  # fmt: skip

    def refuses(self, content: bytes, *words: str) -> None:
        self.path.write_bytes(content)
        with pytest.raises(RuntimeError) as raised:
            self.testbed.load_snapshot(self.path)
        message = str(raised.value)
        assert message.startswith(str(self.path)), message
        assert "\n" not in message
        for word in words:
            assert word in message, message
        assert self.state() == self.before

    def loads_or_refuses(self, content: bytes) -> None:
        """Where damage may go unnoticed: a RuntimeError or a testbed that still works."""
        self.path.write_bytes(content)
        try:
            self.testbed.load_snapshot(self.path)
        except RuntimeError as error:
            assert str(error).startswith(str(self.path)), error
            assert self.state() == self.before
            return
        self.testbed.render(4, 4)
        self.testbed.query(np.zeros((2, 3)), np.ones((2, 3)))
        self.before = self.state()


@pytest.fixture
def target(device, trained_snapshot, tmp_path) -> Target:
    return Target(device, trained_snapshot, tmp_path)


def pack(document: dict[str, Any]) -> bytes:
    return msgpack.packb(document)


def changed(value: Any, path: tuple[Any, ...], new: Callable[[Any], Any]) -> Any:
    """A copy with the part at `path` replaced; new() gets the old one."""
    if not path:
        return new(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


def without(document: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    return changed(document, path[:-1], lambda d: {k: v for k, v in d.items() if k != path[-1]})


def test_the_undamaged_one_loads(document, target):
    target.path.write_bytes(pack(document))
    target.testbed.load_snapshot(target.path)
    assert target.testbed.training_step == 3


def test_truncated(target, trained_snapshot, document):
    compressed = trained_snapshot.read_bytes()
    for size in (1, 2, 3, 9, 10, 11, 100, 1000, len(compressed) // 2, len(compressed) - 9, len(compressed) - 1):
        target.refuses(compressed[:size])
    raw = pack(document)
    for size in sorted({*range(1, 40), *np.linspace(40, len(raw) - 1, 60).astype(int).tolist()}):
        target.refuses(raw[:size])


def test_no_snapshots(target, tmp_path):
    target.refuses(b"")
    target.refuses(b"hello", "not a snapshot")
    target.refuses(b"{}", "snapshot")
    target.refuses(b'{"snapshot": 3}', "snapshot")
    target.refuses(b"\x80", "snapshot")
    target.refuses(pack([1, 2]), "object")
    target.refuses(b"\x89PNG\r\n\x1a\n" + bytes(100))
    target.refuses(gzip.compress(b""))
    target.refuses(gzip.compress(b"hello"), "not a snapshot")
    for path, word in ((tmp_path, "directory"), (tmp_path / "none.ingp", "No such file")):
        with pytest.raises(RuntimeError, match=rf"{path}: .*{word}"):
            target.testbed.load_snapshot(path)
    assert target.state() == target.before


def test_gzip_bombs(target):
    """Millions of zeros, compressed: not a snapshot, and no crash on the way."""
    target.refuses(gzip.compress(bytes(64 << 20), 9))
    array = b"\xdd" + struct.pack(">I", 2**24) + bytes(1 << 24)
    target.refuses(gzip.compress(array, 9))


@pytest.mark.parametrize("head", [
    b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01", b"\xde\xff\xff", b"\xdc\xff\xff",
])  # fmt: skip
def test_huge_lengths(head, target):
    """Lengths of 4 GiB and no content: refused before anything is allocated."""
    target.refuses(head)
    target.refuses(b"\x81\xa8snapshot" + head)
    target.refuses(b"\x81\xa8snapshot\x81\xadparams_binary" + head + bytes(64))


@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b'{"a":', b'{"snapshot":' + b"["])
def test_deep_nesting(opener, python, tmp_path):
    """In a process of its own: the stack overflows otherwise."""
    path = tmp_path / "deep.msgpack"
    path.write_bytes(opener * 1_000_000)
    code = "import sys\nfrom pyngp import Testbed\nTestbed(device='cpu').load_snapshot(sys.argv[1])"
    result = python(code, path, check=False)
    assert result.returncode == 1, result
    assert f"RuntimeError: {path}" in result.stderr


# Keys that loading takes no notice of (D.2), or that hold whatever the config's author wrote.
IGNORED = {
    ("snapshot", "n_params"), ("snapshot", "optimizer", "weights_ema_binary"),
    ("snapshot", "optimizer", "nested", "learning_rate"),
    ("snapshot", "optimizer", "nested", "learning_rate_factor"),
    ("snapshot", "optimizer", "nested", "nested", "base_learning_rate"),
    ("snapshot", "nerf", "cam_pos_offset"), ("snapshot", "nerf", "cam_rot_offset"),
    ("snapshot", "nerf", "extra_dims_opt"), ("snapshot", "nerf", "rgb", "measured_batch_size"),
    ("snapshot", "nerf", "rgb", "measured_batch_size_before_compaction"),
    ("snapshot", "nerf", "dataset", "envmap_resolution"), ("snapshot", "nerf", "dataset", "aabb_scale"),
    ("snapshot", "nerf", "dataset", "wants_importance_sampling"),
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths to all values; of lists the first element stands for all."""
    if path in IGNORED or (path and path[-1] == "rolling_shutter"):
        return
    if path:
        yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from leaves(value[0], (*path, 0))


def wrong_types(value: Any) -> list[Any]:
    """Values of every other type; booleans and numbers are told apart, integers and floats are not."""
    kinds = {bool: True, int: 3, str: "text", bytes: b"bytes", list: [], dict: {}}
    own = int if isinstance(value, float) else type(value)
    others = [v for k, v in kinds.items() if k is not own]
    if own is list and value:
        others.append([])
    if own is dict:
        others = [v for v in others if v != {}]
    return others


def test_wrong_types(document, target):
    """Every key of every part with values of every other type."""
    count, loaded, unnamed = 0, [], []
    for path, value in leaves(document):
        if value is None:
            continue
        for other in wrong_types(value):
            count += 1
            case = f"{'.'.join(map(str, path))} = {other!r}"
            target.path.write_bytes(pack(changed(document, path, lambda _, other=other: other)))
            try:
                target.testbed.load_snapshot(target.path)
                loaded.append(case)
                target.before = target.state()
            except RuntimeError as error:
                assert str(error).startswith(str(target.path)), error
                if str(path[-1]) not in str(error) and path[-1] != 0:
                    unnamed.append(f"{case}: {error}")
                assert target.state()[2:] == target.before[2:]
    assert count > 500
    assert not loaded and not unnamed, "\n".join(["accepted:", *loaded, "unnamed:", *unnamed])


REQUIRED = [
    ("encoding",), ("network",), ("optimizer",), ("snapshot",), *(("snapshot", k) for k in (
        "version", "params_binary", "training_step", "loss", "nerf")),
    *(("snapshot", "nerf", k) for k in ("aabb_scale", "dataset")),
    *(("snapshot", "nerf", "dataset", k) for k in ("n_images", "paths", "metadata", "xforms", "scale", "offset")),
    *(("snapshot", "pyngp", k) for k in ("checksum", "settings")),
    *(("snapshot", "pyngp", "train_state", k) for k in (
        "params_binary", "average_binary", "average_steps_binary", "density_grid_binary", "optimizer_steps",
        "rays_per_batch", "rays_of_last_batch", "occupancy_updates", "n_images_seen")),
    *(("snapshot", "optimizer", "nested", "nested", k) for k in (
        "current_step", "first_moments_binary", "second_moments_binary", "param_steps_binary")),
    ("snapshot", "camera", "matrix"), ("snapshot", "aabb", "min"), ("snapshot", "render_aabb", "max"),
]  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_missing_keys(path, document, target):
    target.refuses(pack(without(document, path)), path[-1])


def test_optional_keys(document, target):
    """What instant-ngp may leave out is not required."""
    required = {p[1] for p in REQUIRED if len(p) == 2 and p[0] == "snapshot"}
    for key in document["snapshot"].keys() - required - {"pyngp"}:
        target.path.write_bytes(pack(without(document, ("snapshot", key))))
        target.testbed.load_snapshot(target.path)
        assert target.testbed.training_step == 3


SNAPSHOT = ("snapshot",)
DATASET = ("snapshot", "nerf", "dataset")
STATE = ("snapshot", "pyngp", "train_state")
ERRORS = (*STATE, "error_map")
ADAM = ("snapshot", "optimizer", "nested", "nested")
WRONG_VALUES = [
    ((*SNAPSHOT, "version"), 0), ((*SNAPSHOT, "version"), -1), ((*SNAPSHOT, "version"), 1.5),
    ((*SNAPSHOT, "mode"), "sdf"), ((*SNAPSHOT, "params_type"), "double"),
    ((*SNAPSHOT, "training_step"), -1), ((*SNAPSHOT, "training_step"), 2**32),
    ((*SNAPSHOT, "training_step"), 0.5), ((*SNAPSHOT, "density_grid_size"), 64),
    ((*SNAPSHOT, "background_color"), [0, 0, 0]), ((*SNAPSHOT, "up_dir"), [0, 0]),
    ((*SNAPSHOT, "render_aabb_to_local"), [[1, 0, 0]]), ((*SNAPSHOT, "camera", "matrix"), [[1, 0, 0, 0]] * 2),
    ((*SNAPSHOT, "camera", "fov_axis"), 2), ((*SNAPSHOT, "nerf", "aabb_scale"), 3),
    ((*SNAPSHOT, "nerf", "aabb_scale"), 256), ((*SNAPSHOT, "nerf", "aabb_scale"), 2**40),
    ((*DATASET, "n_images"), 2**31), ((*DATASET, "scale"), 0),
    ((*DATASET, "scale"), -1.0), ((*DATASET, "scale"), NAN), ((*DATASET, "scale"), INF),
    ((*DATASET, "offset"), [NAN, 0, 0]), ((*DATASET, "offset"), [0, INF, 0]),
    ((*DATASET, "n_extra_learnable_dims"), 4), ((*DATASET, "metadata", 0, "resolution"), [0, 48]),
    ((*DATASET, "metadata", 0, "resolution"), [48, 2**40]), ((*DATASET, "metadata", 0, "lens"), {"k1": NAN}),
    ((*DATASET, "metadata", 0, "lens"), {"ftheta_p0": 0.0, "ftheta_p1": 0.1}),
    ((*STATE, "optimizer_steps"), -1), ((*STATE, "rays_per_batch"), 2**40), ((*STATE, "occupancy_updates"), -1),
    ((*SNAPSHOT, "pyngp", "checksum"), 1), ((*SNAPSHOT, "pyngp", "settings", "color_space"), 7),
    ((*SNAPSHOT, "pyngp", "settings", "occupancy_schedule"), 2), ((*SNAPSHOT, "pyngp", "settings", "train_mode"), 3),
    ((*SNAPSHOT, "pyngp", "settings", "loss_type"), 7), ((*SNAPSHOT, "pyngp", "settings", "rgb_activation"), -1),
    ((*ERRORS, "n_images"), 21), ((*ERRORS, "n_images"), -1), ((*ERRORS, "size"), [2**20, 1]),
    ((*ERRORS, "size"), [1]), ((*ERRORS, "steps"), -1), ((*ERRORS, "interval"), 2**40),
    (("encoding", "n_levels"), 0), (("encoding", "n_levels"), 1000), (("encoding", "n_features_per_level"), 3),
    (("encoding", "log2_hashmap_size"), 60), (("encoding", "base_resolution"), 2**30),
    (("encoding", "otype"), "Cubes"), (("network", "n_neurons"), 24), (("network", "n_hidden_layers"), 10**6),
    (("network", "otype"), "Transformer"), (("loss", "otype"), "L7"), (("optimizer", "otype"), "SGD"),
    (("optimizer", "decay"), 1.0), (("optimizer", "nested", "decay_interval"), 0),
    (("optimizer", "nested", "nested", "beta1"), 1.0), (("optimizer", "nested", "nested", "learning_rate"), -1.0),
]  # fmt: skip


def test_as_many_views_as_it_says(document, target):
    for n in (0, 19, 21):
        target.refuses(pack(changed(document, (*DATASET, "n_images"), lambda _, n=n: n)), "dataset", f"{n} elements")


@pytest.mark.parametrize(
    "path,value", WRONG_VALUES, ids=lambda v: ".".join(map(str, v)) if isinstance(v, tuple) else str(v)
)
def test_wrong_values(path, value, document, target):
    target.refuses(pack(changed(document, path, lambda _: value)), str(path[-1]))


BINARIES = [
    (*SNAPSHOT, "params_binary"), (*SNAPSHOT, "density_grid_binary"), *((*ADAM, k) for k in (
        "first_moments_binary", "second_moments_binary", "param_steps_binary")), *((*STATE, k) for k in (
        "params_binary", "average_binary", "average_steps_binary", "density_grid_binary")),
    (*ERRORS, "errors_binary"), (*ERRORS, "drawn_binary"),
]  # fmt: skip


@pytest.mark.parametrize("path", BINARIES, ids=lambda p: ".".join(p[1:]))
def test_wrong_lengths(path, document, target):
    for change in (
        lambda b: b + b"\0",
        lambda b: b + bytes(4),
        lambda b: b[:-1] if b else b"\0",
        lambda b: 2 * b + b"\0\0",
    ):
        target.refuses(pack(changed(document, path, change)), path[-1])


def poisoned(content: bytes, value: float, kind: type) -> bytes:
    values = np.frombuffer(content, kind).copy()
    values[len(values) // 2] = value
    return values.tobytes()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_values_that_are_not_finite(value, document, target):
    bad = changed(document, (*SNAPSHOT, "params_binary"), lambda b: poisoned(b, value, np.float16))
    bad["snapshot"] = {k: v for k, v in bad["snapshot"].items() if k != "pyngp"}
    target.refuses(pack(bad), "params_binary", "not finite")
    for path in (
        *((*ADAM, f"{n}_moments_binary") for n in ("first", "second")),
        (*STATE, "params_binary"),
        (*STATE, "average_binary"),
    ):
        bad = changed(document, path, lambda b: poisoned(b, value, np.float32))
        target.refuses(pack(bad), path[-1], "not finite")


def test_damaged_occupancy(document, target):
    grid = np.zeros(128**3, np.float16)
    grid[77] = NAN
    target.refuses(
        pack(changed(document, (*SNAPSHOT, "density_grid_binary"), lambda _: grid.tobytes())), "density_grid_binary"
    )


def test_checksum(document, target):
    """One flipped bit of a parameter that leaves it finite."""

    def flip(content: bytes) -> bytes:
        return bytes([content[0] ^ 1]) + content[1:]

    target.refuses(pack(changed(document, (*SNAPSHOT, "params_binary"), flip)), "checksum")


@pytest.fixture(scope="module")
def fuzz_target(device, trained_snapshot, tmp_path_factory) -> Target:
    return Target(device, trained_snapshot, tmp_path_factory.mktemp("fuzz"))


FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 7)), min_size=1, max_size=8))
def test_bit_flips(flips, document, fuzz_target):
    """Anywhere in the raw document."""
    raw = bytearray(pack(document))
    for position, bit in flips:
        raw[position % len(raw)] ^= 1 << bit
    fuzz_target.loads_or_refuses(bytes(raw))


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 7)), min_size=1, max_size=4))
def test_bit_flips_of_what_is_not_binary(flips, document, fuzz_target):
    """In keys, numbers and lengths, where they matter most: the long binaries are passed over."""
    raw = bytearray(pack(document))
    spans, start = [], 0
    for path in BINARIES:
        content = document
        for key in path:
            content = content[key]
        if len(content) > 64:
            at = raw.find(content)
            spans.append((at, at + len(content)))
    places: list[int] = []
    for begin, end in sorted(set(spans)):
        places += range(start, begin)
        start = max(start, end)
    places += range(start, len(raw))
    for position, bit in flips:
        raw[places[position % len(places)]] ^= 1 << bit
    fuzz_target.loads_or_refuses(bytes(raw))


@FUZZ
@given(position=st.integers(0, 2**40), bit=st.integers(0, 7))
def test_bit_flips_of_the_compressed_file(position, bit, trained_snapshot, fuzz_target):
    """gzip's own checksum covers its content; flips in its header may not matter."""
    content = bytearray(trained_snapshot.read_bytes())
    content[position % len(content)] ^= 1 << bit
    try:
        intact = decompress(bytes(content)) == decompress(trained_snapshot.read_bytes())
    except (OSError, EOFError, zlib.error, ValueError):
        intact = False
    if intact:
        fuzz_target.loads_or_refuses(bytes(content))
    else:
        fuzz_target.refuses(bytes(content))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.lists(st.integers(), max_size=3).map(lambda v: [x % 2**32 for x in v]),
    st.sampled_from([1e38, -1e38, 1e-38, 2**31, 2**32, 2**53, [NAN] * 3, [INF] * 3, [[NAN] * 4] * 3, [1e30] * 3]),
)  # fmt: skip


@settings(FUZZ, max_examples=150)
@given(choose=st.data())
def test_odd_values_anywhere(choose, document, fuzz_target):
    """What is accepted must still render and answer queries."""
    path, _ = choose.draw(st.sampled_from([leaf for leaf in leaves(document) if leaf[0][-1] != "params_binary"]))
    value = choose.draw(JUNK)
    fuzz_target.loads_or_refuses(pack(changed(document, path, lambda _: value)))
