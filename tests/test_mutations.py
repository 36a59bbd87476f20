"""A gradient check that cannot fail proves nothing: every small mistake in every backward must be refused."""

from functools import partial
from unittest import mock

import numpy as np
import pytest
from mutations import backward_mutants
from mutations_known import HARMLESS_BACKWARD

from minitransformers import catalogue
from minitransformers.attention.softmax_off_by_one import softmax_off_by_one
from minitransformers.basics.dropout import dropout
from minitransformers.foundation import bad, check_gradients, example, gradients, trusted
from minitransformers.models.language_model import LanguageModelConfig, init_language_model
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope
from minitransformers.state_space.causal_convolution import CausalConvolution

checked = trusted(check_gradients)  # the shapes are known to fit


class BiasedConfig(LanguageModelConfig):
    """A model whose position is a learned bias on the scores, one number for every head, query and key."""

    @property
    def bound(self):
        def table(params, *, num_queries, num_keys):
            return 2 * params, lambda dbias: 2 * dbias       # the example is as long as the table

        return LanguageModelConfig.bound.func(self)._replace(bias_position=table)


def language_models():
    sizes = {"vocabulary_size": 5, "context": 3, "d_model": 4, "num_layers": 2, "num_heads": 2, "options": {"channel": {"d_hidden": 3}}}
    rng = np.random.default_rng(1)
    untied = LanguageModelConfig(**sizes, tied=False, placement="post", dropout=0.3)
    yield bad("", params=init_language_model(rng, untied, std=0.5, dtype=np.float64), config=untied, ids=np.array([[1, 4, 1]]), rng=rng)
    biased = BiasedConfig(**sizes, position="none")
    params = init_language_model(rng, biased, std=0.5, dtype=np.float64)._replace(position=rng.normal(size=(2, 3, 3)))
    yield bad("", params=params, config=biased, ids=np.array([[1, 4, 1]]))
    fixed = LanguageModelConfig(**sizes, fix_norm=True)
    yield bad("", params=init_language_model(rng, fixed, std=0.5, dtype=np.float64), config=fixed, ids=np.array([[1, 4, 1]]))


def learned_weighting():
    rng = np.random.default_rng(1)
    return example(*(rng.normal(size=shape) for shape in ((3, 2, 4), (3, 5, 4), (3, 5, 2), (3, 2, 5), (3, 1))), weighting=softmax_off_by_one)


def normalized(name, d_head):
    """The label's own call with QK-norm before a rotation."""
    rng, entry = np.random.default_rng(2), catalogue.find(name)
    params = entry.example(np.random.default_rng(0)).args[0]._replace(normalizer=QkNorm(*rng.normal(size=(2, d_head))))
    return bad("", params=params, normalize=qk_norm, rotate=rope)


def learned_in_groups():
    """The label's own call with a sink for each query head."""
    params = catalogue.find("grouped_query_attention").example(np.random.default_rng(0)).args[0]
    return bad("", params=params._replace(learned=(np.random.default_rng(3).normal(size=(4, 1)),)), weighting=softmax_off_by_one)


