"""The governor: the ladder by hand, and scans of up to 512 x 512 x 1000 voxels that stay inside their caps."""

import json
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.governor import (
    CPU_MAPS,
    LIBRARY_MB,
    MB,
    Budget,
    Choice,
    Need,
    Work,
    choose,
    machine_mb,
    ram_mb,
    window_cost,
)
from seg_backbone.nets import build_network
from seg_backbone.nets.wrappers import Ensemble
from seg_backbone.sliding_window import predict_blocks

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
    assert work.need(Choice()).ram_mb["measure"] == pytest.approx(500 + 32 + 1.05 * 5.5 * 2)  # 2 MB of voxels
    more = work.need(Choice(step=0.5)).seconds - work.need(Choice(step=1.0)).seconds
    assert more == pytest.approx(1.2 * (3**3 - 2**3))
    on_gpu = Work(grid, (4.0, 4.0, 4.0), (32, 32, 32), 2, 3, 10.0, 500.0, 700.0, on_gpu=True).need(Choice())
    assert on_gpu.ram_mb["export"] < work.need(Choice()).ram_mb["export"]
    assert on_gpu.gpu_mb["network"] > 700


def test_window_estimate_follows_the_widest_map():
    """The widest of all maps: 16 channels of 16^3, what the decoder's convolution is given."""
    network = build_network("residual_unet", 2, 3, {"features": [8, 16], "blocks": [1, 1], "strides": [1, 2]})
    cost = window_cost(network, 2, (16, 16, 16))
    assert cost.mb == pytest.approx(4 * 16**3 * CPU_MAPS * 16 / MB + LIBRARY_MB)
    assert window_cost(network, 2, (32, 16, 16)).operations == pytest.approx(2 * cost.operations)
    assert window_cost(Ensemble([network, network]), 2, (16, 16, 16)).operations == pytest.approx(cost.operations)


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet", "residual_unet", "segresnet", "swin_unetr"])
def test_the_cost_of_a_network_is_about_what_torch_counts(name):
    """By shapes alone: nothing is run."""
    widest = [0]
    options = {"features": (4, 8, 16)} if name in ("plain_unet", "resenc_unet") else {}
    network = build_network(name, 1, 2, options).eval().to("meta")
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(lambda _, i, o: widest.append(max(i[0].numel(), o.numel())))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.empty((1, 1, 64, 64, 64), device="meta"))
    cost = window_cost(network, 1, (64, 64, 64))
    assert 0.5 < cost.operations / counter.get_total_flops() < 2.5
    assert (cost.mb - LIBRARY_MB) * MB / 4 / CPU_MAPS == pytest.approx(max(widest), rel=0.01)


def test_smaller_windows_by_hand():
    """Half of 64 x 64 x 24 voxels in steps of 16, and never below two of them: 32 x 32 x 24."""
    grid = Grid((256, 256, 256), np.diag([1.0, 1.0, 1.0, 1.0]))
    work = Work(grid, (1.0, 1.0, 1.0), (64, 64, 24), 1, 3, 960.0, 500.0, divisor=(16, 16, 16), window_seconds=1.0)
    assert work.window(Choice()) == (64, 64, 24)
    assert work.window(Choice(window=0.75)) == (48, 48, 24)
    assert work.window(Choice(window=0.5)) == (32, 32, 24)
    whole, half = work.need(Choice()).ram_mb, work.need(Choice(window=0.5)).ram_mb
    assert whole["network"] - half["network"] == pytest.approx(1.05 * 0.75 * 960)  # as deep, so the logits stay
    assert whole["measure"] == half["measure"]


def test_sums_on_the_host_by_hand():
    grid = Grid((128, 128, 128), np.diag([2.0, 2.0, 2.0, 1.0]))
    work = Work(grid, (4.0, 4.0, 4.0), (32, 32, 32), 2, 60, 10.0, 500.0, 700.0, on_gpu=True)
    device, host = work.need(Choice()), work.need(Choice(place="cpu"))
    logits = 4 * 64 * 64 * (60 * (32 + 8 + 2) + 32) / MB  # a window deep, a slab of 16 / 2 voxels, 2; and the weights
    assert device.gpu_mb["network"] - host.gpu_mb["network"] == pytest.approx(1.05 * logits)
    assert host.ram_mb["network"] - device.ram_mb["network"] == pytest.approx(1.05 * logits)
    choice, need, why = choose(Budget(gpu_mb=1.02 * host.peaks()["gpu_mb"]), Choice(), work.need, "scan")
    assert choice == Choice(accumulator="float16", place="cpu") and len(why) == 2
    assert need.peaks()["gpu_mb"] < device.peaks()["gpu_mb"]


