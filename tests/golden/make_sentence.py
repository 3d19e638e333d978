"""Record what sentence-transformers computes with its modules in all their forms: sentence/ next to this file.

Run (tests read the recorded files and need none of these):

    pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
    HF_HUB_OFFLINE=1 python tests/golden/make_sentence.py

sentence/tokenizer.json   a tokenizer of 33 words, for the weights of bert_base
sentence/<case>/          what sentence-transformers saves beside the weights, config.json and tokenizer.json
sentence/expected.npz     <case>: (N, C) float32, encode([sentence]) for each of SENTENCES, with ARGUMENTS[case]
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HERE = Path(__file__).parent / "sentence"
BASE = Path(__file__).parent / "bert_base"
WIDTH = 32
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on mat dog ran query passage : a b c d e f g ##s ##ing . , ! "
    "hello world é É UP up"
)
SENTENCES = [
    "the cat sat on the mat.",
    "hello world",
    "",
    "the cat ran! " * 30,
    "dogs UP É a b c d e f g",
    "query: the dog",
]
# what encode is called with, where it is called with something
ARGUMENTS: dict[str, dict[str, Any]] = {
    "prompt_named": {"prompt_name": "query"},
    "prompt_given": {"prompt": "cat sat "},
    "prompt_weighted": {"prompt_name": "query"},
    "truncate": {"normalize_embeddings": True},
    "truncate_argument": {"truncate_dim": 7},
}


def make_tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def cases(folder: Path) -> dict[str, SentenceTransformer]:
    def build(*modules: torch.nn.Module, limit: int | None = None, **settings: Any) -> SentenceTransformer:
        text = Transformer(str(folder), max_seq_length=limit)
        return SentenceTransformer(modules=[text, *modules], device="cpu", **settings)

    torch.manual_seed(0)
    identity = torch.nn.Identity()
    prompts = {"query": "query: ", "x": "the dog "}
    after_prompt = Pooling(WIDTH, "mean", include_prompt=False)
    return {
        **{f"pool_{mode}": build(Pooling(WIDTH, mode)) for mode in Pooling.POOLING_MODES},
        "pool_two": build(Pooling(WIDTH, ("cls", "mean")), Normalize(), limit=12),
        "dense": build(
            Pooling(WIDTH, "mean"),
            Dense(WIDTH, 20),
            Dense(20, 8, bias=False, activation_function=identity),
            Normalize(),
            limit=12,
        ),
        "prompt_default": build(after_prompt, prompts=prompts, default_prompt_name="x"),
        "prompt_named": build(after_prompt, prompts=prompts, default_prompt_name="x"),
        "prompt_given": build(after_prompt, prompts=prompts, default_prompt_name="x"),
        "prompt_weighted": build(Pooling(WIDTH, "weightedmean", include_prompt=False), prompts=prompts),
        "truncate": build(Pooling(WIDTH, "mean"), Normalize(), truncate_dim=5),
        "truncate_argument": build(Pooling(WIDTH, "mean"), Normalize()),
    }


def main() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    make_tokenizer().save(str(HERE / "tokenizer.json"), pretty=False)
    expected = {}
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        shutil.copytree(BASE, base)
        shutil.copy(HERE / "tokenizer.json", base)
        for name, model in cases(base).items():
            model.save(str(HERE / name), create_model_card=False)
            loaded = SentenceTransformer(str(HERE / name), device="cpu")
            arguments = ARGUMENTS.get(name, {})
            expected[name] = np.stack([loaded.encode([text], **arguments)[0] for text in SENTENCES])
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                (HERE / name / file).unlink()
        plain = SentenceTransformer(str(base), device="cpu")  # without modules.json
        expected["plain"] = np.stack([plain.encode([text])[0] for text in SENTENCES])
    np.savez_compressed(HERE / "expected.npz", **expected)
    print({name: array.shape for name, array in expected.items()})


if __name__ == "__main__":
    main()
