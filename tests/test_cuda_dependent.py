"""Programmatic dependent launch (csrc/cuda/launch.cuh): all kernels of a recorded step of decoding are launched so, and
no wait for the kernel before can be left out unnoticed. That they keep the rule otherwise, and give what they gave, is
seen by every test that runs them in emulation. Runs with QKV_CUDA=emulated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import qkv
from cuda_sites import WAIT, ordering_sites
from emulated import Emulator, drawn, emulator, on_path, packed, paged
from golden_checks import checkpoint
from qkv import cuda_ops
from qkv.capture import CapturedSteps

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.skipif(not qkv.cuda.is_emulated(), reason="QKV_CUDA=emulated runs this")


def model_of(folder: str, dtype: str, layers: int = 2) -> Any:
    """Of gpt2_lm the first layers, and as much of their feed-forward, which is 20 wide, as has rows of whole pieces
    of 16 bytes, as GPT-2's own has: products of other rows are tiles, as in prompts."""
    config, weights = checkpoint(folder)
    if folder == "gpt2_lm":
        config = {**config, "n_inner": 16, "n_layer": layers}
        weights = {name: w for name, w in weights.items() if ".h." not in name or int(name.split(".h.")[1][0]) < layers}
        for name in weights:
            if "mlp.c_fc" in name:
                weights[name] = weights[name][..., :16].copy()
            elif "mlp.c_proj.weight" in name:
                weights[name] = weights[name][:16].copy()
    return qkv.from_weights(config, weights, dtype=dtype, device="cuda")


