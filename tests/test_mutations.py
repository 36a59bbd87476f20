"""A gradient check that cannot fail proves nothing: every small mistake in every backward must be refused."""

from functools import partial
from unittest import mock

import numpy as np
import pytest
from mutations_known import HARMLESS_BACKWARD

from minitransformers import catalogue
from minitransformers.attention.core import causal
from minitransformers.attention.cross_attention import cross_attention
from minitransformers.attention.gaussian_kernel_attention import GaussianKernel
from minitransformers.attention.prepare import on_both
from minitransformers.attention.scalable_softmax import ScalableSoftmax
from minitransformers.attention.sigmoid_attention import SigmoidAttention
from minitransformers.attention.softmax_off_by_one import SoftmaxOffByOne, softmax_off_by_one_attention
from minitransformers.basics.causal_convolution import CausalConvolution
from minitransformers.basics.chain import chain
from minitransformers.basics.dropout import dropout
from minitransformers.basics.linear import init_linear
from minitransformers.foundation import bad, check_gradients, example, gradients, trusted
from minitransformers.foundation.mistakes import backward_mutants, handed_to
from minitransformers.linear_attention.linformer import Linformer
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model
from minitransformers.models.workbench.transformer_block import post_norm
from minitransformers.norms.dynamic_tanh import DynamicTanh, dynamic_tanh
from minitransformers.norms.qk_norm import QkNorm, qk_norm
from minitransformers.positional.rope import rope

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


def llama_with_a_head():
    """The label's own call ties the head to the embedding."""
    params = catalogue.find("llama").example(np.random.default_rng(0)).args[0]
    head = init_linear(np.random.default_rng(1), 8, 6, std=0.5, bias=False, dtype=np.float64)
    return bad("", params=params._replace(head=head), ids=np.array([[1, 4, 1]]), mask=None)


OFF_BY_ONE = causal(softmax_off_by_one_attention)


def with_slots(name, heads, core=OFF_BY_ONE):
    """The label's own call with QK-norm before a rotation, and a core that learns a sink for each head."""
    rng = np.random.default_rng(2)
    learned = {"prepare": (QkNorm(*rng.normal(size=(2, 2))), None), "core": SoftmaxOffByOne(rng.normal(size=heads))}
    params = catalogue.find(name).example(np.random.default_rng(0)).args[0]._replace(**learned)
    both = partial(chain, parts=(qk_norm, on_both(rope)))
    return bad("", params=params, prepare=both, core=core)


def with_qk_norm(name, d_head):
    """The label's own call with QK-norm."""
    params = catalogue.find(name).example(np.random.default_rng(0)).args[0]._replace(prepare=QkNorm(*normal(2, d_head)))
    return bad("", params=params, prepare=qk_norm)


def with_activation(name):
    """The label's own call, of 7 hidden features, with an activation that learns."""
    params = catalogue.find(name).example(np.random.default_rng(0)).args[0]._replace(activation=DynamicTanh(np.array(0.7), *normal(2, 7)))
    return bad("", params=params, activation=dynamic_tanh)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape)


def last_queries_of_a_band():
    """Fewer queries than keys, with a bias for each key or for all; and a core inside that learns, for these and for all."""
    learned = {"params": SoftmaxOffByOne(normal(2)), "core": softmax_off_by_one_attention}
    some, one = {"query": normal(2, 2, 4, 3), "bias": normal(2, 4, 8)}, {"query": normal(2, 2, 1, 3), "bias": normal(2, 1, 1)}
    return [bad("", **changes) for changes in (some, learned, learned | some, learned | one)]


# A part of two arrays, which could take a bias as well: its backward has None for it.
CROSS, X, MEMORY, _ = catalogue.find("cross_attention").example(np.random.default_rng(0)).args
attend = partial(cross_attention, num_heads=2)


