"""The steps of a trace computed once more: each formula in float64 NumPy, from the step's own inputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qkv.reference import rounded_rows
from qkv.walk import Step

scipy_special = pytest.importorskip("scipy.special", reason="gelu is checked against scipy's erf")

Array = np.ndarray
GIVEN = {  # there is nothing to compute
    "tokenize(text)",
    "row of each token in the vocabulary",
    "how many tokens stand before",
    "given",
    "prepared image",
    "layer(x)",
    "",
}


def wide(x: Any) -> Array:
    return np.asarray(x, np.float64)


def table(weight: Any) -> Array:
    """A table or a weight, packed or not."""
    return wide(weight.dequantize() if hasattr(weight, "dequantize") else weight)


def product(x: Array, weight: Any, bias: Any) -> Array:
    """x W^T + b, of what the kernel makes of x before it multiplies."""
    if hasattr(weight, "dequantize"):
        x = rounded_rows(x.reshape(-1, x.shape[-1]), weight.dtype, weight.group_size).reshape(x.shape)
    return wide(x) @ table(weight).T + (0 if bias is None else wide(bias))


def heads_of(step: Step, y: Array) -> Array:
    """(tokens, heads * D) -> (heads, tokens, D)"""
    d = step.shape[2]
    return y.reshape(len(y), -1, d).swapaxes(0, 1)


def softmax(x: Array) -> Array:
    x = wide(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True)


def layer_norm(x: Array, i: dict[str, Any]) -> Array:
    y = (x - mean(x)) / np.sqrt(mean((x - mean(x)) ** 2) + i["ε"])
    return y * wide(i["γ"]) + (wide(i["β"]) if "β" in i else 0)


def rms_norm(x: Array, i: dict[str, Any]) -> Array:
    return x / np.sqrt(mean(x**2) + i["ε"]) * wide(i["γ"])


def rotated(x: Array, i: dict[str, Any]) -> Array:
    """The leading 2 * theta.shape[1] features turn; the others stay."""
    n = i["θ"].shape[1]
    cos, sin = (i["factor"] * f(wide(i["θ"])) for f in (np.cos, np.sin))
    first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def distances(shape: tuple[int, ...]) -> Array:
    """j - p of query i, which stands at p = i + T - S."""
    s, t = shape[-2:]
    return np.arange(t)[None, :] - np.arange(s)[:, None] - (t - s)


def mask(step: Step) -> Array:
    found = re.fullmatch(r"M\[i, j\] = (1|j ≤ i(?: and i − j ≤ (\d+))?)", step.formula)
    assert found is not None
    d = distances(step.shape)
    seen = np.ones(step.shape, bool) if found[1] == "1" else d <= 0
    return seen if found[2] is None else seen & (-d <= int(found[2]))


def biased(step: Step) -> Array:
    b, d = wide(step.inputs["b"]), distances(step.shape)
    reach = b.shape[1] // 2
    return np.stack([[[row[min(max(x, -reach), reach) + reach] for x in line] for line in d.tolist()] for row in b])


def by_distance(step: Step) -> Array:
    """Transformer-XL's: R's first row is the farthest."""
    q, r = wide(step.inputs["Q"]), wide(step.inputs["R"])
    result = np.zeros(step.shape)
    for h, i, j in np.ndindex(step.shape):
        back = i + step.shape[2] - step.shape[1] - j
        if back >= 0:
            result[h, i, j] = q[h, i] @ r[h, len(r[h]) - 1 - back] / np.sqrt(step.inputs["D"])
    return result


def sinusoids(step: Step) -> Array:
    p, width = wide(step.inputs["p"]), step.shape[1]
    half = -(-width // 2)
    angles = p[:, None] / 10000 ** (2 * np.arange(half) / width)
    if not step.inputs["interleaved"]:
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
    return np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(p), -1)[:, :width]


def cut(step: Step) -> Array:
    pixels = wide(step.inputs["pixels"])
    found = re.match(r"(\d+) × (\d+) patches of (\d+) × (\d+)", step.note)
    assert found is not None
    rows, columns, height, width = map(int, found.groups())
    return np.stack(
        [
            pixels[:, r * height : (r + 1) * height, c * width : (c + 1) * width].reshape(-1)
            for r in range(rows)
            for c in range(columns)
        ]
    )


def adaptive(step: Step) -> Array:
    """The head has its own tokens first and then the clusters."""
    head, *tails = (wide(x) for x in step.inputs.values())
    first = head.shape[1] - len(tails)
    return np.concatenate([head[:, :first], *(t + head[:, first + i, None] for i, t in enumerate(tails))], axis=1)


def log_softmax(z: Array) -> Array:
    top = z.max(axis=-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(axis=-1, keepdims=True))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu(u) = u · Φ(u)": lambda u: u * 0.5 * scipy_special.erfc(-u / np.sqrt(2)),
    "gelu(u) ≈ u/2 · (1 + tanh(√(2/π) · (u + 0.044715 u³)))": lambda u: (
        u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    ),
    "relu(u) = max(u, 0)": lambda u: np.maximum(u, 0),
    "silu(u) = u / (1 + e⁻ᵘ)": lambda u: u * scipy_special.expit(u),
    "u / (1 + e^(−1.702 u))": lambda u: u * scipy_special.expit(1.702 * u),
    "tanh(u)": np.tanh,
}


def expected(step: Step) -> Array | None:
    """What the step's value should be; None where nothing is computed. AssertionError: an unknown formula."""
    formula, i = step.formula, dict(step.inputs)
    if formula in GIVEN:
        return None
    if formula in ACTIVATIONS:
        return ACTIVATIONS[formula](wide(i["u"]))
    if found := re.fullmatch(r"([QKVR]) = (\w+) W_\1ᵀ(?: \+ b_\1)?", formula):
        letter, x = found.groups()
        y = product(i[x], i[f"W_{letter}"], i.get(f"b_{letter}"))
        return heads_of(step, y)
    if found := re.fullmatch(r"(\w+) Wᵀ(?: \+ b)?", formula):
        return product(i[found[1]], i["W"], i.get("b"))
    if found := re.fullmatch(r"(\w+) / √\(mean\(\1²\) \+ ε\) · γ", formula):
        return rms_norm(wide(i[found[1]]), i)
    if found := re.fullmatch(r"\((\w+) − mean\(\1\)\) / √\(var\(\1\) \+ ε\) · γ(?: \+ β)?", formula):
        return layer_norm(wide(i[found[1]]), i)
    if found := re.fullmatch(r"(s · )?(\w+)(?: \+ (\w+))?", formula):  # sums
        scale, a, b = found.groups()
        return (
            (i["s"] if scale else 1) * wide(i[a])
            + (wide(i[b]) if b and b not in "uv" else 0)
            + (wide(i[b])[:, None] if b and b in "uv" else 0)
        )
    if found := re.fullmatch(r"\(([QK])₁ cos θ − .*", formula):
        return rotated(wide(i[found[1]]), i)
    if formula.startswith("M["):
        return mask(step)
    simple: dict[str, Callable[[], Array]] = {
        "E[ids]": lambda: table(i["E"])[i["ids"]],
        "E[types]": lambda: table(i["E"])[i["ids"]],
        "E[0]": lambda: table(i["E"])[0],
        "P[positions]": lambda: table(i["P"])[i["positions"]],
        "sin and cos of p / 10000^(2i/C)": lambda: sinusoids(step),
        "a ⊙ g": lambda: wide(i["a"]) * wide(i["g"]),
        "S = Q Kᵀ": lambda: wide(i["Q"]) @ wide(i["K"]).swapaxes(1, 2),
        "S / √D": lambda: wide(i["S"]) / np.sqrt(i["D"]),
        "c · tanh(S / c)": lambda: i["c"] * np.tanh(wide(i["S"]) / i["c"]),
        "B[i, j] = b[j − i]": lambda: biased(step),
        "S where M, else −∞": lambda: np.where(i["M"], wide(i["S"]), -np.inf),
        "A = softmax(S) = e^S / Σ e^S": lambda: softmax(i["S"]),
        "A V": lambda: wide(i["A"]) @ wide(i["V"]),
        "[O₀ O₁ …]": lambda: np.concatenate(list(wide(i["O"])), axis=1),
        "θ[p, i] = p · base^(−2i/D)": lambda: np.outer(i["p"], i["base"] ** (-np.arange(0, i["D"], 2) / i["D"])),
        "θ[p, i] = p · f[i]": lambda: np.outer(i["p"], wide(i["f"])),
        "[m, x]": lambda: np.concatenate([wide(i["m"]), wide(i["x"])]),
        "Q R[i − j]ᵀ / √D": lambda: by_distance(step),
        "cut(pixels)": lambda: cut(step),
        "[special + p, patches]": lambda: np.concatenate([wide(i["special"]) + wide(i["p"]), wide(i["patches"])]),
        "mean(x)": lambda: wide(i["x"]).mean(axis=0, keepdims=True),
        "z / c": lambda: wide(i["z"]) / i["c"],
        "tanh(z)": lambda: np.tanh(wide(i["z"])),
        "z − log Σ e^z": lambda: log_softmax(wide(i["z"])),
        "[head, head[cluster] + tail]": lambda: adaptive(step),
        "e^z / Σ e^z": lambda: softmax(i["z"]),
        "largest(p)": lambda: np.sort(wide(i["p"]))[::-1][: len(step.value)],
        "(a + b) / 2": lambda: (wide(i["a"]) + wide(i["b"])) / 2,
        "argmax(z)": lambda: np.argmax(i["z"], axis=-1).reshape(step.shape),
        "1 / (1 + e^(−z))": lambda: scipy_special.expit(wide(i["z"])),
        "p > 0.5": lambda: np.flatnonzero(i["p"] > 0.5),
        "z > 0": lambda: i["z"] > 0,
    }
    if found := re.fullmatch(r"x\[(\d+)\]", formula):
        return wide(i["x"])[int(found[1])][None]
    assert formula in simple, f"{step.path}: {formula!r} is checked nowhere"
    return simple[formula]()


def check(step: Step, rtol: float = 1e-5) -> bool:
    """Within rtol of the largest value, masked scores equal; whether there was something to compute."""
    exact = expected(step)
    if exact is None:
        return False
    assert step.value.shape == exact.shape, step.path
    if step.dtype.kind in "bi":
        np.testing.assert_array_equal(step.value, exact, err_msg=step.path)
        return True
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(step.value[~finite], exact[~finite], err_msg=step.path)
    bound = rtol * np.abs(exact[finite]).max(initial=0)
    assert np.abs(step.value[finite] - exact[finite]).max(initial=0) <= bound, step.path
    return True
