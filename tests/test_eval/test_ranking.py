"""Small leaderboards, every rank and p value known by hand."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.comparison import compare
from eval.ranking import Ranking, holm
from eval.results import write_results
from eval.scores import GPU_AREA, HOST_AREA, TIME, read_scores
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import write_mask
from seg_backbone.volume import Mask
from vlm.cli.evaluate import app

nan = float("nan")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write(folder, metrics, rows):
    write_results(SimpleNamespace(metrics=lambda: metrics, rows=lambda: rows, tables=lambda: []), folder)
    return folder


@pytest.fixture
def masks(tmp_path):
    """masks(name, {case: (dsc, nsd)}) writes the result folder of one system."""

    def make(name, table, protocol="corrected", label="tumour"):
        rows = [{"case": case, "class": label, "dsc": dsc, "nsd": nsd} for case, (dsc, nsd) in table.items()]
        return write(tmp_path / name, {"kind": "masks", "protocol": protocol}, rows)

    return make


@pytest.fixture
def answers(tmp_path):
    """answers(name, {id: (patient, score)}) writes the result folder of one system about counting."""

    def make(name, table, state="answered", reference="1", sha="0"):
        rows = [
            {"system": "model", "id": key, "type": "counting", "patient": patient, "state": state,
             "reference": reference, "score": score}
            for key, (patient, score) in table.items()
        ]  # fmt: skip
        return write(tmp_path / name, {"kind": "answers", "reference_sha256": sha}, rows)

    return make


@pytest.fixture
def three(masks):
    return [
        masks("c", {"1": (0.1, 0.1), "2": (0.2, 0.1), "3": (0.3, 0.1)}),
        masks("b", {"1": (0.8, 0.5), "2": (0.8, 0.5), "3": (0.9, 0.5)}),
        masks("a", {"1": (0.9, 1.0), "2": (0.8, 1.0), "3": (0.7, 1.0)}),
    ]


def test_rank_then_aggregate_by_hand(three):
    """DSC ranks: a 1, 1.5, 2; b 2, 1.5, 1; c 3. NSD ranks: a 1, b 2, c 3."""
    ranking = Ranking(read_scores(three, grouped=True))
    np.testing.assert_allclose(ranking.mean_ranks, [3, 1.75, 1.25])
    assert [row["system"] for row in ranking.rows()] == ["a", "b", "c"]
    best = ranking.rows()[0]
    assert (best["place"], best["lesions dsc"], best["lesions dsc rank"]) == (1, pytest.approx(0.8), 1.5)
    again = Ranking(read_scores(three[::-1], grouped=True))
    np.testing.assert_array_equal(again.places, ranking.places[::-1])


def test_ranks_depend_on_the_order_of_scores_alone(three, masks):
    plain = Ranking(read_scores(three, grouped=True))
    squared = [
        masks(f"{folder.name}2", {r["case"]: (float(r["dsc"]) ** 2, float(r["nsd"]) ** 3) for r in rows})
        for folder in three
        for rows in [list(csv.DictReader((folder / "per_case.csv").open()))]
    ]
    np.testing.assert_array_equal(Ranking(read_scores(squared, grouped=True)).mean_ranks, plain.mean_ranks)


def test_a_clear_order_is_stable_and_an_equal_pair_shares_a_place(masks):
    table = {str(case): (0.5 + case / 100, 0.5) for case in range(8)}
    worse = {case: (dsc - 0.1, nsd - 0.1) for case, (dsc, nsd) in table.items()}
    ranking = Ranking(
        read_scores([masks("x", table), masks("y", table), masks("z", worse)], grouped=True), resamples=200
    )
    assert ranking.places.tolist() == [1, 1, 3]
    tau = ranking.kendall_tau
    assert (tau["mean"], *tau["interval"], tau["samples"]) == pytest.approx((1, 1, 1, 200))
    assert [(row["place_low"], row["place_high"], row["share_first"]) for row in ranking.rows()] == [
        (1, 1, 1), (1, 1, 1), (3, 3, 0),
    ]  # fmt: skip
    assert Ranking(read_scores([masks("p", table), masks("q", table)], grouped=True)).kendall_tau is None


def test_an_open_order_is_not_stable(masks):
    """Each wins half of the cases, one by a hair in mean rank: the bootstrap gives both places to both."""
    wins = {str(case): (0.9 if case < 6 else 0.1, 0.5) for case in range(11)}
    ranking = Ranking(read_scores([masks("x", wins), masks("y", {c: (0.5, n) for c, (_, n) in wins.items()})], True))
    assert ranking.places.tolist() == [1, 2]
    assert [(row["place_low"], row["place_high"]) for row in ranking.rows()] == [(1, 2), (1, 2)]
    tau = ranking.kendall_tau
    assert tau["interval"] == (-1, 1)
    assert -0.2 < tau["mean"] < 0.8
    assert Ranking(ranking.scores, seed=0).kendall_tau == tau


def test_wilcoxon_and_holm_by_hand(masks):
    """Six cases, all better: exact one-sided p is 1/64, doubled by Holm over two ordered pairs; the reverse is 1."""
    good = {str(case): (0.5 + case / 20, 0.5) for case in range(6)}
    poor = {case: (dsc - 0.1 - i / 100, nsd) for i, (case, (dsc, nsd)) in enumerate(good.items())}
    matrix = Ranking(read_scores([masks("good", good), masks("poor", poor)], grouped=True)).p_values
    np.testing.assert_allclose(matrix["lesions dsc"], [[nan, 2 / 64], [1, nan]])
    np.testing.assert_allclose(matrix["lesions nsd"], [[nan, 1], [1, nan]])  # equal everywhere
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])


def test_rightly_empty_beats_a_false_positive_and_a_lacking_case_counts_nothing(masks):
    calm = masks("calm", {"healthy": (nan, nan), "ill": (0.5, 0.5), "both": (nan, nan)})
    wild = masks("wild", {"healthy": (0.0, 0.0), "ill": (0.9, 0.9), "both": (nan, nan)})
    lacking = masks("lacking", {"healthy": (nan, nan), "both": (nan, nan)})
    scores = read_scores([calm, wild, lacking], grouped=True)
    assert scores.cases == ["both", "healthy", "ill"]
    np.testing.assert_array_equal(scores.values["lesions dsc"], [[nan, 1, 0.5], [nan, 0, 0.9], [nan, 1, 0]])
    assert scores.notes == ["lacking lacks 1 of 3 cases, which count 0."]


def test_a_class_that_one_folder_did_not_score_is_left_out(masks):
    """The other's liver must not count as rightly empty."""
    x, y = masks("x", {"1": (0.5, 0.5)}), masks("y", {"1": (0.6, 0.6)})
    with (y / "per_case.csv").open("a") as file:
        file.write("1,liver,0.9,0.9\n")
    scores = read_scores([x, y], grouped=False)
    assert list(scores.values) == ["tumour dsc", "tumour nsd"]
    assert scores.notes == ["Not in every folder, left out: liver dsc, liver nsd."]


