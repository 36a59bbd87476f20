"""A concept put into a slot by its name: it is written down, stays causal, learns, decodes and is stored."""

import functools
import json

import numpy as np
import pytest
from workbench_models import (
    ATTENTIONS,
    EXACT,
    FROM_THE_FIRST,
    NEEDED,
    assert_gradients_are_right,
    assert_gradients_are_right_along_directions,
    config,
    decoded,
    in_slot,
    model,
    slots_and_names,
    whole,
)

from minitransformers import catalogue, trees
from minitransformers.basics.cross_entropy import cross_entropy
from minitransformers.models.workbench.configuration import LanguageModelConfig
from minitransformers.models.workbench.language_model import init_language_model, language_model
from minitransformers.training.config import TrainingConfig
from minitransformers.training.loop import CHECKPOINT, train
from minitransformers.training.text import Corpus
from minitransformers.training.workbench import load_trained, workbench_task

EVERYWHERE = [(slot, name, mixer) for slot, name in slots_and_names() for mixer in ATTENTIONS]
ACTIVATIONS = [(channel, name) for channel in catalogue.concepts(role="channel") for name in catalogue.concepts(role="activation")]


@pytest.mark.parametrize(("slot", "name"), slots_and_names())
def test_a_name_survives_json_and_makes_another_model(slot, name):
    params, chosen = model(**in_slot(slot, name), position="alibi")
    again = LanguageModelConfig.from_json(json.loads(json.dumps(chosen.to_json())))
    assert again == chosen
    ids = np.array([[0, 1, 2, 3]])
    bare = params._replace(blocks=[block._replace(mixer=block.mixer._replace(**{slot: None})) for block in params.blocks])
    own, same, plain = whole(params, chosen, ids), whole(params, again, ids), whole(bare, config(position="alibi"), ids)
    np.testing.assert_array_equal(own, same)
    if name in EXACT:
        np.testing.assert_allclose(own, plain, rtol=0, atol=1e-13)
    else:
        assert np.abs(own - plain).max() > 1e-4


@pytest.mark.parametrize(("slot", "name", "mixer"), EVERYWHERE)
def test_its_gradients_are_right(slot, name, mixer):
    params, chosen = model(1, **in_slot(slot, name, mixer), num_layers=1, position="rope")
    if mixer == "multi_head_attention":
        assert_gradients_are_right(params, chosen, batch=1)
    else:
        assert_gradients_are_right_along_directions(params, chosen)


@pytest.mark.parametrize(
    ("slot", "name", "mixer", "position"),
    [(*case, position) for case in EVERYWHERE for position in ("rope", "alibi") if position == "rope" or case[2] == "multi_head_attention"],
)
def test_the_future_changes_nothing_and_decoding_is_the_whole_pass(slot, name, mixer, position):
    """But for a pattern that counts from the first key, where a window has let the first keys go."""
    params, chosen = model(3, **in_slot(slot, name, mixer), position=position)
    ids = np.random.default_rng(4).integers(5, size=(2, 6))
    logits = whole(params, chosen, ids)
    np.testing.assert_allclose(whole(params, chosen, ids[:, :3]), logits[:, :3], rtol=0, atol=1e-13)
    if name in FROM_THE_FIRST and mixer == "sliding_window_attention":
        return
    for pieces in ((3, 1, 2), (1, 1, 1, 1, 1, 1)):
        np.testing.assert_allclose(decoded(params, chosen, ids, pieces), logits, rtol=0, atol=1e-12)


def test_a_direction_shows_a_gradient_that_is_wrong_in_one_place(monkeypatch):
    import workbench_models

    def wrong(params, **settings):
        out, backward = language_model(params, **settings)

        def spoilt(dlogits):
            found = backward(dlogits)
            return found._replace(embedding=trees.map(lambda leaf: leaf + 1e-3 * (np.arange(leaf.size) == 3).reshape(leaf.shape), found.embedding))

        return out, spoilt

    params, chosen = model(1, num_layers=1)
    assert_gradients_are_right_along_directions(params, chosen)
    monkeypatch.setattr(workbench_models, "language_model", wrong)
    with pytest.raises(AssertionError):
        assert_gradients_are_right_along_directions(params, chosen)


