"""Paired tests: small cases by hand, and parity with scipy."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from eval.paired import gaps, holm, permutation_p, wilcoxon_p

nan = float("nan")


def test_sign_flips_by_hand():
    """Of the 8 sign patterns of 1, 2, 3 one sum is as large as 6 and two are as far from 0; 0 is reached by two."""
    differences = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, -3.0]])
    np.testing.assert_allclose(permutation_p(differences, "greater"), [1 / 8, 5 / 8])
    np.testing.assert_allclose(permutation_p(differences), [2 / 8, 1])
    assert np.isnan(permutation_p(np.ones((1, 2)))).all()


@pytest.mark.parametrize("clusters", [9, 60])
def test_sign_flips_as_scipy_does(clusters):
    differences = np.random.default_rng(5).normal(0.15, 1, clusters)
    for alternative in ("greater", "two-sided"):
        expected = permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=9999, alternative=alternative,
            vectorized=True, rng=1,
        ).pvalue  # fmt: skip
        assert permutation_p(differences[:, None], alternative)[0] == pytest.approx(expected, abs=0.015)


def test_p_values_are_right_as_often_as_they_say():
    """Under no difference, p < 0.1 in about a tenth of the tests, with all flips and with random ones."""
    generator = np.random.default_rng(0)
    for clusters in (10, 30):
        p = permutation_p(generator.normal(size=(clusters, 600)))
        assert 0.06 < (p < 0.1).mean() < 0.14


def test_wilcoxon_of_nothing_of_zeros_and_of_failed_runs():
    assert np.isnan(wilcoxon_p(np.array([])))
    assert wilcoxon_p(np.zeros(4)) == 1
    assert wilcoxon_p(np.array([1.0, 2.0, np.inf, 3.0, 4.0]), "greater") == pytest.approx(1 / 32)
    np.testing.assert_array_equal(gaps(np.array([np.inf, np.inf, 2]), np.array([np.inf, 1, 1])), [0, np.inf, 1])


def test_holm_leaves_out_what_was_not_tested():
    np.testing.assert_allclose(holm([0.01, nan, 0.04, 0.03]), [0.03, nan, 0.06, 0.06])
