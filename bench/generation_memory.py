"""`generation_memory`: whether generating text leaves memory behind.

Each model runs in a process of its own. `start` and `end` are its resident memory before and after many tokens of one
call, or a hundred batches of different sizes. A call needs memory while it runs, its cache of keys and values above
all (`cache`), and the pool of buffers keeps some for the next call: so everything is done twice, the same in the same
order, and the `end` of the second time is to be that of the first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoints
from .footprint import resident

MODELS = ("gpt2", "marian")
ROWS, LONGEST, NEW = 8, 48, 16  # of a batch at most
BETWEEN = 10  # how often memory is read on the way from start to end
Array = Any


# ---- in the process of a model -------------------------------------------------------------------------


def batch(config: dict[str, Any], rng: Any, rows: int, longest: int) -> tuple[Array, Array]:
    """Ids and mask (rows, longest), padded to the right; one row has the full length."""
    lengths = rng.integers(1, longest + 1, rows)
    lengths[rng.integers(rows)] = longest
    mask = np.arange(longest) < lengths[:, None]
    return rng.integers(17, config["vocab_size"] - 1, (rows, longest)), mask.astype(np.int64)


def over_tokens(model: Any, config: dict[str, Any], tokens: int) -> Iterator[int]:
    """Resident bytes before a call and along it, while it makes tokens."""
    prompt = np.random.default_rng(0).integers(17, config["vocab_size"] - 1, (1, 8))
    yield resident()
    steps = model.stream(prompt, min_new_tokens=tokens, max_new_tokens=tokens)
    for count, _ in enumerate(steps, 1):
        if count % max(1, tokens // BETWEEN) == 0:
            yield resident()


def over_batches(model: Any, config: dict[str, Any], count: int) -> Iterator[int]:
    """Resident bytes before many calls and along them."""
    rng = np.random.default_rng(0)
    beams = 4 if config.get("is_encoder_decoder") else 1
    yield resident()
    for i in range(1, count + 1):
        rows, longest, new = (int(rng.integers(1, most + 1)) for most in (ROWS, LONGEST, NEW))
        ids, mask = batch(config, rng, rows, longest)
        model.generate(ids, mask, min_new_tokens=new, max_new_tokens=new, num_beams=beams)
        if i % max(1, count // BETWEEN) == 0:
            yield resident()


def measure_model(name: str, tokens: int, batches: int) -> dict[str, Any]:
    import qkv

    config = checkpoints.CONFIGS[name]
    model = qkv.load(checkpoints.folder(name))
    found: dict[str, Any] = {}
    for time in ("first", "again"):
        if "n_positions" in config:
            one = found[f"{tokens} tokens, {time}"] = {"resident_bytes": list(over_tokens(model, config, tokens))}
            one["cache_bytes"] = 2 * 4 * config["n_layer"] * config["n_embd"] * (tokens + 8)  # float32 keys and values
        found[f"{batches} batches, {time}"] = {"resident_bytes": list(over_batches(model, config, batches))}
    return found


# ---- in the benchmark's process ------------------------------------------------------------------------


def report(threads: int | None = None, *, tiny: bool = False) -> dict[str, Any]:
    """Runs every model and prints the table."""
    results: dict[str, Any] = {}
    sizes = ("100", "10") if tiny else ("1000", "100")
    print(f"\n{'generation_memory':<34}{'start':>12}{'end':>12}{'growth':>12}{'cache':>12}")
    with checkpoints.shared():
        environment = dict(os.environ) if threads is None else {**os.environ, "QKV_NUM_THREADS": str(threads)}
        for model in (f"{name}-tiny" if tiny else name for name in MODELS):
            command = [sys.executable, "-m", __spec__.name, model, *sizes]
            root = Path(__file__).resolve().parents[1]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
            if done.returncode:
                results[model] = {"error": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
                print(f"    {model}: {results[model]['error']}")
                continue
            results[model] = json.loads(done.stdout)
            for name, one in results[model].items():
                start, *_, end = one["resident_bytes"]
                values = (start, end, end - start, one.get("cache_bytes"))
                columns = "".join(f"{'-':>12}" if x is None else f"{x / 2**20:>8.1f} MiB" for x in values)
                print(f"  {model + ', ' + name:<32}{columns}")
    return results


if __name__ == "__main__":
    print(json.dumps(measure_model(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
