"""What `make bench-scale` reads from a compiled step, and what its page calculates, by hand."""

import json
import os
import subprocess
import sys

from studies import scaling
from studies.scaling import collectives, efficiency, exchanged, least, predicted, reached

import pandas as pd
import pytest
from processes import QUICK

TEXT = """
  %all-reduce.1 = f32[4,4,256]{2,1,0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%add
  %r = (f32[10]{0}, bf16[2,3]{1,0}) all-reduce(%b, %c), replica_groups={{0,1}}
  %gather = f32[64,8]{1,0} all-gather(f32[16,8]{1,0} %d), dimensions={0}
  %start = (f32[16]{0}, f32[64]{0}) all-gather-start(f32[16]{0} %e), dimensions={0}
  %done = f32[64]{0} all-gather-done((f32[16]{0}, f32[64]{0}) %start)
  %scalar = f32[] all-reduce(%f), to_apply=%add
  %other = f32[1000]{0} add(%all-reduce.1, %g)
"""
MACHINE = {"peak": 100, "memory": 1000, "per_host": 8, "inside": 200, "between": 20, "latency": 10}


def test_operations_that_join_devices_are_counted_with_their_bytes():
    reduced = 4 * 4 * 256 * 4 + (10 * 4 + 2 * 3 * 2) + 4
    assert collectives(TEXT) == {
        "all-reduce": {"count": 3, "bytes": reduced},
        "all-gather": {"count": 2, "bytes": 64 * 8 * 4 + 64 * 4},
    }


def test_an_exchange_takes_bandwidth_and_messages():
    joined = {
        "all-reduce": {"count": 3, "bytes": 8_000_000},
        "all-gather": {"count": 1, "bytes": 0},
    }
    assert exchanged(1, joined, MACHINE) == 0
    # eight of a host: 2 · 7/8 · 8 MB at 200 GB/s, and 4 operations of 2 · 3 messages of 10 µs
    assert exchanged(8, joined, MACHINE) == pytest.approx(14e6 / 200e9 + 4 * 6 * 10e-6)
    # of two hosts the slower link counts
    assert exchanged(16, joined, MACHINE) == pytest.approx(15e6 / 20e9 + 4 * 8 * 10e-6)


def test_a_step_waits_for_the_slower_of_computing_and_reading():
    step = {"flops": 1e9, "bytes": 1e6, "collectives": {"all-reduce": {"count": 1, "bytes": 0}}}
    found = predicted(16, 1600, step, MACHINE, share=0.5, reading=1e6)
    assert found["computing"] == pytest.approx(100 * 1e9 / 50e12)
    assert found["exchanging"] == pytest.approx(8 * 10e-6)
    assert found["reading"] == pytest.approx(100 / 1e6)  # a process for each device
    assert found["step"] == found["computing"] + found["exchanging"]
    assert found["images_per_second"] == pytest.approx(1600 / found["step"])
    assert predicted(16, 1600, step, MACHINE, 0.5, reading=1e4)["step"] == pytest.approx(1e-2)


def test_a_device_is_no_faster_than_its_memory():
    assert least({"flops": 1e9, "bytes": 1e6}, MACHINE) == pytest.approx(1e-5)  # 10⁹ of 10¹⁴
    assert least({"flops": 1e9, "bytes": 1e8}, MACHINE) == pytest.approx(1e-4)  # 10⁸ of 10¹²


def test_a_recorded_training_says_which_part_of_the_best_it_reached():
    step = {"flops": 989e6, "bytes": 1.0}  # a microsecond of an H200
    training = {"images_seen": 6_000_000, "seconds": 60, "device": "16 cores, NVIDIA H200"}
    assert reached(training, step) == pytest.approx(0.1)
    assert reached({**training, "device": "AMD EPYC, 2 cores"}, step) is None


def test_efficiency_is_that_of_one_device():
    rows = pd.DataFrame({"devices": [1, 8], "images_per_second": [100.0, 600.0]})
    assert efficiency(rows).tolist() == [1, 0.75]


def test_every_machine_has_its_data_sheet():
    for each in scaling.machines().values():
        assert each["source"].startswith("https://") and each["inside"] > each["between"] > 0


def test_the_compiled_step_of_four_devices_exchanges_its_gradients():
    """The program itself, on the smallest size: what XLA says is what the networks have."""
    code = (
        "import json, bench_scale as b\n"
        "from cellaug.training import Recipe\n"
        "from cellaug.training.devices import together\n"
        "b.BATCH = 8\n"
        "b.recipe = lambda size, **more: Recipe(decay=0.3, generator_depth=8,"
        " discriminator_depth=4, batch_size=8, **more)\n"
        "with together():\n"
        "    print(json.dumps([b.compiled(16), b.costs(16), b.costs(16, gamma=0.0)]))\n"
    )
    flags = f"--xla_force_host_platform_device_count=4 {QUICK}"
    given = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    given["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=given, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found, whole, bare = json.loads(done.stdout.splitlines()[-1])
    reduced = found["collectives"]["all-reduce"]
    assert reduced["bytes"] > 4 * sum(found["parameters"])  # gradients of both, and batch means
    assert reduced["count"] > 2 and found["flops"] > 0 and found["memory"] > 0
    assert found["flops"] == pytest.approx((whole["flops"] + 7 * bare["flops"]) / 8)
    assert bare["flops"] < found["flops"] < whole["flops"]  # the penalty in one step of eight
