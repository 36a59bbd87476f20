"""The Compressive Transformer: two queues by loops, what trains the compression, and how far as many rows reach."""

from functools import partial
from itertools import pairwise

import autograd.numpy as anp
import numpy as np
import pytest
import xl_textbook
from xl_textbook import assert_same, average, gradients, joined, noisy, weights_of

from minitransformers.basics.linear import Linear
from minitransformers.foundation import check_gradients, slot, trees, trusted
from minitransformers.long_context.attention_reconstruction_loss import attention_reconstruction_loss
from minitransformers.long_context.compression_loss import compression_loss
from minitransformers.long_context.compressive_memory import compressive_memory
from minitransformers.long_context.compressive_transformer import (
    CompressiveMemory,
    CompressiveTransformer,
    compressive_transformer,
    compressive_transformer_through_memory,
    init_compressive_transformer,
    usage_in_layer,
    usage_in_pre_norm_layer,
)
from minitransformers.long_context.convolution_compression import max_compression, mean_compression, most_used_compression
from minitransformers.long_context.transformer_xl import transformer_xl, transformer_xl_through_memory
from minitransformers.long_context.transformer_xl_layer import transformer_xl_pre_norm_layer
from minitransformers.norms.layer_norm import layer_norm

HEADS, WIDTH = 2, 4
SETTINGS = {"num_heads": HEADS, "memory_length": 4, "compressed_length": 3, "rate": 2}
checked = trusted(check_gradients)                           # the shapes are known to fit


def random_model(seed=0, num_layers=2, rate=2):
    rng = np.random.default_rng(seed)
    return noisy(init_compressive_transformer(rng, WIDTH, num_layers=num_layers, num_heads=HEADS, rate=rate, d_hidden=3, dtype=np.float64), rng)


def segments(count, positions=2, seed=1, batch=(2,)):
    return list(np.random.default_rng(seed).normal(size=(count, *batch, positions, WIDTH)))


def read(params, xs, **changes):
    """One segment after the other, memory stopped. Returns the outputs, the memory after each, and the backward of each."""
    memories, outs, backwards = [None], [], []
    for x in xs:
        (out, memory), backward = compressive_transformer(params, x, memory=memories[-1], **SETTINGS | changes)
        memories.append(memory)
        outs.append(out)
        backwards.append(backward)
    return outs, memories[1:], backwards


def read_through(params, xs, douts, **changes):
    """The same with the gradient through memory. Returns the outputs, and what params and each segment get."""
    memory, outs, backwards = None, [], []
    for x in xs:
        (out, memory), backward = compressive_transformer_through_memory(params, x, memory, **SETTINGS | changes)
        outs.append(out)
        backwards.append(backward)
    dmemory, dparams, dxs = None, trees.zeros_like(params), []
    for backward, dout in zip(reversed(backwards), reversed(douts), strict=True):
        dsegment, dx, dmemory = backward((dout, dmemory))
        dparams = trees.map(np.add, dparams, dsegment)
        dxs.append(dx)
    return outs, dparams, dxs[::-1]


def textbook(params, xs, small=joined, **changes):
    """The outputs of all segments, and the last memories, text by text."""
    lengths, texts, last = [(SETTINGS | changes)[name] for name in ("num_heads", "memory_length", "compressed_length", "rate")], [], []
    for b in range(len(xs[0])):
        memories, outs = [([], []) for _ in params.layers], []
        for x in xs:
            out, memories = xl_textbook.compressive_transformer(params, x[b], memories, *lengths, small)
            outs.append(out)
        texts.append(anp.stack(outs))
        last.append(memories)
    return anp.stack(texts), last


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6])
def test_outputs_and_both_memories_are_those_of_the_loops(count):
    params, xs = random_model(), segments(count)
    outs, memories, _ = read(params, xs)
    expected, last = textbook(params, xs)
    np.testing.assert_allclose(np.stack(outs, axis=1), expected, rtol=0, atol=1e-12)
    for number in range(2):
        for b in range(2):
            recent, compressed = last[b][number]
            np.testing.assert_allclose(memories[-1].recent[number][b], recent, rtol=0, atol=1e-12)
            held = memories[-1].compressed[number][b] if memories[-1].compressed else []
            assert len(held) == len(compressed) == min(max(count - 2, 0), 3)
            np.testing.assert_allclose(held, compressed, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("compress", "small"), [(slot(mean_compression), average), (slot(max_compression), lambda _, rows: anp.max(anp.stack(rows), 0))])
