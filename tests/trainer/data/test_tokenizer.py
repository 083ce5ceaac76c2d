"""Tokens are open_clip's, whatever the text."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelchain_trainer.data.tokenizer import Tokenizer

CONTEXT = 24

NASTY = [
    "",
    " ",
    "a photo of a dog",
    "A PHOTO   of\ta\nDog!!",
    "it's we've they'll I'm you'd she's 'tis 's",
    "l'été à l'Opéra, naïve façade",
    "&amp;amp;lt;b&amp;gt; &quot;quoted&quot; &#39;x&#39; &nbsp;y &ampx",
    "<start_of_text> begin <end_of_text> end <START_OF_TEXT>",
    "<ſtart_of_text> 'ſ long ſ",  # folds to s, but is another letter
    "schÃ¶n broken encoding â€œquotesâ€\x9d",
    "l\u2019apostrophe \u201ccurly\u201d \ufb01ne \uff26\uff55\uff4c\uff4c width",
    "emoji 👩‍👩‍👧‍👦 flags 🇩🇪 skin 👍🏽",
    "日本語のテキスト 中文字符 한국어 русский العربية हिन्दी ไทย",
    "İstanbul ıI ß ẞ Σς Ǆ",
    "12345 3.14159 1,000,000 ½ ² ٣ Ⅷ",
    "zero\u200bwidth soft\u00adhyphen \ufeffbom nbsp\u00a0here",
    "control \x00\x01\x1b[31mred\x1b[0m \x7f",
    "\ud83d lone surrogate",
    "combining e\u0301 a\u030a \u0301",
    "http://www.example.com/a?b=c&d=e#f user@example.com",
    "#hashtag_with_underscores ___ --- ... !!!???",
    "a" * 500,
    "word " * 100,
    "x y " * CONTEXT,
    "line\r\nbreaks\u2028and\u2029more\x0b\x0c",
    "𝕱𝖗𝖆𝖐𝖙𝖚𝖗 ℌ ①",
]


@pytest.fixture(scope="module")
def theirs() -> Callable[..., torch.Tensor]:
    """open_clip's tokenizer; its file is loaded alone, for the package takes many seconds."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    spec = importlib.util.spec_from_file_location(
        "their_tokenizer", Path(package.origin).with_name("tokenizer.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer(context_length=CONTEXT)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return Tokenizer(CONTEXT)


def test_nasty_texts_give_the_same_tokens(ours: Tokenizer, theirs: Callable[..., torch.Tensor]) -> None:
    for text in NASTY:
        assert ours([text]).tolist() == theirs([text]).tolist(), ascii(text)


PIECES = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
    st.text(st.characters(max_codepoint=0x24F), max_size=12),
    st.sampled_from(
        ["'s", "&amp;", "&lt;", "&#x27;", "<end_of_text>", "Ã©", "  ", "the", "photo", "9", "ſ", "İ"]
    ),
)


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(PIECES, max_size=8))
def test_any_text_gives_the_same_tokens(
    ours: Tokenizer, theirs: Callable[..., torch.Tensor], pieces: list[str]
) -> None:
    text = "".join(pieces)
    assert ours([text]).tolist() == theirs([text]).tolist()


def test_a_long_text_is_cut_and_keeps_its_end(ours: Tokenizer) -> None:
    tokens = ours(["word " * 100, "word"])
    assert tokens.shape == (2, CONTEXT)
    assert tokens.dtype == torch.int64
    assert tokens[0, -1] == 49407
    assert tokens[0].count_nonzero() == CONTEXT
    assert tokens[1].tolist()[:4] == [49406, tokens[0, 1].item(), 49407, 0]


def test_the_same_text_again_gives_the_same_tokens(ours: Tokenizer) -> None:
    """Results that are kept are not changed by those who get them."""
    first = ours(["a dog"])
    expected = first.tolist()
    first.zero_()
    assert ours(["a dog"]).tolist() == expected


def test_threads_may_share_it(ours: Tokenizer) -> None:
    texts = [f"text number {number}" for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda text: ours([text])[0].tolist(), texts * 3))
    assert results == [ours([text])[0].tolist() for text in texts] * 3


@pytest.mark.slow
def test_the_data_room_does_not_import_open_clip() -> None:
    """Nor torchvision, nor torch._dynamo: they would cost every start of a stage many seconds."""
    script = (
        "import sys\n"
        "import modelchain_trainer.data.loader, modelchain_trainer.data.evaluation_data\n"
        "from modelchain_trainer.data.tokenizer import Tokenizer\n"
        "Tokenizer(8)(['a'])\n"
        "print([m for m in ('open_clip', 'torchvision', 'torch._dynamo', 'webdataset') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
