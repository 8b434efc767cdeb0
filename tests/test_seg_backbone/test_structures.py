"""Contours of RTSTRUCT and frames of DICOM-SEG on the grid of a scan: known shapes, other programs, broken files."""

import highdicom as hd
import numpy as np
import pytest
from dicoms import AFFINES, ct_phantom, write_rtstruct, write_series
from matplotlib.path import Path as Polygon
from pydicom.sr.codedict import codes

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_volume
from seg_backbone.io.dicom import read_headers
from seg_backbone.io.rtstruct import fill
from seg_backbone.io.structures import list_structures, voxels_of

UP = np.array([[-1.2, 0, 0, 40], [0, -0.9, 0, 30], [0, 0, 2.5, -50], [0, 0, 0, 1.0]])
DOWN = UP @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 39], [0, 0, 0, 1.0]])
SHAPE = (64, 60, 40)


def ring(grid, k, centre, radii, points=200):
    """An ellipse on slice k; centre and radii in voxels. Returns (points, 3) RAS mm."""
    t = np.linspace(0, 2 * np.pi, points, endpoint=False)
    plane = np.stack([centre[0] + radii[0] * np.cos(t), centre[1] + radii[1] * np.sin(t), np.full(points, k)], axis=1)
    return grid.voxel_to_world(plane)


def box(grid, k, low, high):
    corners = [(low[0], low[1], k), (high[0], low[1], k), (high[0], high[1], k), (low[0], high[1], k)]
    return grid.voxel_to_world(np.array(corners, dtype=float))


def as_array(flat, grid):
    array = np.zeros(grid.shape, dtype=bool)
    array.reshape(-1)[flat] = True
    return array


@pytest.mark.parametrize("affine", [UP, DOWN, AFFINES["sagittal"], AFFINES["oblique"]])
@pytest.mark.parametrize(("step", "offset"), [(1, 0), (1, 0.3), (1, 0.5), (2, 0), (0.37, 0.1), (1.7, 0.2)])
def test_an_ellipsoid_has_its_volume(affine, step, offset):
    """Contours on slices, beside them, on every other one, and denser than slices."""
    grid = Grid(SHAPE, affine)
    centre, radii_mm = np.array([31.3, 29.2, 19.4]), np.array([20.0, 16.0, 30.0]) * grid.spacing_mm / UP.diagonal()[:3]
    radii = np.abs(radii_mm / grid.spacing_mm)
    heights = [k for k in np.arange(offset, SHAPE[2], step) if abs(k - centre[2]) < radii[2]]
    shrunk = [np.sqrt(1 - ((k - centre[2]) / radii[2]) ** 2) for k in heights]
    found = fill([ring(grid, k, centre, radii * s) for k, s in zip(heights, shrunk, strict=True)], grid)
    volume_ml = 4 / 3 * np.pi * np.abs(np.prod(radii_mm)) / 1000
    assert len(found) * grid.voxel_volume_ml == pytest.approx(volume_ml, rel=0.02)
    np.testing.assert_allclose(np.argwhere(as_array(found, grid)).mean(0), centre, atol=0.51)


def test_contours_on_the_slices_give_the_voxels_whose_centres_are_inside():
    grid = Grid(SHAPE, UP)
    radii, centre = np.array([11.3, 9.1]), np.array([30.2, 29.7])
    found = as_array(fill([ring(grid, k, centre, radii, 2000) for k in (7, 8)], grid), grid)
    i, j = np.meshgrid(np.arange(SHAPE[0]), np.arange(SHAPE[1]), indexing="ij")
    inside = ((i - centre[0]) / radii[0]) ** 2 + ((j - centre[1]) / radii[1]) ** 2 < 1
    for k in range(SHAPE[2]):
        np.testing.assert_array_equal(found[..., k], inside if k in (7, 8) else np.zeros_like(inside))


def test_holes_islands_and_keyholes():
    grid = Grid(SHAPE, UP)
    outer, hole, island = ((2.5, 2.5), (12.5, 10.5)), ((4.5, 4.5), (9.5, 8.5)), ((5.5, 5.5), (6.5, 6.5))
    beside = ((20.5, 2.5), (22.5, 3.5))
    found = as_array(fill([box(grid, 5, *corners) for corners in (outer, hole, island, beside)], grid), grid)
    expected = np.zeros(SHAPE, dtype=bool)
    expected[3:13, 3:11, 5] = True
    expected[5:10, 5:9, 5] = False
    expected[6, 6, 5] = expected[21:23, 3, 5] = True
    np.testing.assert_array_equal(found, expected)
    way = [(2.5, 2.5), (4.5, 4.5), (4.5, 8.5), (9.5, 8.5), (9.5, 4.5), (4.5, 4.5), (2.5, 2.5)]  # in, around, out again
    keyhole = np.array([*way, (2.5, 10.5), (12.5, 10.5), (12.5, 2.5)], dtype=float)
    points = grid.voxel_to_world(np.column_stack([keyhole, np.full(len(keyhole), 5.0)]))
    expected[6, 6, 5] = expected[21:23, 3, 5] = False
    np.testing.assert_array_equal(as_array(fill([points], grid), grid), expected)