def test_organs_are_averaged_within_a_case(tmp_path):
    rows = [
        {"case": "1", "class": "liver", "dsc": 0.9, "nsd": 0.8},
        {"case": "1", "class": "spleen", "dsc": 0.7, "nsd": 0.6},
        {"case": "2", "class": "liver", "dsc": 0.4, "nsd": 0.4},
        {"case": "2", "class": "spleen", "dsc": nan, "nsd": nan},
    ]
    metrics = {"kind": "masks", "protocol": "corrected"}
    folders = [write(tmp_path / name, metrics, rows) for name in ("x", "y")]
    np.testing.assert_allclose(read_scores(folders, grouped=True).values["organs dsc"], [[0.8, 0.4]] * 2)
    assert list(read_scores(folders, grouped=False).values) == ["liver dsc", "liver nsd", "spleen dsc", "spleen nsd"]


def efficiency(folder, case, seconds, peak, area, gpu=True, exit_code=0):
    curve = {"peak_mb": peak, "official_area_mb_s": area}
    run = {"exit_code": exit_code, "wall_seconds": seconds, "rss": curve, "gpu": curve if gpu else None}
    path = folder / "efficiency" / case / "efficiency.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(run))
    return path


def test_time_and_memory_with_tolerances(masks):
    table = {"1": (0.5, 0.5), "2": (0.5, 0.5)}
    fast, slow = masks("fast", table), masks("slow", table)
    efficiency(fast, "1", 5, 3000, 1000)
    efficiency(slow, "1", 14, 4000, 2000)
    efficiency(fast, "2", 16, 3000, 1000)
    efficiency(slow, "2", 20, 5000, 2000)
    scores = read_scores([fast, slow], True, 15, 4096)
    np.testing.assert_array_equal(scores.values[TIME], [[15, 16], [15, 20]])
    np.testing.assert_array_equal(scores.values[GPU_AREA], [[0, 0], [0, 2000]])
    ranking = Ranking(scores)
    np.testing.assert_allclose(ranking.mean_ranks, [(1.5 + 1.5 + 1.25 + 1.25) / 4, (1.5 + 1.5 + 1.75 + 1.75) / 4])
    strict = read_scores([fast, slow], True)
    np.testing.assert_array_equal(strict.values[TIME], [[5, 16], [14, 20]])