def test_any_compression_fits(compress, small):
    params, xs, douts = random_model()._replace(compress=[None, None]), segments(4), segments(4, seed=2)
    outs, dparams, dxs = read_through(params, xs, douts, compress=compress)
    np.testing.assert_allclose(np.stack(outs, axis=1), textbook(params, xs, small)[0], rtol=0, atol=1e-12)
    assert_same((dparams, dxs), gradients(lambda *args: anp.sum(np.stack(douts, 1) * textbook(*args, small)[0]), params, xs))


@pytest.mark.parametrize("memory_length", [4, 6])
def test_through_memory_the_gradients_are_those_of_the_unrolled_text_and_the_task_trains_the_compression(memory_length):
    params, xs, douts, changes = random_model(), segments(5), segments(5, seed=2), {"memory_length": memory_length}
    outs, dparams, dxs = read_through(params, xs, douts, **changes)
    np.testing.assert_array_equal(outs, read(params, xs, **changes)[0])
    assert_same((dparams, dxs), gradients(lambda *args: anp.sum(np.stack(douts, 1) * textbook(*args, **changes)[0]), params, xs))
    assert all(np.abs(f.weight).max() > 1e-3 for f in dparams.compress)


def test_stopped_the_task_gives_the_compression_zeros_to_the_bit():
    params, xs, douts = random_model(), segments(5), segments(5, seed=2)
    for backward, dout in zip(read(params, xs)[2], douts, strict=True):
        dparams, _ = backward((dout, None))
        assert not any(leaf.any() for _, leaf in trees.leaves(dparams.compress))
        assert np.abs(dparams.layers[0].attention.key.weight).max() > 1e-3


def test_stopped_gradients_are_those_of_each_segment_alone_with_its_memory():
    params, xs, douts = random_model(), segments(4), segments(4, seed=2)
    _, memories, backwards = read(params, xs)
    before = memories[2]

    def alone(layers, x):
        outs = []
        for b in range(2):
            held = [(list(r[b]), list(c[b])) for r, c in zip(before.recent, before.compressed, strict=True)]
            both = CompressiveTransformer(layers, params.compress)
            outs.append(xl_textbook.compressive_transformer(both, x[b], held, HEADS, 4, 3, 2)[0])
        return anp.sum(douts[3] * anp.stack(outs))

    dparams, dx = backwards[3]((douts[3], None))
    assert_same((dparams.layers, dx), gradients(alone, params.layers, xs[3]))


def test_at_a_rate_of_one_the_two_memories_are_one_of_their_lengths_together():
    params = random_model(num_layers=2, rate=1)
    params = params._replace(compress=[Linear(np.eye(WIDTH), None)] * 2)
    xs, douts = segments(5), segments(5, seed=2)
    changes = {"rate": 1, "memory_length": 3, "compressed_length": 2}
    outs, dparams, dxs = read_through(params, xs, douts, **changes)
    memory, backwards = None, []
    for x, out in zip(xs, outs, strict=True):
        (plain, memory), backward = transformer_xl_through_memory(params.layers, x, memory, num_heads=HEADS, memory_length=5)
        np.testing.assert_allclose(out, plain, rtol=0, atol=1e-13)
        backwards.append(backward)
    dmemory, dlayers = None, trees.zeros_like(params.layers)
    for backward, dout, dx in reversed(list(zip(backwards, douts, dxs, strict=True))):
        dsegment, dplain, dmemory = backward((dout, dmemory))
        np.testing.assert_allclose(dx, dplain, rtol=0, atol=1e-11)
        dlayers = trees.map(np.add, dlayers, dsegment)
    assert_same(dparams.layers, [leaf for _, leaf in trees.leaves(dlayers)])


def test_before_the_first_row_is_pushed_out_it_is_a_transformer_xl():
    params, xs = random_model(), segments(2)
    outs, memories, backwards = read(params, xs)
    memory = None
    for x, out in zip(xs, outs, strict=True):
        (plain, memory), _ = transformer_xl(params.layers, x, memory=memory, num_heads=HEADS, memory_length=4)
        np.testing.assert_array_equal(out, plain)
    assert memories[-1].compressed == [] and [rows.shape[1] for rows in memories[-1].recent] == [4, 4]
    assert not any(leaf.any() for _, leaf in trees.leaves(backwards[1]((None, memories[1]))[0].compress))


