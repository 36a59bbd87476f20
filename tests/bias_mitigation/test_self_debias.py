"""Self-debiasing: what an invitation makes likelier becomes less likely, and the rest keeps its ratios."""

from functools import partial

import numpy as np
import pytest

from minitransformers.bias_mitigation.self_debias import asking, self_debias
from minitransformers.models.decoding import next_token_probabilities

RNG = np.random.default_rng(0)
LOGITS, INVITED = RNG.normal(size=(3, 7)), RNG.normal(size=(2, 3, 7))


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def word_by_word(logits, invited, decay, floor):
    p, others = softmax(logits), [softmax(row) for row in invited]
    turned = []
    for w in range(len(p)):
        rise = p[w] - max(other[w] for other in others)
        turned.append(p[w] * (1.0 if rise >= 0 else max(np.exp(decay * rise), floor)))
    return np.log(np.array(turned) / sum(turned))


@pytest.mark.parametrize(("decay", "floor"), [(50.0, 0.01), (5.0, 0.3), (0.0, 0.01), (20.0, 1.0)])
def test_it_is_the_published_rule_word_by_word(decay, floor):
    found = self_debias(LOGITS, invited=INVITED, decay=decay, floor=floor)
    for i in range(3):
        np.testing.assert_allclose(found[i], word_by_word(LOGITS[i], INVITED[:, i], decay, floor), rtol=0, atol=1e-12)


def test_words_that_no_invitation_raises_keep_their_ratios_and_never_become_less_likely():
    p, found = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True), np.exp(self_debias(LOGITS, invited=INVITED))
    p_invited = np.exp(INVITED) / np.exp(INVITED).sum(-1, keepdims=True)
    calm = np.all(p >= p_invited, axis=0)
    for i in range(3):
        ratio = found[i, calm[i]] / p[i, calm[i]]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)
        assert ratio[0] >= 1
        assert np.all(found[i, ~calm[i]] / p[i, ~calm[i]] < ratio[0])


def test_an_invitation_that_changes_nothing_changes_nothing():
    found = self_debias(LOGITS, invited=np.repeat(LOGITS[None], 3, axis=0) + 5.0)
    np.testing.assert_allclose(np.exp(found), np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True), rtol=0, atol=1e-12)


def test_the_strongest_invitation_decides_not_their_mean():
    p = np.array([[0.5, 0.3, 0.2]])
    invited = np.log([[[0.5, 0.1, 0.4]], [[0.5, 0.5, 0.0 + 1e-300]]])
    found = np.exp(self_debias(np.log(p), invited=invited, decay=10.0))[0]
    by_mean = p[0] * np.exp(10.0 * np.minimum(p[0] - np.exp(invited).mean(axis=0)[0], 0))  # the plausible wrong variant
    assert not np.allclose(found, by_mean / by_mean.sum(), atol=0.05)
    expected = np.array([0.5, 0.3 * np.exp(-2.0), 0.2 * np.exp(-2.0)])
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-10)


def test_a_word_that_is_ruled_out_stays_so():
    logits = LOGITS.copy()
    logits[:, 2] = -np.inf
    found = self_debias(logits, invited=INVITED)
    assert np.all(found[:, 2] == -np.inf) and np.isfinite(np.delete(found, 2, axis=1)).all()


def test_as_a_processor_it_reads_the_text_anew_at_each_step():
    table, invited_table = RNG.normal(size=(7, 7)), RNG.normal(size=(7, 7))
    process = asking(partial(self_debias, decay=5.0), invited=lambda ids: invited_table[ids[..., -1]][None])
    for last in range(7):
        found = next_token_probabilities(table[last], np.array([1, last]), processors=(process,))
        expected = self_debias(table[last], invited=invited_table[last][None], decay=5.0)
        np.testing.assert_allclose(found, np.exp(expected), rtol=0, atol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="floor: got 0"):
        self_debias(LOGITS, invited=INVITED, floor=0.0)
    with pytest.raises(ValueError, match="decay: got -1"):
        self_debias(LOGITS, invited=INVITED, decay=-1.0)
    with pytest.raises(ValueError, match="invited: got shape"):
        self_debias(LOGITS, invited=INVITED[:, :, :5])


@pytest.mark.parity
def test_it_is_what_torch_makes_of_the_published_steps():
    torch = pytest.importorskip("torch")
    regular, invited = torch.tensor(LOGITS[0]), torch.tensor(INVITED[:, 0])
    mask = torch.clamp(invited.softmax(-1).max(0).values - regular.softmax(-1), min=0)
    factor = torch.clamp(torch.exp(-50 * mask), min=0.01)
    turned = regular.softmax(-1) * factor
    np.testing.assert_allclose(self_debias(LOGITS[0], invited=INVITED[:, 0]), torch.log(turned / turned.sum()).numpy(), rtol=0, atol=1e-12)
