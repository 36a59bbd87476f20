"""Mutants that are right, or whose fault no test of numbers can see: what they change, and why it does no harm.

A table for each concept: the change, as ``Mutant.change`` words it, and the reason. An entry that is refused after all,
or is no mutant any more, is reported, so that the tables cannot outlive the code.
"""

_SKIPPED = {  # by FlashAttention
    "work = partial(tiles, batch, query.shape[-2], key.shape[-2], tile=tile, diagonal=diagonal, mask=mask) -> "
    f"work = partial(tiles, batch, query.shape[-2], key.shape[-2], tile=tile, {other})":
        "tiles that nobody sees are then computed and hidden; a test with NaN in them tells"
    for other in ("diagonal=diagonal", "mask=mask")
}
_CONSTANT_TOTAL = {
    f"shared = np.vecdot(dout, out) - dlog_total -> shared = np.vecdot(dout, out){other}":
        "a core does not return log_total, whose gradient is 0; that of flash_attention_with_total is judged there"
    for other in ("", " + dlog_total")
}

HARMLESS_BACKWARD: dict[str, dict[str, str]] = {
    "alibi": {
        "return trees.zeros_like(params) -> return zeros_like(trees.zeros_like(params))": "zeros are zeros",
    },
    "flash_attention": {**_SKIPPED, **_CONSTANT_TOTAL},
    "causal_flash_attention": {**_SKIPPED, **_CONSTANT_TOTAL},
    "flash_attention_with_total": {
        **_SKIPPED,
        "finite = np.maximum(log_total, lowest) -> finite = log_total":
            "no difference can be made of -inf: a query that sees nothing is in the examples of the cores, which refuse it",
        "some = np.maximum(total, 1) -> some = total": "as above",
    },
    "gru": {"da = np.empty_like(a) -> da = a": "a is read by nobody after the forward pass, and every number of da is written anew"},
    "linear": {
        "dx = (drows @ weight.T).reshape(x.shape) -> dx = (dout @ weight.T).reshape(x.shape)":
            "drows is dout with its leading axes in one: the products are the same, only slower",
    },
    "lora_linear": {
        "dx = (drows @ weight.T).reshape(x.shape) + drop_backward(dthin) -> dx = (dout @ weight.T).reshape(x.shape) + drop_backward(dthin)":
            "as in linear",
    },
    "qlora_linear": {
        "dx = (drows @ weight.T).reshape(x.shape) + drop_backward(dthin) -> dx = (dout @ weight.T).reshape(x.shape) + drop_backward(dthin)":
            "as in linear",
    },
    "selective_scan_blocks": {
        "blocks = _blocks(positions, batch * A.size, form=form, chunk=chunk) -> blocks = _blocks(positions, A.size, form=form, chunk=chunk)":
            "blocks of every length give the same",
        "blocks = _blocks(positions, batch * A.size, form=form, chunk=chunk) -> blocks = _blocks(positions, batch, form=form, chunk=chunk)":
            "blocks of every length give the same",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = partial(scan, chunk=chunk)":
            "every order of work gives the same; test_linear_scan counts the work of each",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = partial(scan, form=form)": "chunks of every length give the same",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = scan": "every order of work gives the same",
    },
    "semiseparable": {
        "if positions <= _SHORT: -> if positions >= _SHORT:": "the product and the running sum give the same",
    },
    "delta_rule": {
        f"stride = int(np.ceil(positions ** 0.5)) -> stride = {other}": "how many states are kept decides the memory, and nothing else"
        for other in ("int(positions ** 0.5)", "int(np.ceil(positions ** 1.0))", "int(np.ceil(positions))")
    },
    "gated_recurrence": {
        f"stride = int(np.ceil(positions ** 0.5)) -> stride = {other}": "how many states are kept decides the memory, and nothing else"
        for other in ("int(positions ** 0.5)", "int(np.ceil(positions ** 1.0))", "int(np.ceil(positions))")
    },
    "rank_one_recurrence": {
        f"stride = int(np.ceil(positions ** 0.5)) -> stride = {other}": "how many states are kept decides the memory, and nothing else"
        for other in ("int(positions ** 0.5)", "int(np.ceil(positions ** 1.0))", "int(np.ceil(positions))")
    },
    "retention_recurrent": {
        "fade = np.exp(log_decays(decay, before[-1])).astype(query.dtype) -> fade = log_decays(decay, before[-1]).astype(query.dtype)":
            "step has it, too: both directions then agree on another decay, which the test against the naive loop refuses",
    } | {
        f"stride = int(np.ceil(positions ** 0.5)) -> stride = {other}": "how many states are kept decides the memory, and nothing else"
        for other in ("int(positions ** 0.5)", "int(np.ceil(positions ** 1.0))", "int(np.ceil(positions))")
    },
    "gemma2": {
        "return Gemma2(dembedding, dblocks[::-1], dnorm, dhead) -> return Gemma2(dembedding, dblocks[::-1], dnorm, zeros_like(dhead))":
            "the example's head is tied, and zeros like None are None; test_gemma2 has a head of its own",
    },
    "t5": {
        "return T5(Embedding(dembedding), dencoder, ddecoder, dhead) -> return T5(Embedding(dembedding), dencoder, ddecoder, zeros_like(dhead))":
            "the example's head is tied, and zeros like None are None; test_t5 has heads of their own",
    },
    "retnet": {
        "return (RetNet(dparams_query, dparams_key, dparams_value, dgate, doutput, dprepare, drecurrence), dx) -> "
        "return (RetNet(dparams_query, dparams_key, dparams_value, dgate, doutput, dprepare, zeros_like(drecurrence)), dx)":
            "retention learns nothing, and zeros like None are None; test_retnet has a recurrence that learns",
    },
    "ssd_recurrent": {
        f"stride = int(np.ceil(positions ** 0.5)) -> stride = {other}": "how many states are kept decides the memory, and nothing else"
        for other in ("int(positions ** 0.5)", "int(np.ceil(positions ** 1.0))", "int(np.ceil(positions))")
    },
    "matrix_exponential": {
        "transposed, unit = (A.swapaxes(-1, -2), dout / np.where(norm > 0, norm, 1)) -> "
        "transposed, unit = (A.swapaxes(-1, -2), dout / np.where(norm > 1, norm, 1))":
            "a dout shorter than 1 is then not lengthened, which asks for no squarings either: the part is linear in dout",
    },
}  # fmt: skip

