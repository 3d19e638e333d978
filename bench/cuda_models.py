"""Whole models of `python -m bench cuda`: prompts and decoding on a GPU, beside GPT-2 in torch, compiled."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import qkv

from . import checkpoints
from .cuda import Table, torch
from .generate import TEXT, smollm2_file

TOKENS = 128


def models(table: Table) -> None:
    """A prompt of 512 tokens, tokens a second of 128 greedy ones, and memory after many calls."""
    found: list[dict[str, Any]] = []
    table.results["models"] = found

    def add(row: dict[str, Any]) -> None:
        found.append(row)
        print(", ".join(f"{k}: {v if isinstance(v, (str, list)) else round(v, 1)}" for k, v in row.items()), flush=True)
        table.save()

    with checkpoints.shared():
        if not table.tiny:
            for rows in (1, 8):
                add({"model": f"GPT-2 bfloat16 batch {rows}, torch compiled", "decode tokens/s": torch_tokens(rows)})
        paths = {"GPT-2": str(checkpoints.folder("gpt2-tiny" if table.tiny else "gpt2"))}
        if not table.tiny and smollm2_file():
            paths["SmolLM2"] = str(smollm2_file())
        for name, path in paths.items():
            for dtype in ("auto",) if path.endswith(".gguf") else ("bfloat16", "float16", "int8", "int4"):
                model = qkv.load(path, dtype=dtype, device="cuda")
                for rows in (1, 8):
                    add({"model": f"{name} {dtype} batch {rows}", **times(model, rows, table.tiny)})
                add(
                    {"model": f"{name} {dtype}", "MB after 10 and more calls": memory(model, 12 if table.tiny else 300)}
                )


def times(model: Any, rows: int, tiny: bool) -> dict[str, float]:
    count = 4 if tiny else TOKENS
    options = {"max_new_tokens": count + 1, "eos_token_id": None, "pad_token_id": 0}
    ids = np.resize(TEXT, (rows, 32)) % model.config["vocab_size"]
    made = []
    for _ in range(2 if tiny else 4):  # the first is for memory and for what is made once
        stream = model.stream(ids, **options)
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
        made.append(time.perf_counter() - first)
    long = np.resize(ids, (rows, 32 if tiny else 512))
    prompts = []
    for _ in range(3):
        begun = time.perf_counter()
        model.generate(long, **{**options, "max_new_tokens": 1})
        prompts.append(time.perf_counter() - begun)
    return {"decode tokens/s": rows * count / min(made), "prompt of 512 ms": min(prompts) * 1e3}


def memory(model: Any, calls: int) -> list[float]:
    used = []
    for i in range(calls):
        ids = np.resize(TEXT, (1 + i % 3, 8 + i % 50)) % model.config["vocab_size"]
        model.generate(ids, max_new_tokens=4, eos_token_id=None)
        used.append(qkv.cuda.memory_info()["used_bytes"] / 1e6)
    return [used[9], used[-1]]


def torch_tokens(rows: int, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 50257) -> float:
    """Tokens a second of GPT-2 small's shape in plain torch, bfloat16: a static cache, the step compiled with
    mode="max-autotune", which captures it in a CUDA graph. Weights are random."""
    f, length, d = torch.nn.functional, 32 + TOKENS + 1, width // heads

    def draw(*shape: int) -> Any:
        return (torch.randn(*shape, device="cuda") * 0.02).to(torch.bfloat16)

    sizes = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
    weights = [{n: (draw(*s), draw(s[0])) for n, s in sizes.items()} for _ in range(layers)]
    norms = [[(draw(width) + 1, draw(width)) for _ in range(2)] for _ in range(layers)]
    table, places, last = draw(vocabulary, width), draw(1024, width), (draw(width) + 1, draw(width))
    keys, values = (torch.zeros(layers, rows, heads, length, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    columns = torch.arange(length, device="cuda")

    def step(token: Any, at: Any) -> Any:
        x = table[token] + places[at]
        mask = (columns <= at)[None, None, None]
        for i, (w, n) in enumerate(zip(weights, norms, strict=True)):
            q, k, v = f.linear(f.layer_norm(x, (width,), *n[0]), *w["qkv"]).view(rows, 3, heads, d).unbind(1)
            keys[i].index_copy_(2, at, k[:, :, None])
            values[i].index_copy_(2, at, v[:, :, None])
            attended = f.scaled_dot_product_attention(q[:, :, None], keys[i], values[i], attn_mask=mask)
            x = x + f.linear(attended.reshape(rows, width), *w["out"])
            hidden = f.gelu(f.linear(f.layer_norm(x, (width,), *n[1]), *w["up"]), approximate="tanh")
            x = x + f.linear(hidden, *w["down"])
        return f.linear(f.layer_norm(x, (width,), *last), table).argmax(1)

    compiled = torch.compile(step, mode="max-autotune")
    made = []
    with torch.no_grad():
        for _ in range(4):  # the first ones compile and capture
            token, at = torch.zeros(rows, dtype=torch.long, device="cuda"), torch.full((1,), 32, device="cuda")
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(TOKENS):
                token, at = compiled(token, at).clone(), at + 1
            torch.cuda.synchronize()
            made.append(time.perf_counter() - begun)
    return rows * TOKENS / min(made)
