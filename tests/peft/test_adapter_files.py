"""Adapters in files: written for Hugging Face's peft and read from it, or refused by name."""

import json
from functools import partial

import numpy as np
import pytest
from changed_models import IDS, changed, whole_model

from minitransformers import trees
from minitransformers.foundation import reparameterize
from minitransformers.foundation.safetensors import read_safetensors, write_safetensors
from minitransformers.models import gpt2 as gpt2_file
from minitransformers.models import llama as llama_file
from minitransformers.models.gpt2 import gpt2, load_gpt2
from minitransformers.models.llama import llama, load_llama
from minitransformers.peft.adapter_files import ARRAYS, CONFIG, load_adapter, save_adapter
from minitransformers.peft.dora import Dora, dora_detached
from minitransformers.peft.lora import lora, merge_lora
from minitransformers.peft.lora_linear import Lora
from minitransformers.peft.targets import at_targets, targets

GPT2, LLAMA = gpt2_file.NAMES, llama_file.NAMES
PARTS = ["query.weight", "key.weight", "value.weight"]


def adapter(base, patterns, *, rank=2, kind=Lora, seed=1):
    """Factors, none of them zero, in the places of the patterns."""
    rng = np.random.default_rng(seed)

    def make(leaf):
        pair = Lora(*(rng.normal(size=shape).astype(leaf.dtype) for shape in ((len(leaf), rank), (rank, leaf.shape[1]))))
        return pair if kind is Lora else Dora(*pair, rng.normal(size=leaf.shape[1]).astype(leaf.dtype))

    return at_targets(make, base, patterns)


def same(one, other):
    return [path for path, _ in trees.leaves(one)] == [path for path, _ in trees.leaves(other)] and all(
        np.array_equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(trees.leaves(one), trees.leaves(other), strict=True)
    )


def saved(folder, *, patterns=("query.weight", "feed_forward.down.weight"), **changes):
    """A Llama's adapter in a folder, and the model; changes are made to the configuration."""
    base, _ = whole_model("llama")
    save_adapter(folder, adapter(base, list(patterns)), names=LLAMA, alpha=3)
    if changes:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return base


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [Lora, Dora])
def test_what_was_written_is_read_to_the_last_bit(kind, dtype, tmp_path):
    base = trees.cast(whole_model("llama")[0], dtype)
    trained = adapter(base, ["query.weight", "value.weight", "feed_forward.*.weight"], kind=kind)
    save_adapter(tmp_path / "new", trained, names=LLAMA, alpha=3)
    found = load_adapter(tmp_path / "new", base=base, names=LLAMA)
    assert same(found.trained, trained) and found.scale == 1.5
    assert found.change.func is (lora if kind is Lora else dora_detached)
    tree, _ = reparameterize(found.trained, base=base, change=found.change)
    other, _ = reparameterize(trained, base=base, change=partial(lora if kind is Lora else dora_detached, scale=1.5))
    assert same(tree, other)


def test_the_tensors_have_the_names_and_the_layout_of_peft(tmp_path):
    base = saved(tmp_path)
    arrays, metadata = read_safetensors(tmp_path / ARRAYS)
    layers = [f"base_model.model.model.layers.{i}" for i in range(2)]
    assert {name: array.shape for name, array in arrays.items()} == {
        f"{layer}.{name}": shape for layer in layers for name, shape in {
            "self_attn.q_proj.lora_A.weight": (2, 4), "self_attn.q_proj.lora_B.weight": (4, 2),
            "mlp.down_proj.lora_A.weight": (2, 6), "mlp.down_proj.lora_B.weight": (4, 2),
        }.items()
    }  # fmt: skip
    own = adapter(base, ["query.weight", "feed_forward.down.weight"]).blocks[1].feed_forward.down.weight
    np.testing.assert_array_equal(arrays[f"{layers[1]}.mlp.down_proj.lora_A.weight"], own.down.T)
    assert metadata == {"format": "pt"}


