"""Control tokens: say in front of each training text what kind of text it is, and ask for the neutral kind later.

The token is computed from the text: which group's words stand in it. A model that is trained on texts with their tokens learns what
follows each. At inference the token is set, not computed. The texts stay as they are; one token a text is the cost. Whether a model
heeds the token at all is measured by how much the token tells about the next one.

Source: Keskar et al. 2019 (CTRL), arXiv:1909.05858, for control codes; Dinan et al. 2020, arXiv:1911.03842, for codes that say which
gendered words a reply holds. Differs: a text of several groups gets the neutral token. W_k are the words of token k. A learned
control token is prompt tuning with one position.

    count_k = number of tokens of the text in W_k            (1)
    token = k where k alone has a count above 0, else the neutral one   (2)
    text = token, then the text                              (3)
    mean = mean over k of p_k, the distribution of what follows k   (4)
    information = sum over tokens v of mean over k of p_k(v) (log p_k(v) - log mean(v))   (5)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from minitransformers.basics.log_softmax import log_softmax
from minitransformers.foundation import bad, example, invalid, procedure

_WORDS = {"<g1>": ["she", "her"], "<g2>": ["he", "him"]}


@procedure(
    title="Text with its control token",
    source="Keskar et al. 2019 (CTRL), arXiv:1909.05858; Dinan et al. 2020, arXiv:1911.03842",
    example=lambda rng: example(["He", "saw", "a", "rose"], words=_WORDS),
    rejects=[
        bad(tokens="he saw"), bad(tokens=[]), bad(tokens=["<g1>", "he"]), bad(words={"<g1>": ["she"]}), bad(words={"<g1>": ["she"], "<g2>": []}),
        bad(words={"<g1>": ["she"], "<g2>": ["he", "she"]}), bad(words={"<g1>": ["she"], "<g2>": ["He"]}), bad(neutral="<g1>"), bad(force="<g3>"),
    ],
)  # fmt: skip
def with_control_token(tokens: Sequence[str], *, words: dict, neutral: str = "<neutral>", force: str | None = None) -> list[str]:
    """The text behind its token: that of the one group whose words it holds, neutral for none or several. force sets the token.

    words are the lists of at least two groups by their tokens, in lower case; the text's case does not matter.
    Raises ValueError for fewer groups, an empty list, a word of two groups, a text that is empty or holds a control token already, and
    where force is no control token.
    """
    known = [*words, neutral]
    if len(words) < 2:
        raise invalid("words", got=f"{len(words)} groups", wants="at least 2")
    if neutral in words:
        raise invalid("neutral", got=f"{neutral!r}, which is a group's", wants="a token of its own")
    seen: dict[str, str] = {}
    for token, own in words.items():
        if not own:
            raise invalid("words", got=f"none for {token!r}", wants="at least one word each")
        for word in own:
            if word != word.lower() or seen.setdefault(word, token) != token:
                raise invalid("words", got=f"{word!r} for {token!r}", wants="lower case, each word with one group")
    if not tokens:
        raise invalid("tokens", got="none", wants="at least one")
    if there := [token for token in tokens if token in known]:
        raise invalid("tokens", got=f"the control token {there[0]!r}", wants="a text without one")
    if force is not None and force not in known:
        raise invalid("force", got=repr(force), wants=" or ".join(map(repr, known)))
    counts = {token: sum(word.lower() in own for word in tokens) for token, own in words.items()}  # (1)
    present = [token for token, count in counts.items() if count]
    token = present[0] if len(present) == 1 else neutral     # (2)
    return [token if force is None else force, *tokens]      # (3)


@procedure(
    title="What a control token tells",
    source="Shannon 1948, doi:10.1002/j.1538-7305.1948.tb01338.x (mutual information)",
    example=lambda rng: example(rng.normal(size=(2, 3, 5))),
    rejects=[bad(logits=np.ones((2, 1, 5))), bad(logits=np.full((2, 3, 5), -np.inf)), bad(logits=np.full((2, 3, 5), np.nan))],
)
def control_information(logits: Float[Array, "*batch controls vocabulary"]) -> Float[Array, "*batch"]:
    """How much the control token tells about the token behind it, in nats: 0 for a model that ignores it, at most log of their number.

    logits are those of the next token after each control token, all with the same text; each control token counts alike.
    Raises ValueError for one control token only, and where the largest logit of a row is not finite.
    """
    if logits.shape[-2] < 2:
        raise invalid("logits", got="one control token", wants="at least 2")
    if not np.isfinite(logits.max(axis=-1)).all():
        raise invalid("logits", got="a row whose largest is not finite", wants="a finite largest logit in each row")
    log_p, _ = log_softmax(logits)
    p = np.exp(log_p)
    mean = p.mean(axis=-2, keepdims=True)                    # (4)
    possible = p > 0
    apart = np.where(possible, log_p, 0) - np.log(np.where(mean > 0, mean, 1))
    return np.sum(np.mean(np.where(possible, p * apart, 0), axis=-2), axis=-1)  # (5)
