"""Mutants that are right, or whose fault no test of numbers can see: what they change, and why it does no harm.

A table for each concept: the change, as ``Mutant.change`` words it, and the reason. An entry that is refused after all,
or is no mutant any more, is reported, so that the tables cannot outlive the code.
"""

HARMLESS_BACKWARD: dict[str, dict[str, str]] = {
    "alibi": {
        "return trees.zeros_like(params) -> return zeros_like(trees.zeros_like(params))": "zeros are zeros",
    },
    "linear": {
        "dx = (drows @ weight.T).reshape(x.shape) -> dx = (dout @ weight.T).reshape(x.shape)":
            "drows is dout with its leading axes in one: the products are the same, only slower",
    },
    "selective_scan": {
        "block = chunk if form == 'sequential' else n -> block = chunk if form != 'sequential' else n":
            "blocks of every length give the same: they decide what is kept",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = partial(scan, chunk=chunk)":
            "every order of work gives the same; test_linear_scan counts the work of each",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = partial(scan, form=form)": "chunks of every length give the same",
        "solve = partial(scan, form=form, chunk=chunk) -> solve = scan": "every order of work gives the same",
    },
}  # fmt: skip

HARMLESS_FORWARD: dict[str, dict[str, str]] = {
    "banded_attention": {
        "parts = [nothing, blocks[..., :-1, :, :]] if offset < 0 else [blocks[..., 1:, :, :], nothing] -> "
        "parts = [nothing, blocks[..., :-1, :, :]] if offset <= 0 else [blocks[..., 1:, :, :], nothing]":
            "an offset of 0 has returned above",
        "parts = [nothing, blocks[..., :-1, :, :]] if offset < 0 else [blocks[..., 1:, :, :], nothing] -> "
        "parts = [nothing, blocks[..., :-1, :, :]] if offset < 1 else [blocks[..., 1:, :, :], nothing]":
            "an offset of 0 has returned above",
    },
    "cross_entropy": {
        "out = weight @ row_loss -> out = row_loss @ weight": "the inner product of two vectors",
    },
    "dropout": {
        "keep = rng.random(x.shape, dtype=np.float32) >= rate -> keep = rng.random(x.shape, dtype=np.float32) > rate":
            "one draw in 2^24 equals the rate, and rate 0 has returned above",
    },
    "gelu": {
        "positive = (x > 0).astype(x.dtype) -> positive = (x >= 0).astype(x.dtype)":
            "at x = 0 both halves say 1/2",
    },
    "language_model": {
        "drop = functools.partial(dropout, rate=config.dropout, rng=rng) if config.dropout > 0 and rng is not None else None -> "
        "drop = functools.partial(dropout, rate=config.dropout, rng=rng) if config.dropout >= 0 and rng is not None else None":
            "dropout of rate 0 is the identity and draws nothing",
    },
    "t5_bias": {
        "bucket = np.where(distance < near, distance, far) -> bucket = np.where(distance <= near, distance, far)":
            "the first far bucket is number near, too: the logarithm of 1 is 0",
    },
    "sparsemax": {
        "support = (1 + ranks * ordered > totals).sum(-1, keepdims=True) -> support = (1 + ranks * ordered >= totals).sum(-1, keepdims=True)":
            "a key that meets the threshold exactly has weight 0 on either side, and the threshold is the same with it",
    },
}  # fmt: skip
