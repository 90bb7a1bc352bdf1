"""Strings that tokenizers disagree about, and random texts made of them."""

import numpy as np

PIECES = (
    "the cat",
    " Buenos Aires",
    "\u00bfqu\u00e9 ma\u00f1ana?",
    "A\u00c9i\u0301o\u0308",
    "\u65e5\u672c\u8a9e \u4e2d\u6587",
    "\u3042\u30a2\uff21\uff11\uff01",
    "\ud55c\uad6d\uc5b4",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "def f(x):\n\treturn x**2  # ok\n",
    "camelCaseHTTPServer2",
    "12345678",
    "3.14e-10",
    " 1 22 333",
    "\u00b2\u2167\u0664\u0665",
    "   ",
    "\n\n\n",
    " \n ",
    "\r\n",
    "\t\t",
    "I'll we've they'RE don't L'\u00e9t\u00e9",
    "'\u017f",
    "<|eot_id|>",
    "<|begin_of_text|>",
    "<|start_header_id|>user<|end_header_id|>",
    "<|not_special|>",
    "<|eot_id",
    "\u00a0\u2003\u200b",
    "!!!???...",
    "a+b=c^d~e`f$",
    "http://a.b/c?d=e&f=%20",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629\u060c",
    "\u0928\u092e\u0938\u094d\u0924\u0947\u0964",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u01c5\u02b0\u0301",
    "\x00\x7f",
    "\u00df\u0130\u01c4",
    "\u2581",
    "\u2026\u3002\uff0c\u3001\u2018\u2019\u201c",
)


def texts(extra: tuple[str, ...] = (), number: int = 300, seed: int = 0) -> list[str]:
    """Every piece alone, then `number` random concatenations of them and of `extra`."""
    rng, pieces = np.random.default_rng(seed), (*PIECES, *extra)
    return [*pieces, *("".join(rng.choice(pieces, rng.integers(2, 7))) for _ in range(number))]