def test_failed_runs_are_last_and_one_without_a_gpu_falls_back_to_the_host(masks):
    table = {"1": (0.5, 0.5), "2": (0.5, 0.5)}
    works, fails = masks("works", table), masks("fails", table)
    assert read_scores([works, fails], True).notes == []
    assert "no result" in read_scores([works, fails], True, tolerance_seconds=15).notes[0]
    efficiency(works, "1", 5, 3000, 1000)
    assert read_scores([works, fails], True).notes == [
        "Time and memory are left out: efficiency/CASE folders lie in works."
    ]
    broken = efficiency(fails, "1", 1, 30, 10, gpu=False, exit_code=1)
    scores = read_scores([works, fails], True)
    np.testing.assert_array_equal(scores.values[HOST_AREA], [[1000, nan], [np.inf, nan]])
    assert Ranking(scores).places.tolist() == [1, 2]
    assert Ranking(scores).p_values[TIME][0, 1] == 1  # one case: p = 1/2, doubled
    assert compare(works, fails).differences[TIME]["n"] == 0
    broken.write_text('{"kind": "something"}')
    with pytest.raises(InputError, match="efficiency.json"):
        read_scores([works, fails], True)


def test_answers_by_question_type(answers):
    """Unanswerable questions are outside; a failed one has 0."""
    good = answers("good", {"q1": ("p1", 1.0), "q2": ("p2", 1.0)})
    failed = answers("failed", {"q1": ("p1", ""), "q2": ("p2", "")}, state="unscored")
    scores = read_scores([good, failed], True)
    np.testing.assert_array_equal(scores.values["counting"], [[1, 1], [0, 0]])
    unanswerable = [answers(name, {"q1": ("p1", "")}, "abstained", reference="") for name in ("x", "y")]
    with pytest.raises(InputError, match="score in every folder"):
        read_scores(unanswerable, True)


def test_comparison_flips_whole_patients(answers):
    """Five patients of two questions each, all better by 1: 2 of the 32 sign patterns are as extreme."""
    ids = [(f"q{n}", f"p{n // 2}") for n in range(10)]
    a = answers("a", {key: (patient, 1.0) for key, patient in ids})
    b = answers("b", {key: (patient, 0.0) for key, patient in ids})
    one = compare(a, b).differences["counting"]
    assert (one["n"], one["clusters"], one["difference"], one["interval"]) == (10, 5, 1.0, (1.0, 1.0))
    assert one["p"] == pytest.approx(2 / 32)
    assert (one["a_better"], one["equal"], one["b_better"]) == (10, 0, 0)


def test_comparison_is_antisymmetric_and_calm_about_equals(masks):
    rng = np.random.default_rng(3)
    tables = [{str(case): tuple(rng.random(2)) for case in range(20)} for _ in range(2)]
    x, y = masks("x", tables[0]), masks("y", tables[1])
    one, other = (compare(*pair).differences["tumour dsc"] for pair in ((x, y), (y, x)))
    assert one["difference"] == pytest.approx(-other["difference"])
    np.testing.assert_allclose(one["interval"], [-edge for edge in other["interval"][::-1]])
    assert one["p"] == pytest.approx(other["p"], abs=0.02)
    same = compare(x, masks("same", tables[0])).differences["tumour dsc"]
    assert (same["difference"], same["p"], same["equal"]) == (0, 1, 20)
    lone = compare(masks("l", {"1": (0.5, 0.5)}), masks("m", {"1": (0.4, 0.5)})).differences["tumour dsc"]
    assert lone["interval"] is None
    assert np.isnan(lone["p"])


def test_folders_that_do_not_fit(masks, answers, tmp_path):
    x, y = masks("x", {"1": (0.5, 0.5)}), masks("y", {"1": (0.4, 0.4)}, protocol="flare24")
    with pytest.raises(ConfigError, match="at least two"):
        read_scores([x], True)
    with pytest.raises(ConfigError, match="at least two"):
        read_scores([x, x], True)
    with pytest.raises(ConfigError, match="protocol flare24"):
        read_scores([x, y], True)
    with pytest.raises(ConfigError, match="answers"):
        read_scores([x, answers("z", {"q": ("p", 1.0)})], True)
    with pytest.raises(InputError, match="nothing-here"):
        read_scores([x, tmp_path / "nothing-here"], True)
    (x / "per_case.csv").write_text("case,class,dsc,nsd\n1,tumour,high,0\n")
    with pytest.raises(InputError, match="high"):
        read_scores([x, masks("w", {"1": (0.5, 0.5)})], True)


