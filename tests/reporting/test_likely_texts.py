"""Texts that are read side by side get what each gets alone."""

from itertools import pairwise

import numpy as np

from minitransformers.reporting.bias_mitigation.likely_texts import mean_log_probabilities


def test_texts_of_any_length_get_what_each_gets_alone():
    rng = np.random.default_rng(0)
    log_p = np.log(rng.dirichlet(np.ones(5), size=5))        # of the next token, by the last
    ids = [rng.integers(5, size=length) for length in [4] * 11 + [2, 7, 4]]
    known, asked = [1, 2, 3] * 4 + [7, 4], []

    def logits(some):
        asked.append(len(some))
        return log_p[some]

    whole, behind = mean_log_probabilities(ids, known, logits=logits)
    each = [np.array([log_p[one, other] for one, other in pairwise(row)]) for row in ids]
    np.testing.assert_allclose(whole, [of.mean() for of in each], rtol=1e-12)
    np.testing.assert_allclose(behind, [of[count - 1 :].mean() if count <= len(of) else 0 for of, count in zip(each, known, strict=True)], rtol=1e-12)
    assert sorted(asked) == [1, 1, 4, 8] and behind[-1] == behind[-2] == 0