def test_polygons_are_filled_as_matplotlib_does():
    rng = np.random.default_rng(0)
    grid = Grid((30, 26, 3), np.diag([1.0, 1, 1, 1]))
    cells = np.stack(np.meshgrid(np.arange(30), np.arange(26), indexing="ij"), axis=-1).reshape(-1, 2)
    for _ in range(40):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = rng.uniform(2, 18, 12)  # a star that reaches beyond the grid
        points = np.stack([14 + radius * np.cos(angle), 12 + radius * np.sin(angle)], axis=1)
        found = as_array(fill([np.column_stack([points, np.ones(12)])], grid), grid)
        expected = Polygon(points).contains_points(cells).reshape(30, 26)
        np.testing.assert_array_equal(found[..., 1], expected)
        assert not found[..., [0, 2]].any()


def test_gaps_stay_open_and_the_outside_is_cut():
    grid = Grid(SHAPE, UP)
    square = ((-5.5, 50.5), (3.5, 70.5))
    found = as_array(fill([box(grid, k, *square) for k in (-1, 0, 1, 10, 11, 39, 40)], grid), grid)
    assert np.unique(np.argwhere(found)[:, 2]).tolist() == [0, 1, 10, 11, 39]
    assert found[:4, 51:, 10].all() and found[..., 10].sum() == 4 * 9
    assert len(fill([box(grid, 100, *square)], grid)) == 0
    assert len(fill([box(grid, 5, (3.1, 3.1), (3.4, 3.4))], grid)) == 0, "no centre of a voxel"


