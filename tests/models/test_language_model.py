"""The language model: composed backward, exact causality, interchangeable parts, GPT-2's initialisation."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from workbench_models import (
    FROM_THE_FIRST,
    NEEDED,
    WHOLE_TEXT,
    assert_gradients_are_right,
    checked,
    in_slot,
    mixers_with,
    whole,
    with_noise,
)
from workbench_models import config as config_of
from workbench_models import model as noisy_model

from minitransformers import catalogue, trees
from minitransformers.attention.masks import padding_mask, segment_mask
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.basics.embedding import Embedding
from minitransformers.basics.linear import Linear
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import _deep_start, init_language_model, language_model, language_model_step
from minitransformers.models.workbench.transformer_block import TransformerBlock, transformer_block
from minitransformers.norms.fix_norm import fix_norm


def small(**changes):
    return config_of(**{"vocabulary_size": 7, **changes})


def naive_gpt2(params, ids, num_heads, placement="pre", unit_words=False):
    """GPT-2 as a formula, one sequence at a time, heads in a loop, softmax by its definition; or with its norms after the sums.

    deep: the stream is multiplied by (2 N)^(1/4) in each sum; unit_words: the rows of the table divided by their lengths.
    """

    def norm(p, x):
        mean = anp.mean(x, axis=-1, keepdims=True)
        return p.gain * (x - mean) / anp.sqrt(anp.mean((x - mean) ** 2, axis=-1, keepdims=True) + 1e-5) + p.bias

    def attention(p, x):
        q, k, v = (x @ part.weight + part.bias for part in (p.query, p.key, p.value))
        width, heads = q.shape[-1] // num_heads, []
        for h in range(num_heads):
            cut = slice(h * width, (h + 1) * width)
            rows = []
            for i in range(len(x)):
                e = anp.exp(k[: i + 1, cut] @ q[i, cut] / anp.sqrt(width))
                rows.append(e @ v[: i + 1, cut] / anp.sum(e))
            heads.append(anp.stack(rows))
        return anp.concatenate(heads, axis=-1) @ p.output.weight + p.output.bias

    def mlp(p, x):
        h = x @ p.up.weight + p.up.bias
        return (h / 2 * (1 + anp.tanh(anp.sqrt(2 / anp.pi) * (h + 0.044715 * h**3)))) @ p.down.weight + p.down.bias

    out, table, scale, alpha = [], params.embedding.weight, 1.0, (2 * len(params.blocks)) ** 0.25 if placement == "deep" else 1.0
    if unit_words:
        table, scale = table / anp.sqrt(anp.sum(table**2, axis=1, keepdims=True)), table.shape[1] ** 0.5
    for sequence in ids:
        x = scale * table[sequence] + params.position.table[: len(sequence)]
        for b in params.blocks:
            if placement == "pre":
                x = x + attention(b.mixer, norm(b.mixer_norm, x))
                x = x + mlp(b.channel, norm(b.channel_norm, x))
            else:
                x = norm(b.mixer_norm, alpha * x + attention(b.mixer, x))
                x = norm(b.channel_norm, alpha * x + mlp(b.channel, x))
        x = norm(params.final_norm, x) if placement == "pre" else x
        out.append(x @ (table.T if params.head is None else params.head.weight))
    return anp.stack(out)


@pytest.mark.parametrize("placement", ["pre", "post", "deep"])
@pytest.mark.parametrize(("tied", "fix_norm"), [(True, False), (False, False), (True, True)])
def test_equals_the_formula_in_outputs_and_gradients(placement, tied, fix_norm):
    rng = np.random.default_rng(0)
    config = small(placement=placement, tied=tied, fix_norm=fix_norm)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    ids, dlogits = rng.integers(7, size=(2, 5)), rng.normal(size=(2, 5, 7))
    logits, backward = language_model(params, ids=ids, config=config)
    np.testing.assert_allclose(logits, naive_gpt2(params, ids, 2, placement, fix_norm), atol=1e-10)
    leaves = [leaf for _, leaf in trees.leaves(params)]
    expected = autograd.grad(lambda values: anp.sum(dlogits * naive_gpt2(trees.unflatten(params, values), ids, 2, placement, fix_norm)))(leaves)
    for (path, own), theirs in zip(trees.leaves(backward(dlogits)), expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-10, err_msg=path)


def part_choices():
    for role in ("mixer", "stack", "channel", "norm", "position"):
        for name, entry in catalogue.concepts(role=role).items():
            if entry.chapter != "models":
                yield role, name


@pytest.mark.parametrize(("role", "name"), part_choices())
def test_every_part_of_the_catalogue_fits_and_its_gradient_is_right(role, name):
    wide = {"d_model": 8} if name == "rope_ntk" else {}      # it needs two pairs in a head
    params, config = noisy_model(1, **{role: name}, **wide, num_layers=1, options={role: NEEDED.get(name, {"d_hidden": 3} if role == "channel" else {})})
    assert_gradients_are_right(params, config)


@pytest.mark.parametrize("changes", [{"placement": "post"}, {"placement": "deep"}, {"scale_embedding": True}, {"fix_norm": True}, {"tied": False}, {"placement": "post", "tied": False, "norm": "rms_norm"}])
def test_placement_and_tying_have_right_gradients(changes):
    config = small(**changes, num_layers=2, d_model=2, num_heads=1)
    rng = np.random.default_rng(2)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    assert checked(language_model, params, ids=rng.integers(7, size=(1, 3)), config=config, second_opinion=False).passed


def test_a_tied_embedding_that_forgets_one_of_its_two_gradients_is_refused():
    config = small(num_layers=1)
    rng = np.random.default_rng(3)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)

    def forgetful(params, *, ids):
        logits, backward = language_model(params, ids=ids, config=config)
        untied = LanguageModelConfig(**{**config.to_json(), "tied": False})
        _, split = language_model(params._replace(head=Linear(params.embedding.weight.T.copy(), None)), ids=ids, config=untied)
        return logits, lambda dlogits: backward(dlogits)._replace(embedding=split(dlogits).embedding)

    report = checked(forgetful, params, ids=rng.integers(7, size=(1, 3)), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_fix_norm_that_forgets_one_of_the_two_ends_is_refused():
    config = small(num_layers=1, fix_norm=True)
    rng = np.random.default_rng(14)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)

    def forgetful(params, *, ids):
        logits, backward = language_model(params, ids=ids, config=config)
        unit, fix_backward = fix_norm(params.embedding.weight)
        untied = small(num_layers=1, tied=False, scale_embedding=True)
        split = params._replace(embedding=Embedding(unit), head=Linear(unit.T.copy(), None))
        np.testing.assert_array_equal(language_model(split, ids=ids, config=untied)[0], logits)  # a plain model of the unit table
        _, at_the_input = language_model(split, ids=ids, config=untied)
        return logits, lambda dlogits: backward(dlogits)._replace(embedding=Embedding(fix_backward(at_the_input(dlogits).embedding.weight)))

    report = checked(forgetful, params, ids=rng.integers(7, size=(1, 3)), second_opinion=False)
    assert not report.passed
    assert report.worst.path == "params.embedding.weight"


def test_under_fix_norm_the_length_of_a_word_changes_no_logit():
    config = small(fix_norm=True)
    rng = np.random.default_rng(15)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    longer = params._replace(embedding=Embedding(params.embedding.weight * rng.uniform(0.1, 9.0, size=(7, 1))))
    ids = rng.integers(7, size=(2, 5))
    logits, backward = language_model(params, ids=ids, config=config)
    np.testing.assert_allclose(language_model(longer, ids=ids, config=config)[0], logits, rtol=0, atol=1e-12)
    dtable = backward(rng.normal(size=logits.shape)).embedding.weight
    np.testing.assert_allclose(np.vecdot(dtable, params.embedding.weight), 0, atol=1e-12)


@pytest.mark.parametrize("norm", catalogue.concepts(role="norm"))
def test_deep_norm_accepts_every_norm(norm):
    config = small(placement="deep", norm=norm, num_layers=1, d_model=2, num_heads=1)
    rng = np.random.default_rng(16)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    assert checked(language_model, params, ids=rng.integers(7, size=(1, 3)), config=config, second_opinion=False).passed


@pytest.mark.parametrize(("norm", "alike"), [("layer_norm", True), ("rms_norm", True), ("scale_norm", True), ("dynamic_tanh", False)])
def test_a_stream_scaled_up_is_layers_scaled_down_for_norms_that_forget_scale(norm, alike):
    config = small(placement="deep", norm=norm, options={"norm": {"eps": 1e-12}} if norm != "dynamic_tanh" else {})
    post = LanguageModelConfig(**{**config.to_json(), "placement": "post"})
    rng, alpha = np.random.default_rng(17), 4**0.25
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)

    def down(block):
        smaller = lambda part: trees.map(lambda leaf: leaf / alpha, part)  # noqa: E731
        mixer = block.mixer._replace(output=smaller(block.mixer.output))
        return block._replace(mixer=mixer, channel=block.channel._replace(down=smaller(block.channel.down)))

    lighter = params._replace(blocks=[down(block) for block in params.blocks])
    ids = rng.integers(7, size=(2, 5))
    difference = np.abs(language_model(params, ids=ids, config=config)[0] - language_model(lighter, ids=ids, config=post)[0]).max()
    assert (difference < 1e-8) == alike


def test_deep_norm_starts_values_outputs_and_the_channel_part_smaller():
    config = LanguageModelConfig(vocabulary_size=11, d_model=64, num_layers=8, placement="deep", channel="gated_feed_forward")
    params = init_language_model(np.random.default_rng(18), config)
    assert params.final_norm is None
    beta = 64**-0.25
    for block in params.blocks:
        for name, gain in (("query", 1), ("key", 1), ("value", beta), ("output", beta)):
            assert abs(getattr(block.mixer, name).weight.std() / (gain / 8) - 1) < 0.1, name   # Xavier: sqrt(2 / (64 + 64)) = 1/8
        for _, leaf in trees.leaves(block.channel):
            assert leaf.dtype == np.float32
            assert leaf.ndim == 1 or abs(leaf.std() / (beta * (2 / sum(leaf.shape)) ** 0.5) - 1) < 0.1
    assert abs(params.embedding.weight.std() / 0.02 - 1) < 0.1


def test_deep_norm_needs_queries_keys_values_and_outputs():
    map_ = Linear(np.ones((4, 4)), None)
    with pytest.raises(ValueError, match="placement: got 'deep' with the mixer lti, wants a mixer with queries, keys, values and outputs"):
        _deep_start(np.random.default_rng(19), TransformerBlock(None, map_, None, map_), "lti", beta=0.5)


@pytest.mark.parametrize("position", catalogue.concepts(role="position"))
def test_no_output_depends_on_a_later_token(position):
    config = small(position=position, d_model=8, options={"position": NEEDED.get(position, {})})
    rng = np.random.default_rng(4)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    ids = rng.integers(7, size=(1, 6))
    changed = ids.copy()
    changed[0, 4:] = (changed[0, 4:] + 1) % 7
    before, after = (language_model(params, ids=i, config=config)[0] for i in (ids, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.array_equal(before[:, 4:], after[:, 4:])


def test_scaled_embeddings_are_embeddings_that_are_larger():
    config = small(scale_embedding=True, tied=False)
    rng = np.random.default_rng(11)
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    larger = params._replace(embedding=params.embedding._replace(weight=2.0 * params.embedding.weight))  # sqrt(4) = 2
    ids = rng.integers(7, size=(2, 5))
    scaled, _ = language_model(params, ids=ids, config=config)
    np.testing.assert_allclose(scaled, language_model(larger, ids=ids, config=small(tied=False))[0], atol=1e-12)


def test_a_fresh_model_expects_every_token_alike():
    config = LanguageModelConfig(vocabulary_size=65, context=32, d_model=32, num_layers=2, num_heads=2)
    rng = np.random.default_rng(5)
    logits, _ = language_model(init_language_model(rng, config), ids=rng.integers(65, size=(4, 32)), config=config)
    loss, _ = cross_entropy(logits, targets=rng.integers(65, size=(4, 32)))
    assert abs(float(loss) - np.log(65)) < 0.05


def test_residual_projections_start_smaller_with_depth():
    config = LanguageModelConfig(vocabulary_size=11, d_model=64, num_layers=8)
    params = init_language_model(np.random.default_rng(6), config)
    for block in params.blocks:
        assert abs(block.mixer.output.weight.std() / (0.02 / 4) - 1) < 0.1
        assert abs(block.channel.down.weight.std() / (0.02 / 4) - 1) < 0.1
        assert abs(block.channel.up.weight.std() / 0.02 - 1) < 0.1
        assert not block.channel.up.bias.any()


def test_gpt2_small_has_the_published_number_of_parameters():
    d, layers, vocabulary, context = 768, 12, 50257, 1024
    per_block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    assert vocabulary * d + context * d + layers * per_block + 2 * d == 124_439_808
    config = LanguageModelConfig(d_model=8, num_layers=3, context=6, vocabulary_size=7, num_heads=2)
    d, layers = 8, 3
    per_block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d
    params = init_language_model(np.random.default_rng(0), config)
    assert trees.count_parameters(params) == 7 * d + 6 * d + layers * per_block + 2 * d


def test_dropout_drops_only_with_a_generator_and_repeats_with_its_seed():
    config = small(dropout=0.5)
    params = init_language_model(np.random.default_rng(7), config, std=0.5, dtype=np.float64)
    ids = np.array([[1, 2, 3]])
    plain = language_model(params, ids=ids, config=config)[0]
    np.testing.assert_array_equal(plain, language_model(params, ids=ids, config=small())[0])
    one, two, other = (language_model(params, ids=ids, config=config, rng=np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, plain)
    report = checked(language_model, params, ids=ids, config=config, rng=np.random.default_rng(3), second_opinion=False)
    assert report.passed, str(report)


def test_one_mask_is_drawn_for_the_embeddings_and_two_in_every_block():
    config = small(dropout=0.5, num_layers=3)
    params = init_language_model(np.random.default_rng(8), config)
    rng, same = np.random.default_rng(9), np.random.default_rng(9)
    language_model(params, ids=np.zeros((2, 5), int), config=config, rng=rng)
    for _ in range(1 + 2 * 3):
        same.random((2, 5, 4), dtype=np.float32)
    assert rng.random() == same.random()


class LinearBias(LanguageModelConfig):
    """A position that is added to the scores: distance times a learned slope a head."""

    @property
    def bound(self):
        def slopes_times_distance(slopes, *, num_queries, num_keys):
            distance = np.arange(num_keys) - np.arange(num_queries)[:, None]
            return slopes[:, None, None] * distance, lambda dbias: (dbias * distance).sum((1, 2))

        return LanguageModelConfig.bound.func(self)._replace(bias_position=slopes_times_distance)


def test_a_position_on_the_scores_acts_in_every_block_and_gets_the_sum_of_their_gradients():
    settings = {"vocabulary_size": 7, "context": 6, "d_model": 4, "num_layers": 2, "num_heads": 2, "position": "none"}
    rng = np.random.default_rng(10)
    plain = with_noise(init_language_model(rng, LanguageModelConfig(**settings), dtype=np.float64), rng)
    call = {"ids": rng.integers(7, size=(2, 4)), "config": LinearBias(**settings)}
    unbiased, _ = language_model(plain, ids=call["ids"], config=LanguageModelConfig(**settings))
    np.testing.assert_array_equal(language_model(plain._replace(position=np.zeros(2)), **call)[0], unbiased)
    sloped = plain._replace(position=np.array([0.5, 2.0]))
    assert np.abs(language_model(sloped, **call)[0] - unbiased).max() > 1e-3
    assert checked(language_model, sloped, **call, second_opinion=False).passed


@pytest.mark.parametrize("position", catalogue.concepts(role="position/bias"))
def test_a_position_on_the_scores_keeps_float32(position):
    config = small(position=position)
    params = init_language_model(np.random.default_rng(12), config)
    logits, backward = language_model(params, ids=np.array([[1, 2, 3]]), config=config)
    assert {leaf.dtype for _, leaf in trees.leaves(backward(logits))} == {logits.dtype} == {np.dtype(np.float32)}


def test_slopes_that_are_not_learned_have_no_gradient_in_a_model():
    config = small(position="alibi", options={"position": {"learned": False}})
    params = init_language_model(np.random.default_rng(13), config, dtype=np.float64)
    np.testing.assert_array_equal(params.position.slopes, [1 / 16, 1 / 256])
    logits, backward = language_model(params, ids=np.array([[1, 2, 3]]), config=config)
    np.testing.assert_array_equal(backward(logits).position.slopes, [0, 0])


def test_it_can_learn_one_batch_by_heart():
    config = LanguageModelConfig(vocabulary_size=11, context=8, d_model=16, num_layers=2, num_heads=2)
    rng = np.random.default_rng(8)
    params = init_language_model(rng, config, dtype=np.float64)
    ids, targets = rng.integers(11, size=(2, 8)), rng.integers(11, size=(2, 8))
    first, second = trees.zeros_like(params), trees.zeros_like(params)
    for step in range(1, 201):
        logits, backward = language_model(params, ids=ids, config=config)
        loss, loss_backward = cross_entropy(logits, targets=targets)
        grads = backward(loss_backward(np.float64(1)))
        first = trees.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = trees.map(lambda v, g: 0.99 * v + 0.01 * g * g, second, grads)
        rate = 0.01 * (1 - 0.99**step) ** 0.5 / (1 - 0.9**step)
        params = trees.map(lambda p, m, v: p - rate * m / (np.sqrt(v) + 1e-8), params, first, second)
    assert float(loss) < 0.05


def test_configuration_survives_json():
    for changes in ({"placement": "post"}, {"placement": "deep", "fix_norm": True}):
        config = small(mixer="grouped_query_attention", options={"mixer": {"num_kv_heads": 1}}, **changes)
        assert LanguageModelConfig.from_json(config.to_json()) == config
    older = {name: value for name, value in small().to_json().items() if name != "fix_norm"}
    assert LanguageModelConfig.from_json(older) == small()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mixer": "multi_head_atention"}, "did you mean 'multi_head_attention'"),
        ({"norm": "feed_forward"}, "unknown norm"),
        ({"position": "alibi", "mixer": "mamba"}, "position: got alibi, a bias on the scores, with the mixer mamba, which takes none"),
        ({"position": "rope", "mixer": "mamba"}, "position: got rope, a rotation of queries and keys, with the mixer mamba, which takes none"),
        ({"options": {"mixer": {"windows": 3}}}, "options.mixer.windows"),
        ({"options": {"mixer": {"windows": 3}}, "mixer": "sliding_window_attention"}, "did you mean 'window'"),
        ({"options": {"mixer": {"core": "sparse_max_attention"}}}, "did you mean 'sparsemax_attention'"),
        ({"options": {"mixers": {}}}, "options.mixers"),
        ({"placement": "both"}, "placement"),
        ({"fix_norm": True, "tied": False}, "fix_norm: got a head of its own"),
        ({"d_model": 0}, "d_model"),
        ({"context": 2.5}, "context"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_configurations_are_refused_by_name(changes, names):
    with pytest.raises(ValueError, match=names):
        small(**changes)


def test_configuration_from_json_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="depth"):
        LanguageModelConfig.from_json({"vocabulary_size": 3, "depth": 2})
    with pytest.raises(ValueError, match="vocabulary_size"):
        LanguageModelConfig.from_json({"context": 3})


def pattern(**changes):
    return small(mixer="sliding_window_attention,multi_head_attention", num_layers=3, options={"mixer": {"window": 2}}, **changes)


def test_mixers_alternate_and_each_takes_its_own_options():
    names = [part.entry.name for part in pattern().mixers]
    assert names == ["sliding_window_attention", "multi_head_attention", "sliding_window_attention"]
    assert [dict(part.options) for part in pattern().mixers] == [{"window": 2}, {}, {"window": 2}]


def test_a_pattern_of_mixers_equals_the_blocks_one_by_one():
    rng = np.random.default_rng(5)
    config = pattern()
    params = with_noise(init_language_model(rng, config, dtype=np.float64), rng)
    ids = rng.integers(7, size=(2, 5))
    logits, _ = language_model(params, ids=ids, config=config)
    alone = [small(num_layers=1, mixer=part.entry.name, options={"mixer": part.options}) for part in config.mixers]
    hidden = params.embedding.weight[ids] + params.position.table[:5]
    for block, one in zip(params.blocks, alone, strict=True):
        bound = one.bound
        hidden, _ = transformer_block(block, hidden, mixer=bound.mixers[0].call, channel=bound.channel, norm=bound.norm)
    final, _ = config.bound.norm(params.final_norm, hidden)
    np.testing.assert_allclose(logits, final @ params.embedding.weight.T, atol=1e-13)


@pytest.mark.parametrize("position", ["learned", "rope", "alibi"])
def test_a_pattern_of_mixers_passes_the_gradient_check(position):
    config = pattern(position=position)
    params = with_noise(init_language_model(np.random.default_rng(6), config, dtype=np.float64), np.random.default_rng(7))
    assert_gradients_are_right(params, config, batch=1)


def test_a_rotation_and_a_bias_reach_the_mixers_that_take_them_and_the_others_do_without():
    for position in ("rope", "alibi"):
        options = {"mixer": NEEDED["mamba"]}
        params, config = noisy_model(20, mixer="mamba,multi_head_attention", num_layers=2, position=position, options=options)
        assert_gradients_are_right(params, config, batch=1)
        plain = LanguageModelConfig.from_json({**config.to_json(), "position": "none"})
        ids = np.array([[1, 2, 3, 4]])
        assert np.abs(whole(params, config, ids) - whole(params._replace(position=None), plain, ids)).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mixer": "multi_head_attention,multi_head_attention,multi_head_attention"}, "mixer"),
        ({"mixer": "multi_head_attention,mamab"}, "mamab"),
        ({"mixer": "multi_head_attention,sliding_window_attention", "options": {"mixer": {"windows": 2}}}, "options.mixer.windows"),
        ({"stack": "multi_head_attention"}, "multi_head_attention"),
    ],
)
def test_impossible_patterns_are_refused_by_name(changes, names):
    with pytest.raises(ValueError, match=names):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mixer": "sliding_window_attention"}, "options.mixer.window"),
        ({"mixer": "mamba,sliding_window_attention"}, "options.mixer.window"),
        ({"stack": "samba"}, "options.stack.window"),
    ],
)
def test_an_option_that_a_part_needs_is_asked_for_by_name(changes, names):
    with pytest.raises(ValueError, match=names):
        small(**changes)


def padded(side, text, length=6):
    """The text with ids that mean nothing on one side, the mask that hides them, and where the text stands."""
    new = length - text.shape[1]
    noise = np.random.default_rng(0).integers(5, size=(len(text), new))
    mask = padding_mask(np.full(len(text), text.shape[1]), length)
    if side == "right":
        return np.concatenate([text, noise], axis=1), mask, slice(0, text.shape[1])
    return np.concatenate([noise, text], axis=1), mask[..., ::-1], slice(new, length)


def has_place_for(position, mixer):
    """Biases stand on scores, rotations in the slot prepare."""
    if position in ("none", "learned"):
        return True
    return mixer in mixers_with("prepare" if position in catalogue.concepts(role="position/rotation") else "bias")


def masked_cases():
    """What has a place for a mask, under every position that knows distances alone, padded left; under each, padded right."""
    relative = ("none", "alibi", "t5_bias", "toeplitz", *(n for n in catalogue.concepts(role="position/rotation") if not n.endswith("ntk")))
    for mixer in mixers_with("mask"):
        for side, positions in (("left", relative), ("right", ("learned", "rope", "alibi"))):
            for position in positions:
                if has_place_for(position, mixer):
                    yield mixer, side, position


@pytest.mark.parametrize(("mixer", "side", "position"), masked_cases())
def test_padded_keys_change_nothing(mixer, side, position):
    options = {"mixer": NEEDED.get(mixer, {}), "position": NEEDED.get(position, {})}
    params, config = noisy_model(21, mixer=mixer, position=position, options=options, placement="post" if position == "none" else "pre")
    text = np.random.default_rng(22).integers(5, size=(2, 4))
    alone, alone_backward = language_model(params, ids=text, config=config)
    ids, mask, real = padded(side, text)
    logits, backward = language_model(params, ids=ids, config=config, mask=mask)
    np.testing.assert_allclose(logits[:, real], alone, rtol=0, atol=1e-12)
    if side == "left":
        assert np.abs(whole(params, config, ids)[:, real] - alone).max() > 1e-3  # the padding would have been read
    dlogits = np.random.default_rng(23).normal(size=alone.shape)
    dpadded = np.zeros_like(logits)
    dpadded[:, real] = dlogits                               # what is padding is asked about nothing
    found, expected = backward(dpadded), alone_backward(dlogits)
    for (path, own), (_, theirs) in zip(trees.leaves(found), trees.leaves(expected), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-11, err_msg=path)


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (2, 3, 1), (6,)])
@pytest.mark.parametrize(("mixer", "position"), [(m, p) for m in mixers_with("mask") for p in ("rope", "alibi") if has_place_for(p, m)])
def test_texts_padded_left_decode_together_as_each_does_alone(mixer, position, pieces):
    """The first positions may see nothing at all, in both layers."""
    params, config = noisy_model(24, mixer=mixer, position=position, options={"mixer": NEEDED.get(mixer, {})})
    text = np.random.default_rng(25).integers(5, size=(2, 4))
    ids, mask, real = padded("left", text)
    every = np.broadcast_to(mask, (2, 1, 6, 6))
    state, logits, start = None, [], 0
    for size in pieces:
        rows = every[..., start : start + size, : start + size]
        part, state = language_model_step(params, ids[:, start : start + size], state, config=config, mask=rows)
        logits.append(part)
        start += size
    found = np.concatenate(logits, axis=1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, language_model(params, ids=ids, config=config, mask=mask)[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[:, real], language_model(params, ids=text, config=config)[0], rtol=0, atol=1e-12)


def test_a_mixer_without_a_place_for_a_mask_refuses_one_in_a_step_too():
    params, config = noisy_model(26, mixer="mamba", options={"mixer": NEEDED["mamba"]})
    with pytest.raises(ValueError, match="mask: got a mask, wants None: mamba has no place for one"):
        language_model_step(params, np.array([[1]]), None, config=config, mask=np.ones((1, 1), bool))


def test_a_core_that_sees_the_whole_text_is_refused_where_no_position_may_look_ahead():
    params, config = noisy_model(24, **in_slot("core", "linformer"), position="none")
    with pytest.raises(ValueError, match="mask: got a row for each of 4 queries, wants one for all"):
        whole(params, config, np.zeros((1, 4), int))


@pytest.mark.parametrize("core", [name for name in catalogue.concepts(role="core") if name not in WHOLE_TEXT | FROM_THE_FIRST])
def test_padded_keys_change_nothing_for_any_core(core):
    params, config = noisy_model(24, **in_slot("core", core), position="none")
    text = np.random.default_rng(25).integers(5, size=(2, 4))
    ids, mask, real = padded("left", text)
    np.testing.assert_allclose(whole(params, config, ids, mask=mask)[:, real], whole(params, config, text), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mixer", mixers_with("mask"))
def test_gradients_under_a_mask_are_right(mixer):
    options = {"mixer": NEEDED.get(mixer, {})}
    params, config = noisy_model(26, mixer=mixer, num_layers=1, options=options)
    mask = np.random.default_rng(27).random((2, 1, 4, 4)) < 0.6
    assert_gradients_are_right(params, config, mask=mask)


def test_documents_in_one_row_do_not_see_each_other():
    params, config = noisy_model(28, position="rope")
    ids = np.random.default_rng(29).integers(5, size=(2, 6))
    packed = whole(params, config, ids, mask=segment_mask(np.array([[0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]])))
    np.testing.assert_allclose(packed[:, :4], whole(params, config, ids[:, :4]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(packed[:, 4:], whole(params, config, ids[:, 4:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"mixer": "mamba"}, "mamba"), ({"mixer": "multi_head_attention,s4d"}, "s4d"), ({"stack": "samba"}, "samba")],
)
def test_a_mixer_without_a_place_for_a_mask_refuses_one_by_name(changes, name):
    role = "stack" if "stack" in changes else "mixer"
    params, config = noisy_model(30, **changes, options={role: NEEDED.get(name, {})})
    with pytest.raises(ValueError, match=f"mask: got a mask, wants None: {name} has no place for one"):
        whole(params, config, np.array([[1, 2]]), mask=np.ones((1, 1, 1, 2), bool))


@pytest.mark.parametrize("shape", [(4,), (3, 4), (3, 1, 1, 4), (2, 1, 1, 5)])
def test_a_mask_that_does_not_fit_is_refused_by_name(shape):
    params, config = noisy_model(31)
    with pytest.raises(ValueError, match="mask"):
        whole(params, config, np.zeros((2, 4), int), mask=np.ones(shape, bool))


def test_parameters_of_another_depth_are_refused_by_name():
    params, _ = noisy_model(32, num_layers=1)
    with pytest.raises(ValueError, match=r"params\.blocks: got 1 blocks, wants 2"):
        whole(params, noisy_model(32)[1], np.array([[1, 2]]))