def test_two_folders_of_one_name_go_by_their_path(masks):
    folders = [masks(f"{run}/scores", {"1": (0.5, 0.5)}) for run in ("a", "b")]
    assert read_scores(folders, True).systems == [str(folder) for folder in folders]


def test_command_lines_from_masks_to_leaderboard(tmp_path):
    """Two systems on three cubes: one exact, one shifted by a voxel."""
    cube = np.zeros((8, 8, 8), dtype=np.uint8)
    cube[2:6, 2:6, 2:6] = 1
    for case in "123":
        for side, array in (("ref", cube), ("exact", cube), ("shifted", np.roll(cube, 1, axis=0))):
            write_mask(Mask(array, Grid(array.shape, np.diag([3.0, 3, 3, 1]))), tmp_path / side / f"{case}.nii.gz")
    (tmp_path / "labels.json").write_text('{"tumour": 1}')
    for system in ("exact", "shifted"):
        folders = (tmp_path / system, tmp_path / "ref", "--labels", tmp_path / "labels.json", "--jobs", 1)
        assert run("masks", *folders, "-o", tmp_path / "scores" / system).exit_code == 0
    results = (tmp_path / "scores" / "shifted", tmp_path / "scores" / "exact")
    ranked = run("rank", *results, "-o", tmp_path / "out", "--resamples", 50, "--json")
    assert ranked.exit_code == 0, ranked.output
    leaderboard = json.loads(ranked.stdout)["leaderboard"]
    assert [(row["place"], row["system"], row["lesions dsc"]) for row in leaderboard] == [
        (1, "exact", 1.0), (2, "shifted", 0.75),
    ]  # fmt: skip
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        assert [row["system"] for row in csv.DictReader(file)] == ["exact", "shifted"]
    assert "| 1 | exact | 1.00 | 1 to 1 | 100% |" in (tmp_path / "out" / "leaderboard.md").read_text()
    assert (tmp_path / "out" / "places.png").read_bytes().startswith(b"\x89PNG")
    compared = run("compare", *results, "-o", tmp_path / "out", "--resamples", 50)
    assert compared.exit_code == 0, compared.output
    assert (
        "| tumour dsc | 3 | 0.750 | 1.000 | -0.250 [-0.250, -0.250] | 0.2500 | 0.2500 | 0 / 0 / 3 |" in compared.stdout
    )
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["a"] == "shifted"
    with (tmp_path / "out" / "differences.csv").open() as file:
        differences = [row for row in csv.DictReader(file) if row["metric"] == "tumour hd95_mm"]
    assert [(row["case"], float(row["a"]), float(row["b"])) for row in differences] == [(c, 3, 0) for c in "123"]
    assert isinstance(run("rank", results[0], "-o", tmp_path / "none").exception, ConfigError)
    assert not (tmp_path / "none").exists()


def test_command_lines_from_answers_to_comparison(tmp_path):
    """Six patients of one question each, one more without an answer to it; the first system fails on one."""
    asked = [{"id": f"q{n}", "image": "a.nii.gz", "question": "?", "type": "counting", "answer": 0} for n in range(6)]
    asked = [{**question, "patient": f"p{n}"} for n, question in enumerate(asked)]
    asked.append({"id": "none", "image": "a.nii.gz", "question": "?", "type": "counting", "answer": None})
    right = [{"id": question["id"], "value": 0} for question in asked]
    failing = [{"id": "q0", "unscored": "out of memory"}, *right[1:]]
    for name, lines in (("questions", asked), ("right", right), ("failing", failing)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("right", "failing"):
        files = (tmp_path / f"{name}.jsonl", "--reference", tmp_path / "questions.jsonl")
        assert run("answers", *files, "-o", tmp_path / name).exit_code == 0
    compared = run("compare", tmp_path / "right", tmp_path / "failing", "-o", tmp_path / "out", "--json")
    assert compared.exit_code == 0, compared.output
    one = json.loads(compared.stdout)["metrics"]["counting"]
    assert (one["n"], one["clusters"], one["a_better"], one["b_better"]) == (6, 6, 1, 0)
    assert (one["mean_a"], one["mean_b"]) == (1, pytest.approx(5 / 6))
    ranked = run("rank", tmp_path / "right", tmp_path / "failing", "-o", tmp_path / "out", "--resamples", 50)
    assert ranked.exit_code == 0, ranked.output
    assert "| 1 | right | 1.42 |" in ranked.stdout