# A label has one example. Where a backward has branches that this does not take, these changes to it do, or other calls.
BRANCHES = {
    "causal_convolution": [bad(past=None), bad(params=CausalConvolution(np.random.default_rng(1).normal(size=(3, 4)), None))],
    "discretize": [bad(method="bilinear")],
    "dropout": [bad(rng=None)],
    "gelu": [bad(approximate="none")],
    "scaled_dot_product_attention": [bad(soft_cap=2.0), bad(q=np.random.default_rng(1).normal(size=(3, 4, 5))),
                                     bad("", weighting=softmax_off_by_one, k=np.random.default_rng(1).normal(size=(1, 1, 6, 5))), learned_weighting()],
    "relu_attention": [bad(mask=None)],
    "sparsemax": [bad(mask=None)],
    "scalable_softmax": [bad(mask=None), bad(scale=None), bad(offset=None), bad("", scale=np.array([0.3]), offset=np.array([0.7]))],
    "polynomial_attention": [bad(mask=None), bad(coefficients=None)],
    "gaussian_kernel_attention": [bad(normalize=True), bad(bandwidth=None), bad(bandwidth=np.array([0.7])), bad(q=np.random.default_rng(1).normal(size=(3, 4, 5)))],
    "sigmoid_attention": [bad(offset=None), bad(offset=np.array([0.3])), bad(mask=None)],
    "softmax_off_by_one": [bad(sink=None), bad(sink=np.array([0.3]))],
    "multi_head_attention": [bad(rotate=rope), normalized("multi_head_attention", 2)],
    "grouped_query_attention": [bad(rotate=rope), normalized("grouped_query_attention", 2), learned_in_groups()],
    "bmojo": [bad(rotate=rope), bad(memory=0)],
    "lti": [bad(view="recurrent"), bad(discretization="bilinear")],
    "s4d": [bad(view="recurrent")],
    "language_model": [*language_models()],
    "linear_scan": [bad(state=None), bad(form="associative"), bad("", form="chunked", chunk=2)],
    "selective_scan": [bad(D=None), bad(z=None), bad(state=None), bad(form="associative"), bad("", form="chunked", chunk=2)],
    "semiseparable": [example(-np.full(130, 0.1), *np.random.default_rng(1).normal(size=(2, 130, 1)))],  # beyond its product
    "transformer_block": [bad("", placement="post", alpha=1.7, drop=lambda x: dropout(x, rate=0.3, rng=np.random.default_rng(1)))],
}


def calls(entry):
    usual = entry.example(np.random.default_rng(0))
    others = BRANCHES.get(entry.name, [])
    return [usual, *(other.spoil(entry.function, usual) if hasattr(other, "spoil") else other for other in others)]


class Judge:
    """check_gradients on every call of one concept. Central differences of a forward that is intact are made once."""

    def __init__(self, entry):
        self.function, self.calls = entry.function, calls(entry)
        self.differences, self.known = gradients._central_differences, {}

    def refuses(self, *, forward_intact):
        for i, call in enumerate(self.calls):
            differences = partial(self.remembered, i) if forward_intact else self.differences
            with mock.patch.object(gradients, "_central_differences", differences):
                try:
                    report = checked(self.function, *call.args, second_opinion=False, **call.config)
                except NameError:                            # the mutation made no program: a mistake in mutations.py
                    raise
                except Exception:
                    return True
            if not report.passed:
                return True
        return False

    def remembered(self, call, outputs, values, which, weights):
        if (call, which) not in self.known:
            self.known[call, which] = self.differences(outputs, values, which, weights)
        return self.known[call, which]


@pytest.mark.parametrize("name", catalogue.concepts())
def test_every_mistake_in_a_backward_is_refused(name):
    entry, harmless = catalogue.concepts()[name], set(HARMLESS_BACKWARD.get(name, {}))
    judge, mutants, survivors = Judge(entry), backward_mutants(entry), set()
    assert mutants
    assert not judge.refuses(forward_intact=True), "the concept itself is refused: its branches are called wrongly"
    for mutant in mutants:
        with mutant.alive():
            if not judge.refuses(forward_intact=mutant.forward_intact):
                survivors.add(mutant.change)
    assert not survivors - harmless, "survived:\n" + "\n".join(sorted(survivors - harmless))
    assert not harmless - survivors, "harmless no longer, take off the table:\n" + "\n".join(sorted(harmless - survivors))


def test_a_mutant_is_put_back():
    entry = catalogue.concepts()["relu"]
    x = np.array([-1.0, 2.0])
    mutant = next(m for m in backward_mutants(entry) if m.change.endswith("-> return dout"))
    with mutant.alive():
        assert entry.function(x)[1](np.ones(2)).tolist() == [1, 1]
    assert entry.function(x)[1](np.ones(2)).tolist() == [0, 1]
