"""How much of dense attention's weight does each pattern keep?

Kitaev et al. 2020, arXiv:2001.04451, section 2: a softmax is decided by its largest scores, and hashing finds them. Roy et al. 2020,
arXiv:2003.05997, section 4: so do clusters. Zaheer et al. 2020, arXiv:2007.14062, section 2: words take their meaning from their neighbours,
and random keys shorten the paths. A small language model learns real text with dense attention. Then each pattern is laid on its weights,
beside as many keys for every query that are drawn at random, that are the nearest, and that are the best there are.
"""

# %%
from functools import partial

import numpy as np

from minitransformers.attention.core import causal_attention, softmax_attention
from minitransformers.attention.masks import causal_mask
from minitransformers.attention.multi_head_attention import init_multi_head_attention, multi_head_attention
from minitransformers.attention.prepare import on_both
from minitransformers.basics.chain import chain
from minitransformers.basics.embedding import embedding, init_embedding
from minitransformers.basics.feed_forward import feed_forward, init_feed_forward
from minitransformers.basics.linear import init_linear, linear
from minitransformers.basics.residual import residual
from minitransformers.norms.layer_norm import init_layer_norm, layer_norm
from minitransformers.positional.rope import rope
from minitransformers.reporting import Section, bits, counted_pairs, mean_and_spread
from minitransformers.sparse_attention.block_table import block_mask, causal_block_table
from minitransformers.sparse_attention.compressed_attention import most_read_blocks
from minitransformers.sparse_attention.longformer import pattern
from minitransformers.sparse_attention.lsh_attention import lsh_buckets
from minitransformers.sparse_attention.moba import moba_selection
from minitransformers.sparse_attention.routing import random_centroids, routing_members, update_centroids
from minitransformers.sparse_attention.strided import fixed_pattern, strided_pattern
from minitransformers.training.fit import fit
from minitransformers.training.task import IGNORED, Labelled, labelled_loss
from minitransformers.training.text import Corpus
from minitransformers.training.threads import hold_blas

section = Section(__file__, __doc__, kind="trained")
LENGTH, WIDTH, HEADS, STEPS = 96, 48, 4, 300
TEXTS, FIRST = 16, 32                                        # that are measured, and their first query: earlier ones have few keys to choose from
LAYERS = ("first layer", "second layer")
WINDOW, DILATED, LONGFORMER, BIG_BIRD = "window", "dilated window", "window and a global column", "BigBird"
STRIDED, FIXED, ONE, FOUR, ROUTING = "strided", "fixed", "LSH, 1 round", "LSH, 4 rounds", "routing"
MOBA, NATIVE = "MoBA", "NSA's selected blocks"
KEYS, STRIDE, BLOCK, TOP, BUCKETS, CLUSTERS = 8, 10, 8, 4, 8, 8  # KEYS besides its own, of a window; TOP blocks are chosen
RANDOM, NEAREST, BEST = "random", "nearest", "best"          # as many keys for each query, otherwise chosen
corpus = Corpus.load(context=LENGTH)


# %% The model: two pre-norm layers with rotations; what stands for the core can be replaced when it has learned
def fresh(rng):
    layers = []
    for _ in LAYERS:
        layers += [(init_layer_norm(rng, WIDTH), init_multi_head_attention(rng, WIDTH, num_heads=HEADS, std=0.1)),
                   (init_layer_norm(rng, WIDTH), init_feed_forward(rng, WIDTH, d_hidden=2 * WIDTH, std=0.1))]  # fmt: skip
    words = corpus.vocabulary.size
    return init_embedding(rng, words, WIDTH, std=0.1), [*layers, init_layer_norm(rng, WIDTH), init_linear(rng, WIDTH, words, std=0.1)]


def model(params, ids, *, cores=(causal_attention, causal_attention)):
    parts = []
    for core in cores:
        attend = partial(multi_head_attention, num_heads=HEADS, prepare=on_both(rope), core=core)
        parts += [partial(residual, part=partial(chain, parts=(layer_norm, part))) for part in (attend, feed_forward)]
    x, embedding_backward = embedding(params[0], ids=ids)
    logits, body_backward = chain(params[1], x, parts=(*parts, layer_norm, linear))

    def backward(dlogits):
        dbody, dx = body_backward(dlogits)
        return embedding_backward(dx), dbody

    return logits, backward


