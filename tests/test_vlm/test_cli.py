"""The command line end to end on phantoms: files on the scan's own grid, and mistakes told in one line."""

import csv
import json
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from seg_backbone.checkpoint import save_model
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.io import read_mask, write_volume
from seg_backbone.plan import Plan
from seg_backbone.volume import Volume
from vlm.cli import VERBS

COS, SIN = np.cos(np.radians(20)), np.sin(np.radians(20))
OBLIQUE = np.array([[-2 * COS, 2 * SIN, 0, 40], [-2 * SIN, -2 * COS, 0, 30], [0, 0, 3, -100], [0, 0, 0, 1]])
SHAPE = (40, 36, 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a tiny untrained network."""
    import torch

    from seg_backbone.nets import build_network

    plan = Plan(
        name="tiny",
        classes=("tumour", "spinal_cord"),
        spacing_mm=(6.0, 6.0, 6.0),
        patch=(16, 16, 16),
        network_options={"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
        trained_on={"CT": ("tumour", "spinal_cord")},
        minimum_ml={"tumour": 0.5, "spinal_cord": 0.5},
    )
    torch.manual_seed(3)
    network = build_network(plan.network, len(plan.ct_windows_hu), len(plan.classes) + 1, plan.network_options)
    return save_model(network, plan, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def volume():
    """A CT of a body with a bright ball, axes toward left, posterior and superior, tilted by 20 degrees."""
    i, j, k = np.indices(SHAPE)
    array = np.full(SHAPE, -1000, dtype=np.int16)
    array[4:-4, 4:-4] = 40
    array[(i - 26) ** 2 + (j - 14) ** 2 + (k - 12) ** 2 < 36] = 300
    return Volume(array, Grid(SHAPE, OBLIQUE.astype(np.float32)), "CT")


def test_help_loads_nothing_heavy():
    heavy = ("torch", "transformers", "nibabel", "numpy", "scipy", "matplotlib", "rich")
    code = (
        "import sys; from vlm.cli import main; sys.argv = ['vlm', '--help']\n"
        "try: main()\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "vlm.cli", "segment", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: vlm segment")


def test_segment_writes_on_the_grid_of_the_scan(run, model, volume, tmp_path):
    scan, out = write_volume(volume, tmp_path / "scans" / "ball_0000.nii.gz"), tmp_path / "out"
    upright = Volume(*to_canonical(volume.array, volume.grid), "CT")
    write_volume(upright, tmp_path / "scans" / "upright.nii")
    (tmp_path / "scans" / "notes.txt").write_text("the patient moved")
    options = ["--statistics", "--preview", "--report", tmp_path / "report.json", "--json", "--device", "cpu"]
    code, stdout, stderr = run("segment", scan.parent, "-o", out, "--model", model, *options)
    assert code == 0
    assert stderr == f"note: {scan.parent}: not scans, left out: notes.txt\n"

    written = ["ball.nii.gz", "ball.png", "labels.json", "statistics.csv", "upright.nii.gz", "upright.png"]
    assert sorted(path.name for path in out.iterdir()) == written
    labels = json.loads((out / "labels.json").read_text())
    assert labels == {"tumour": 1, "spinal_cord": 2}
    mask = read_mask(out / "ball.nii.gz", labels)
    np.testing.assert_array_equal(mask.grid.affine, volume.grid.affine)
    assert mask.grid.orientation == "LPS"
    turned, _ = to_canonical(mask.array, mask.grid)
    assert 0 < np.mean(turned > 0) < 1, "this test needs a mask with an inside and an outside"
    np.testing.assert_array_equal(turned, read_mask(out / "upright.nii.gz").array)

    with (out / "statistics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "ball"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert json.loads(stdout) == report
    assert [entry["case"] for entry in report] == ["ball", "upright"]
    assert report[0]["error"] is None and report[0]["dropped_classes"] == []
    assert [int(row["instance"]) for row in rows] == [one["instance"] for one in report[0]["instances"]]
    total_ml = sum(float(row["volume_ml"]) for row in rows)
    assert total_ml == pytest.approx(np.count_nonzero(mask.array) * 0.012, rel=1e-3)


@pytest.mark.parametrize(("scheme", "ids"), [("flare23", {"tumour": 14}), ("flare24", {"tumour": 1})])
def test_segment_under_the_ids_of_a_challenge(run, model, volume, tmp_path, scheme, ids):
    scan = write_volume(volume, tmp_path / "ball.nii.gz")
    for name in ("native", scheme):
        options = ["--labels", name, "--model", model, "--modality", "CT", "--fast", "--json"]
        code, stdout, _ = run("segment", scan, "-o", tmp_path / name, *options)
        assert code == 0
    assert json.loads((tmp_path / scheme / "labels.json").read_text()) == ids
    assert json.loads(stdout)[0]["dropped_classes"] == ["spinal_cord"]
    native, other = (read_mask(tmp_path / name / "ball.nii.gz").array for name in ("native", scheme))
    np.testing.assert_array_equal(other, np.where(native == 1, ids["tumour"], 0))


def test_a_broken_scan_does_not_stop_the_rest(run, model, volume, tmp_path):
    scan, out = write_volume(volume, tmp_path / "ball.nii.gz"), tmp_path / "out"
    code, stdout, stderr = run("segment", tmp_path / "none.nii.gz", scan, "-o", out, "--model", model, "--json")
    assert code == 1
    assert stderr.startswith("error: ") and stderr.count("\n") == 1
    broken, fine = json.loads(stdout)
    assert "no such file" in broken["error"] and fine["error"] is None
    assert sorted(path.name for path in out.iterdir()) == ["ball.nii.gz", "labels.json"]


def test_a_folder_that_cannot_be_written_is_told_at_once(run, model, volume, tmp_path):
    scan, file = write_volume(volume, tmp_path / "ball.nii.gz"), tmp_path / "file"
    file.write_text("not a folder")
    for options in (["-o", file], ["-o", file / "deep"], ["-o", tmp_path / "out", "--report", file / "report.json"]):
        code, _, stderr = run("segment", scan, "--model", model, *options)
        assert (code, stderr.count("\n")) == (2, 1)
        assert "expected a folder that can be written, found" in stderr
        assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(run, model, volume, tmp_path, monkeypatch):
    scan = write_volume(volume, tmp_path / "ball.nii.gz")

    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("seg_backbone.io.nifti.nib.save", full)
    code, _, stderr = run("segment", scan, "-o", tmp_path / "out", "--model", model, "--modality", "CT")
    assert (code, stderr.count("\n")) == (1, 1) and "No space left on device" in stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("what", "code"), [("end", 143), ("fail", 1)])
def test_main_ends_in_one_line(monkeypatch, capsys, what, code):
    import signal

    from vlm import cli

    def stop(**_):
        if what == "end":
            signal.raise_signal(signal.SIGTERM)
        raise PermissionError(13, "Permission denied", "/there")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", stop)
    with pytest.raises(SystemExit) as left:
        cli.main()
    signal.signal(signal.SIGTERM, before)
    assert left.value.code == code
    told = capsys.readouterr().err
    assert told == ("" if what == "end" else "error: [Errno 13] Permission denied: '/there'\n")


def test_segment_under_caps(run, model, volume, tmp_path):
    scan, out = write_volume(volume, tmp_path / "ball.nii.gz"), tmp_path / "out"
    common = ["segment", scan, "--model", model, "--device", "cpu", "--modality", "CT"]
    code, stdout, _ = run(*common, "-o", out, "--max-ram-mb", 90000, "--max-seconds", 3000, "--json")
    assert code == 0
    budget = json.loads(stdout)[0]["budget"]
    assert budget["why"] == [] and budget["caps"]["ram_mb"] == 90000
    assert budget["measured"]["ram_mb"] > 0 and 0 < budget["predicted"]["ram_mb"] < 90000
    assert run(*common, "-o", tmp_path / "free")[0] == 0
    native, capped = (read_mask(folder / "ball.nii.gz").array for folder in (tmp_path / "free", out))
    np.testing.assert_array_equal(native, capped)
    code, _, stderr = run(*common, "-o", tmp_path / "none", "--max-ram-mb", 1)
    assert code == 2 and stderr.count("\n") == 1
    assert "at least --max-ram-mb" in stderr and "found --max-ram-mb 1" in stderr
    assert not (tmp_path / "none").exists()
    least = re.search(r"at least --max-ram-mb (\d+)", stderr).group(1)
    assert run(*common, "-o", tmp_path / "least", "--max-ram-mb", least)[0] == 0
    code, _, stderr = run(*common, "-o", out, "--max-seconds", 0)
    assert code == 2 and "--max-seconds" in stderr


def test_skips_are_verified(run, model, tmp_path):
    """A body at one end of a long scan of air."""
    array = np.full((100, 24, 24), -1000, dtype=np.int16)
    array[:16, 4:-4, 4:-4] = 40
    scan = write_volume(Volume(array, Grid(array.shape, np.diag([6.0, 6, 6, 1])), "CT"), tmp_path / "scan.nii.gz")
    options = ["--model", model, "--device", "cpu", "--runtime", "torch", "--fast", "--verify-skips", "--json"]
    code, stdout, stderr = run("segment", scan, "-o", tmp_path / "out", *options)
    assert code == 0
    skipped = json.loads(stdout)[0]["skipped"]
    assert skipped["air"] > 0 and skipped["voxels_that_differ"] >= 0
    assert len(skipped["windows"]) == skipped["air"] and all(one["by"] == "air" for one in skipped["windows"])
    told = f"windows skipped: {skipped['air']} by air; {skipped['voxels_that_differ']} voxels differ"
    lost = ", ".join(f"{count} {name}" for name, count in skipped["lost"].items())  # of an untrained model's noise
    assert stderr == f"note: {scan}: {told}{'; pieces lost: ' if lost else ''}{lost}\n"


def test_windows_as_asked_for(run, model, volume, tmp_path):
    scan = write_volume(volume, tmp_path / "scan.nii.gz")
    common = ["segment", scan, "-o", tmp_path / "out", "--model", model, "--device", "cpu", "--json"]
    asked = ["--step", 1.0, "--blending", "uniform", "--mirror", "--export", "nearest", "--roi"]
    code, stdout, _ = run(*common, *asked)
    assert code == 0
    report = json.loads(stdout)[0]
    assert report["settings"] == {"blending": "uniform", "mirrored": [0], "export": "nearest"}
    assert report["budget"]["chosen"]["step"] == 1.0 and report["mode"] == "accurate"
    assert report["skipped"]["air"] == 0 <= report["skipped"]["roi"]
    for wrong in (["--step", 0], ["--step", 1.2], ["--blending", "hann"], ["--export", "cubic"]):
        code, _, stderr = run(*common, *wrong)
        assert code == 2 and wrong[0] in stderr


def test_a_mask_that_cannot_be_written_does_not_stop_the_rest(run, model, volume, tmp_path):
    out = tmp_path / "out"
    scans = [write_volume(volume, tmp_path / f"{name}.nii.gz") for name in "abc"]
    (out / "a.nii.gz").mkdir(parents=True)
    code, stdout, stderr = run("segment", *scans, "-o", out, "--model", model, "--json")
    assert code == 1 and stderr.startswith("error: ")
    entries = json.loads(stdout)
    assert [entry["case"] for entry in entries] == ["a", "b", "c"]
    assert [entry["error"] is None for entry in entries] == [False, True, True]
    np.testing.assert_array_equal(read_mask(out / "b.nii.gz").array, read_mask(out / "c.nii.gz").array)


def test_an_untrained_modality_is_told(run, model, volume, tmp_path):
    scan = write_volume(volume, tmp_path / "ball.nii.gz")
    code, _, stderr = run("segment", scan, "-o", tmp_path / "out", "--model", model, "--modality", "MR")
    assert code == 0 and "was not trained on MR" in stderr
    assert not read_mask(tmp_path / "out" / "ball.nii.gz").array.any()


def bad_scan(kind, folder):
    """Write what is not a scan and return its path."""
    path = folder / f"{kind}.nii.gz"
    array = np.arange(24000, dtype=np.float32).reshape(40, 30, 20)
    if kind == "text":
        path.write_text("patient moved\nrepeat the scan\n")
    elif kind == "no_scans":
        path.mkdir()
    elif kind != "missing":
        arrays = {"flat": array[..., 0], "zeros": array * 0, "nan": np.where(array == 3, np.nan, array)}
        nib.save(nib.Nifti1Image(arrays[kind], OBLIQUE), path)
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "no_scans", "flat", "zeros", "nan"])
def test_a_bad_scan_is_one_line_and_exit_code_2(run, model, tmp_path, kind):
    path = bad_scan(kind, tmp_path)
    for verb in (["segment", path, "-o", tmp_path / "out"], ["info", path]):
        code, stdout, stderr = run(*verb, "--model", model)
        assert (code, stdout) == (2, "")
        assert stderr.startswith(f"error: {path}: expected ") and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_mistakes_in_the_call(run, model, volume, tmp_path):
    scan = write_volume(volume, tmp_path / "a" / "ball.nii.gz")
    again = write_volume(volume, tmp_path / "b" / "ball_0000.nii.gz")
    for paths, out, says in [
        ([scan, again], tmp_path / "out", "case names that differ"),
        ([scan], scan.parent, "choose another -o"),
    ]:
        code, _, stderr = run("segment", *paths, "-o", out, "--model", model)
        assert code == 2 and says in stderr and stderr.count("\n") == 1
    code, _, stderr = run("segment", scan, "-o", tmp_path / "out", "--model", "nobody")
    assert code == 2 and stderr.startswith("error: nobody: expected a model folder")
    assert run("segment", scan)[0] == run("segment", scan, "-o", "x", "--labels", "mine")[0] == run("nope")[0] == 2
    assert not (tmp_path / "out").exists()


def test_interrupting_is_exit_code_130(run, monkeypatch):
    def interrupt(verb):
        raise KeyboardInterrupt

    monkeypatch.setattr("vlm.cli.import_module", interrupt)
    assert run("info", "scan.nii.gz")[0] == 130


def test_info(run, model, volume, tmp_path):
    scan = write_volume(volume, tmp_path / "ball.nii.gz")
    code, stdout, _ = run("info", scan, "--model", model, "--json")
    facts = json.loads(stdout)
    assert code == 0
    assert (facts["shape"], facts["orientation"], facts["spacing_mm"]) == (list(SHAPE), "LPS", [2.0, 2.0, 3.0])
    assert (facts["size_mm"], facts["values"]) == ([80.0, 72.0, 72.0], [-1000, 300])
    assert (facts["modality"], facts["modality_from"]) == ("CT", "guessed")
    assert facts["can_find"] == ["tumour", "spinal_cord"]
    code, stdout, _ = run("info", scan, "--model", model, "--modality", "MR")
    assert code == 0 and "not trained on this modality" in stdout


def test_models(run, model):
    code, stdout, _ = run("model", "show", model)
    assert code == 0 and '"name": "tiny"' in stdout
    code, stdout, _ = run("model", "list", "--json")
    assert code == 0
    for row in json.loads(stdout):
        assert row["kind"] in ("segmentation", "language") and row["megabytes"] > 0
    assert run("model", "show", "nobody")[0] == 2