def test_a_structure_set_is_read(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    rois = {
        "GTV-1": [box(grid, k, (1.5, 1.5), (4.5, 3.5)) for k in (3, 4)],
        "Template": [],
        "PTV": [box(grid, 3, (0.5, 0.5), (6.5, 6.5))],
    }
    write_rtstruct(tmp_path / "plan.dcm", tmp_path / "scan", rois, {"PTV": "PTV"})
    listed = list_structures(tmp_path / "plan.dcm")
    assert [(one.number, one.name, one.kind) for one in listed] == [(1, "GTV-1", ""), (3, "PTV", "PTV")]
    found = {one.name: as_array(voxels, grid) for one, voxels in voxels_of(tmp_path / "plan.dcm", grid)}
    expected = np.zeros(grid.shape, dtype=bool)
    expected[2:5, 2:4, 3:5] = True
    np.testing.assert_array_equal(found["GTV-1"], expected)
    assert found["PTV"].sum() == 36 and found["PTV"][1:7, 1:7, 3].all()


@pytest.mark.parametrize("form", ["POINT", "OPEN_PLANAR"])
def test_points_and_open_contours_enclose_nothing(tmp_path, form):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    write_rtstruct(tmp_path / "plan.dcm", tmp_path / "scan", {"iso": [box(grid, 3, (1.5, 1.5), (4.5, 3.5))]}, form=form)
    assert list_structures(tmp_path / "plan.dcm") == [] == list(voxels_of(tmp_path / "plan.dcm", grid))


def torn(data):
    data.ROIContourSequence[0].ContourSequence[0].ContourData = ["1", "2", "3", "4"]


def words(data):
    del data.StructureSetROISequence[0].ROINumber


def slanted(data):
    contour = data.ROIContourSequence[0].ContourSequence[0]
    contour.ContourData = ["-80", "41", "-500", "-70", "41", "-490", "-70", "45", "-480"]


@pytest.mark.parametrize(
    ("edit", "says"),
    [(torn, "contours of x, y and z"), (words, "a complete RTSTRUCT"), (slanted, "planes along the axes of the scan")],
)
def test_a_broken_structure_set_is_one_line(tmp_path, edit, says):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    rois = {"GTV": [box(grid, 3, (1.5, 1.5), (4.5, 3.5))]}
    write_rtstruct(tmp_path / "plan.dcm", tmp_path / "scan", rois, edit=edit)
    with pytest.raises(ScanError, match=says) as caught:
        list(voxels_of(tmp_path / "plan.dcm", grid))
    assert str(caught.value).startswith(str(tmp_path / "plan.dcm")) and "\n" not in str(caught.value)


def test_another_object_is_refused(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    (tmp_path / "text").write_text("no DICOM")
    for path, says in (
        (next((tmp_path / "scan").iterdir()), "CT Image Storage"),
        (tmp_path / "text", "cannot be read"),
    ):
        with pytest.raises(ScanError, match=says):
            list_structures(path)


def write_seg(path, scan, arrays, kind="BINARY", edit=lambda data: None):
    """arrays: label -> (i, j, k), written by highdicom as segments of a series."""
    headers, _ = read_headers(scan)
    for header in headers:
        header.SliceThickness, header.PatientName = 2.5, "Phantom^"
    planes = np.stack([array.transpose(2, 1, 0) for array in arrays.values()], axis=-1)
    if kind == "LABELMAP":
        planes = (planes * np.arange(1, len(arrays) + 1)).max(-1).astype(np.uint8)
    described = [
        hd.seg.SegmentDescription(
            n, label, codes.SCT.AnatomicalStructure, codes.SCT.Kidney, "MANUAL"
        )
        for n, label in enumerate(arrays, start=1)
    ]  # fmt: skip
    segmentation = hd.seg.Segmentation(
        headers, planes, kind, described, hd.UID(), 1, hd.UID(), 1, "us", "test", "1", "0", max_fractional_value=200
    )  # fmt: skip
    edit(segmentation)
    segmentation.save_as(path)


def two_blocks(grid):
    left, right = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=bool)
    left[1:4, 2:4, 3:6] = right[6, 6, 9] = right[0, 0, 0] = right[3, 3, 4:9] = True  # they overlap
    return {"Kidney left": left, "Segment 2": right}


def found_in(path, grid):
    return {one.name: as_array(voxels, grid) for one, voxels in voxels_of(path, grid)}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
@pytest.mark.parametrize("plane", ["axial", "sagittal", "oblique"])
@pytest.mark.parametrize("shape", [(9, 8, 10), (9, 7, 10)])  # the frames of the second do not end at a byte
def test_segmentations_written_by_highdicom(tmp_path, kind, plane, shape):
    write_series(tmp_path / "scan", ct_phantom(plane, shape))
    grid = read_volume(tmp_path / "scan").grid
    arrays = two_blocks(grid)
    values = {name: array * 0.5 for name, array in arrays.items()} if kind == "FRACTIONAL" else arrays
    write_seg(tmp_path / "a.dcm", tmp_path / "scan", values, kind)
    found = found_in(tmp_path / "a.dcm", grid)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert [one.coded for one in list_structures(tmp_path / "a.dcm")] == ["Kidney", "Kidney"]


def test_below_one_half_a_fraction_is_outside(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    share = np.zeros(grid.shape)
    share[2, 3, 4:7] = 0.49, 0.5, 1.0
    write_seg(tmp_path / "a.dcm", tmp_path / "scan", {"x": share}, "FRACTIONAL")
    assert np.argwhere(found_in(tmp_path / "a.dcm", grid)["x"]).tolist() == [[2, 3, 5], [2, 3, 6]]


def test_a_label_map(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    arrays = two_blocks(grid)
    arrays["Segment 2"] &= ~arrays["Kidney left"]
    write_seg(tmp_path / "a.dcm", tmp_path / "scan", arrays, "LABELMAP")
    found = found_in(tmp_path / "a.dcm", grid)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_frames_in_another_direction(tmp_path):
    """Rows stored from the other end, as some writers do: the place counts, not the order."""
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    arrays = {"x": two_blocks(grid)["Segment 2"]}

    def turn(data):
        shared = data.SharedFunctionalGroupsSequence[0]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, -1, 0]
        for frame in data.PerFrameFunctionalGroupsSequence:
            position = frame.PlanePositionSequence[0].ImagePositionPatient
            frame.PlanePositionSequence[0].ImagePositionPatient = [position[0], position[1] + 7 * 0.5, position[2]]

    write_seg(tmp_path / "a.dcm", tmp_path / "scan", {"x": arrays["x"][:, ::-1]}, edit=turn)
    np.testing.assert_array_equal(found_in(tmp_path / "a.dcm", grid)["x"], arrays["x"])


def test_a_segmentation_of_another_grid_is_refused(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid
    write_seg(tmp_path / "a.dcm", tmp_path / "scan", two_blocks(grid))
    moved = grid.affine.copy()
    moved[0, 3] += 0.3
    for other in (Grid(grid.shape, moved), Grid((9, 8, 5), grid.affine)):
        with pytest.raises(ScanError, match="on the grid of its scan"):
            list(voxels_of(tmp_path / "a.dcm", other))


def test_a_segmentation_without_places_is_refused(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    grid = read_volume(tmp_path / "scan").grid

    def lose(data):
        del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence

    write_seg(tmp_path / "a.dcm", tmp_path / "scan", two_blocks(grid), edit=lose)
    with pytest.raises(ScanError, match="frames tell their place.*no ImagePositionPatient") as caught:
        list(voxels_of(tmp_path / "a.dcm", grid))
    assert "\n" not in str(caught.value)
