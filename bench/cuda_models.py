"""Whole models of `python -m bench cuda`: prompts and decoding on a GPU, beside GPT-2 in torch, compiled."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import qkv

from . import checkpoints
from .cuda_table import Table, torch, words
from .generate import TEXT, smollm2_file

TOKENS = 128


def models(table: Table) -> None:
    """A prompt of 512 tokens, tokens a second of 128 greedy ones, and memory after many calls; then torch's tokens,
    which may compile for as long as there is time."""
    with checkpoints.shared():
        paths = {"GPT-2": str(checkpoints.folder("gpt2-tiny" if table.tiny else "gpt2"))}
        if not table.tiny and smollm2_file():
            paths["SmolLM2"] = str(smollm2_file())
        for name, path in paths.items():
            for dtype in ("auto",) if path.endswith(".gguf") else ("bfloat16", "float16", "int8", "int4"):
                table.attempt(ours, name, dtype, path)
    if table.by_torch:
        for rows in (1, 8):
            row(table, f"GPT-2 bfloat16 batch {rows}, torch compiled", lambda rows=rows: beside_ours(table, rows))


def ours(table: Table, name: str, dtype: str, path: str) -> None:
    model = qkv.load(path, dtype=dtype, device="cuda")
    for rows in (1, 8):
        row(table, f"{name} {dtype} batch {rows}", lambda rows=rows: times(model, rows, table.tiny))
    calls = 12 if table.tiny else 300
    row(table, f"{name} {dtype}", lambda: {"MB after 10 and more calls": memory(model, calls)})


def row(table: Table, name: str, measure: Callable[[], dict[str, Any]]) -> None:
    """What `measure` gives under this name, printed and written; or its error, which ends nothing else."""
    rows = table.results.setdefault("models", [])
    if table.only not in name or any(case["case"] == name for case in rows):
        return
    case: dict[str, Any] = {"case": name}
    rows.append(case)
    table.save()  # that it was begun: if it ends the process, it is not tried again
    try:
        case |= {**measure(), "done": True}
    except Exception as error:
        if table.tiny:
            raise
        traceback.print_exc()
        case["error"] = words(error)
    shown = (f"{k}: {round(v, 2) if isinstance(v, float) else v}" for k, v in case.items() if k != "done")
    print(", ".join(shown), flush=True)
    table.save()
    if "error" in case:
        table.end_if_lost()


def beside_ours(table: Table, rows: int) -> dict[str, Any]:
    """torch's tokens a second, and how many times as many ours are."""
    rate, skips = torch_tokens(rows)
    found: dict[str, Any] = {"decode tokens/s": rate, "CUDA graphs skipped": skips}
    of_ours = {case["case"]: case.get("decode tokens/s") for case in table.results["models"]}
    for dtype in ("bfloat16", "int8", "int4"):
        if mine := of_ours.get(f"GPT-2 {dtype} batch {rows}"):
            found[f"qkv {dtype} / torch"] = mine / rate
    return found


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


class TorchGPT2:
    """The shape of GPT-2 small in plain torch, with random weights and a static cache of `length` places."""

    def __init__(
        self,
        rows: int,
        length: int,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        vocabulary: int = 50257,
        device: str = "cuda",
        dtype: str = "bfloat16",
    ) -> None:
        self.rows, self.width, self.heads = rows, width, heads

        def draw(*shape: int) -> Any:
            return (torch.randn(*shape, device=device) * 0.02).to(getattr(torch, dtype))

        def norm() -> Any:
            return draw(width) + 1, draw(width)

        sizes = {"qkv": (3 * width, width), "out": (width, width), "up": (4 * width, width), "down": (width, 4 * width)}
        self.layers = [{n: (draw(*s), draw(s[0])) for n, s in sizes.items()} for _ in range(layers)]
        self.norms = [[norm(), norm()] for _ in range(layers)]
        self.table, self.places, self.last = draw(vocabulary, width), draw(1024, width), norm()
        # An array a layer, as transformers has them: of a view of one for all, what is compiled might copy the rest.
        shape = (rows, heads, length, width // heads)
        self.keys, self.values = (
            [torch.zeros(shape, device=device, dtype=getattr(torch, dtype)) for _ in range(layers)] for _ in range(2)
        )
        self.columns = torch.arange(length, device=device)

    def tensors(self) -> list[Any]:
        pairs = [pair for layer in self.layers for pair in layer.values()]
        pairs += [pair for norms in self.norms for pair in norms]
        flat = [tensor for pair in (*pairs, self.last) for tensor in pair]
        return [*flat, self.table, self.places, *self.keys, *self.values, self.columns]

    def logits(self, token: Any, at: Any) -> Any:
        """token: (rows,), at: (1,), the place of all. (rows, vocabulary)"""
        f, width = torch.nn.functional, self.width
        x = self.table[token] + self.places[at]
        mask = (self.columns <= at)[None, None, None]
        for w, n, keys, values in zip(self.layers, self.norms, self.keys, self.values, strict=True):
            three = f.linear(f.layer_norm(x, (width,), *n[0]), *w["qkv"]).view(self.rows, 3, self.heads, -1)
            q, k, v = three.unbind(1)
            keys.index_copy_(2, at, k[:, :, None])
            values.index_copy_(2, at, v[:, :, None])
            attended = f.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)
            x = x + f.linear(attended.reshape(self.rows, width), *w["out"])
            hidden = f.gelu(f.linear(f.layer_norm(x, (width,), *n[1]), *w["up"]), approximate="tanh")
            x = x + f.linear(hidden, *w["down"])
        return f.linear(f.layer_norm(x, (width,), *self.last), self.table)


def compiled_step(rows: int, length: int, backend: Any = "inductor", **size: Any) -> tuple[Any, TorchGPT2]:
    """A greedy step of TorchGPT2 as torch compiles it, (token, at) -> (rows,).

    Its arrays are marked as staying where they are: a CUDA graph would else copy every weight into place in each step,
    and not be captured at all because the step writes to the cache (torch/_inductor/cudagraph_utils.py)."""
    dynamo = importlib.import_module("torch._dynamo")
    dynamo.reset()  # or a second batch size is compiled for any
    model = TorchGPT2(rows, length, **size)
    for tensor in model.tensors():
        dynamo.mark_static_address(tensor)

    def step(token: Any, at: Any) -> Any:
        return model.logits(token, at).argmax(1)

    mode = {"mode": "max-autotune"} if backend == "inductor" else {}
    return torch.compile(step, backend=backend, dynamic=False, fullgraph=True, **mode), model


def torch_tokens(rows: int) -> tuple[float, int]:
    """Tokens a second of TorchGPT2, its step compiled with mode="max-autotune", which captures it in a CUDA graph; and
    how many graphs torch did not capture."""
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    compiled, _ = compiled_step(rows, 32 + TOKENS + 1)
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
    return rows * TOKENS / min(made), int(counters["inductor"]["cudagraph_skips"])