def trained(rng, *, rate):
    task = Labelled(model, partial(corpus.batch, batch_size=8, context=LENGTH))
    return fit(fresh(rng), task, steps=5 if section.quick else STEPS, peak=rate, rng=rng, warmup=0.1, floor=0.05)


def bits_of(params, texts, **settings):
    """Bits a character, from query FIRST on."""
    ids, targets = texts
    logits, backward = model(params, ids, **settings)
    (nats, count), _ = labelled_loss(logits, backward, np.where(np.arange(LENGTH) < FIRST, IGNORED, targets))
    return bits(float(nats) / count)


def met(params, ids):
    """The queries and keys of each layer, turned, (texts, heads, positions, d_head)."""
    found = []

    def watched(_, query, key, value, bias=None, *, mask=None):
        found.append((query, key))
        return causal_attention(None, query, key, value, bias, mask=mask)

    model(params, ids, cores=[watched for _ in LAYERS])
    return found


# %% Who sees whom: seen(query, key), a mask that broadcasts to (texts, heads, positions, positions); what lies ahead is cut off later
def hashed(rounds, seed):
    """Queries and keys in one bucket, cut by the same directions, in any round; and the own one."""

    def seen(query, key):
        of_query, of_key = (lsh_buckets(x, rounds=rounds, num_buckets=BUCKETS, seed=seed) for x in (query, key))
        return (of_query[..., :, None] == of_key[..., None, :]).any(-3) | np.eye(LENGTH, dtype=bool)

    return seen