def test_the_configuration_says_what_the_arrays_do_not(tmp_path):
    saved(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["target_modules"] == [f"model.layers.{i}.{name}" for i in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    expected = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": False, "use_dora": False, "bias": "none", "fan_in_fan_out": False}
    assert expected.items() <= config.items() and config["rank_pattern"] == {} == config["alpha_pattern"]
    base, _ = whole_model("gpt2")
    save_adapter(tmp_path, adapter(base, ["up.weight"], kind=Dora), names=GPT2, alpha=0.5, rank_stabilised=True, base_model="gpt2")
    config = json.loads((tmp_path / CONFIG).read_text())
    expected = {"lora_alpha": 0.5, "use_rslora": True, "use_dora": True, "fan_in_fan_out": True, "base_model_name_or_path": "gpt2"}
    assert expected.items() <= config.items()
    assert config["target_modules"] == ["transformer.h.0.mlp.c_fc", "transformer.h.1.mlp.c_fc"]


def test_the_scale_is_stabilised_where_the_file_says_so(tmp_path):
    base = saved(tmp_path, use_rslora=True)
    assert load_adapter(tmp_path, base=base, names=LLAMA).scale == pytest.approx(3 / 2**0.5, rel=1e-15)


def test_factors_are_cast_to_the_dtype_of_the_base(tmp_path):
    base = trees.cast(saved(tmp_path), np.float32)
    found = load_adapter(tmp_path, base=base, names=LLAMA)
    assert {leaf.dtype for _, leaf in trees.leaves(found.trained)} == {np.dtype(np.float32)}
    merge_lora(base, found.trained, scale=found.scale)


@pytest.mark.parametrize("kind", [Lora, Dora])
def test_maps_that_the_published_model_keeps_in_one_share_a_factor_in_the_file(kind, tmp_path):
    base, run = whole_model("gpt2")
    trained = adapter(base, PARTS, kind=kind)
    for block in trained.blocks:
        for part in (block.attention.key.weight, block.attention.value.weight):
            part.down[:] = block.attention.query.weight.down
    save_adapter(tmp_path, trained, names=GPT2, alpha=3)
    arrays = read_safetensors(tmp_path / ARRAYS)[0]
    name = "base_model.model.transformer.h.1.attn.c_attn"
    assert arrays[f"{name}.lora_A.weight"].shape == (2, 4) and arrays[f"{name}.lora_B.weight"].shape == (12, 2)
    found = load_adapter(tmp_path, base=base, names=GPT2)
    assert same(found.trained, trained)
    before, after = (changed(run, base, found.change)(own)[0] for own in (trained, found.trained))
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("parts", [PARTS, PARTS[::2]])
def test_maps_with_factors_of_their_own_become_one_adapter_of_higher_rank(parts, stabilised, tmp_path):
    base, run = whole_model("gpt2")
    trained = adapter(base, [*parts, "up.weight"], rank=1)
    save_adapter(tmp_path, trained, names=GPT2, alpha=3, rank_stabilised=stabilised)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["rank_pattern"] == {f"transformer.h.{i}.attn.c_attn": len(parts) for i in range(2)} and config["r"] == 1
    found = load_adapter(tmp_path, base=base, names=GPT2)
    assert found.scale == pytest.approx(3, rel=1e-12)
    assert found.trained.blocks[0].attention.value.weight.down.shape == (4, len(parts))
    before, after = (changed(run, base, found.change)(own)[0] for own in (trained, found.trained))
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-12)


def test_dora_on_a_part_of_such_a_map_is_not_written(tmp_path):
    base, _ = whole_model("gpt2")
    with pytest.raises(ValueError, match=r"attention\.query\.weight: got DoRA on 2 of the 3 parts of h\.0\.attn\.c_attn\.weight"):
        save_adapter(tmp_path, adapter(base, PARTS[::2], kind=Dora), names=GPT2, alpha=3)


def test_what_is_no_adapter_of_linear_maps_is_not_written(tmp_path):
    base, _ = whole_model("gpt2")
    table = at_targets(lambda leaf: Lora(np.ones((len(leaf), 1)), np.ones((1, leaf.shape[1]))), base, ["embedding.weight"])
    with pytest.raises(ValueError, match=r"trained\.embedding\.weight: got Lora, wants Lora or Dora, in the place of a linear map's"):
        save_adapter(tmp_path, table, names=GPT2, alpha=3)
    with pytest.raises(ValueError, match=r"trained\.blocks\.0\.attention\.query\.bias: got ndarray"):
        save_adapter(tmp_path, at_targets(np.copy, base, ["query.bias"], ndim=1), names=GPT2, alpha=3)
    with pytest.raises(ValueError, match="trained: got nothing in any place"):
        save_adapter(tmp_path, trees.partition(base, lambda path, leaf: False)[0], names=GPT2, alpha=3)
    mamba, _ = whole_model("mamba")
    with pytest.raises(ValueError, match=r"trained\.blocks\.0\.mixer\.in_proj\.weight: got a map without a published name"):
        save_adapter(tmp_path, adapter(mamba, ["in_proj.weight"]), names=GPT2, alpha=3)
    with pytest.raises(ValueError, match="alpha: got 0"):
        save_adapter(tmp_path, adapter(base, PARTS), names=GPT2, alpha=0)
    assert not list(tmp_path.iterdir())


def test_ranks_and_kinds_must_be_the_same_everywhere(tmp_path):
    base, _ = whole_model("llama")
    trained = adapter(base, ["query.weight"])
    trained.blocks[1] = adapter(base, ["query.weight"], rank=1).blocks[1]
    with pytest.raises(ValueError, match=r"trained\.blocks\.1\.attention\.query\.weight: got Lora of rank 1, wants Lora of rank 2"):
        save_adapter(tmp_path, trained, names=LLAMA, alpha=3)
    trained.blocks[1] = adapter(base, ["query.weight"], kind=Dora).blocks[1]
    with pytest.raises(ValueError, match=r"got Dora of rank 2, wants Lora of rank 2"):
        save_adapter(tmp_path, trained, names=LLAMA, alpha=3)


def test_an_adapter_of_another_base_is_refused_by_tensor_and_shape(tmp_path):
    saved(tmp_path)
    wider = llama_file.init_llama(np.random.default_rng(0), vocabulary=5, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, d_hidden=6)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight has shape \(2, 4\), wants \(2, 8\) for this base, at blocks\.0\.att"):
        load_adapter(tmp_path, base=wider, names=LLAMA)
    shallow = whole_model("llama")[0]
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.lora_\w\.weight belongs to a map that this base has not: it has model\.layers\.\*"):
        load_adapter(tmp_path, base=shallow._replace(blocks=shallow.blocks[:1]), names=LLAMA)
    with pytest.raises(ValueError, match=r"belongs to a map that this base has not: it has h\.\*\.attn\.c_attn, h"):
        load_adapter(tmp_path, base=whole_model("gpt2")[0], names=GPT2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a, k: {**a, f"{k}.lora_E.weight": a[f"{k}.lora_A.weight"]}, r"q_proj\.lora_E\.weight of float64 is no tensor of LoRA or DoRA"),
        (lambda a, k: {**a, f"{k}.lora_A.weight": np.ones((2, 4), int)}, r"q_proj\.lora_A\.weight of int64 is no tensor of LoRA or DoRA"),
        (lambda a, k: {**a, f"{k[:-6]}x_proj.lora_A.weight": a[f"{k}.lora_A.weight"]}, r"self_attn\.x_proj\.lora_A\.weight belongs to a map that this"),
        (lambda a, k: {n: v for n, v in a.items() if n != f"{k}.lora_B.weight"}, r"layers\.0\.self_attn\.q_proj has lora_A, wants lora_A, lora_B"),
        (lambda a, k: {**a, f"{k}.lora_magnitude_vector": np.ones(4)}, r"q_proj has lora_A, lora_B, lora_magnitude_vector, wants lora_A, lora_B"),
        (lambda a, k: {**a, f"{k}.lora_B.weight": np.ones((4, 3))}, r"q_proj\.lora_B\.weight has shape \(4, 3\), wants \(4, 2\)"),
        (lambda a, k: {**a, f"{k}.lora_B.weight": np.ones(8)}, r"q_proj\.lora_B\.weight has shape \(8,\), wants \(4, 2\)"),
        (lambda a, k: {}, "holds no tensors"),
    ],
)  # fmt: skip
def test_tensors_that_are_none_of_this_adapter_are_refused(spoil, message, tmp_path):
    base = saved(tmp_path)
    arrays = read_safetensors(tmp_path / ARRAYS)[0]
    write_safetensors(tmp_path / ARRAYS, spoil(arrays, "base_model.model.model.layers.0.self_attn.q_proj"))
    with pytest.raises(ValueError, match=rf"{ARRAYS}: .*{message}|{ARRAYS}: {message}"):
        load_adapter(tmp_path, base=base, names=LLAMA)