@pytest.mark.parametrize(("channel", "name"), ACTIVATIONS)
def test_an_activation_by_name_is_that_activation(channel, name):
    params, chosen = model(5, channel=channel, num_layers=1, options={"channel": {"activation": name, "d_hidden": 3}})
    assert_gradients_are_right(params, chosen, batch=1, positions=3)
    entry, x = catalogue.find(name), np.linspace(-3, 3, 8).reshape(2, 4)
    expected = catalogue.find(channel).function(params.blocks[0].channel, x, activation=lambda _, h: (entry.function(h)[0], None))[0]
    np.testing.assert_array_equal(chosen.bound.channel(params.blocks[0].channel, x)[0], expected)


LEARNING = [(slot, name, mixer) for slot, name, mixer in EVERYWHERE if catalogue.find(name).init is not None]


def test_there_is_something_that_learns_in_each_slot():
    assert {slot for slot, _, _ in LEARNING} == {"core", "prepare"}


@pytest.mark.parametrize(("slot", "name", "mixer"), LEARNING)
def test_training_moves_what_it_learns_and_lowers_the_loss(slot, name, mixer):
    params, chosen = model(7, **in_slot(slot, name, mixer), num_layers=1)
    ids, targets = np.random.default_rng(8).integers(5, size=(2, 3, 6))
    start, losses = getattr(params.blocks[0].mixer, slot), []
    for _ in range(20):
        logits, backward = language_model(params, ids=ids, config=chosen)
        loss, loss_backward = cross_entropy(logits, targets=targets)
        losses.append(float(loss))
        params = trees.map(lambda leaf, gradient: leaf - 0.1 * gradient, params, backward(loss_backward(np.ones_like(loss))))
    assert losses[-1] < losses[0] - 0.02
    for (path, after), (_, before) in zip(trees.leaves(getattr(params.blocks[0].mixer, slot)), trees.leaves(start), strict=True):
        assert np.abs(after - before).max() > 1e-6, path


def test_a_core_for_heads_starts_with_the_width_and_the_number_of_the_heads():
    params, _ = model(**in_slot("core", "shaw"), d_model=12, num_heads=2)
    assert {leaf.shape[-1] for _, leaf in trees.leaves(params.blocks[0].mixer.core)} == {6}
    params, _ = model(**in_slot("prepare", "qk_norm"), d_model=12, num_heads=2)
    assert [leaf.shape for _, leaf in trees.leaves(params.blocks[0].mixer.prepare)] == [(6,), (6,)]
    params, _ = model(**in_slot("core", "scalable_softmax_attention"), d_model=12, num_heads=4)
    assert params.blocks[0].mixer.core.scale.shape == (4,)


