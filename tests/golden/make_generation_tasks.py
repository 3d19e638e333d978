"""Record what transformers' pipelines that generate text return for the tiny checkpoints next to this file:
generation_tasks/expected_5.json, and expected_4.json for the tasks that only version 4 has.

Run, once with each version (tests read the recorded files and need neither torch nor transformers):

    pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0 jinja2
    HF_HUB_OFFLINE=1 python tests/golden/make_generation_tasks.py
    pip install torch==2.13.0 transformers==4.35.2 "numpy<2" safetensors==0.8.0
    HF_HUB_OFFLINE=1 python tests/golden/make_generation_tasks.py

generation_tasks/models.json   name -> [checkpoint, its tokenizer, more for config.json, tokenizer_config.json,
                               generation_config.json or null]
generation_tasks/<name>.json   a tokenizer of 40 tokens
generation_tasks/expected_*    a list of {model, task, made (arguments of pipeline), given (of the call), inputs,
                               outputs}
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

HERE = Path(__file__).parent
TASKS = HERE / "generation_tasks"
NEW = int(transformers.__version__.split(".")[0]) > 4
SIZE = 40
# bytes as byte-level BPE writes them: Ġ is a space, Ċ a new line, Ã© an é and Ã¨ an è
CHARACTERS = ["Ġ", "Ċ", *"abcdefgh.,'!?", "Ã", "©", "¨", *"nt"]
MERGES = [("a", "b"), ("Ġ", "a"), ("Ġ", "b"), ("n", "'"), ("c", "d"), ("Ġa", "b"), ("e", "f"), ("Ġ", "c"), ("Ġ", ".")]
CHAT = (
    "{% for message in messages %}<{{ message['role'][0] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
CHATS = [
    [{"role": "user", "content": "ab cd"}],
    [{"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "é. cd"}],
    [{"role": "user", "content": "ef"}, {"role": "assistant", "content": "ab"}],
]
BEAMS = {"num_beams": 3, "length_penalty": 0.0}  # versions 4 and 5 have other notions of a beam's length
T5_TASKS = {
    "summarization": {"prefix": "ab: ", "max_length": 9, "min_length": 4, "early_stopping": True} | BEAMS,
    "translation_en_to_de": {"prefix": "cd e: ", "max_length": 12} | BEAMS,
    "translation_en_to_fr": {"prefix": "f: ", "max_length": 7},
}
PAD = {"pad_token": "<pad>"}
LONGER = {"repetition_penalty": 1.7}  # so that texts are not one token over and over
EARLY = {"max_length": 9, "do_sample": False, "eos_token_id": [2, 14, 21]}
T5 = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_new_tokens": 6} | BEAMS | LONGER
BART = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "forced_eos_token_id": 2, "max_length": 10}
MARIAN = {"decoder_start_token_id": 39, "eos_token_id": 0, "pad_token_id": 39, "max_length": 10} | BEAMS
# name -> checkpoint, tokenizer, more for config.json, tokenizer_config.json, generation_config.json
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "llama": ("llama_lm", "llama", {}, PAD | {"chat_template": CHAT}, None),
    "llama_prefix": ("llama_lm", "llama", {"prefix": "ef ab"}, PAD, None),
    "llama_says": ("llama_lm", "llama", {}, {}, EARLY),
    "gpt2": ("gpt2_lm", "gpt2", {}, {"model_max_length": 12}, None),
    "t5": ("t5_lm", "t5", {"task_specific_params": T5_TASKS} | LONGER, PAD | {"model_max_length": 8}, None),
    "t5_plain": ("t5_lm", "t5", {"prefix": "b "}, PAD, T5),
    "bart": ("bart_scaled", "bart", {}, PAD | {"model_max_length": 12}, BART | LONGER),
    "mbart": ("mbart_lm", "mbart", {}, {"tokenizer_class": "MBartTokenizer"}, BART | {"no_repeat_ngram_size": 1}),
    "marian": ("marian_lm", "marian", {}, PAD, MARIAN | LONGER | {"bad_words_ids": [[39]]}),
}
PROMPTS = ["ab cd", "a", "é, ab ab. cdefgh", " b"]
SHORT = ["ab cd", "a", "é b", " b"]
GREEDY = {"do_sample": False, "max_new_tokens": 6}


def new_cases() -> list[tuple[str, str, dict[str, Any], dict[str, Any], Any]]:
    task = "text-generation"
    given: list[tuple[str, dict[str, Any], Any]] = [
        ("llama", GREEDY, "ab cd"),
        ("llama", GREEDY, PROMPTS),
        ("llama", GREEDY, ["ab"]),
        ("llama", GREEDY | {"return_full_text": False}, PROMPTS),
        ("llama", GREEDY | {"return_tensors": True}, PROMPTS),
        ("llama", GREEDY | {"return_text": True}, "ab"),
        ("llama", GREEDY | {"num_beams": 3, "num_return_sequences": 2}, PROMPTS),
        ("llama", GREEDY | {"prefix": "cd "}, PROMPTS),
        ("llama", {"do_sample": False, "max_length": 9, "prefix": "cd "}, SHORT),
        ("llama", {"do_sample": False, "max_length": 12, "min_length": 10}, SHORT),
        ("llama", {"do_sample": False, "max_length": 5}, ["ab", "é", "b a"]),
        ("llama", GREEDY | {"stop_sequence": "n"}, PROMPTS),
        ("llama", GREEDY | {"stop_sequence": ["cd", "."]}, PROMPTS),
        ("llama", {"top_k": 1, "max_new_tokens": 5}, PROMPTS),
        ("llama", {"top_k": 1}, "ab"),
        ("llama", GREEDY | {"max_new_tokens": 12, "eos_token_id": [14, 21]}, PROMPTS),
        ("llama", GREEDY | {"max_new_tokens": 12, "eos_token_id": [14, 21], "return_tensors": True}, PROMPTS),
        ("llama", GREEDY | {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": [5, 14]}, PROMPTS),
        ("llama", GREEDY | {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": [5, 14], "return_tensors": True},
         PROMPTS),
        ("llama", GREEDY | {"repetition_penalty": 1.8}, PROMPTS),
        ("llama", GREEDY | {"no_repeat_ngram_size": 1}, PROMPTS),
        ("llama", GREEDY | {"skip_special_tokens": False, "eos_token_id": 9}, PROMPTS),
        ("llama", GREEDY | {"clean_up_tokenization_spaces": True}, PROMPTS),
        ("llama", GREEDY | {"add_special_tokens": False}, PROMPTS),
        ("llama", GREEDY | {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 3}}, PROMPTS),
        ("llama", GREEDY, ""),
        ("llama", GREEDY | {"add_special_tokens": False}, ["ab", "", "cd ab"]),
        ("llama", GREEDY | {"add_special_tokens": False, "return_tensors": True}, ["ab", "", "cd ab"]),
        ("llama", GREEDY, CHATS[0]),
        ("llama", GREEDY, CHATS),
        ("llama", GREEDY | {"return_full_text": False}, CHATS),
        ("llama", GREEDY | {"return_tensors": True}, CHATS),
        ("llama", GREEDY | {"continue_final_message": False}, CHATS[2]),
        ("llama", GREEDY | {"continue_final_message": True}, CHATS[0]),
        ("llama", GREEDY | {"num_beams": 2, "num_return_sequences": 2}, CHATS[1]),
        ("llama_prefix", GREEDY, PROMPTS),
        ("llama_prefix", GREEDY | {"prefix": "b"}, PROMPTS),
        ("llama_prefix", {"do_sample": False, "max_length": 12}, SHORT),
        ("llama_says", {}, ["ab cd", "a", " b"]),
        ("llama_says", {"max_new_tokens": 3}, PROMPTS),
        ("llama_says", {"max_length": 11}, ["ab cd", "a", " b"]),
        ("llama_says", {"num_beams": 2}, ["ab cd", "a", " b"]),
        ("gpt2", {"do_sample": False, "max_new_tokens": 4}, ["ab cd", "a b", "cd"]),
        ("gpt2", {"do_sample": False, "max_new_tokens": 4, "handle_long_generation": "hole"}, [*PROMPTS, "ab cd" * 5]),
        ("gpt2", {"do_sample": False, "max_length": 10}, ["ab cd", "a b", "cd"]),
        ("gpt2", {"do_sample": False, "max_new_tokens": 3}, ["", "ab"]),
    ]  # fmt: skip
    made: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
        ("llama", GREEDY | {"return_full_text": False, "max_new_tokens": 3}, {}, PROMPTS),
        ("llama", GREEDY | {"num_beams": 3}, {"max_new_tokens": 4, "num_return_sequences": 2}, PROMPTS),
        ("llama", GREEDY | {"prefix": "cd"}, {"prefix": "b"}, PROMPTS),
        ("llama", {"max_length": 9, "do_sample": False}, {"max_new_tokens": 3}, ["ab", "cd e"]),
        ("llama", GREEDY, {"generation_config": {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}}, PROMPTS),
    ]
    return [(model, task, {}, options, inputs) for model, options, inputs in given] + [
        (model, task, first, options, inputs) for model, first, options, inputs in made
    ]


def old_cases() -> list[tuple[str, str, dict[str, Any], dict[str, Any], Any]]:
    texts = ["ab cd", "a", "ef gh, ab", ""]
    cases: list[tuple[str, str, dict[str, Any], Any]] = []
    for model in ("t5", "t5_plain", "bart", "marian"):
        for task in ("text2text-generation", "summarization", "translation_en_to_de"):
            cases += [(model, task, {}, "ab cd"), (model, task, {}, texts)]
    for model in ("t5", "bart", "marian"):
        task = "translation_en_to_fr" if model == "t5" else "translation"
        cases += [
            (model, task, {}, texts),
            (model, task, {"max_new_tokens": 5}, texts),
            (model, task, BEAMS | {"num_return_sequences": 2}, texts),
            (model, task, BEAMS | {"num_return_sequences": 2}, "ab cd"),
            (model, task, {"return_tensors": True}, texts),
            (model, task, BEAMS | {"return_tensors": True, "num_return_sequences": 3}, texts),
            (model, task, {"clean_up_tokenization_spaces": True, "max_length": 9}, texts),
            (model, task, BEAMS | {"truncation": True}, "ab cd ef gh ab" if model == "t5" else "ab cd"),
            (model, task, {"min_length": 8, "max_length": 10}, texts),
            (model, task, {"stop_sequence": "b"}, texts),
            (model, task, {"repetition_penalty": 2.0, "no_repeat_ngram_size": 2}, texts),
            (model, task, {"src_lang": "x", "tgt_lang": "y"}, texts),
        ]
    cases.append(("t5", "translation", {}, texts))  # stands for translation_en_to_de
    codes = "en_XX", "de_DE"
    for source, target in (codes, codes[::-1]):
        languages = {"src_lang": source, "tgt_lang": target}
        cases += [
            ("mbart", "translation", languages, texts),
            ("mbart", "translation", languages | {"return_tensors": True, "truncation": True}, "ab cd"),
        ]
    cases.append(("mbart", "summarization", {}, texts))
    return [(model, task, {}, options, inputs) for model, task, options, inputs in cases]


# ---- tokenizers ---------------------------------------------------------------------------------------


def _bpe(special: dict[int, str], end: str | None) -> Tokenizer:
    tokens = [*CHARACTERS, *("".join(pair) for pair in MERGES)]
    free = [i for i in range(SIZE) if i not in special]
    vocabulary = {token: i for token, i in zip(tokens, free, strict=False)}
    assert len(tokens) <= len(free)
    vocabulary |= {token: i for i, token in special.items()}
    vocabulary |= {f"<{i}>": i for i in free[len(tokens) :]}
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    if end is not None:
        start, stop = end.split()
        template = f"{start} $A" + ("" if stop == "-" else f" {stop}")
        ids = [(token, vocabulary[token]) for token in (start, stop) if token != "-"]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


def _unigram(special: dict[int, str], unk: str, end: str) -> Tokenizer:
    free = iter(["▁", *(f"▁{c}" for c in "abcef"), *"abcdefgh.,:'nt", "ab", "cd", "▁ab", "n't", "▁.", "gh", "ef"])
    vocabulary = [(special.get(i) or next(free, f"<{i}>"), 0.0 if i in special else -1 - i / 7) for i in range(SIZE)]
    ids = {token: i for i, (token, _) in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.Unigram(vocabulary, ids[unk]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(special.values()))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, ids[end])])
    return tokenizer


def write_inputs() -> None:
    TASKS.mkdir(exist_ok=True)
    chat, codes = {36: "<u>", 37: "<a>", 38: "<end>"}, {37: "en_XX", 38: "de_DE"}
    tokenizers = {
        "llama": _bpe({0: "<pad>", 1: "<s>", 2: "</s>", **chat}, "<s> -"),
        "gpt2": _bpe({39: "<|endoftext|>"}, None),
        "bart": _bpe({0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}, "<s> </s>"),
        "t5": _unigram({0: "<pad>", 1: "</s>", 2: "<unk>"}, "<unk>", "</s>"),
        "mbart": _unigram({0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>", **codes, 39: "<mask>"}, "<unk>", "</s>"),
        "marian": _unigram({0: "</s>", 1: "<unk>", 39: "<pad>"}, "<unk>", "</s>"),
    }
    for name, tokenizer in tokenizers.items():
        content = json.loads(tokenizer.to_str())
        if "merges" in content["model"]:  # as all versions of the library read them
            content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        for part in ("pre_tokenizer", "decoder"):
            if content[part]["type"] == "Metaspace":
                content[part] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
        (TASKS / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False) + "\n")
    (TASKS / "models.json").write_text(json.dumps(MODELS, indent=1) + "\n")


# ---- recording ----------------------------------------------------------------------------------------


def folder(target: Path, name: str) -> str:
    checkpoint, tokenizer, config, settings, generation = json.loads((TASKS / "models.json").read_text())[name]
    shutil.copytree(HERE / checkpoint, target)
    content = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(content))
    shutil.copy(TASKS / f"{tokenizer}.json", target / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | settings
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    if generation is not None:
        (target / "generation_config.json").write_text(json.dumps(generation))
    return str(target)


def plain(value: Any) -> Any:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if NEW:
        write_inputs()
    expected = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: folder(Path(temporary) / name, name) for name in MODELS}
        for model, task, made, given, inputs in new_cases() if NEW else old_cases():
            pipe = transformers.pipeline(task, folders[model], **made)
            arguments = dict(given)
            if "generation_config" in given:
                arguments["generation_config"] = transformers.GenerationConfig(**given["generation_config"])
            outputs = plain(pipe(inputs, **arguments))
            case = {"model": model, "task": task, "made": made, "given": given, "inputs": inputs, "outputs": outputs}
            expected.append(case)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in expected)
    path = TASKS / f"expected_{5 if NEW else 4}.json"
    path.write_text(f"[\n{lines}\n]\n")
    print(len(expected), "calls;", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