def kernels_of_steps(model: Any, emulator: Emulator, device: str, **options: Any) -> list[dict[str, Any]]:
    """Of each step that is a replay, what the emulator counted."""
    steps: list[dict[str, Any]] = []
    again = CapturedSteps.again

    def counted(self: CapturedSteps, *args: Any, **kwargs: Any) -> Any:
        qkv.cuda.synchronize()
        emulator.report()
        result = again(self, *args, **kwargs)
        qkv.cuda.synchronize()
        if result is not None:
            steps.append(emulator.report()["kernels"])
        return result

    emulator.configure(f"count=1,check=0,{device}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedSteps, "again", counted)
        model.generate(**options, max_new_tokens=6, eos_token_id=None, pad_token_id=0)
    assert len(steps) >= 3
    return steps


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("folder", ["gpt2_lm", "llama_lm", "gemma2_lm"])
def test_every_kernel_of_a_step(folder: str, dtype: str, rows: int, emulator: Emulator) -> None:
    if dtype == "float32" and rows == 8:
        pytest.skip("for checking: products of more than 4 rows are tiles, as in prompts")
    model = model_of(folder, dtype)
    for sampled in ({}, {"do_sample": True, "seed": 1, "top_k": 5, "top_p": 0.9}):
        prompts = {"input_ids": np.arange(4 * rows).reshape(rows, 4) % 30 + 4, **sampled}
        for step in kernels_of_steps(model, emulator, "cc=90", **prompts):
            assert len(step) >= 5
            plain = {name: k for name, k in step.items() if k["dependent"] != k["launches"]}
            assert not plain, plain.keys()


@pytest.mark.parametrize("device, path", [("cc=80", "fastest"), ("cc=90", "portable")])
def test_none_is_where_none_can_be(device: str, path: str, emulator: Emulator) -> None:
    model = model_of("gpt2_lm", "bfloat16")
    steps: list[dict[str, Any]] = []
    on_path(path, lambda: steps.extend(kernels_of_steps(model, emulator, device, input_ids=[[5, 6, 7]])))()
    assert all(k["launches"] > 0 and k["dependent"] == 0 for step in steps for k in step.values())


def test_kernels_of_a_layer(emulator: Emulator) -> None:
    """What bench/NOTES.md says that a layer and a step of GPT-2 take, by models of one and of two layers."""
    counts = []
    for layers in (1, 2):
        model = model_of("gpt2_lm", "bfloat16", layers)
        step = kernels_of_steps(model, emulator, "cc=90,sms=132", input_ids=[[5, 6, 7]])[-1]
        counts.append(sum((Counter({name: k["launches"]}) for name, k in step.items()), Counter[str]()))
    a_layer = counts[1] - counts[0]
    print("a layer:", dict(a_layer), "\nbeside them:", dict(counts[0] - a_layer))
    assert (sum(a_layer.values()), sum((counts[0] - a_layer).values())) == (8, 7)


U = np.array([0.3, 0.9])
F32 = np.float32
CALLS: dict[str, Callable[[], Any]] = {
    "advance": lambda: (lambda x: (cuda_ops.advance(x), x)[1])(qkv.cuda.array(np.arange(6).reshape(3, 2))),
    "argmax": lambda: cuda_ops.argmax(drawn(2, 9000, dtype=F32)),
    "attention_paged": lambda: paged(8, [300, 20], D=64),
    "attention_paged_decode": lambda: paged(8, [700, 900], np.float16),
    "attention_paged_f32": lambda: paged(4, [300, 20], np.float32, D=64, q=F32),
    "copy": lambda: drawn(3, 40)[:, 1:].astype(F32),
    "dequantize": lambda: qkv.embedding(qkv.cuda.array(np.arange(3)), packed("int8", 40, 64)),
    "embedding": lambda: qkv.embedding(qkv.cuda.array(np.arange(3)), drawn(7, 64)),
    "gelu": lambda: qkv.gelu(drawn(3, 640)),
    "int8": lambda: qkv.linear(drawn(1, 520), packed("int8", 136, 520)),
    "int8_padded": lambda: qkv.linear(drawn(2, 75), packed("int8", 40, 75)),
    "int4": lambda: qkv.linear(drawn(8, 512), packed("int4", 136, 512)),
    "layer_norm": lambda: qkv.layer_norm(drawn(5, 777), residual=drawn(5, 777))[0],
    "layer_norm_long": lambda: qkv.layer_norm(drawn(2, 9000, dtype=F32)),
    "linear_1": lambda: qkv.linear(drawn(1, 520), drawn(136, 520)),
    "linear_8": lambda: qkv.linear(drawn(8, 4096), drawn(136, 4096)),
    "linear_f32": lambda: qkv.linear(drawn(2, 520, dtype=F32), drawn(136, 520, dtype=F32)),
    "matmul": lambda: qkv.matmul(drawn(2, 520), drawn(520, 136)),
    "rms_norm": lambda: qkv.rms_norm(drawn(3, 2048)),
    "rotary": lambda: qkv.rotary(drawn(9, 3, 160), qkv.cuda.array(np.arange(9))),
    "sample": lambda: cuda_ops.sample(drawn(2, 3000, dtype=F32), U),
    "sample_cluster": lambda: cuda_ops.sample(drawn(1, 8200, dtype=F32), U[:1], top_k=300, top_p=0.7),
    "softmax": lambda: qkv.softmax(drawn(5, 777)),
    "softmax_held": lambda: qkv.log_softmax(drawn(5, 1024)),
    "top_k": lambda: qkv.ops.top_k(drawn(2, 3000, dtype=F32), 7)[1],
    "top_k_segments": lambda: qkv.ops.top_k(drawn(1, 9000, dtype=F32), 7)[1],
}


@pytest.mark.parametrize("name", CALLS)
def test_no_wait_can_be_left_out(name: str, emulator: Emulator) -> None:
    want, report = emulator.run(CALLS[name], "count=1,check=0,cc=90")
    assert want is not None, report["first"]
    dependent = [kernel for kernel, k in report["kernels"].items() if k["dependent"]]
    assert dependent
    for kernel in dependent:
        sites = ordering_sites(emulator.library, kernel, WAIT)
        assert sites
        for site in sites:
            out, report = emulator.run(CALLS[name], f"check=0,cc=90,{site.leave_out()}")
            assert out is None and "griddepcontrol.wait" in report["first"], (kernel, site.place())
