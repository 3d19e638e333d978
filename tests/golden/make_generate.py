"""Write what transformers' generate makes with the tiny checkpoints next to this file: generate.npz, and
generate_4.npz for what only version 4 has, diverse groups of beams and Transformer-XL.

Run, once with each version (tests read the recorded files and need neither torch nor transformers):

    pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    HF_HUB_OFFLINE=1 python tests/golden/make_generate.py
    pip install torch==2.13.0 transformers==4.35.2 "numpy<2" safetensors==0.8.0 sacremoses
    HF_HUB_OFFLINE=1 python tests/golden/make_generate.py

`cases` is JSON: for each case its folder, its name, the arguments (`prefix` stands for the function `allowed` below)
and the arrays: input_ids and attention_mask, and fields of the output; one array for all steps where the library has a
tuple, or one for each step, `<field>.<step>`, where the steps differ in shape. An array is [pool, begin, shape]: a part
of `integers` or `floats`, as thousands of small files in one would be mostly headers. Computed in float32.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
NEW = int(transformers.__version__.split(".")[0]) > 4
DECODERS = (
    *("gpt2_lm", "gpt_lm", "ctrl_lm", "imagegpt_lm", "llama_lm", "llama_tied", "mistral_lm", "qwen2_lm", "qwen3_lm"),
    *("gemma2_lm", "phi3_lm", "roberta_causal", "bart_decoder"),
)
PAIRS = ("bart_scaled", "mbart_lm", "marian_lm", "t5_lm", "t5_v1_1")
EVEN = ("phi3_lm", "bart_decoder")  # the library takes padding for tokens there, in one way or another
GROUPS = ("gpt2_lm", "gpt_lm", "ctrl_lm", "bart_scaled", "mbart_lm", "marian_lm", "t5_lm")
PROCESSORS: dict[str, dict[str, Any]] = {
    "bias": {"sequence_bias": [[[7], 0.6], [[5, 6], -3.0], [[11], -1.5]]},
    "repetition": {"repetition_penalty": 1.7},
    "repetition_reward": {"repetition_penalty": 0.6},
    "encoder_repetition": {"encoder_repetition_penalty": 2.5},
    "ngram_2": {"no_repeat_ngram_size": 2},
    "ngram_1": {"no_repeat_ngram_size": 1},
    "ngram_3": {"no_repeat_ngram_size": 3},
    "encoder_ngram": {"encoder_no_repeat_ngram_size": 1},
    "encoder_ngram_2": {"encoder_no_repeat_ngram_size": 2},
    "min_length": {"min_length": 8},
    "min_new": {"min_new_tokens": 6},
    "prefix": {"prefix": True},
    "forced_bos": {"forced_bos_token_id": 9},
    "forced_bos_suppress": {"forced_bos_token_id": 9, "begin_suppress_tokens": [6, 8]},
    "forced_eos": {"forced_eos_token_id": [13, 14]},
    "invalid": {"remove_invalid_values": True, "no_repeat_ngram_size": 2},
    "decay": {"exponential_decay_length_penalty": [2, 1.9]},
    "suppress": {"begin_suppress_tokens": [6, 8]},
    "renormalize": {"renormalize_logits": True, "repetition_penalty": 1.3},
}
FILTERS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.4},
    "top_h": {"top_h": 0.4},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.6, "top_k": 0},
    "min_p": {"min_p": 0.3},
    "typical": {"typical_p": 0.4},
    "epsilon": {"epsilon_cutoff": 0.03},
    "eta": {"eta_cutoff": 0.2},
    "least_k": {"top_k": 1},
    "least_p": {"top_p": 0.01, "top_k": 0},
    "least_min_p": {"min_p": 0.99, "top_k": 0},
    "least_typical": {"typical_p": 0.01, "top_k": 0},
    "least_epsilon": {"epsilon_cutoff": 0.9, "top_k": 0},
    "least_eta": {"eta_cutoff": 0.9, "top_k": 0},
    "several": {
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.02,
        "typical_p": 0.9,
        "renormalize_logits": True,
    },
}


def allowed(text: int, ids: Any) -> list[int]:
    return [token for token in range(39) if (token + text + len(ids)) % 3 == 0]


class Recorder:
    def __init__(self) -> None:
        self.cases: list[dict[str, Any]] = []
        self.pools: dict[str, list[np.ndarray]] = {"integers": [], "floats": []}
        self.models: dict[str, Any] = {}

    def model(self, folder: str) -> Any:
        if folder not in self.models:
            kind = json.loads((HERE / folder / "config.json").read_text())["architectures"][0]
            options = {"attn_implementation": "eager"} if NEW else {}
            self.models[folder] = getattr(transformers, kind).from_pretrained(HERE / folder, **options).float().eval()
        return self.models[folder]

    def call(self, folder: str, ids: np.ndarray, mask: np.ndarray | None, arguments: dict[str, Any]) -> Any:
        model, given = self.model(folder), dict(arguments)
        if given.pop("prefix", None):
            given["prefix_allowed_tokens_fn"] = allowed
        if mask is not None:
            given["attention_mask"] = torch.from_numpy(mask)
        if folder == "roberta_causal":  # generate itself would count without the offset that forward has
            real = np.ones_like(ids) if mask is None else mask
            given["position_ids"] = torch.from_numpy(np.where(real == 1, real.cumsum(axis=1) + 1, 1))
        torch.manual_seed(0)
        return model.generate(torch.from_numpy(ids), return_dict_in_generate=True, output_scores=True, **given)

    def add(
        self,
        folder: str,
        name: str,
        inputs: tuple[np.ndarray, np.ndarray | None],
        keep: tuple[str, ...] = ("sequences",),
        **arguments: Any,
    ) -> Any:
        ids, mask = inputs
        wanted = [f for f in ("attentions", "hidden_states") if any(f in field for field in keep)]
        shown = {f"output_{field}": True for field in (*wanted, *(["logits"] if "logits" in keep else []))}
        out = self.call(folder, ids, mask, {**arguments, **shown})
        case = {"folder": folder, "name": name, "arguments": arguments, "arrays": {}}
        self.cases.append(case)
        fields: dict[str, Any] = {"input_ids": ids} | ({} if mask is None else {"attention_mask": mask})
        for field in keep:
            value = out[field]
            if isinstance(value, tuple) and isinstance(value[0], tuple):  # of each step and layer
                fields |= {f"{field}.{step}": torch.stack(layers).numpy() for step, layers in enumerate(value)}
            else:
                fields[field] = torch.stack(value).numpy() if isinstance(value, tuple) else value.numpy()
        for field, array in fields.items():
            pool, dtype = ("floats", np.float32) if array.dtype.kind == "f" else ("integers", np.int16)
            case["arrays"][field] = [pool, sum(x.size for x in self.pools[pool]), array.shape]
            self.pools[pool].append(array.astype(dtype).reshape(-1))
        return out

    def ends(self, folder: str, inputs: tuple[np.ndarray, np.ndarray | None], length: int) -> list[int]:
        """Two tokens that beams often make: as ends of texts they cut rows at different places."""
        ids, mask = inputs
        out = self.call(
            folder, ids, mask, {"num_beams": 4, "max_new_tokens": length, "num_return_sequences": 4, **NEVER(folder)}
        )
        prompt = 1 if folder in PAIRS else ids.shape[1]
        counts = Counter(out.sequences[:, prompt + 1 : -1].reshape(-1).tolist())
        return [token for token, _ in counts.most_common(6)[2:6:3]]

    def write(self, name: str) -> None:
        path, cases = HERE / name, np.frombuffer(json.dumps(self.cases).encode(), np.uint8)
        np.savez_compressed(path, cases=cases, **{pool: np.concatenate(parts) for pool, parts in self.pools.items()})
        print(f"{name}: {len(self.cases)} cases, {path.stat().st_size:,} bytes")


def NEVER(folder: str) -> dict[str, Any]:
    """Arguments by which no text ends early: the file's end of a text is a token that cannot be made."""
    return {
        "eos_token_id": 38,
        "suppress_tokens": [38, *([1] if folder == "roberta_causal" else [])],
        "pad_token_id": 3,
    }