# A label has one example. Where a backward has branches that this does not take, these changes to it do, or other calls; a name
# is another form in the same file, which takes the other branches of a helper that the two share.
BRANCHES = {
    "chain": [example([QkNorm(normal(6), normal(5)), CROSS], X, MEMORY, parts=(qk_norm, attend))],
    "residual": [bad(scale=1.0), example(CROSS, X, MEMORY, part=attend, scale=2.0)],
    "feed_forward": [with_activation("feed_forward")],
    "gated_feed_forward": [with_activation("gated_feed_forward")],
    "causal_convolution": [bad(past=None), bad(params=CausalConvolution(np.random.default_rng(1).normal(size=(3, 4)), None))],
    "cross_entropy": [bad(class_weight=np.array([0.5, 2.0, 0.0, 1.0, 3.0])), bad(reduction="none")],
    "discretize": [bad(method="bilinear")],
    "dropout": [bad(rng=None)],
    "scaled_dot_product_attention": [bad(bias=None), bad(query=normal(3, 4, 5)), bad(key=normal(1, 1, 6, 5))],
    "scaled_dot_product_attention_fast": [bad(bias=None), bad(query=normal(3, 4, 5)), bad(key=normal(1, 1, 6, 5))],
    "weighted_attention": [bad(bias=None), bad(value=normal(4, 2, 1, 5, 7))],
    "relu_attention": [bad(mask=None)],
    "relu_weights": [bad(mask=None)],
    "sparsemax": [bad(mask=None)],
    "scalable_softmax_attention": [bad(params=None)],
    "scalable_softmax": [bad(mask=None), bad(params=None), bad(params=ScalableSoftmax(normal(3))), bad(params=ScalableSoftmax(normal(1), normal(1)))],
    "polynomial_attention": [bad(params=None)],
    "polynomial_weights": [bad(mask=None), bad(params=None)],
    "gaussian_kernel_attention": [bad(params=None), bad(params=GaussianKernel(np.array([0.7]))), bad(bias=None), bad(query=normal(3, 4, 5)),
                                  "normalized_gaussian_kernel_attention"],
    "normalized_gaussian_kernel_attention": [bad(params=None), bad(params=GaussianKernel(np.array([0.7]))), bad(bias=None),
                                             bad(query=normal(3, 4, 5)), "gaussian_kernel_attention"],
    "sigmoid_weights": [bad(params=None), bad(params=SigmoidAttention(normal(1))), bad(mask=None)],
    "softmax_off_by_one": [bad(params=None), bad(params=SoftmaxOffByOne(normal(1)))],
    "banded_attention_blocks": [bad(ahead=2), bad(bias=None), bad(bias=normal(1, 8)), bad(bias=normal(2, 1, 8, 1)), *last_queries_of_a_band()],
    "multi_head_attention": [bad(bias=None), with_slots("multi_head_attention", 2)],
    "grouped_query_attention": [bad(bias=None), with_slots("grouped_query_attention", 4)],
    "cross_attention": [bad(bias=None), with_slots("cross_attention", 2)],
    "bmojo": [bad(memory=0), with_slots("bmojo", 2, softmax_off_by_one_attention)],
    "bmojo_blocks": [bad(memory=0), with_slots("bmojo_blocks", 2, softmax_off_by_one_attention)],
    "shared_attention": [with_qk_norm("shared_attention", 3)],
    "lti": [bad(view="recurrent"), bad(discretization="bilinear")],
    "s4d": [bad(view="recurrent")],
    "language_model": [*language_models()],
    "late_objective": [bad("", target_loss=5.0)],
    "dense_retriever": [bad(similarity="dot")],
    "ernie_doc": ["ernie_doc_through_memory"],
    "memformer": [bad(slots=None), bad(mask=None)],
    "biased_memory_norm": [bad(slots=None)],
    "transformer_xl": ["transformer_xl_through_memory"],
    "compressive_transformer": ["compressive_transformer_through_memory"],
    "compressive_transformer_through_memory": ["compressive_transformer"],
    "llama": [llama_with_a_head()],
    "linear_scan": [bad(state=None), bad(form="associative"), bad("", form="chunked", chunk=2)],
    "linformer": [bad(params=Linformer(normal(3, 2, 7), None)), bad(mask=None)],
    "selective_scan": [bad(D=None), bad(z=None), bad(state=None)],
    "selective_scan_blocks": [bad(D=None), bad(z=None), bad(state=None), bad(form="associative"), bad("", form="chunked", chunk=2)],
    "semiseparable": [example(-np.full(130, 0.1), *np.random.default_rng(1).normal(size=(2, 130, 1)))],  # beyond its product
    "ssd": [bad(D=normal(4, 1)), bad(D=None), bad(z=None), bad(state=None), bad(delta_limit=None)],
    "transformer_block": [bad(bias=None), bad("", placement=post_norm, mask=None),
                          bad("", placement=partial(post_norm, alpha=2.0), drop=lambda x: dropout(x, rate=0.3, rng=np.random.default_rng(1)))],
}


