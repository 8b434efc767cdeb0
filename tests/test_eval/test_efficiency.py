"""Commands whose cost is known: a sleep, a block of memory, a device that is a stand-in."""

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest
from typer.testing import CliRunner

from eval.efficiency import Efficiency, area, measure, official_area
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_volume
from seg_backbone.volume import Volume
from vlm.cli.evaluate import app


def python(code, *arguments):
    return [sys.executable, "-c", code, *arguments]


def run(*arguments):
    return CliRunner().invoke(app, ["efficiency", *map(str, arguments)])


@pytest.fixture
def no_device(monkeypatch):
    def fail():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)


@pytest.fixture
def device(monkeypatch):
    """One device of 8 GB that always has 1024 MB in use."""
    memory = SimpleNamespace(total=8 * 2**30, free=7 * 2**30)
    stand_ins = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(pynvml, name, stand_in)


def test_areas_by_hand():
    """Readings 0.15 s apart: the official sum takes them for 0.1 s and finds two thirds of the time."""
    seconds, mb = np.array([0.0, 0.15, 0.30]), np.array([100.0, 100.0, 100.0])
    assert official_area(mb) == pytest.approx(30)
    assert area(seconds, mb, 0.45) == pytest.approx(45)
    ramp = np.array([0.0, 100.0, 200.0])
    assert area(seconds, ramp, 0.45) == pytest.approx(0.15 * 50 + 0.15 * 150 + 0.15 * 200)


def test_memory_of_a_descendant_and_wall_time(no_device):
    grandchild = "import time; held = bytearray(150 * 2**20); time.sleep(0.8)"
    results = measure(python("import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])", grandchild))
    assert results.exit_code == 0
    assert results.wall_seconds > 0.5
    assert 150 < results.rss_mb.max() < 400
    assert (np.diff(results.seconds) > 0.09).all()
    metrics = results.metrics()
    assert metrics["gpu"] is None
    assert 0 < metrics["rss"]["official_area_mb_s"] <= metrics["rss"]["area_mb_s"] * 1.2


def test_device_memory_is_total_minus_free(device):
    results = measure(python("import time; time.sleep(0.3)"))
    gpu = results.metrics()["gpu"]
    assert (gpu["before_mb"], gpu["peak_mb"]) == (1024, 1024)
    assert gpu["area_mb_s"] == pytest.approx(1024 * results.wall_seconds)
    with pytest.raises(ConfigError, match="below 1"):
        measure(python(""), gpu=1)


def test_phases_of_a_segment_report(no_device, tmp_path):
    report = tmp_path / "report.json"
    write = (
        "import json, pathlib, sys, time; now = time.time(); time.sleep(0.3);"
        "entries = [{'spans': {'read': (now, now + 0.1), 'network': (now + 0.1, now + 0.15)}}, {'error': 'broken'},"
        " {'spans': {'read': (now + 0.05, now + 0.25)}}];"
        "pathlib.Path(sys.argv[-1].split('=')[-1]).write_text(json.dumps(entries))"
    )
    for named in (["--report", str(report)], [f"--report={report}"]):
        results = measure(python(write, *named))
        assert results.phases is not None
        assert results.phases["read"] == pytest.approx(0.3, abs=1e-5)  # of two scans
        assert results.phases["network"] == pytest.approx(0.05, abs=1e-5)
        assert results.phases["outside"] == pytest.approx(results.wall_seconds - 0.25, abs=1e-5)  # they overlap
        assert all(0 <= start < end <= results.wall_seconds for _, start, end in results.spans)
    assert measure(python("", "--report", str(report))).phases is None  # left by an earlier run
    write = "import pathlib, sys; pathlib.Path(sys.argv[-1]).write_text(sys.argv[1])"
    for other in ('{"kind": "other"}', "not JSON", "[]", '[{"seconds": {"read": 1}}]', '[{"spans": {"read": 1}}]'):
        assert measure(python(write, other, "--report", str(report))).phases is None


def test_the_wall_time_is_divided_among_the_phases():
    """0 to 1 nothing; 1 to 2 import; 2 to 3 import and read; 3 to 5 read alone (of two scans); 5 to 6 nothing."""
    spans = (("import", 1.0, 3.0), ("read", 2.0, 4.0), ("read", 3.0, 5.0))
    run = Efficiency(("vlm",), 0, 6.0, np.array([0.0]), np.array([1.0]), spans=spans)
    assert run.phases == {"import": 2.0, "read": 4.0, "outside": 2.0}
    assert run.wall_by_phase == {"import": 1.5, "read": 2.5, "outside": 2.0}
    assert run.network_busy == 0
    late = Efficiency(("vlm",), 0, 4.0, np.array([0.0]), np.array([1.0]), spans=(("network", -1.0, 3.0), *spans[2:]))
    assert late.wall_by_phase == {"network": 3.0, "read": 1.0, "outside": 0.0}  # clocks differ by a little
    assert sum(late.wall_by_phase.values()) == late.wall_seconds
    assert late.network_busy == 1.0
    table = "".join(str(row) for row in run.tables()[1].rows)
    assert "['all', '', '6.00', '100%']" in table


def test_a_segment_command_tells_its_phases(no_device, tmp_path):
    scan, out = tmp_path / "scan.nii.gz", tmp_path / "out"
    values = np.random.default_rng(0).integers(-1000, 900, (20, 18, 16)).astype(np.int16)
    write_volume(Volume(values, Grid(values.shape, np.diag([4.0, 4.0, 4.0, 1.0])), "CT"), scan)
    segment = [sys.executable, "-m", "vlm.cli", "segment", "--fast", "--runtime", "torch", "--device", "cpu"]
    result = run("-o", out, "--json", "--", *segment, scan, "-o", out / "masks", "--report", out / "report.json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    phases = metrics["phases"]
    assert sum(metrics["wall_by_phase"].values()) == pytest.approx(metrics["wall_seconds"])
    assert 0 < metrics["network_busy"] < 1
    parts = ("import", "load", "read", "preprocess", "network", "export", "measure", "write", "outside")
    assert set(parts) <= set(phases) and all(seconds >= 0 for seconds in phases.values())
    assert "| network |" in (out / "efficiency.md").read_text()


def test_command_line(device, tmp_path):
    out = tmp_path / "out"
    result = run("-o", out, "--json", "--", *python("import time; print('mine'); time.sleep(0.25)"))
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)  # the command's own line is not in it
    assert json.loads((out / "efficiency.json").read_text()) == metrics
    with (out / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["readings"]
    assert max(float(row["rss_mb"]) for row in rows) == metrics["rss"]["peak_mb"]
    assert (out / "efficiency.png").read_bytes().startswith(b"\x89PNG")
    assert "| GPU | 1024.0 |" in (out / "efficiency.md").read_text()


def test_exit_codes(no_device, tmp_path):
    failed = run("--", *python("raise SystemExit(3)"))
    assert failed.exit_code == 1
    assert "exit code 3" in failed.output
    assert isinstance(run("no-such-program-here").exception, ConfigError)