_ROUNDS = {  # of sparsemax, in either form
    "bound = np.maximum((dot_over_keys(below, excess)[..., None] - 1) / total, -1) -> "
    "bound = (dot_over_keys(below, excess)[..., None] - 1) / total": "it is at least -1, but for rounding",
    "size, threshold = (np.zeros_like(bound), bound) -> size, threshold = (bound, bound)": "a bound below 0 is no size, either",
    **{
        f"if 4 * np.count_nonzero(moved) <= moved.size: -> if {other} moved.size:": "when the rest goes on by itself is a matter of time alone"
        for other in ("4 * np.count_nonzero(moved) <", "8 * np.count_nonzero(moved) <=")
    },
}

_CORE_EXAMPLE = "return example(None, *arrays, window=1, global_positions=(4, 1), dilation=2, mask=rng.random((2, 1, 1, 8)) < 0.8)"

_EVEN_STEPS = {  # of NF4's tables
    "return np.where(2 * place < steps, first + step * place, last - step * (steps - place)).astype(np.float32) -> "
    "return np.where(2 * place <= steps, first + step * place, last - step * (steps - place)).astype(np.float32)":
        "in the middle both ends count to the same",
}
HARMLESS_FORWARD: dict[str, dict[str, str]] = {
    **dict.fromkeys(("quantize_nf4", "dequantize_nf4", "quantize_double_nf4", "dequantize_double_nf4"), _EVEN_STEPS),
    "pack_codes": {
        "shifted = (codes.astype(np.int16) - low).astype(np.uint8).ravel() -> shifted = (codes.astype(np.int16) + low).astype(np.uint8).ravel()":
            "low is -2^(b-1), and what differs by 2^b has the same last b bits, which alone are read",
    },
    "repetition_penalty": {
        "return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits).astype(logits.dtype) -> "
        "return np.where(seen, np.where(logits >= 0, logits / penalty, logits * penalty), logits).astype(logits.dtype)":
            "a logit of 0 is 0 either way",
    },
    "log_mel": {
        "return np.where(frequency < 1000, 3 * frequency / 200, 15 + 27 * np.log(np.maximum(frequency, 1000) / 1000) / np.log(6.4)) -> "
        "return np.where(frequency <= 1000, 3 * frequency / 200, 15 + 27 * np.log(np.maximum(frequency, 1000) / 1000) / np.log(6.4))":
            "line and logarithm meet there",
        "return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27)) -> "
        "return np.where(mel <= 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))": "line and power meet there",
    },
    "attention_with_traffic": {
        "largest, total, mixed = (np.full(len(query), -np.inf, query.dtype), np.zeros(len(query), query.dtype), np.zeros_like(query)) -> "
        "largest, total, mixed = (np.full(len(query), -np.inf, query.dtype), np.zeros(len(query), query.dtype), query)":
            "the first tile fades what stands there by exp(-inf) = 0",
    },
    "wkv_chunked": {f"size = isqrt(len({rows})) -> size = len({rows})": "chunks of every length give the same" for rows in ("k", "kept")},
    "sparsemax": _ROUNDS,
    "sparsemax_attention": _ROUNDS,
    "banded_attention_blocks": {
        "return np.concatenate([nothing, blocks[:-1]] if offset < 0 else [blocks[1:], nothing]) -> "
        f"return np.concatenate([nothing, blocks[:-1]] if offset {other} else [blocks[1:], nothing])": "an offset of 0 has returned above"
        for other in ("<= 0", "< 1")
    },
    "big_bird_blocks": {
        "if place.size < positions: -> if place.size <= positions:": "in place or from a copy, what is picked is the same",
    },
    "block_mask": {
        "seen = np.zeros((heads, blocks, blocks + 1), bool) -> seen = np.zeros((heads, blocks, blocks + 2), bool)": "-1 is the last column all the same",
    },
    "block_table": {
        "picks = np.sort(np.concatenate([np.broadcast_to(fixed, (heads, *fixed.shape)), drawn], axis=-1), axis=-1) -> "
        "picks = np.sort(np.concatenate([drawn, np.broadcast_to(fixed, (heads, *fixed.shape))], axis=-1), axis=-1)": "sorted, they are the same",
    },
    "causal_block_table": {
        "picks = np.sort(np.concatenate([np.broadcast_to(fixed, (heads, *fixed.shape)), drawn], axis=-1), axis=-1) -> "
        "picks = np.sort(np.concatenate([drawn, np.broadcast_to(fixed, (heads, *fixed.shape))], axis=-1), axis=-1)": "sorted, they are the same",
    },
    "cross_entropy": {
        "out = weight @ row_loss -> out = row_loss @ weight": "the inner product of two vectors",
    },
    "dropout": {
        "keep = rng.random(x.shape, dtype=np.float32) >= rate -> keep = rng.random(x.shape, dtype=np.float32) > rate":
            "one draw in 2^24 equals the rate, and rate 0 has returned above",
    },
    "fft_convolution": {
        "n = next_fast_len(positions + taps - 1, real=True) -> n = next_fast_len(positions + taps - 1)":
            "a length that is good for complex numbers is long enough, and only slower",
        "n = next_fast_len(positions + taps - 1, real=True) -> n = positions + taps - 1": "the shortest that is long enough, and slower",
        "n = next_fast_len(positions + taps - 1, real=True) -> n = next_fast_len(positions + taps + 1, real=True)":
            "more zeros than are needed",
        "n = next_fast_len(positions + taps - 1, real=True) -> n = next_fast_len(positions + taps, real=True)":
            "more zeros than are needed",
    },
    "gelu_exact": {
        "positive = (x > 0).astype(x.dtype) -> positive = (x >= 0).astype(x.dtype)":
            "at x = 0 both halves say 1/2",
    },
    "language_model": {
        "drop = functools.partial(dropout, rate=config.dropout, rng=rng) if config.dropout > 0 and rng is not None else None -> "
        "drop = functools.partial(dropout, rate=config.dropout, rng=rng) if config.dropout >= 0 and rng is not None else None":
            "dropout of rate 0 is the identity and draws nothing",
    },
    "semiseparable": {
        "sums = _ones_below(positions, dtype, 0) @ rows if positions <= _SHORT else np.cumsum(rows, axis=-2) -> "
        f"sums = _ones_below(positions, dtype, 0) @ rows if positions {sign} _SHORT else np.cumsum(rows, axis=-2)":
            "both give the same sums: which is quicker depends on the length"
        for sign in ("<", ">=")
    },
    "longformer": {
        f"{_CORE_EXAMPLE} -> {other}": "the example on the label of its core, which other calls would serve as well"
        for other in (
            _CORE_EXAMPLE.replace("window=1, ", ""), _CORE_EXAMPLE.replace("global_positions=(4, 1), ", ""),
            _CORE_EXAMPLE.replace("dilation=2, ", ""), _CORE_EXAMPLE.replace(", mask=rng.random((2, 1, 1, 8)) < 0.8", ""),
            *(_CORE_EXAMPLE.replace("< 0.8", end) for end in ("> 0.8", "<= 0.8", "< 1.6")),
        )
    } | {
        "arrays = (rng.normal(size=shape) for shape in shapes) -> arrays = (rng.normal() for shape in shapes)":
            "the same example: whose arrays it spoils is checked where the core is",
    },
    "most_read_blocks": {
        "importance = np.where(number == always, importance.max() + 1, importance) -> importance = np.where(number == always, importance.max() + 2, importance)":
            "above all others is above them",
    },
    "selected_block_attention_fast": {
        "hidden = pieces.column[:, -1] > pieces.place.min(-1) -> hidden = pieces.column[:, -1] >= pieces.place.min(-1)":
            "pieces in which all is seen: zeros are added, and only take time",
        "order = np.argsort(where.astype(np.min_scalar_type(len(count))), kind='stable') -> order = np.argsort(where.astype(np.min_scalar_type(len(count))))":
            "the pairs of a block may stand in any order: stable sorting is the quicker one",
    },
    "strided": {
        "near = i - stride < j -> near = i - stride <= j": "the position a stride before is one of the far ones",
    },
    "lti": {
        "x = np.concatenate([x, x[:positions - len(x)] @ power.T]) -> x = np.concatenate([x, x[:positions + len(x)] @ power.T])":
            "states after the last position: the taps that they give meet no input",
        "x = np.concatenate([x, x[:positions - len(x)] @ power.T]) -> x = np.concatenate([x, x[:positions] @ power.T])":
            "states after the last position: the taps that they give meet no input",
        "x = np.concatenate([x, x[:positions - len(x)] @ power.T]) -> x = np.concatenate([x, x[:len(x)] @ power.T])":
            "states after the last position: the taps that they give meet no input",
        "if len(x) < positions: -> if len(x) <= positions:": "one more square, of which no use is made",
    },
    "matrix_exponential": {
        "c = [comb(degree, k) / perm(2 * degree, k) for k in range(degree + 1)] -> c = [comb(degree, k) / perm(2 * degree, k) for k in range(degree + 2)]":
            "one coefficient more, which no power is taken with",
        "squarings = np.maximum(np.frexp(_norm(A) / theta)[1], 0) -> squarings = np.maximum(np.frexp(_norm(A))[1], 0)":
            "theta is above 1: more squarings than are needed",
        "power = power @ square -> power = square @ power": "powers of one matrix commute",
        "odd = small @ odd -> odd = odd @ small": "a matrix commutes with polynomials of it",
    },
    "s4d": {
        "width = math.isqrt(positions - 1) + 1 -> width = 1": "tables of any shape that cover the positions give the same kernel",
        "width = math.isqrt(positions - 1) + 1 -> width = math.isqrt(positions + 1) + 1": "as above",
        "width = math.isqrt(positions - 1) + 1 -> width = math.isqrt(positions) + 1": "as above",
        "width = math.isqrt(positions - 1) + 1 -> width = math.isqrt(1) + 1": "as above",
        "width = math.isqrt(positions - 1) + 1 -> width = math.isqrt(positions - 1) + 2": "as above",
        "i, j = (width * np.arange(-(-positions // width)), np.arange(width)) -> i, j = (width * np.arange(--positions), np.arange(width))":
            "a coarse table that is longer than needed: what lies behind the last position is cut off",
    },
    "t5_bias": {
        "bucket = np.where(distance < near, distance, far) -> bucket = np.where(distance <= near, distance, far)":
            "the first far bucket is number near, too: the logarithm of 1 is 0",
    },
    "weighted_attention": {
        f"if not logits.min() > -np.inf: -> if not logits.min() {other}:": "where no score is -inf the branch changes nothing, and only takes time"
        for other in ("< -np.inf", "> np.inf")
    },
}  # fmt: skip