def test_what_the_machine_has_free_is_a_cap():
    choice, _, why = choose(Budget(), START, toy, "scan", {"ram_mb": 250.0})
    assert choice == Choice(batch=2, slab=8, step=0.5) and why[0] == "batch 4 -> 2: ram_mb 300 over 250"
    choice, _, _ = choose(Budget(ram_mb=200), START, toy, "scan", {"ram_mb": 250.0})
    assert choice.batch == 2  # the lower one counts
    with pytest.raises(ConfigError, match=r"at least --max-ram-mb 158, found 60 MB free; free memory"):
        choose(Budget(), START, toy, "scan", {"ram_mb": 60.0})
    with pytest.raises(ConfigError, match=r"found --max-ram-mb 50; raise the cap"):
        choose(Budget(ram_mb=50), START, toy, "scan", {"ram_mb": 60.0})
    free = machine_mb()
    assert set(free) == {"ram_mb"} and ram_mb() < free["ram_mb"]


def test_sums_kept_elsewhere_give_the_same_logits():
    image = torch.randn(1, 20, 24, 40, generator=torch.Generator().manual_seed(0))
    once, elsewhere = (
        torch.cat([b.clone() for b in predict_blocks(lambda w, _: w, image, (16, 16, 16), keep_on=place)], -1)
        for place in (None, torch.device("cpu"))
    )
    assert torch.equal(once, elsewhere)


SCRIPT = """
import json, re, resource, sys
import nibabel as nib, numpy as np, torch
from seg_backbone.errors import ConfigError
from seg_backbone.governor import peak_ram_mb
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter

class Bright(torch.nn.Module):
    divisor = (1, 1, 1)

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def encoder(self, x):
        return [x]
    def decoder(self, maps):
        return torch.cat([-maps[0][:, 1:], maps[0][:, 1:] - 0.4], 1)

path, limited = sys.argv[1], len(sys.argv) > 2
plan = Plan("p", ("tumour",), step=0.75, trained_on={"CT": ("tumour",)}, minimum_ml={"tumour": 1.0})
segmenter = Segmenter(Bright(), plan, "0")
refused, before = "", peak_ram_mb()
try:
    segmenter(path, "CT", max_ram_mb=before)
except ConfigError as error:
    refused = str(error)
read = peak_ram_mb() - before
least = int(re.search(r"at least --max-ram-mb (\\d+),", refused).group(1))
if limited:  # not the cap of the call but one of the shell: beyond it no memory is given at all
    vms = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    allowed = vms + int((least - before + 256) * 2**20)  # addresses: threads reserve more than they fill
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
found = segmenter(path, "CT", **({} if limited else {"max_ram_mb": least}))
ml = [instance.volume_ml for instance in found.instances]
print(json.dumps({**found.report["budget"], "least": least, "refused": refused, "read": read, "ml": ml,
    "seconds": found.report["seconds"], "peak": peak_ram_mb()}))
"""


def large_scan(folder, depth):
    """A body with a bright block in it, and two in the corners, so that the box of the pieces is the whole scan."""
    array = np.full((512, 512, depth), -1000, dtype=np.int16, order="F")
    array[60:450, 90:430] = 0
    array[200:330, 200:330, depth // 3 : depth // 3 + 60] = 400
    array[5:30, 5:30, 5:20] = array[480:505, 480:505, depth - 20 : depth - 5] = 400
    path = folder / "large.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([0.8, 0.8, 2.0, 1.0])), path)
    return path


@pytest.mark.parametrize(
    ("depth", "limit"), [(120, ()), (120, ("shell",)), pytest.param(1000, (), marks=pytest.mark.slow)]
)
def test_a_large_scan_stays_inside_the_smallest_cap(tmp_path, depth, limit):
    """A cap too small is refused before the scan is read, with one that works, and that one is held."""
    command = [sys.executable, "-c", SCRIPT, str(large_scan(tmp_path, depth)), *limit]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "large.nii.gz: expected at least --max-ram-mb" in report["refused"]
    assert report["read"] < 0.5 * depth, "refused from the header: a slice takes 0.5 MB"
    assert len(report["ml"]) == 3
    assert report["ml"][0] == pytest.approx(130 * 130 * 60 * 1.28 / 1000, rel=0.06)
    if limit:
        assert report["caps"] == {} and report["machine"]["ram_mb"] < report["least"] + 264
        return
    assert report["caps"] == {"ram_mb": report["least"]}
    assert 0.4 * report["predicted"]["ram_mb"] < report["peak"] < report["predicted"]["ram_mb"] <= report["least"]
    assert report["measured"]["ram_mb"] == pytest.approx(report["peak"], rel=0.02)