def chosen_by(choice):
    """The blocks that a choice names for each query."""
    return lambda query, key: (choice(query, key, block=BLOCK, top=TOP)[..., None] == np.arange(LENGTH) // BLOCK).any(-2)


def of_each_head(query, key, **sizes):
    """The native choice where every head has keys of its own, and chooses for itself."""
    return most_read_blocks(query[..., None, :, :], key, **sizes)


def routed(query, key, *, centroids):
    """Pairs that share a cluster of a quarter of all queries and keys."""
    takes = []
    for own in routing_members(query, key, centroids=centroids, size=LENGTH // 4):
        taken = np.zeros((*own.shape[:-1], LENGTH), bool)
        np.put_along_axis(taken, own, True, axis=-1)
        takes.append(taken)
    return (takes[0][..., :, None] & takes[1][..., None, :]).any(-3)


def follow(rng, query, key):
    """The centroids of each head after ten steps of k-means on queries and keys, (heads, clusters, d_head)."""
    vectors = np.concatenate([query, key], axis=-2).swapaxes(0, 1).reshape(HEADS, -1, WIDTH // HEADS)
    centroids = random_centroids(rng, HEADS, CLUSTERS, WIDTH // HEADS, dtype=np.float32)
    for _ in range(10):
        centroids = update_centroids(centroids, vectors, decay=0.0)
    return centroids


def patterns(rng, params):
    """Each pattern by name, for each layer: those that look at positions alone, and those that look at queries and keys."""
    seed, sizes = int(rng.integers(2**32)), {"queries": LENGTH, "keys": LENGTH}
    near = partial(pattern, LENGTH, LENGTH, causal=True)
    table = causal_block_table(LENGTH // BLOCK, heads=HEADS, num_random=1, seed=seed)
    fixed = {
        WINDOW: near(window=KEYS, global_positions=(), dilation=1),
        DILATED: near(window=KEYS, global_positions=(), dilation=2),
        LONGFORMER: near(window=KEYS, global_positions=(0,), dilation=1),
        BIG_BIRD: block_mask(table, block=BLOCK, **sizes),
        STRIDED: strided_pattern(LENGTH, LENGTH, stride=STRIDE, local=True),
        FIXED: fixed_pattern(LENGTH, LENGTH, stride=STRIDE, summary=2, local=True),
    }
    by_layer: dict[str, list] = {name: [lambda query, key, mask=mask: mask] * len(LAYERS) for name, mask in fixed.items()}
    by_content = {ONE: hashed(1, seed), FOUR: hashed(4, seed), MOBA: chosen_by(moba_selection), NATIVE: chosen_by(of_each_head)}
    by_layer |= {name: [seen] * len(LAYERS) for name, seen in by_content.items()}
    learned = met(params, corpus.batch(rng, batch_size=TEXTS, context=LENGTH)[0])  # of texts to train on
    return by_layer | {ROUTING: [partial(routed, centroids=follow(rng, *both)) for both in learned]}


def sparse(seen):
    """The core that reads through a pattern."""

    def core(_, query, key, value, bias=None, *, mask=None):
        return softmax_attention(None, query, key, value, bias, mask=seen(query, key) & causal_mask(LENGTH, LENGTH))

    return core


# %% What is kept
def running(weights, order):
    """(..., queries, keys + 1): the weight of the first 0, 1, 2, ... keys of each query, the largest of order first."""
    sums = np.cumsum(np.take_along_axis(weights, np.argsort(-order, axis=-1), axis=-1), axis=-1)
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


@section.tuning
def tuning(rng):
    hold_blas()
    texts = next(corpus.evaluation_batches(batch_size=64, context=LENGTH, limit=64))
    for rate in (5e-3, 1e-2, 2e-2):
        yield "dense", rate, {"loss": bits_of(trained(np.random.default_rng(rng.integers(2**32)), rate=rate), texts)}


@section.experiment
def experiment(rng):
    hold_blas()                                              # seeds run side by side, and the arrays are small
    params = trained(rng, rate=section.rates["dense"])
    texts = next(corpus.evaluation_batches(batch_size=TEXTS, context=LENGTH, limit=TEXTS))
    seers = patterns(rng, params)
    yield "dense", "both", {"bits": bits_of(params, texts)}
    yield "attention deleted", "both", {"bits": bits_of(params, texts, cores=[sparse(lambda query, key: np.eye(LENGTH, dtype=bool))] * len(LAYERS))}
    for name, seen in seers.items():
        yield name, "both", {"bits": bits_of(params, texts, cores=[sparse(own) for own in seen])}

    earlier = causal_mask(LENGTH, LENGTH)
    for i, (query, key) in enumerate(met(params, texts[0])):
        weights = causal_attention(None, query, key, np.broadcast_to(np.eye(LENGTH, dtype=query.dtype), (*query.shape[:-1], LENGTH)))[0]
        orders = {RANDOM: rng.random(weights.shape), NEAREST: np.broadcast_to(np.arange(LENGTH), weights.shape), BEST: weights}
        sums = {other: running(weights, np.where(earlier, order, -1.0)) for other, order in orders.items()}
        for name, seen in seers.items():
            sees = np.broadcast_to(seen[i](query, key) & earlier, weights.shape)
            count = sees.sum(-1, keepdims=True)
            found = {"kept": (weights * sees).sum(-1), "pairs": count[..., 0] / np.arange(1, LENGTH + 1)}
            found |= {other: np.take_along_axis(of, count, axis=-1)[..., 0] for other, of in sums.items()}
            yield name, LAYERS[i], {measure: of[..., FIRST:].mean() for measure, of in found.items()}


# %%
def told(found, measure, *names):
    return ", ".join(f"{name} {' and '.join(mean_and_spread(of) for of in found[measure][name].values())}" for name in names)


def more(found, name, other):
    """How much more a pattern keeps than as many keys that are chosen otherwise, in each layer."""
    return [found["kept"][name][layer] - found[other][name][layer] for layer in LAYERS]


@section.claim(
    "Hashes and clusters keep more than as many random keys",
    paper="Kitaev et al. 2020, arXiv:2001.04451, section 2; Roy et al. 2020, arXiv:2003.05997, section 4: attention to the keys that are nearest",
    measured=lambda found: "; ".join(f"{other}: {told(found, other, FOUR, ROUTING)}" for other in ("kept", RANDOM)),
)
def chance(found):
    """Four rounds of hashing and clusters keep at least 0.1 more of the weight than as many keys drawn at random, in each layer."""
    return min(more(found, FOUR, RANDOM) + more(found, ROUTING, RANDOM)) >= 0.1


@section.claim(
    "Where heads read what is near, a short window keeps nearly all",
    paper="Zaheer et al. 2020, arXiv:2007.14062, section 2: a great deal of information about a token is in its neighbours",
    measured=lambda found: told(found, "kept", WINDOW),
)
def near_is_enough(found):
    """In the second layer a window of nine keys keeps at least 0.8 of the weight."""
    return found["kept"][WINDOW][LAYERS[1]] >= 0.8


@section.claim(
    "Do hashes or clusters keep more than as many nearest keys?",
    paper="no paper compares them at equal numbers of keys",
    measured=lambda found: "; ".join(f"{other}: {told(found, other, FOUR, ROUTING)}" for other in ("kept", NEAREST)),
)
def nearest(found):
    """In one layer at least, four rounds of hashing or clusters keep 0.02 more of the weight than as many nearest keys."""
    return max(more(found, FOUR, NEAREST) + more(found, ROUTING, NEAREST)) >= 0.02


@section.claim(
    "Do blocks that a query chooses keep more than as many nearest keys?",
    paper="Lu et al. 2025, arXiv:2502.13189, section 2.2: a query attends to the blocks that matter most to it",
    measured=lambda found: "; ".join(f"{other}: {told(found, other, MOBA)}" for other in ("kept", NEAREST)),
)
def chosen(found):
    """In one layer at least, MoBA keeps 0.02 more of the weight than as many nearest keys."""
    return max(more(found, MOBA, NEAREST)) >= 0.02


@section.claim(
    "Random and global blocks keep no more than a wider window",
    paper="Zaheer et al. 2020, arXiv:2007.14062, section 2: random keys are there for short paths, which a share of the weight does not show",
    measured=lambda found: "; ".join(f"{other}: {told(found, other, BIG_BIRD)}" for other in ("kept", NEAREST)),
)
def blocks(found):
    """BigBird keeps no more of the weight than as many nearest keys, in each layer."""
    return max(more(found, BIG_BIRD, NEAREST)) <= 0


@section.report
def report(found):
    for layer, title in zip(LAYERS, ("kept_first", "kept_second"), strict=True):
        rows = [[name, *(mean_and_spread(found[measure][name][layer]) for measure in ("pairs", "kept", RANDOM, NEAREST, BEST))] for name in found["kept"]]
        section.table(title, [layer, "pairs seen", "weight kept", "as many at random", "as many nearest", "as many best"], rows)
    yardstick = counted_pairs(corpus)
    rows = [[name, mean_and_spread(of["both"])] for name, of in found["bits"].items()]
    section.table("kept_bits", ["read through", "bits a character"], [*rows, ["counted pairs of characters", f"{yardstick:.2f}"]])
    names = {
        WINDOW: "window", DILATED: "dilated", LONGFORMER: "longformer", BIG_BIRD: "big_bird", STRIDED: "strided", FIXED: "fixed",
        ONE: "one", FOUR: "four", ROUTING: "routing", MOBA: "moba", NATIVE: "native",
    }  # fmt: skip
    for name, short in names.items():
        for layer, number in zip(LAYERS, ("first", "second"), strict=True):
            section.values(f"kept.{short}.{number}", {measure: found[measure][name][layer].mean() for measure in ("kept", "pairs", RANDOM, NEAREST, BEST)})
        section.value(f"kept.{short}.bits", found["bits"][name]["both"].mean())
    section.values("kept.bits", {"dense": found["bits"]["dense"]["both"].mean(), "deleted": found["bits"]["attention deleted"]["both"].mean(), "pairs": yardstick})
    section.values("kept", {"length": LENGTH, "steps": STEPS, "texts": TEXTS, "first": FIRST})


@section.figure("kept", size=(7.2, 3.2), ncols=2, sharey=True)
def picture(axes, found):
    for ax, layer in zip(axes, LAYERS, strict=True):
        for place, name in enumerate(found["kept"]):
            at = {measure: np.mean(found[measure][name][layer]) for measure in ("kept", RANDOM, NEAREST, BEST)}
            ax.plot([at[RANDOM], at[BEST]], [place, place], color="#808080", linewidth=3, alpha=0.5, solid_capstyle="butt")
            ax.plot(at[NEAREST], place, "|", color="#d0691f", markersize=11, markeredgewidth=2)
            ax.plot(at["kept"], place, "o", color="#2f7ebf")
        ax.set(title=layer, xlabel="share of the weight", xlim=(0, 1.02))
    axes[0].set_yticks(range(len(found["kept"])), list(found["kept"]))
    axes[0].invert_yaxis()


if __name__ == "__main__":
    section.main()
