"""max_level_rand_training: which levels rays see, and that coarse levels then do without the fine ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
from fields.tiny_scene import TinyScene
from pyngp import Testbed
from pyngp._core import stages
from pyngp.dataset import load_images, read_scene
from pyngp.evaluation import evaluate
from reference.snapshot import decompress


@pytest.mark.parametrize("n_levels", [1, 4, 16])
def test_half_of_the_rays_see_all_levels(n_levels: int) -> None:
    """The others as many as a uniform number from 1 to n_levels."""
    u = (np.arange(1024) + 0.5) / 1024
    seen = np.array([stages.levels_below(float(v), n_levels) for v in u])
    assert np.all(seen[u >= 0.5] == n_levels)
    assert np.array_equal(np.bincount(seen[u < 0.5], minlength=n_levels + 1)[1:], np.full(n_levels, 512 // n_levels))


def without_fine_levels(testbed: Testbed, config: dict, kept: int, folder: Path) -> Testbed:
    """The model with only its `kept` coarsest levels; the others are zero, as a ray sees them that is cut there."""
    path = folder / "cut.ingp"
    testbed.save_snapshot(path)
    document = msgpack.unpackb(decompress(path.read_bytes()), strict_map_key=False)
    state = document["snapshot"]
    params = np.frombuffer(state["params_binary"], np.float16).copy()
    levels = stages.encoding_levels(json.dumps(config), 1, 3)
    first = testbed.n_params() - testbed.n_encoding_params()
    params[first + levels[kept][2] * config["encoding"]["n_features_per_level"] :] = 0
    state["params_binary"] = params.tobytes()
    state.pop("pyngp")  # its checksum is that of the whole
    path.write_bytes(gzip.compress(msgpack.packb(document)))
    cut = Testbed(device=testbed.device)
    cut.load_snapshot(path)
    return cut


def psnr_of(testbed: Testbed, tiny: TinyScene) -> float:
    frames = read_scene(tiny.test).frames
    return evaluate(testbed, frames, load_images(frames)).psnr


def test_coarse_levels_learn_to_stand_alone(tiny, small_config, tmp_path, device):
    """Without half of its levels, a model trained this way loses less than one that never lacked them."""
    quality = {}
    for random in (False, True):
        testbed = Testbed(data=tiny.train, config=small_config, device=device)
        testbed.max_level_rand_training = random
        testbed.fit(250, batch_size=4096)
        whole = psnr_of(testbed, tiny)
        quality[random] = whole, psnr_of(without_fine_levels(testbed, small_config, 2, tmp_path), tiny)
    print(f"whole and with 2 of 4 levels: {quality}")
    loss = {random: whole - cut for random, (whole, cut) in quality.items()}
    assert loss[False] > 0.5 and loss[True] < 0.75 * loss[False]
    assert quality[True][0] > quality[False][0] - 2


def test_levels_that_no_ray_sees_keep_their_bytes(tiny, small_config, tmp_path, device):
    """A cut ray leaves no gradient in finer levels: in a step of rays that all are cut, they do not move. With 8 rays
    in the first step, the draws of some seed are all below the last level's."""
    config = small_config | {"encoding": small_config["encoding"] | {"n_levels": 16}}
    levels = stages.encoding_levels(json.dumps(config), 1, 3)
    kept = None
    for seed in range(8000):
        draws = [stages.random(seed, 2, 16 * i + 11, 1)[0] for i in range(8)]
        seen = max(stages.levels_below((d >> 9) / 2**23, 16) for d in draws)
        if seen < 16:
            kept = seed, seen
            break
    assert kept is not None, "one seed of 430 has only cut rays"
    seed, seen = kept
    testbed = Testbed(data=tiny.train, config=config, device=device, seed=seed)
    testbed.max_level_rand_training = True
    before = testbed.params()
    testbed.fit(1, batch_size=512)
    after = testbed.params()
    first = testbed.n_params() - testbed.n_encoding_params() + levels[seen][2] * 2
    moved = np.abs(after - before)
    assert moved[first:].max() <= 1e-10 < 1e-3 < moved[:first].max()  # averaging rounds 1e-4; a step is 1e-2
    testbed.reset()
    testbed.max_level_rand_training = False
    testbed.fit(1, batch_size=512)
    assert not np.array_equal(before[first:], testbed.params()[first:])
