"""Figures against maintained libraries and values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from scipy import sparse
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from eval.bootstrap import DRAWN, clustered_intervals, pooled_intervals, pooled_values
from eval.detection import Box
from eval.figures import FIGURES, LEVELS, classification, detection, means, measurement, multilabel, open_text
from eval.reading import ABSTAINED, ANSWERED, Item, read_item
from eval.references import Reference
from eval.texts import bleu, bleu_counts, compare_texts, text_scores


def question(kind, answer, options=None, unit=None, number=0):
    return Reference(str(number), kind, kind, str(number), options, unit, answer)


def values(figures):
    return pooled_values(figures.families, np.ones(len(figures.own), dtype=bool))


def measured(pairs, unit="mm"):
    return [
        Item(question("measurement", float(true), unit=unit), ANSWERED if p is not None else ABSTAINED, p)
        for true, p in pairs
    ]


def test_auroc_and_auprc_agree_with_scikit_learn():
    """Two classes from the confidence alone, three from stated probabilities, with ties."""
    rng = np.random.default_rng(0)
    truth = rng.choice(["yes", "no"], 80)
    said, sure = rng.choice(["yes", "no"], 80), np.round(rng.random(80), 1)
    items = [
        read_item(question("classification", str(t), ("yes", "no")), {"choice": str(s), "confidence": float(c)})
        for t, s, c in zip(truth, said, sure, strict=True)
    ]
    chance = np.round(np.where(said == "yes", sure, 1 - sure), 4)
    figures = values(classification(items))
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth == "yes", chance))
    assert figures["auprc"] == pytest.approx(average_precision_score(truth == "yes", chance))

    names = ("a", "b", "c")
    table = np.round(rng.dirichlet(np.ones(3), 90), 4)
    truth = rng.choice(names, 90)
    items = [
        read_item(
            question("classification", str(t), names),
            {"choice": names[int(row.argmax())], "probabilities": dict(zip(names, row.tolist(), strict=True))},
        )
        for t, row in zip(truth, table, strict=True)
    ]
    figures = values(classification(items))
    each = [roc_auc_score(truth == name, table[:, place]) for place, name in enumerate(names)]
    assert figures["auroc"] == pytest.approx(np.mean(each))
    each = [average_precision_score(truth == name, table[:, place]) for place, name in enumerate(names)]
    assert figures["auprc"] == pytest.approx(np.mean(each))


def test_classes_are_ranked_among_the_questions_that_offer_them():
    """`left` is certain in both questions that offer it; questions about other options do not make that look better."""
    sides, yes = ("left", "right"), ("yes", "no")
    asked = [
        ("left", sides, "left", 0.9),
        ("right", sides, "left", 0.9),
        ("yes", yes, "yes", 0.6),
        ("no", yes, "no", 0.8),
    ]
    items = [read_item(question("classification", t, o), {"choice": s, "confidence": c}) for t, o, s, c in asked]
    assert values(classification(items))["auroc"] == pytest.approx((0.5 + 0.5 + 1) / 3)


def test_no_probability_no_ranking():
    items = [read_item(question("classification", "yes", ("yes", "no")), {"choice": "yes"})]
    assert "auroc" not in values(classification(items))


def test_multilabel_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    truth, guess = rng.random((2, 40, 4)) < 0.4
    names = np.array(["a", "b", "c", "d"])
    items = [
        Item(question("multilabel", names[t].tolist(), tuple(names)), ANSWERED, names[g].tolist())
        for t, g in zip(truth, guess, strict=True)
    ]
    figures = values(multilabel(items))
    assert figures["micro_f1"] == pytest.approx(f1_score(truth, guess, average="micro"))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))
    assert figures["f1"] == pytest.approx(f1_score(truth, guess, average="samples", zero_division=1))


def test_agreement_by_hand():
    """Errors 1, -1, 2: bias 2/3, standard deviation sqrt(7/3); Lin's coefficient with 1/n moments."""
    true, said = np.array([10, 20, 30.0]), np.array([11, 19, 32.0])
    figures = values(measurement(measured([*zip(true, said, strict=True), (40, None)])))
    deviation = np.std(said - true, ddof=1)
    assert deviation == pytest.approx(np.sqrt(7 / 3))
    assert figures["bias"] == pytest.approx(2 / 3)
    assert figures["loa_low"] == pytest.approx(2 / 3 - 1.96 * deviation)
    assert figures["loa_high"] == pytest.approx(2 / 3 + 1.96 * deviation)
    shared = np.cov(said, true, bias=True)
    assert figures["ccc"] == pytest.approx(2 * shared[0, 1] / (shared[0, 0] + shared[1, 1] + (2 / 3) ** 2))
    assert figures["mean_relative_error"] == pytest.approx((1 / 10 + 1 / 20 + 2 / 30) / 3)
    assert (figures["mae"], figures["median_ae"]) == (pytest.approx(4 / 3), 1)
    assert figures["within_10pct"] == 3 / 4


def test_agreement_needs_one_unit():
    items = measured([(10, 11.0), (20, 21.0)]) + measured([(1, 1.0)], "ml")
    figures = values(measurement(items))
    assert not {"mae", "median_ae", "ccc", "bias"} & set(figures) and "median_relative_error" in figures


def box(x, label=None, score=1.0):
    return Box((x, 0.0, 0.0), (x + 10.0, 1.0, 1.0), label, score)


def detected(pairs):
    return [Item(question("detection", truth), ANSWERED, found) for truth, found in pairs]


