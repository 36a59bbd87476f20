"""A debiasing adapter under a task's: by hand, one of them frozen, and taken out again."""

from functools import partial

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.attention.multi_head_attention import multi_head_attention
from minitransformers.basics.feed_forward import feed_forward
from minitransformers.basics.linear import Linear
from minitransformers.bias_mitigation.debiasing_adapter import StackedAdapters, debiasing_adapter
from minitransformers.foundation import reparameterize, trusted
from minitransformers.models.gpt2 import gpt2, init_gpt2
from minitransformers.peft.adapted import Adapted, adapted
from minitransformers.peft.bottleneck_adapter import BottleneckAdapter

checked = trusted(partial(check_gradients, second_opinion=False))
IDS = np.array([[1, 4, 1, 0], [0, 2, 2, 3]])


def an_adapter(rng, d_model, d_bottleneck=2):
    return BottleneckAdapter(
        Linear(rng.normal(size=(d_model, d_bottleneck)), rng.normal(size=d_bottleneck)),
        Linear(rng.normal(size=(d_bottleneck, d_model)), rng.normal(size=d_model)),
    )


def textbook(leaves, x):
    """Two bottlenecks with the tanh form of GELU, one row at a time."""
    rows = []
    for row in x:
        for w, b, v, c in (leaves[:4], leaves[4:]):
            z = anp.dot(row, w) + b
            row = row + anp.dot(z / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (z + 0.044715 * z**3))), v) + c
        rows.append(row)
    return anp.stack(rows)


def test_the_task_s_adapter_reads_what_the_debiasing_one_makes():
    rng = np.random.default_rng(0)
    params, x, dout = StackedAdapters(an_adapter(rng, 5, 3), an_adapter(rng, 5, 2)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    leaves = [leaf for _, leaf in trees.leaves(params)]
    out, backward = debiasing_adapter(params, x)
    np.testing.assert_allclose(out, textbook(leaves, x), rtol=0, atol=1e-10)
    expected = autograd.grad(lambda both: anp.sum(dout * textbook(*both)))((leaves, x))
    dparams, dx = backward(dout)
    np.testing.assert_allclose(dx, expected[1], rtol=0, atol=1e-10)
    for (path, own), theirs in zip(trees.leaves(dparams), expected[0], strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-10, err_msg=path)


def test_the_order_of_the_two_matters():
    rng = np.random.default_rng(1)
    one, two, x = an_adapter(rng, 5), an_adapter(rng, 5), rng.normal(size=(3, 5))
    assert np.abs(debiasing_adapter(StackedAdapters(one, two), x)[0] - debiasing_adapter(StackedAdapters(two, one), x)[0]).max() > 0.1


def test_without_both_it_hands_on_what_it_was_given():
    x = np.random.default_rng(2).normal(size=(3, 5))
    out, backward = debiasing_adapter(StackedAdapters(None, None), x)
    assert out is x
    dparams, dx = backward(2 * x)
    assert dparams == StackedAdapters(None, None)
    np.testing.assert_array_equal(dx, 2 * x)


def stacked_gpt2(debiasing, task, seed=3):
    """A GPT-2, and the same with a stack behind both parts of every block."""
    rng = np.random.default_rng(seed)
    model = init_gpt2(rng, vocabulary=5, context=4, d_model=4, num_layers=2, num_heads=2, std=0.5, dtype=np.float64)
    own = [[StackedAdapters(an_adapter(rng, 4), an_adapter(rng, 4)) for _ in range(2)] for _ in model.blocks]

    def behind(part, stack):
        return Adapted(part, StackedAdapters(stack.debiasing if debiasing else None, stack.task if task else None))

    blocks = [
        block._replace(attention=behind(block.attention, a), feed_forward=behind(block.feed_forward, b))
        for block, (a, b) in zip(model.blocks, own, strict=True)
    ]
    run = partial(
        gpt2, ids=IDS, num_heads=2,
        attention=partial(adapted, part=multi_head_attention, adapter=debiasing_adapter),
        feed_forward=partial(adapted, part=feed_forward, adapter=debiasing_adapter),
    )  # fmt: skip
    return model, model._replace(blocks=blocks), run


def test_taken_out_of_a_model_they_leave_it_as_it_was_to_the_last_bit():
    model, stacked, run = stacked_gpt2(True, True)
    expected = gpt2(model, ids=IDS, num_heads=2)[0]
    assert np.abs(run(stacked)[0] - expected).max() > 0.01
    _, without, run = stacked_gpt2(False, False)
    np.testing.assert_array_equal(run(without)[0], expected)


def test_each_alone_changes_the_model():
    _, both, run = stacked_gpt2(True, True)
    outs = [run(both)[0], *(run(stacked_gpt2(*on)[1])[0] for on in ((True, False), (False, True)))]
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(outs) for b in outs[:i])


@pytest.mark.parametrize(("trained", "count"), [(".debiasing.", 16), (".task.", 16)])
def test_one_is_trained_while_the_model_and_the_other_stand_still(trained, count):
    _, base, run = stacked_gpt2(True, True)
    chosen, frozen = trees.partition(base, lambda path, leaf: trained in path)
    assert len(list(trees.leaves(chosen))) == count
    before = trees.map(np.copy, frozen)

    def with_these(chosen):
        tree, back = reparameterize(chosen, base=base)
        out, backward = run(tree)
        return out, lambda dout: back(backward(dout))

    report = checked(with_these, chosen)
    assert report.passed, str(report)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(trees.leaves(frozen), trees.leaves(before), strict=True))


def with_the_gradient_past_the_task_s(params, x):
    """What arrives is given to both adapters, as though they stood side by side."""
    out, _ = debiasing_adapter(params, x)
    _, lower = debiasing_adapter(params._replace(task=None), x)
    _, upper = debiasing_adapter(params._replace(debiasing=None), debiasing_adapter(params._replace(task=None), x)[0])

    def backward(dout):
        ddebiasing, dx = lower(dout)
        return StackedAdapters(ddebiasing.debiasing, upper(dout)[0].task), dx

    return out, backward


def test_the_checker_refuses_adapters_side_by_side():
    rng = np.random.default_rng(4)
    params = StackedAdapters(an_adapter(rng, 5), an_adapter(rng, 5))
    assert not check_gradients(with_the_gradient_past_the_task_s, params, rng.normal(size=(3, 5))).passed


@pytest.mark.parity
def test_parity_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    params, x, dout = StackedAdapters(an_adapter(rng, 5, 3), an_adapter(rng, 5, 2)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    leaves = [torch.tensor(leaf, requires_grad=True) for _, leaf in trees.leaves(params)]
    theirs = torch.tensor(x)
    for w, b, v, c in (leaves[:4], leaves[4:]):
        theirs = theirs + torch.nn.functional.gelu(theirs @ w + b, approximate="tanh") @ v + c
    theirs.backward(torch.tensor(dout))
    out, backward = debiasing_adapter(params, x)
    np.testing.assert_allclose(out, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)
    for (_, own), leaf in zip(trees.leaves(backward(dout)[0]), leaves, strict=True):
        np.testing.assert_allclose(own, leaf.grad.numpy(), rtol=1e-11, atol=1e-11)