def test_a_copy_of_a_weight_beside_the_factors_must_be_this_base_s_own(tmp_path):
    base, name = saved(tmp_path), "base_model.model.lm_head.base_layer.weight"
    arrays = read_safetensors(tmp_path / ARRAYS)[0]
    write_safetensors(tmp_path / ARRAYS, {**arrays, name: base.head.weight.T})
    assert load_adapter(tmp_path, base=base, names=LLAMA).scale == 1.5
    for other, where in ((base.head.weight.T + 1e-3, name), (base.head.weight[:, :3], name), (base.head.weight.T, name.replace("lm_head", "tail"))):
        write_safetensors(tmp_path / ARRAYS, {**arrays, where: other})
        with pytest.raises(ValueError, match=rf"{where} of shape \(.*\) is a weight of another base"):
            load_adapter(tmp_path, base=base, names=LLAMA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: got 'IA3', wants 'LORA'"),
        ({"peft_type": None}, "peft_type: got None, wants 'LORA'"),
        ({"bias": "all"}, "bias: got 'all', wants 'none'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: got 'pissa', wants a start that leaves the base as it is"),
        ({"use_qalora": True}, "use_qalora: got True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: got \['lm_head'\]"),
        ({"use_dora": True}, "q_proj has lora_A, lora_B, wants lora_A, lora_B, lora_magnitude_vector"),
        ({"use_dora": "yes"}, "use_dora: got 'yes', wants true or false"),
        ({"r": 0}, "r: got 0, wants a whole number of at least 1"),
        ({"r": 2.0}, r"r: got 2\.0, wants a whole number of at least 1"),
        ({"r": 3}, r"lora_A\.weight has shape \(2, 4\), wants \(3, 4\)"),
        ({"lora_alpha": None}, "lora_alpha: got None, wants a number above 0"),
        ({"lora_alpha": -1}, "lora_alpha: got -1, wants a number above 0"),
        ({"alpha_pattern": {"q_proj": 5}}, r"alpha_pattern: got a scale of 1\.5 at .*down_proj and 2\.5 at .*q_proj, wants one for all|got a scale of 2\.5"),
        ({"alpha_pattern": {"q_proj": -5}}, "lora_alpha: got -5"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern: got .* wants a map of names to numbers"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern: got .* wants a map of names to numbers"),
    ],
)  # fmt: skip
def test_settings_under_which_the_tensors_mean_something_else_are_refused(changes, message, tmp_path):
    base = saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_adapter(tmp_path, base=base, names=LLAMA)