def test_the_width_of_attention_heads_is_no_setting_for_mixers_that_have_heads_of_their_own():
    params, _ = model(mixer="mamba2", d_model=128, num_heads=4, num_layers=1)
    assert params.blocks[0].mixer.A_log.shape == (256 // 64,)


def test_a_prepare_comes_before_the_rotation():
    from minitransformers.attention.multi_head_attention import multi_head_attention
    from minitransformers.norms.qk_norm import qk_norm
    from minitransformers.positional.rope import rope

    params, chosen = model(9, **in_slot("prepare", "qk_norm"), position="rope", num_layers=1)
    mixer, x = params.blocks[0].mixer, np.random.default_rng(10).normal(size=(2, 5, 4))

    def by_hand(learned, query, key, *, positions=None):
        (query, key), _ = qk_norm(learned[0], query, key)
        return (rope(query)[0], rope(key)[0]), None

    expected, _ = multi_head_attention(mixer, x, num_heads=2, prepare=by_hand)
    np.testing.assert_allclose(chosen.bound.mixers[0].call(mixer, x)[0], expected, rtol=0, atol=1e-14)


def test_dotted_options_reach_the_concept_that_they_are_meant_for():
    from minitransformers.attention.banded_attention import banded_attention
    from minitransformers.attention.core import causal
    from minitransformers.attention.multi_head_attention import multi_head_attention
    from minitransformers.attention.sparsemax import sparsemax_attention

    options = {"core": "banded_attention", "core.window": 2, "core.core": "sparsemax_attention", "core.core.scale": 0.3}
    params, chosen = model(11, num_layers=1, options={"mixer": options})
    assert LanguageModelConfig.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    mixer, x = params.blocks[0].mixer, np.random.default_rng(12).normal(size=(2, 5, 4))
    core = causal(functools.partial(banded_attention, window=2, core=functools.partial(sparsemax_attention, scale=0.3)))
    expected, _ = multi_head_attention(mixer, x, num_heads=2, core=core)
    np.testing.assert_array_equal(chosen.bound.mixers[0].call(mixer, x)[0], expected)


@pytest.mark.parametrize("position", ["rope_linear", "rope_ntk", "rope_partial"])
def test_a_rotation_takes_another_turn_by_name(position):
    from minitransformers.positional.rope_interleaved import rope_interleaved

    needed = {"rotary_dim": 4} if position == "rope_partial" else NEEDED[position]
    params, chosen = model(13, position=position, d_model=8, num_layers=1, options={"position": {**needed, "turn": "rope_interleaved"}})
    assert_gradients_are_right(params, chosen, batch=1, positions=3)
    query = np.random.default_rng(14).normal(size=(1, 2, 5, 4))
    turned = chosen.rotation._filled_in(chosen.rotation.entry.function, None, {})(query)[0]
    expected = catalogue.find(position).function(query, **needed, turn=rope_interleaved)[0]
    np.testing.assert_array_equal(turned, expected)
    assert np.abs(expected - catalogue.find(position).function(query, **needed)[0]).max() > 1e-3


def test_a_position_is_used_in_its_fast_form():
    assert config(position="rope").parts["position"].entry.name == "rope_fast"


WRONG = [
    ({"mixer": {"core": "sparse_max_attention"}}, r"unknown core 'sparse_max_attention'; did you mean 'sparsemax_attention'"),
    ({"mixer": {"core": "gaussian"}}, "unknown core 'gaussian'"),
    ({"mixer": {"core": "rms_norm"}}, "unknown core 'rms_norm'"),
    ({"mixer": {"prepare": "qknorm"}}, "unknown prepare 'qknorm'; did you mean 'qk_norm'"),
    ({"channel": {"activation": "rellu"}}, "unknown activation 'rellu'; did you mean 'relu'"),
    ({"mixer": {"core": 3}}, r"options\.mixer\.core: got 3, wants the name of a concept"),
    ({"mixer": {"prepare": True}}, r"options\.mixer\.prepare: got True, wants the name of a concept"),
    ({"mixer": {"core.scale": 1.0}}, r"options\.mixer\.core: got None, wants the name of a concept"),
    ({"mixer": {"core": "sparsemax_attention", "core.scal": 1.0}}, r"options\.mixer\.core\.scal: sparsemax_attention has no such option; did you mean 'scale'"),
    ({"mixer": {"core": "sparsemax_attention", "core.query": 1.0}}, r"options\.mixer\.core\.query: sparsemax_attention has no such option"),
    ({"mixer": {"core": "soft_capped_attention", "core.cap": 0.0}}, r"options\.mixer\.core\.cap: got 0\.0, wants a finite number above 0"),
    ({"mixer": {"core": "polynomial_attention", "core.decay": True}}, r"options\.mixer\.core\.decay: got True"),
    ({"mixer": {"core": "soft_capped_attention"}}, r"options\.mixer\.core\.cap: soft_capped_attention needs a value"),
    ({"mixer": {"core": "shaw"}}, r"options\.mixer\.core\.reach: shaw needs a value"),
    ({"mixer": {"core": "banded_attention", "core.window": 2, "core.core": "sparse"}}, "unknown core 'sparse'"),
    ({"mixer": {"num_heads.x": 1}}, r"options\.mixer\.num_heads\.x: multi_head_attention has no such option"),
    ({"norm": {"eps": -1.0}}, r"options\.norm\.eps: got -1\.0, wants a finite number of at least 0"),
    ({"norm": {"eps": "small"}}, r"options\.norm\.eps: got 'small'"),
    ({"norm": {"epsilon": 1e-3}}, r"options\.norm\.epsilon: layer_norm has no such option; did you mean 'eps'"),
    ({"channel": {"d_hidden": 2.5}}, r"options\.channel\.d_hidden: got 2\.5, wants a whole number of at least 1"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_cannot_stand_in_a_slot_is_refused_at_once_with_what_is_near(options, message):
    with pytest.raises(ValueError, match=message):
        config(options=options)


def test_a_core_that_learns_in_a_core_without_a_place_for_it_is_refused():
    options = {"core": "banded_attention", "core.window": 2, "core.core": "scalable_softmax_attention"}
    with pytest.raises(ValueError, match=r"options\.mixer\.core\.core: scalable_softmax_attention learns, and banded_attention_blocks has no place for it"):
        model(options={"mixer": options})


@pytest.mark.parametrize("slot", ["core", "prepare"])
def test_a_mixer_that_cannot_take_it_says_so(slot):
    with pytest.raises(ValueError, match=rf"options\.mixer\.{slot}: mamba has no such option"):
        config(mixer="mamba", options={"mixer": {slot: "sparsemax_attention"}})


WIDENING = {
    "norm": ({"norm": {"eps": np.float64(1e-6)}}, {}),
    "core": ({"mixer": {"core": "soft_capped_attention", "core.cap": np.float64(2.0)}}, {}),
    "prepare": ({"mixer": {"prepare": "qk_norm", "prepare.eps": np.float64(1e-6)}}, {}),
    "rotation": ({"position": {"base": np.float64(100.0)}}, {"position": "rope"}),
    "window": ({"mixer": {"window": np.int64(3)}}, {"mixer": "sliding_window_attention"}),
    "scale": ({"mixer": {"core": "sparsemax_attention", "core.scale": np.float64(0.5)}}, {}),
}


@pytest.mark.parametrize("which", WIDENING)
def test_numbers_of_numpy_become_pythons_own_and_widen_nothing(which):
    options, changes = WIDENING[which]
    chosen = config(options=options, **changes)
    params = init_language_model(np.random.default_rng(0), chosen)
    logits, backward = language_model(params, ids=np.array([[1, 2, 3]]), config=chosen)
    assert {leaf.dtype for _, leaf in trees.leaves((logits, backward(logits)))} == {np.dtype(np.float32)}


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_what_slots_learn_is_trained_stored_and_read_back(tmp_path, position):
    corpus = Corpus.from_text("the cat sat on the mat. " * 20, context=6)
    chosen = config(
        vocabulary_size=corpus.vocabulary.size, position=position, options={"mixer": {"core": "transformer_xl_relative", "prepare": "qk_norm"}}
    )
    result = train(
        task=workbench_task(corpus, chosen, batch_size=4), init=functools.partial(init_language_model, config=chosen),
        config=TrainingConfig(steps=4, eval_every=0), folder=tmp_path, quiet=True,
    )  # fmt: skip
    trained = load_trained(tmp_path / CHECKPOINT)
    assert trained.config == chosen
    trees.map(np.testing.assert_array_equal, trained.params, result.params)
    start = init_language_model(np.random.default_rng(np.random.SeedSequence(0).spawn(1)[0]), chosen)
    for slot in ("core", "prepare"):
        fresh, learned = (dict(trees.leaves(getattr(tree.blocks[1].mixer, slot))) for tree in (start, result.params))
        assert fresh.keys() == learned.keys() and all(np.abs(learned[path] - fresh[path]).max() > 0 for path in fresh), slot