def test_average_precision_and_froc_by_hand():
    """Scores 0.9 hit, 0.8 false, 0.7 hit of 3 reference boxes: recall 1/3 at precision 1, 2/3 at 2/3. Two questions."""
    items = detected([([box(0), box(50)], [box(0, score=0.9), box(100, score=0.8)]), ([box(0)], [box(0.5, score=0.7)])])
    figures = values(detection(items))
    assert figures["map_iou50"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)
    # no false box at all below a rate of 1/2: 1/3 found; from 1/2 on 2/3
    assert figures["froc"] == pytest.approx((2 * 1 / 3 + 5 * 2 / 3) / 7)
    assert figures["f1_iou50"] == pytest.approx(2 * 2 / (3 + 3))


def test_average_precision_is_the_mean_over_classes():
    """Tumour: found. Cyst: missed, because its box is called a tumour. The surer of two boxes on one place counts."""
    items = detected([([box(0, "tumour"), box(50, "cyst")], [box(0, "tumour", 0.9), box(50, "tumour", 0.2)])])
    assert values(detection(items))["map_iou50"] == pytest.approx((1 + 0) / 2)
    twice = detected([([box(0)], [box(1, score=0.5), box(0, score=0.4)])])
    assert values(detection(twice))["map_iou50"] == 1.0
    twice = detected([([box(0)], [box(30, score=0.5), box(0, score=0.4)])])
    assert values(detection(twice))["map_iou50"] == 0.5


def test_f1_at_three_thresholds():
    """Shifted by 2 of 10: IoU 8/12; by 4: 6/14."""
    figures = values(detection(detected([([box(0), box(50)], [box(2), box(54)])])))
    assert (figures["f1_iou30"], figures["f1_iou50"], figures["f1_iou75"]) == (1.0, 0.5, 0.0)


TEXT = "the left kidney, holds a 3.5 cm tumour. (T2-weighted) No lesion & 10-20 mm; A/B 1,000 &quot;x&quot; Œdème"


def test_rouge_and_bleu_agree_with_their_packages():
    rng, words = np.random.default_rng(2), TEXT.split()
    texts = [[" ".join(rng.choice(words, rng.integers(low, 15))) for _ in range(120)] for low in (0, 1)]
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for said, true in zip(*texts, strict=True):
        theirs = [scorer.score(true, said)[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
        assert text_scores(said, true)[3:] == pytest.approx(theirs, abs=1e-12)
    counts = np.array([bleu_counts(*pair) for pair in zip(*texts, strict=True)], dtype=float)
    for part in (slice(None), slice(0, 3), slice(5, 6)):
        theirs = sacrebleu.corpus_bleu(texts[0][part], [texts[1][part]]).score
        assert bleu(counts[part].sum(axis=0)[:, None])[0] == pytest.approx(theirs, abs=1e-9)


def test_open_texts():
    items = [Item(question("open", "The left lung."), ANSWERED, "left lung"), Item(question("open", "mass"), ABSTAINED)]
    figures = values(open_text(items))
    assert (figures["token_f1"], figures["exact_match"], figures["normalised_match"]) == (0.5, 0.0, 0.5)
    assert figures["rougeL"] == pytest.approx(0.5 * 4 / 5)  # two words of two, and of three


@pytest.mark.parametrize("kind", FIGURES)
def test_nothing_is_no_figure(kind):
    assert values(FIGURES[kind]([])) == {}


def test_pooled_intervals_are_those_of_the_items_themselves():
    """Drawing sums a cluster and drawing the items give the same spread; so does drawing groups of many clusters."""
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(60), 5)
    column = rng.normal(size=60)[clusters] + rng.normal(size=300)
    family = means({"mean": column})
    pooled = pooled_intervals([family], clusters, np.ones(300, dtype=bool), 0, 4000)["mean"]
    items = clustered_intervals(lambda i: {"mean": column[i].mean()}, clusters.astype(str), 1, 4000)["mean"]
    assert pooled == pytest.approx(items, abs=0.03)
    many = rng.normal(size=5 * DRAWN)
    low, high = pooled_intervals([means({"mean": many})], np.arange(len(many)), np.ones(len(many), dtype=bool))["mean"]
    assert high - low == pytest.approx(2 * 1.96 * many.std() / np.sqrt(len(many)), rel=0.1)


def test_pooled_median_is_numpys():
    rng = np.random.default_rng(4)
    for n in (1, 2, 7, 40):
        true, said = rng.integers(1, 9, n).astype(float), rng.integers(1, 9, n).astype(float)
        assert values(measurement(measured(zip(true, said, strict=True))))["median_ae"] == np.median(abs(true - said))


def test_the_interval_of_a_median_of_very_many_numbers():
    """Grouped levels give the interval that the values themselves give; the median itself stays exact."""
    rng = np.random.default_rng(5)
    error = rng.exponential(size=LEVELS * 2)
    figures = measurement(measured((10.0, 10.0 + one) for one in error))
    every = np.ones(len(error), dtype=bool)
    assert pooled_values(figures.families, every)["median_ae"] == pytest.approx(np.median(error))
    own = pooled_intervals(figures.families, np.arange(len(error)), every)["median_ae"]
    exact = [replace(family, coarse=None) for family in figures.families]
    assert own == pytest.approx(pooled_intervals(exact, np.arange(len(error)), every)["median_ae"], abs=0.002)


def test_many_texts_in_several_processes(monkeypatch):
    pairs = [(f"a lesion of {n} mm", f"lesion of {n % 3} mm") for n in range(6)] * 2
    alone = compare_texts(pairs)
    monkeypatch.setattr("eval.texts.MANY", 2)
    together = compare_texts(pairs)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_part_of_the_questions():
    family = means({"mean": np.array([1.0, 3.0, np.nan, 8.0])})
    assert isinstance(family.contributions, sparse.csr_array)
    assert pooled_values([family], np.array([True, True, True, False])) == {"mean": 2.0}
    assert pooled_values([family], np.array([False, False, True, False])) == {}