def test_first_in_is_first_out_and_lengths_stay():
    # The first layer keeps the text itself. Row t is t everywhere; compressed by the mean it tells which rows it stands for.
    params = random_model()._replace(compress=[None, None])
    xs = [np.full((1, 2, WIDTH), 2.0 * s) + np.array([0.0, 1.0])[:, None] for s in range(9)]
    _, memories, _ = read(params, xs, compress=slot(mean_compression))
    for s, memory in enumerate(memories):
        recent, compressed = memory.recent[0][0, :, 0], memory.compressed[0][0, :, 0] if memory.compressed else []
        newest = 2 * s + 1
        np.testing.assert_array_equal(recent, np.arange(max(newest - 3, 0), newest + 1))
        np.testing.assert_array_equal(compressed, np.arange(0.5, newest - 4, 2)[-3:])
    assert [rows.shape[1] for rows in (*memories[-1].recent, *memories[-1].compressed)] == [4, 4, 3, 3]


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("memory_length", "compressed_length"), [(4, 2), (4, 4), (8, 2), (8, 6)])
def test_it_reaches_layers_times_the_recent_and_rate_times_the_compressed_rows(num_layers, memory_length, compressed_length):
    positions = rate = 4
    reach = num_layers * (memory_length + rate * compressed_length)
    count = reach // positions + 3
    params, xs = random_model(num_layers=num_layers, rate=rate), segments(count, positions, batch=(1,))
    changes = {"memory_length": memory_length, "compressed_length": compressed_length, "rate": rate}
    douts = [*np.zeros((count - 1, 1, positions, WIDTH)), np.random.default_rng(3).normal(size=(1, positions, WIDTH))]
    _, _, dxs = read_through(params, xs, douts, **changes)
    felt = [bool(row.any()) for row in np.concatenate(dxs[:-1], axis=1)[0]]
    assert felt == [False] * (len(felt) - reach) + [True] * reach
    for place, effect in ((len(felt) - reach - 1, False), (len(felt) - reach, True)):
        changed = [x.copy() for x in xs]
        changed[place // positions][:, place % positions] += 1
        apart = read(params, changed, **changes)[0][-1] - read(params, xs, **changes)[0][-1]
        assert apart.any() == effect


def test_as_many_rows_reach_further_than_those_of_a_transformer_xl():
    params, xs = random_model(num_layers=1, rate=4), segments(8, 4, batch=(1,))
    changed = [xs[0] + 1, *xs[1:]]
    changes = {"memory_length": 8, "compressed_length": 8, "rate": 4}
    assert np.abs(read(params, changed, **changes)[0][-1] - read(params, xs, **changes)[0][-1]).max() > 1e-9
    last = []
    for text in (xs, changed):
        memory = None
        for x in text:
            (out, memory), _ = transformer_xl(params.layers, x, memory=memory, num_heads=HEADS, memory_length=16)
        last.append(out)
    np.testing.assert_array_equal(*last)


def test_what_is_most_used_is_what_the_segment_looked_at():
    params, xs = random_model()._replace(compress=[None, None]), segments(3)
    _, memories, _ = read(params, xs, compress=slot(most_used_compression))
    before, after = memories[1], memories[2]
    for b in range(2):
        received = np.zeros(6)
        for i in range(2):
            for head in range(HEADS):
                weights = weights_of(params.layers[0].attention, i, list(xs[2][b]), list(before.recent[0][b]), HEADS, head)
                received[: len(weights)] += weights
        kept = int(np.argmax(received[:2]))                  # of the two rows that are pushed out
        np.testing.assert_array_equal(after.compressed[0][b], before.recent[0][b, kept : kept + 1])


def test_the_usage_counts_recent_rows_behind_compressed_ones():
    params, xs = random_model()._replace(compress=[None, None]), segments(5)
    asked = []

    def usage(layer, x, context, *, num_heads):
        asked.append(np.arange(context.shape[-2] + x.shape[-2])[None] + np.zeros((2, 1)))
        return asked[-1]

    def watched(x, *, rate, usage):
        np.testing.assert_array_equal(usage()[0], [watched.skip, watched.skip + 1])
        return mean_compression(x, rate=rate)

    for s, watched.skip in ((3, 0), (4, 1), (5, 2)):         # so many compressed rows stand before the recent ones
        _, memories, _ = read(params, xs[: s - 1], compress=slot(mean_compression))
        compressive_transformer(params, xs[s - 1], memory=memories[-1], **SETTINGS, compress=slot(watched), usage=usage)
    assert len(asked) == 6


def test_with_norms_first_usage_is_that_of_the_normed_rows():
    params, (x, memory) = random_model().layers[0], segments(2, 3)
    rows = [layer_norm(params.attention_norm, a)[0] for a in (x, memory)]
    np.testing.assert_array_equal(usage_in_pre_norm_layer(params, x, memory, num_heads=HEADS), usage_in_layer(params, *rows, num_heads=HEADS))
    np.testing.assert_array_equal(usage_in_pre_norm_layer(params, x, None, num_heads=HEADS), usage_in_layer(params, rows[0], None, num_heads=HEADS))


@pytest.mark.parametrize("norm", [None, layer_norm])
def test_the_compression_loss_is_the_sum_of_the_layers_and_trains_the_compressions_alone(norm):
    params, xs = random_model(), segments(4)
    _, memories, _ = read(params, xs, memory_length=6, **({} if norm is None else {"layer": transformer_xl_pre_norm_layer}))
    call = {"layers": params.layers, "before": memories[2], "after": memories[3], "positions": 2, "num_heads": HEADS, "rate": 2, "norm": norm}
    loss, backward = compression_loss(params.compress, **call)
    dparams, total = backward(np.float64(1)), 0.0
    for f, df, layer, before, after in zip(params.compress, dparams, params.layers, memories[2].recent, memories[3].recent, strict=True):
        # In the first layer the segment is the text: what the loss takes for it is what the layer has read.
        own, own_backward = attention_reconstruction_loss(
            f, old=before[:, :2], segment=after[:, -2:], layer=layer, num_heads=HEADS, rate=2, norm=norm
        )  # fmt: skip
        total += own
        assert_same(df, [leaf for _, leaf in trees.leaves(own_backward(np.float64(1)))])
    np.testing.assert_allclose(loss, total, rtol=1e-14)
    np.testing.assert_array_equal(memories[3].recent[0][:, -2:], xs[3])
    assert len(dparams) == 2 and all(np.abs(df.weight).max() > 1e-4 for df in dparams)
    other, nothing = compression_loss([None, None], **call, compress=slot(mean_compression))
    assert other > 0 and abs(other - loss) > 1e-3 and nothing(np.float64(1)) == [None, None]


def test_a_single_row_that_is_pushed_out_counts():
    params, xs = random_model(rate=1), segments(3, positions=1)
    _, memories, _ = read(params, xs, rate=1, memory_length=2)
    call = {"layers": params.layers, "positions": 1, "num_heads": HEADS, "rate": 1}
    assert compression_loss(params.compress, before=memories[1], after=memories[2], **call)[0] > 1e-6


def test_nothing_pushed_out_is_no_loss():
    params, xs = random_model(), segments(2)
    _, memories, _ = read(params, xs)
    call = {"layers": params.layers, "positions": 2, "num_heads": HEADS, "rate": 2}
    for before, after in ((None, memories[0]), (memories[0], memories[1])):
        loss, backward = compression_loss(params.compress, before=before, after=after, **call)
        assert loss == 0 and not any(leaf.any() for _, leaf in trees.leaves(backward(np.float64(1))))


def test_both_losses_together_train_every_parameter_once():
    # One step of algorithm 2: two gradients that have no number in common but zero.
    params, xs = random_model(), segments(4)
    outs, memories, backwards = read(params, xs)
    task = backwards[3]((outs[3], None))[0]
    call = {"layers": params.layers, "positions": 2, "num_heads": HEADS, "rate": 2}
    own = compression_loss(params.compress, before=memories[2], after=memories[3], **call)[1](np.float64(1))
    step = task._replace(compress=own)
    assert all(leaf.any() for _, leaf in trees.leaves(step))


def test_layers_with_the_norm_first_are_a_slot():
    params, xs, douts = random_model(), segments(4), segments(4, seed=2)
    outs, dparams, _ = read_through(params, xs, douts, layer=transformer_xl_pre_norm_layer)
    assert np.abs(np.stack(outs) - np.stack(read(params, xs)[0])).max() > 1e-2
    (_, memories, _) = read(params, xs, layer=transformer_xl_pre_norm_layer)
    call = partial(compressive_transformer_through_memory, **SETTINGS, layer=transformer_xl_pre_norm_layer)
    assert checked(call, params, xs[0], memories[2], second_opinion=False).passed
    assert all(leaf.any() for _, leaf in trees.leaves(dparams.compress))


def test_both_memories_share_nothing_with_what_came_before():
    params, xs = random_model(), segments(5)
    _, memories, _ = read(params, xs)
    for before, after in pairwise(memories):
        olds, news = ([leaf for _, leaf in trees.leaves(memory)] for memory in (before, after))
        assert not any(np.shares_memory(a, b) for a in news for b in (*olds, *xs))
    (_, held), _ = compressive_memory(params.compress[0], xs[0], None, xs[1], **{k: v for k, v in SETTINGS.items() if k != "num_heads"})
    assert not np.shares_memory(held, xs[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.ones((2, 3, WIDTH))}, "x: got 3 positions, wants a number of positions that rate = 2 divides"),
        ({"memory_length": 5}, "memory_length: got 5, wants at least the 2 positions, and a number that rate = 2 divides"),
        ({"x": np.ones((2, 6, WIDTH))}, "memory_length: got 4, wants at least the 6 positions"),
        ({"memory": CompressiveMemory([np.ones((2, 4, WIDTH))] * 2, [np.ones((2, 1, WIDTH))])}, r"memory\.compressed: got those of 1 layers"),
        ({"memory": CompressiveMemory([np.ones((3, 4, WIDTH))] * 2, [])}, r"memory\.recent\.0: got shape \(3, 4, 4\)"),
        ({"memory": CompressiveMemory([np.ones((2, 3, WIDTH))] * 2, [])}, "recent: got 3 rows"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    params, (x,) = random_model(), segments(1)
    with pytest.raises(ValueError, match=message):
        compressive_transformer(params, changes.pop("x", x), **SETTINGS | changes)
    with pytest.raises(ValueError, match=r"params\.compress: got 1 compressions, wants one for each of the 2 layers"):
        compressive_transformer(params._replace(compress=params.compress[:1]), x, **SETTINGS)


def forgotten_rows_still_paid(params, x, recent, compressed):
    """The gradient of the compressed queue lies one row too early: its first row is the one that was forgotten."""
    settings = {"memory_length": 4, "compressed_length": 2, "rate": 2}
    result, backward = compressive_memory(params, x, recent, compressed, **settings)

    def wrong(dafter):
        dparams, dx, drecent, dcompressed = backward(dafter)
        return dparams, dx, drecent, np.roll(dcompressed, -1, axis=-2)

    return result, wrong


def test_the_checker_refuses_a_queue_that_is_off_by_one():
    (x, recent, compressed), f = segments(3), random_model().compress[0]
    recent = np.concatenate([recent, recent], axis=1)
    report = check_gradients(forgotten_rows_still_paid, f, x, recent, compressed)
    assert not report.passed and report.worst.path == "compressed"


@pytest.mark.parity
def test_parity_with_compressive_transformer_pytorch():
    """Its attention layer, forward, memories and loss; not its gradients: it detaches the parameter of keys and values as it goes."""
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("compressive_transformer_pytorch.compressive_transformer_pytorch")
    from minitransformers.attention.core import causal_attention
    from minitransformers.attention.multi_head_attention import MultiHeadAttention
    from minitransformers.long_context.attention_with_memory import attention_with_memory

    torch.manual_seed(0)
    theirs = package.SelfAttention(WIDTH, 2, 2, 3, cmem_ratio=2, heads=HEADS).double().train()
    query, both, out = (own.detach().numpy() for own in (theirs.to_q.weight, theirs.to_kv.weight, theirs.to_out.weight))
    maps = [Linear(np.ascontiguousarray(weight.T), None) for weight in (query, *np.split(both, 2))]
    attention = MultiHeadAttention(*maps, Linear(np.ascontiguousarray(out.T), theirs.to_out.bias.detach().numpy()))
    kernel, bias = (own.detach().numpy() for own in theirs.compress_mem_fn.conv.parameters())
    f = Linear(kernel.transpose(2, 1, 0).reshape(2 * WIDTH, WIDTH), bias)
    layer = random_model().layers[0]._replace(attention=attention)
    their_memory, recent, compressed = None, None, None
    for x in segments(6):
        their_out, their_memory, their_loss = theirs(torch.tensor(x), memories=their_memory)
        context = recent if compressed is None else np.concatenate([compressed, recent], axis=1)
        np.testing.assert_allclose(
            attention_with_memory(attention, x, context, num_heads=HEADS, core=causal_attention)[0], their_out.detach().numpy(), rtol=0, atol=1e-12
        )
        if recent is not None:
            loss, _ = attention_reconstruction_loss(f, old=recent, segment=x, layer=layer, num_heads=HEADS, rate=2)
            np.testing.assert_allclose(loss, their_loss.item(), rtol=0, atol=1e-12)
        (recent, compressed), _ = compressive_memory(f, x, recent, compressed, memory_length=2, compressed_length=3, rate=2)
        np.testing.assert_allclose(recent, their_memory.mem.detach().numpy(), rtol=0, atol=1e-12)
        if compressed is not None:
            np.testing.assert_allclose(compressed, their_memory.compressed_mem.detach().numpy(), rtol=0, atol=1e-12)
