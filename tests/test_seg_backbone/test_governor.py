"""The governor: the ladder by hand, and a scan of 512 x 512 x 300 voxels that stays inside its cap."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.governor import MB, Budget, Choice, Need, Work, choose, window_mb
from seg_backbone.nets import build_network

START = Choice(batch=4, slab=16, step=0.5)


def toy(choice):
    """Two stages whose memory follows batch and slab, seconds that follow step and spacing."""
    ram = {"network": 100.0 + 50 * choice.batch, "export": 100.0 + 10 * choice.slab, "measure": 120.0}
    return Need(ram, {}, 80 / (choice.step * choice.coarser) ** 3)


def test_what_fits_is_left_alone():
    choice, need, why = choose(Budget(ram_mb=300, seconds=640), START, toy, "scan")
    assert (choice, why) == (START, [])
    assert need.peaks() == {"ram_mb": 300.0, "gpu_mb": 0.0, "seconds": 640.0}


def test_the_ladder_is_taken_in_order_and_only_where_it_helps():
    choice, _, why = choose(Budget(ram_mb=190), START, toy, "scan")
    assert choice == Choice(batch=1, slab=8, step=0.5)  # the accumulator would not lower anything here
    assert [line.split(" ")[0] for line in why] == ["batch", "batch", "slab"]
    assert why[0] == "batch 4 -> 2: ram_mb 300 over 190"
    choice, need, why = choose(Budget(seconds=60), START, toy, "scan")
    assert choice == Choice(batch=4, slab=16, step=1.0, coarser=1.25)  # memory settings do nothing for time
    assert need.seconds == pytest.approx(80 / 1.25**3)


def test_a_cap_that_nothing_fits_names_the_smallest_that_does():
    with pytest.raises(ConfigError, match=r"--max-ram-mb 158, .*found --max-ram-mb 100") as caught:
        choose(Budget(ram_mb=100, seconds=1e6), START, toy, "scan")
    least = int(re.search(r"at least --max-ram-mb (\d+)", str(caught.value)).group(1))
    assert choose(Budget(ram_mb=least), START, toy, "scan")[1].peaks()["ram_mb"] <= least
    with pytest.raises(ConfigError, match="--max-ram-mb 158, --max-seconds 11"):
        choose(Budget(ram_mb=100, seconds=1), START, toy, "scan")


@pytest.mark.parametrize("cap", [0, -1, float("nan")])
def test_caps_are_positive(cap):
    with pytest.raises(ConfigError, match="--max-gpu-mb"):
        Budget(gpu_mb=cap)


def test_needs_by_hand():
    """A working grid of 64^3, 3 classes: what each setting changes, in MB."""
    grid = Grid((128, 128, 128), np.diag([2.0, 2.0, 2.0, 1.0]))
    work = Work(grid, (4.0, 4.0, 4.0), (32, 32, 32), 2, 3, 10.0, 500.0, window_seconds=1.0)
    network = {
        name: work.need(choice).ram_mb["network"]
        for name, choice in {
            "start": Choice(),
            "batch": Choice(batch=3),
            "half": Choice(accumulator="float16"),
            "coarse": Choice(coarser=2.0),
        }.items()
    }
    assert network["batch"] - network["start"] == pytest.approx(1.05 * 20)
    # logits are held one window of 32 slices deep, and the 8 of a slab of 16, and a halo of 2
    assert network["start"] - network["half"] == pytest.approx(1.05 * 3 * 64**2 * 42 * 2 / MB)
    assert network["coarse"] < network["half"]
    assert work.need(Choice()).ram_mb["measure"] == pytest.approx(500 + 32 + 1.05 * 15 * 2)  # 2 MB of voxels
    more = work.need(Choice(step=0.5)).seconds - work.need(Choice(step=1.0)).seconds
    assert more == pytest.approx(1.2 * (3**3 - 2**3))
    on_gpu = Work(grid, (4.0, 4.0, 4.0), (32, 32, 32), 2, 3, 10.0, 500.0, 700.0, on_gpu=True).need(Choice())
    assert on_gpu.ram_mb["export"] < work.need(Choice()).ram_mb["export"]
    assert on_gpu.gpu_mb["network"] > 700


def test_window_estimate_follows_the_widest_map():
    """The widest of all maps: 16 channels of 16^3, what the decoder's convolution is given; 3 output classes."""
    network = build_network("residual_unet", 2, 3, {"features": [8, 16], "blocks": [1, 1], "strides": [1, 2]})
    assert window_mb(network, torch.zeros(1, 2, 16, 16, 16)) == pytest.approx(4 * 16**3 * (6 * 16 + 2 * 3) / MB)


SCRIPT = """
import json, re, resource
import numpy as np, torch
from seg_backbone.errors import ConfigError
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter

class Bright(torch.nn.Module):
    def encoder(self, x):
        return [x]
    def decoder(self, maps):
        return torch.cat([-maps[0][:, 1:], maps[0][:, 1:] - 0.4], 1)

plan = Plan("p", ("tumour",), step=0.75, trained_on={"CT": ("tumour",)}, minimum_ml={"tumour": 1.0})
array = np.full((512, 512, 300), -1000, dtype=np.int16)
array[60:450, 90:430] = 0
array[200:330, 200:330, 100:250] = 400
array[5:30, 5:30, 5:20] = array[480:505, 480:505, 280:295] = 400  # so that the pieces' box is the whole scan
segmenter, scan = Segmenter(Bright(), plan, "0"), (array, np.diag([0.8, 0.8, 2.0, 1.0]))
try:
    segmenter(scan, "CT", max_ram_mb=300)
except ConfigError as error:
    refused = str(error)
least = int(re.search(r"at least --max-ram-mb (\\d+),", refused).group(1))
found = segmenter(scan, "CT", max_ram_mb=least)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
ml = [instance.volume_ml for instance in found.instances]
print(json.dumps({**found.report["budget"], "least": least, "refused": refused, "peak": peak, "ml": ml}))
"""


def test_a_large_scan_stays_inside_the_smallest_cap():
    """512 x 512 x 300 voxels: a cap too small is refused with one that works, and that one is held."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["refused"].startswith("array: expected at least --max-ram-mb")
    assert "found --max-ram-mb 300" in report["refused"]
    assert report["caps"] == {"ram_mb": report["least"]}
    assert len(report["ml"]) == 3
    assert report["ml"][0] == pytest.approx(130 * 130 * 150 * 1.28 / 1000, rel=0.05)
    assert 0.4 * report["predicted"]["ram_mb"] < report["peak"] < report["predicted"]["ram_mb"] <= report["least"]
    assert report["measured"]["ram_mb"] == pytest.approx(report["peak"], rel=0.02)
