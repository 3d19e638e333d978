"""Trains the model that `qkv.load("dates")` loads: torch's Transformer over bytes, on texts of written.py.

    python train.py FOLDER [--steps 18000] [--seed 0]

FOLDER becomes a checkpoint as any other: config.json, model.safetensors and tokenizer_config.json, which qkv.load
reads; evaluate.py tests it, and `qkv convert FOLDER python/qkv/data/dates.npz --dtype int8` makes the package's file of
it. No step sees anything of the tests. Half an hour on one core.

The package's file comes from two runs: 8000 of the 18000 steps of one in which written.py had no made-up words yet
(97.4 % of the tests came out right), and from there `--start CHECKPOINT --steps 5500 --rate 0.002 --seed 1`.

2 + 2 layers of width 64 with norms before the sublayers, the sinusoids of the paper, and one matrix for both tables
and the logits. A token is a byte: ids as ByT5 has them (pad 0, eos 1, byte b is 3 + b).
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from written import sample

PAD, EOS, OFFSET = 0, 1, 3
CONFIG: dict[str, Any] = {
    "architectures": ["Transformer"],
    "d_model": 64,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dim_feedforward": 256,
    "activation": "gelu",
    "norm_first": True,
    "vocab_size": OFFSET + 256,
    "tie_word_embeddings": True,
    "max_len": 128,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
TOKENIZER = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
GENERATION = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD, "max_new_tokens": 12}
BATCH = 64
POOL = 64  # batches that are drawn at once, to be put together by length


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = CONFIG["d_model"]
        self.embed = nn.Embedding(CONFIG["vocab_size"], width)
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        self.transformer = nn.Transformer(
            width,
            CONFIG["nhead"],
            CONFIG["num_encoder_layers"],
            CONFIG["num_decoder_layers"],
            CONFIG["dim_feedforward"],
            dropout=0.0,
            activation=CONFIG["activation"],
            norm_first=True,
            batch_first=True,
        )
        self.bias = nn.Parameter(torch.zeros(CONFIG["vocab_size"]))
        angles = torch.arange(CONFIG["max_len"])[:, None] * 10000 ** (-torch.arange(0, width, 2) / width)
        table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # sin, cos, sin, cos ...
        self.register_buffer("positions", table, persistent=False)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source (B, S), target (B, T) ids, pad at padding -> logits (B, T, V)."""
        padding = source == PAD
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        x = self.transformer(
            self._vectors(source),
            self._vectors(target),
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_mask=causal,
            tgt_is_causal=True,
        )
        return functional.linear(x, self.embed.weight, self.bias)

    def _vectors(self, ids: Tensor) -> Tensor:
        return self.embed(ids) * CONFIG["d_model"] ** 0.5 + self.positions[: ids.shape[1]]

    def save(self, folder: Path) -> None:
        weights = {f"transformer.{name}": value for name, value in self.transformer.state_dict().items()}
        weights |= {"src_embed.weight": self.embed.weight, "generator.bias": self.bias}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in weights.items()}, folder / "model.safetensors")
        for name, values in (("config", CONFIG), ("tokenizer_config", TOKENIZER), ("generation_config", GENERATION)):
            (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")


def ids(texts: list[str]) -> Tensor:
    """(B, S), eos behind each text, pad behind that."""
    rows = [torch.tensor([OFFSET + byte for byte in text.encode()] + [EOS]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def batches(random: Random) -> Any:
    while True:
        pairs = sorted((sample(random) for _ in range(BATCH * POOL)), key=lambda pair: len(pair[0].encode()))
        starts = list(range(0, len(pairs), BATCH))
        random.shuffle(starts)
        for start in starts:
            texts, dates = zip(*pairs[start : start + BATCH], strict=True)
            yield ids(list(texts)), ids(list(dates))


def rate(step: int, steps: int, peak: float) -> float:
    """Up in the first twentieth, then down as a cosine."""
    warm = steps // 20 + 1
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))) + 1e-6


def load(model: Model, folder: Path) -> None:
    """The weights of a checkpoint of `save`."""
    weights = load_file(folder / "model.safetensors")
    names = {"src_embed.weight": "embed.weight", "generator.bias": "bias"}
    model.load_state_dict({names.get(name, name): value for name, value in weights.items()})


def train(folder: Path, steps: int, seed: int, peak: float, start: Path | None) -> None:
    torch.manual_seed(seed)
    warnings.filterwarnings("ignore", "enable_nested_tensor")  # not for norms before the sublayers
    model = Model()
    if start is not None:
        load(model, start)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    began, losses = time.time(), []
    for step, (source, dates) in zip(range(steps), batches(Random(seed)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, peak)
        given = functional.pad(dates[:, :-1], (1, 0), value=PAD)  # the start token, then all but the eos
        loss = functional.cross_entropy(model(source, given).flatten(0, 1), dates.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 200 == 0:
            print(f"{step + 1:6d} {sum(losses[-200:]) / 200:.5f} {time.time() - began:6.0f} s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            model.save(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the checkpoint")
    parser.add_argument("--steps", type=int, default=18000, help=f"of {BATCH} texts (default 18000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3, help="the highest learning rate (default 0.003)")
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="to go on from, with rates from the beginning")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train(given.folder, given.steps, given.seed, given.rate, given.start)
