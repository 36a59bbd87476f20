"""A stack of frozen blocks: what the whole model's reparameterisation gives, with one block's dense gradient at a time."""

import tracemalloc
from functools import partial

import numpy as np
import pytest

from minitransformers import check_gradients, trees
from minitransformers.basics.linear import Linear, init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.foundation import reparameterize
from minitransformers.models.gpt2 import gpt2_block, init_gpt2
from minitransformers.models.llama import init_llama, llama_block
from minitransformers.peft.frozen_stack import frozen_stack
from minitransformers.peft.lora import lora
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.targets import at_targets

ADAPT = partial(reparameterize, change=partial(lora, scale=0.5))
MODELS = {
    "gpt2": (init_gpt2(np.random.default_rng(0), vocabulary=5, context=4, d_model=4, num_layers=3, num_heads=2, std=0.5, dtype=np.float64), gpt2_block),
    "llama": (init_llama(np.random.default_rng(1), vocabulary=5, d_model=4, num_layers=3, num_heads=2, d_hidden=3, std=0.5, dtype=np.float64), llama_block),
}


def factors(rng, base):
    return at_targets(lambda w: Lora(rng.normal(size=(len(w), 1)), rng.normal(size=(1, w.shape[1]))), base, ["query.weight", "down.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_block_by_block_is_what_the_whole_stack_at_once_gives(name):
    model, block = MODELS[name]
    rng = np.random.default_rng(2)
    base, x, run = model.blocks, rng.normal(size=(2, 3, 4)), partial(block, num_heads=2)
    trained = factors(rng, base)
    out, backward = frozen_stack(trained, x, base=base, block=run, adapt=ADAPT)
    dout = rng.normal(size=out.shape)

    tree, back = ADAPT(trained, base=base)
    h, backwards = x, []
    for params in tree:
        h, own = run(params, h)
        backwards.append(own)
    dtree, dh = [], dout
    for own in reversed(backwards):
        dblock, dh = own(dh)
        dtree.append(dblock)
    np.testing.assert_allclose(out, h, rtol=0, atol=1e-12)
    found, wanted = backward(dout), (back(dtree[::-1]), dh)
    for (path, a), (_, b) in zip(trees.leaves(found), trees.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12, err_msg=path)


def test_what_is_trained_may_also_be_arrays_of_their_own_and_nothing():
    rng = np.random.default_rng(3)
    base = [init_linear(rng, 3, 3, bias=True, dtype=np.float64) for _ in range(3)]
    trained = [None, Linear(None, rng.normal(size=3)), Linear(rng.normal(size=(3, 3)), None)]
    x = rng.normal(size=(2, 3))
    out, backward = frozen_stack(trained, x, base=base, block=linear)
    first, second = Linear(base[1].weight, trained[1].bias), Linear(trained[2].weight, base[2].bias)
    expected = ((x @ base[0].weight + base[0].bias) @ first.weight + first.bias) @ second.weight + second.bias
    np.testing.assert_allclose(out, expected, atol=1e-14)
    dtrained, dx = backward(np.ones_like(out))
    assert dtrained[0] is None and dtrained[1].weight is None and dtrained[2].bias is None
    assert dtrained[1].bias.shape == (3,) and dtrained[2].weight.shape == (3, 3) and dx.shape == x.shape


def test_memory_of_dense_gradients_does_not_grow_with_the_number_of_blocks():
    def peak(layers):
        rng = np.random.default_rng(4)
        base = [init_linear(rng, 256, 256, bias=False) for _ in range(layers)]
        trained = at_targets(lambda w: Lora(np.ones((256, 1), np.float32), np.ones((1, 256), np.float32)), base, ["weight"])
        _, backward = frozen_stack(trained, np.ones((1, 256), np.float32), base=base, block=partial(residual, part=linear), adapt=ADAPT)
        tracemalloc.start()
        backward(np.ones((1, 256), np.float32))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    weight = 4 * 256 * 256
    assert peak(8) - peak(2) < weight                        # all at once: six weights' gradients more


def test_the_checker_refuses_a_stack_whose_gradients_come_in_the_wrong_order():
    def upside_down(trained, x, **config):
        out, backward = frozen_stack(trained, x, **config)

        def wrong(dout):
            dtrained, dx = backward(dout)
            return dtrained[::-1], dx

        return out, wrong

    rng = np.random.default_rng(5)
    base = [init_linear(rng, 3, 3, dtype=np.float64) for _ in range(2)]
    trained = at_targets(lambda w: Lora(rng.normal(size=(3, 1)), rng.normal(size=(1, 3))), base, ["weight"])
    config = {"base": base, "block": linear, "adapt": ADAPT}
    assert check_gradients(frozen_stack, trained, rng.normal(size=(2, 3)), **config).passed
    assert not check_gradients(upside_down, trained, rng.normal(size=(2, 3)), **config).passed


def test_another_number_of_blocks_is_refused():
    base = [init_linear(np.random.default_rng(6), 3, 3, dtype=np.float64)]
    with pytest.raises(ValueError, match="trained: got 2 items, wants 1"):
        frozen_stack([None, None], np.ones((2, 3)), base=base, block=linear)