def test_a_rank_that_no_such_weight_can_have_is_refused(tmp_path):
    base, _ = whole_model("llama")
    save_adapter(tmp_path, adapter(base, ["query.weight"], rank=5), names=LLAMA, alpha=3)
    with pytest.raises(ValueError, match=r"q_proj has the rank 5, wants at most 4, as it is 4 by 4"):
        load_adapter(tmp_path, base=base, names=LLAMA)


def test_patterns_of_ranks_and_alphas_at_one_scale_are_read(tmp_path):
    saved(tmp_path, rank_pattern={"q_proj": 2, r"layers\.\d+\.mlp\.down_proj": 2}, alpha_pattern={"q_proj": 3}, r=7, lora_alpha=3)
    assert load_adapter(tmp_path, base=whole_model("llama")[0], names=LLAMA).scale == 1.5


@pytest.mark.parametrize("name", [ARRAYS, CONFIG])
def test_files_that_are_missing_or_cut_off_are_refused(name, tmp_path):
    base = saved(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"{name}: is not a whole"):
            load_adapter(tmp_path, base=base, names=LLAMA)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: cannot be read"):
        load_adapter(tmp_path, base=base, names=LLAMA)
    (tmp_path / CONFIG).write_text("[1]")
    with pytest.raises(ValueError, match=rf"{CONFIG}: is not a JSON object"):
        load_adapter(tmp_path, base=base, names=LLAMA)


def test_the_file_of_an_adapter_is_small(tmp_path):
    base = llama_file.init_llama(np.random.default_rng(0), vocabulary=200, d_model=64, num_layers=4, num_heads=4)
    save_adapter(tmp_path, adapter(base, ["query.weight", "value.weight"], rank=1), names=LLAMA, alpha=3)
    numbers = trees.count_parameters(adapter(base, ["query.weight", "value.weight"], rank=1))
    assert numbers == 8 * 128 and 4 * numbers < (tmp_path / ARRAYS).stat().st_size < 4 * numbers + 4000
    assert targets(base, ["query.weight"])


KINDS = [{}, {"use_rslora": True}, {"use_dora": True}, {"use_dora": True, "use_rslora": True}]
IN_PEFT = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


@pytest.fixture
def exact(monkeypatch):
    """PyTorch, transformers and peft, with Llama's norms, tables and softmax held in float64: as they are, they round to float32."""
    torch, transformers, peft = (pytest.importorskip(name) for name in ("torch", "transformers", "peft"))
    from transformers.models.llama import modeling_llama

    softmax = torch.nn.functional.softmax

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def tables(self, x, position_ids):
        half = self.config.head_dim // 2
        angles = position_ids[..., None].double() * self.config.rope_parameters["rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
        both = torch.cat([angles, angles], dim=-1)
        return both.cos(), both.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", tables)
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None, **_: softmax(x, dim=dim))
    return torch, transformers, peft