def prompts(folder: str, lengths: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """Padded on the left, or on the right for an encoder; without a mask where nothing is padded."""
    rng = np.random.default_rng([seed, *folder.encode()])
    ids = rng.integers(4, 38, (len(lengths), max(lengths)))
    mask = np.zeros_like(ids)
    for of_row, n in zip(mask, lengths, strict=True):
        of_row[:n] = 1
    if folder not in PAIRS:
        mask = mask[:, ::-1].copy()
    return np.where(mask == 1, ids, 3), None if mask.all() else mask


def families(r: Recorder) -> None:
    for folder in (*DECODERS, *PAIRS):
        pair = folder in PAIRS
        length = 8 if pair or folder == "phi3_lm" else 7
        ragged = prompts(folder, (5, 5, 5) if folder in EVEN else (7, 3, 5) if pair else (5, 3, 1))
        some = {**NEVER(folder), "max_new_tokens": length}
        r.add(folder, "greedy", ragged, ("sequences", "scores"), **some)
        if folder == "phi3_lm":
            r.add(folder, "long", prompts(folder, (10, 10)), ("sequences", "scores"), **some)
        eos = r.ends(folder, ragged, length)
        ending = {**some, "eos_token_id": eos}
        keep = ("sequences", "sequences_scores", "beam_indices")
        r.add(folder, "greedy_ends", ragged, **ending)
        r.add(folder, "beam_3", ragged, keep, num_beams=3, **ending)
        r.add(folder, "beam_4", ragged, keep, num_beams=4, num_return_sequences=3, early_stopping=True, **ending)
        if folder != "roberta_causal":  # whose default length in the library is beyond its own positions
            r.add(folder, "default", prompts(folder, (3,)), num_beams=2)
    r.add(
        "gpt2_lm",
        "inferred",
        (prompts("gpt2_lm", (5, 3, 1))[0], None),
        pad_token_id=3,
        max_new_tokens=5,
        eos_token_id=30,
    )


def beams(r: Recorder) -> None:
    """Where the three modes of early stopping have three results, and other length penalties."""
    for folder in ("gpt2_lm", "llama_lm", "bart_scaled", "marian_lm", "t5_lm"):
        length = 9 if folder == "gpt2_lm" else 10
        most = 0
        for seed in range(300):
            candidate = prompts(folder, (7, 3, 5) if folder in PAIRS else (3, 2, 1), seed=seed)
            eos = r.ends(folder, candidate, length)
            given = {**NEVER(folder), "max_new_tokens": length, "eos_token_id": eos}
            given |= {"num_beams": 3, "num_return_sequences": 2}
            results = {
                r.call(folder, *candidate, {**given, "early_stopping": early, "length_penalty": 2.0})
                .sequences.numpy()
                .tobytes()
                for early in (False, True, "never")
            }
            if len(results) > most:
                most, inputs, some, eos_of = len(results), candidate, given, eos
            if most == 3:
                break
        print(folder, "has", most, "different results of early stopping, seed", seed)
        keep = ("sequences", "sequences_scores", "beam_indices")
        for early in (False, True, "never"):
            for penalty in (-1.0, 0.0, 0.5, 2.0):
                r.add(folder, f"{early}_{penalty}", inputs, keep, early_stopping=early, length_penalty=penalty, **some)
        r.add(folder, "one_eos", inputs, keep, **{**some, "eos_token_id": eos_of[0]})


def inside(r: Recorder) -> None:
    """What each step looks at, and is made of."""
    decoders = ("sequences", "scores", "logits", "attentions", "hidden_states")
    pairs = (
        "decoder_attentions",
        "cross_attentions",
        "decoder_hidden_states",
        "encoder_attentions",
        "encoder_hidden_states",
    )
    for options in ({}, {"num_beams": 2}):
        some = {**NEVER(""), "max_new_tokens": 3, **options}
        r.add("gpt2_lm", "inside", prompts("gpt2_lm", (4, 2)), decoders, **some)
        r.add("bart_scaled", "inside", prompts("bart_scaled", (5, 3)), (*decoders[:3], *pairs), **some)


def scores(r: Recorder) -> None:
    for folder in ("gpt2_lm", "imagegpt_lm", "llama_lm", "bart_scaled"):
        pair = folder in PAIRS
        # no padding: in the library it counts as tokens of n-grams and of what the encoder reads
        inputs = prompts(folder, (6, 6) if pair else (4, 4), seed=2)
        base = r.call(folder, *inputs, {**NEVER(folder), "max_new_tokens": 7, "pad_token_id": 3})
        often = Counter(base.sequences.reshape(-1).tolist()).most_common(3)
        first = 1 if pair else inputs[0].shape[1]
        for name, given in PROCESSORS.items():
            some = {**NEVER(folder), "max_new_tokens": 7, **given}
            if name.startswith("min_"):
                some["eos_token_id"] = [token for token, _ in often]
            if name == "decay":
                some["eos_token_id"] = [13, 14]
            if name == "bias":
                pairs = [[[a, b], -2.0] for a, b in base.sequences[:, -3:-1].tolist()]
                some["sequence_bias"] = [*given["sequence_bias"], *pairs]
            if name == "suppress":
                some["begin_suppress_tokens"] = base.sequences[:, first].tolist()
            its = inputs
            if name.startswith("forced_bos") and not pair:  # it acts behind a single token
                its = prompts(folder, (1, 1), seed=2)
            elif name.startswith("encoder"):  # what the model likes to say
                its = base.sequences[:, first - 1 : first + 4].numpy(), None
                if not pair:  # what follows the first token may not follow the last
                    its[0][:, -1] = its[0][:, 0]
            plain = r.call(folder, *its, {n: v for n, v in some.items() if n not in given})
            keep = ("sequences", "scores") if folder in ("gpt2_lm", "bart_scaled") else ("sequences",)
            out = r.add(folder, name, its, keep, **some)
            assert len(out.scores) != len(plain.scores) or any(
                not torch.equal(a, b) for a, b in zip(out.scores, plain.scores, strict=True)
            ), (folder, name)
            r.add(folder, name + "_beams", its, ("sequences", "sequences_scores"), num_beams=3, **some)
        words = [[often[0][0]], base.sequences[0, -3:-1].tolist(), base.sequences[1, -4:-1].tolist(), [38]]
        r.add(
            folder,
            "bad_words",
            inputs,
            ("sequences", "scores"),
            bad_words_ids=words,
            **{**NEVER(folder), "max_new_tokens": 7},
        )
    ragged = prompts("gpt2_lm", (5, 3, 1), seed=3)
    r.add(
        "gpt2_lm",
        "repetition_ragged",
        ragged,
        ("sequences", "scores"),
        repetition_penalty=1.7,
        max_new_tokens=7,
        **NEVER(""),
    )


def sampling(r: Recorder) -> None:
    """The distribution that the first token is drawn from."""
    for folder in ("gpt2_lm", "gemma2_lm", "bart_scaled"):
        inputs = prompts(folder, (5, 3, 4), seed=4)
        for name, given in FILTERS.items():
            for extra in ({}, {"num_beams": 2}):
                some = {**NEVER(folder), "max_new_tokens": 1, "do_sample": True, **given, **extra}
                r.add(folder, name, inputs, ("scores",), **some)


def version_4(r: Recorder) -> None:
    for folder in GROUPS:
        inputs = prompts(folder, (7, 3, 5) if folder in PAIRS else (4, 4, 4), seed=5)
        eos = r.ends(folder, inputs, 7)
        some = {**NEVER(folder), "max_new_tokens": 7, "eos_token_id": eos}
        keep = ("sequences", "sequences_scores")
        for beams, groups in ((4, 2), (3, 3), (6, 2)):
            for early, penalty in ((False, 1.0), (True, 0.5), ("never", 2.0)):
                r.add(
                    *(folder, f"groups_{beams}_{groups}_{early}", inputs, keep),
                    **{**some, "num_beams": beams, "num_beam_groups": groups, "early_stopping": early},
                    length_penalty=penalty,
                    diversity_penalty=0.7,
                    num_return_sequences=beams - 1,
                )
        # groups that are done count as choosing the padding token
        made = r.cases[-1]["arrays"]["sequences"]
        likely = Counter(np.concatenate(r.pools["integers"])[made[1] :][: int(np.prod(made[2]))].tolist())
        pad = next(
            token for token, _ in likely.most_common() if token not in {*eos, 3, *inputs[0].reshape(-1).tolist()}
        )
        groups = {"num_beams": 4, "num_beam_groups": 4, "early_stopping": True, "diversity_penalty": 2.5}
        r.add(folder, "groups_pad", inputs, keep, **{**some, "pad_token_id": pad, **groups}, num_return_sequences=4)
        more = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "num_beams": 4, "num_beam_groups": 2}
        r.add(folder, "groups_processors", inputs, keep, diversity_penalty=1.5, num_return_sequences=2, **more, **some)
    folder = "transfo_xl_lm"
    inputs = prompts(folder, (4, 4, 4), seed=6)
    some = {"suppress_tokens": [0], "max_new_tokens": 9, "pad_token_id": 3}
    r.add(folder, "greedy", inputs, ("sequences", "scores"), **some)
    r.add(folder, "beam_3", inputs, num_beams=3, num_return_sequences=2, **some)
    r.add(folder, "ngram_2", inputs, ("sequences", "scores"), no_repeat_ngram_size=2, **some)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    r = Recorder()
    if NEW:
        for part in (families, beams, inside, scores, sampling):
            part(r)
        r.write("generate.npz")
    else:
        version_4(r)
        r.write("generate_4.npz")


if __name__ == "__main__":
    sys.exit(main())
