"""fit() among threads and signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import numpy as np
from pyngp import Testbed

INTERRUPTED = """
import sys, time
import numpy as np
from pyngp import Testbed
testbed = Testbed(data=sys.argv[1], config="base_14")
first = []
def ready(t):
    if not first:
        first.append(print("training", flush=True))
callback = ready if sys.argv[2] == "callback" else None
if callback is None:
    testbed.fit(1)
    print("training", flush=True)
try:
    testbed.fit(seconds=60, callback=callback)
except KeyboardInterrupt:
    step = testbed.training_step
    testbed.fit(2, batch_size=1024)
    assert testbed.training_step == step + 2 and np.isfinite(testbed.loss)
    testbed.render(8, 8)
    testbed.save_snapshot(sys.argv[3])
    print("usable")
"""


def interrupt(tiny, tmp_path, kind: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tiny.train), kind, str(tmp_path / "s.ingp")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "training\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert out == "usable\n" and process.returncode == 0, out + err
        assert time.monotonic() - start < 5  # a step of 32768 samples, two small ones and a save
    assert (tmp_path / "s.ingp").is_file()


def test_ctrl_c_stops_and_leaves_a_usable_testbed(tiny, tmp_path):
    interrupt(tiny, tmp_path, "plain")


def test_ctrl_c_with_a_callback(tiny, tmp_path):
    interrupt(tiny, tmp_path, "callback")


def ticks_during(work) -> int:
    """How often another Python thread got to run while work() did."""
    ticks, stop = [0], threading.Event()

    def tick() -> None:
        while not stop.wait(0.002):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        before = ticks[0]
        work()
        return ticks[0] - before
    finally:
        stop.set()
        thread.join()


def test_other_threads_run(tiny, trained, tmp_path, device):
    """During one long call each: none of them holds the interpreter's lock."""
    trained.load_training_data(tiny.train)
    trained.fit(4, batch_size=2**17)  # from here on a step has its samples and takes a tenth of a second and more
    points = np.random.default_rng(0).uniform(-1, 1, (400_000, 3)).astype(np.float32)
    calls = {
        "train": lambda: trained.train(2**17),
        "fit": lambda: trained.fit(1, batch_size=2**17),
        "render": lambda: trained.render(256, 256, 4),
        "render_channels": lambda: trained.render_channels(tiny.poses[0], 256, 256, fov_x=40),
        "query": lambda: trained.query(points),
        "save_snapshot": lambda: trained.save_snapshot(tmp_path / "s.ingp", include_optimizer_state=True),
    }
    if device != "cpu":  # a GPU is done with most of these before another thread could have had its turn
        calls = {"fit": lambda: trained.fit(400, batch_size=2**17), "save_snapshot": calls["save_snapshot"]}
    for name, call in calls.items():
        assert ticks_during(call) >= 3, name


def test_two_testbeds_train_at_once(tiny, small_config, device):
    """With the results of one after the other."""

    def train(testbed: Testbed) -> None:
        testbed.fit(10, batch_size=1024)

    same = {"data": tiny.train, "config": small_config, "device": device, "deterministic": True}
    alone = Testbed(**same)
    train(alone)
    pair = [Testbed(**same) for _ in range(2)]
    threads = [threading.Thread(target=train, args=(t,)) for t in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(t.training_step == 10 and np.array_equal(t.params(), alone.params()) for t in pair)


def test_rendering_while_training(tiny, small_config, device):
    """Calls from several threads take turns; training is not disturbed."""
    same = {"data": tiny.train, "config": small_config, "device": device, "deterministic": True}
    testbed, other = (Testbed(**same) for _ in range(2))
    other.fit(20, batch_size=1024)
    thread = threading.Thread(target=testbed.fit, args=(20,), kwargs={"batch_size": 1024})
    thread.start()
    pictures = 0
    while thread.is_alive():
        assert np.isfinite(testbed.render(8, 8)).all()
        pictures += 1
    thread.join()
    assert pictures > 0 and np.array_equal(testbed.params(), other.params())


def test_forked_processes_work(python, tiny):
    """The threads of the parent are not there; a child starts its own. (CUDA can't be used on both sides of a fork.)"""
    code = """
import os, sys
from pyngp import Testbed
testbed = Testbed(data=sys.argv[1], config="base_12", device="cpu")
testbed.fit(2, batch_size=512)
pid = os.fork()
if pid == 0:
    testbed.fit(2, batch_size=512)
    os._exit(testbed.training_step)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
testbed.fit(1, batch_size=512)
"""
    python(code, tiny.train)