def calls(entry):
    """Functions, and the arguments that each is called with."""
    usual = entry.example(np.random.default_rng(0))
    found = [(entry.function, usual)]
    for other in BRANCHES.get(entry.name, []):
        if isinstance(other, str):
            form = catalogue.find(other)
            assert form.module == entry.module, "another form stands in the same file"
            found.append((form.function, form.example(np.random.default_rng(0))))
        else:
            found.append((entry.function, other.spoil(entry.function, usual) if hasattr(other, "spoil") else other))
    return found


class Refused(Exception):
    """A gradient is so far off along one direction that nobody needs to look at its elements."""


def at_a_glance(outputs, values, which, weights, own, count, bound, rng):
    """What _along_directions says; where it would have one look closer, one direction may be enough."""
    found = along_directions(outputs, values, which, weights, own, count, bound, rng)
    if found is None:
        direction = {i: np.random.default_rng(7).choice((-1.0, 1.0), size=values[i].shape) for i in which}
        numeric, noise = gradients._slope(outputs, values, direction, weights)
        slope = sum(float(np.sum(g * v)) for g, v in zip(own, direction.values(), strict=True))
        if abs(slope - numeric) > max(0.01 * max(abs(slope), abs(numeric)), 1e-6, 100 * noise):
            raise Refused
    return found


along_directions = gradients._along_directions


class Judge:
    """check_gradients on every call of one concept. Central differences of a forward that is intact are made once."""

    def __init__(self, entry):
        self.calls, self.gradient_of = calls(entry), entry.gradient_of
        self.slope, self.known = gradients._slope, {}

    def refuses(self, *, forward_intact):
        for i, (function, call) in enumerate(self.calls):
            slope = partial(self.remembered, i) if forward_intact else self.slope
            with mock.patch.object(gradients, "_slope", slope), mock.patch.object(gradients, "_along_directions", at_a_glance):
                try:
                    report = checked(function, *call.args, second_opinion=False, gradient_of=self.gradient_of, **call.config)
                except NameError:                            # the mutation made no program: a mistake in mutations.py
                    raise
                except Exception:
                    return True
            if not report.passed:
                return True
        return False

    def remembered(self, call, outputs, values, direction, *settings, **steps):
        key = call, *((i, towards.tobytes()) for i, towards in direction.items()), *steps.values()
        if key not in self.known:
            self.known[key] = self.slope(outputs, values, direction, *settings, **steps)
        return self.known[key]


@pytest.mark.parametrize("name", catalogue.concepts())
def test_every_mistake_in_a_backward_is_refused(name):
    entry, harmless = catalogue.concepts()[name], set(HARMLESS_BACKWARD.get(name, {}))
    judge, mutants, survivors = Judge(entry), backward_mutants(entry), set()
    assert mutants or backward_mutants(catalogue.find(handed_to(entry))), "no backward is judged"
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