def theirs(exact, name):
    """A small random model of Hugging Face's in float64, its parameters as ours, how ours is run, and the table of names."""
    torch, transformers, _ = exact
    torch.manual_seed(0)
    if name == "llama":
        sizes = {"vocab_size": 5, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 6}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, rms_norm_eps=1e-5, attn_implementation="eager"))
    else:
        sizes = {"vocab_size": 5, "n_positions": 4, "n_embd": 8, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation="eager"))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    arrays = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    if name == "llama":
        return model, load_llama(arrays), partial(llama, ids=IDS, num_heads=2), LLAMA
    return model, load_gpt2(arrays), partial(gpt2, ids=IDS, num_heads=2), GPT2


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("name", IN_PEFT)
def test_what_peft_writes_is_read_and_computes_the_same(exact, name, settings, tmp_path):
    torch, _, peft = exact
    model, base, run, names = theirs(exact, name)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=IN_PEFT[name], fan_in_fan_out=name == "gpt2", **settings)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "lora_" in key:
                parameter += 0.3 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path, base=base, names=names)
    logits, backward = changed(run, base, adapter.change)(adapter.trained)
    expected = tuned(torch.tensor(IDS)).logits
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-9)
    assert np.abs(logits - run(base)[0]).max() > 1e-2

    dlogits = np.cos(logits)
    expected.backward(torch.tensor(dlogits))
    gradients = {key.replace(".default", ""): p.grad.numpy() for key, p in tuned.named_parameters() if p.grad is not None}
    compared = 0
    found = dict(trees.leaves(backward(dlogits)))
    for path, own in found.items():
        stem, _, factor = path.rpartition(".")
        place = names.places[stem.replace("blocks.0", "blocks.*").replace("blocks.1", "blocks.*")]
        key = f"base_model.model.{names.prefix}{place.name.replace('*', stem.split('.')[1])}".removesuffix(".weight")
        if factor == "down" and place.of == 3:               # three copies of the one lora_A: its gradient is the sum
            siblings = [stem.replace(stem.split(".")[-2], part) for part in ("query", "key", "value")]
            own, their = sum(found[f"{sibling}.down"] for sibling in siblings), gradients[f"{key}.lora_A.weight"].T
        elif factor == "down":
            their = gradients[f"{key}.lora_A.weight"].T
        else:
            whole = gradients[f"{key}.lora_B.weight"].T if factor == "up" else gradients[f"{key}.lora_magnitude_vector.weight"]
            their = np.split(whole, place.of, axis=-1)[place.part]
        np.testing.assert_allclose(own, their, rtol=0, atol=1e-9)
        compared += 1
    assert compared == (3 if "use_dora" in settings else 2) * 2 * (3 if name == "llama" else 4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize(("name", "patterns", "kind"), [
    ("llama", ["query.weight", "output.weight", "feed_forward.*.weight", "head.weight"], Lora),
    ("llama", ["query.weight", "output.weight", "feed_forward.*.weight"], Dora),
    ("gpt2", [*PARTS, "output.weight", "up.weight"], Lora), ("gpt2", [*PARTS, "output.weight", "up.weight"], Dora),
    ("gpt2", ["query.weight", "value.weight"], Lora),
])  # fmt: skip
def test_peft_reads_what_is_written_and_computes_the_same(exact, name, patterns, stabilised, kind, tmp_path):
    torch, _, peft = exact
    model, base, run, names = theirs(exact, name)
    trained = adapter(base, patterns, kind=kind)
    scale = 3 / 2**0.5 if stabilised else 1.5
    logits = changed(run, base, partial(lora if kind is Lora else dora_detached, scale=scale))(trained)[0]
    save_adapter(tmp_path, trained, names=names, alpha=3, rank_stabilised=stabilised)
    tuned = peft.PeftModel.from_pretrained(model, tmp_path)
    np.testing.assert_allclose(logits, tuned(torch.tensor(IDS)).logits.detach().numpy(), rtol=0, atol=1e-9)
    assert np.abs(logits - run(base)[0]).max() > 1e-2
    tuned.save_pretrained(tmp_path / "again")                # beside the factors of a head peft writes the head
    again = read_safetensors(tmp_path / "again" / ARRAYS)[0]
    ours = read_safetensors(tmp_path / ARRAYS)[0]
    copies = {"base_model.model.lm_head.base_layer.weight"} if "head.weight" in patterns else set()
    assert again.keys() == ours.keys() | copies
    for key, array in ours.items():
        np.testing.assert_array_equal(again[key], array)
    one, other = (load_adapter(folder, base=base, names=names) for folder in (tmp_path, tmp_path / "again"))
    assert same(one.trained, other.trained) and one.scale == other.scale
