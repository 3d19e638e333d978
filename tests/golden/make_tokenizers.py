"""Record what the tokenizers of transformers make of texts: tokenizers/ next to this file.

Run (tests read the recorded files and need none of these), first where sentencepiece and tokenizers are, then in an
environment for each of the two versions, because version 5 has no Transformer-XL and reads some files otherwise:

    pip install sentencepiece==0.2.3 tokenizers==0.23.3
    python tests/golden/make_tokenizers.py build
    pip install transformers==5.24.0 torch sentencepiece gguf jinja2
    HF_HUB_OFFLINE=1 python tests/golden/make_tokenizers.py record
    pip install transformers==4.35.2 torch sentencepiece protobuf sacremoses
    HF_HUB_OFFLINE=1 python tests/golden/make_tokenizers.py record

tokenizers/<vocabulary>/       the files that a tokenizer reads, trained on CORPUS
tokenizers/cases.json          <case>: its vocabulary, model_type and tokenizer_config.json
tokenizers/pairs.json          the pairs that are encoded
tokenizers/expected_5.json.gz  <case>: what transformers 5.24 makes of texts and pairs
tokenizers/expected_4.json.gz  <case>: what transformers 4.35.2 makes of them, with its slow tokenizers where there is
                               no merges.txt
tokenizers/gguf.json.gz        <case>: metadata of a GGUF file, and what transformers 5.24 makes of texts with it
tokenizers/chats.json.gz       what transformers 5.24 makes of CHATS
tokenizers/tools.json.gz       the JSON schemas that it makes of the functions of tests/tool_functions.py
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "tokenizers"
CORPUS = """The quick brown fox jumps over the lazy dog. Hello world! How are you today? I'm fine, thanks; it's 12,345.
Le renard brun rapide saute par-dessus le chien paresseux. Ça va? Où est l'école? Voilà, déjà vu.
Der schnelle braune Fuchs springt über den faulen Hund. Größe, Straße und Äpfel.
日本語のテキストも少しあります。世界こんにちは。
A test of 1 2 3 2024 1,000 3.14 and e-mail: a@b.c http://x.y/z?q=1 too.
Jack said: ``quoted'' text (parentheses) [brackets] {braces} "here" and there.
hello hello world world the the the and and it it is is was not don't can't we've they're I'll
tests testing tested walk walking walked talk talking talked low lower lowest new newer newest"""
TEXTS = [
    "Hello world!",
    "The quick brown fox doesn't jump over 12,345 lazy dogs.",
    "  leading and   many    spaces  ",
    "tabs\tand\nnew\r\nlines\n\n\nend",
    "Ça va? Où est l'école? Größe ÄÖÜ",
    "e\u0301clair \ufb01ne \u2026 \uff21\uff22 full\u3000width\u00a0nbsp",
    "日本語のテキスト 世界",
    "emoji 😀👍🏽 and 🇫🇷 flags",
    "a@b.c http://x.y/z?q=1 1,000,000 3.14",
    "I'll can't we've THEY'RE I'M",
    "unknown: ж ק ∑ ≠",
    "",
    " ",
    "x",
    "``quoted'' (parens) [br] {x} -- ~ ___ ***",
    "zero\u200bwidth \u0000 control \u0007 \ufeff",
]
PAIRS = [("Hello world!", "How are you today?"), ("the test", ""), ("a b c d e f g", "The lazy dog jumps.")]
SPM_RULES = [("2026", "2E 2E 2E"), ("FB01", "66 69"), ("A0", "20"), ("3000", "20"), ("65 301", "E9"), ("9", "20")]
SPM_RULES += [("A", "20"), ("D", "20"), ("200B", "20"), *((f"{0xFF21 + i:X}", f"{0x41 + i:X}") for i in range(26))]
LLAMA = {"tokenizer_class": "LlamaTokenizer"}
# <case>: its vocabulary, model_type, tokenizer_config.json
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("wordpiece", "bert", {}),
    "bert_cased": ("wordpiece", "bert", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}),
    "bert_accents": (
        "wordpiece",
        "bert",
        {"strip_accents": False, "tokenize_chinese_chars": False, "tokenizer_class": "BertTokenizer"},
    ),
    "distilbert": ("wordpiece", "distilbert", {"tokenizer_class": "DistilBertTokenizer", "model_max_length": 9}),
    "electra": ("wordpiece", "electra", {"tokenizer_class": "ElectraTokenizer"}),
    "gpt2": ("bytes", "gpt2", {}),
    "gpt2_prefix": ("bytes", "gpt2", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
    "roberta": ("bytes_roberta", "roberta", {}),
    "bart": ("bytes_roberta", "bart", {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}),
    "qwen2": ("bytes", "qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
    "ctrl": ("ctrl", "ctrl", {}),
    "gpt": ("gpt", "openai-gpt", {}),
    "t5": ("spm_t5", "t5", {}),
    "t5_few": ("spm_t5", "t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 5}),
    "albert": ("spm_albert", "albert", {}),
    "albert_cased": (
        "spm_albert",
        "albert",
        {"tokenizer_class": "AlbertTokenizer", "do_lower_case": False, "keep_accents": True},
    ),
    "xlmroberta": ("spm_fairseq", "xlm-roberta", {}),
    "camembert": ("spm_fairseq", "camembert", {}),
    "mbart": ("spm_fairseq", "mbart", {"tokenizer_class": "MBartTokenizer", "src_lang": "fr_XX", "tgt_lang": "en_XX"}),
    "mbart50": (
        "spm_fairseq",
        "mbart",
        {"tokenizer_class": "MBart50Tokenizer", "src_lang": "de_DE", "tgt_lang": "en_XX"},
    ),
    "marian": ("marian", "marian", {}),
    "llama": ("spm_llama", "llama", {**LLAMA, "legacy": False, "add_bos_token": True}),
    "llama_plain": ("spm_llama", "llama", {}),
    "llama_legacy": ("spm_llama", "llama", {**LLAMA, "legacy": True, "add_bos_token": True, "add_eos_token": True}),
    "mistral": ("spm_llama", "mistral", {**LLAMA, "add_bos_token": True, "add_eos_token": False}),
    "gemma": ("spm_gemma", "gemma2", {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}),
    "transfo_xl": ("words", "transfo-xl", {"tokenizer_class": "TransfoXLTokenizer"}),
    "transfo_xl_lower": ("words", "transfo-xl", {"tokenizer_class": "TransfoXLTokenizer", "lower_case": True}),
}

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = """{%- set ns = namespace(found=false, last=0) %}
{%- if tools %}
    {{- "# Tools: " ~ (tools | length) }}
    {%- for tool in tools %}
        {{- "\\n" + (tool | tojson(indent=2)) }}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{% for message in messages -%}
    {%- if message.role == "tool" %}{% continue %}{% endif %}
    {%- set ns.last = loop.index %}
    {% generation %}{{ message.content | trim | upper }}{% endgeneration %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
{% endfor %}
{{- ns.last }} {{ dict(a=1) | tojson }} {{ "<é>" | tojson }} {{ documents | length if documents }}
{%- macro twice(text) %}{{ text ~ text }}{% endmacro %}{{ twice("ab") }}
{%- set block %}in a block{% endset %}{{ block }} {{ range(5) | select("odd") | list }} {{ flag }}
"""
# what templates may do besides: filters, methods, operators
PIECES = [
    "{{ messages | map(attribute='role') | join }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ 'aXbX' | replace('X', '--', 1) }}{{ 'aXb'.replace('X', '') }}{{ '-'.join(['a', 'b']) }}{{ 'ab' | join('-') }}",
    "{{ [{'n': 1}, {'n': 2}] | join('+', attribute='n') }}{{ 'a,b'.split(',')[::-1] }}{{ ('a', 1) }}{{ {'a': (1,)} }}",
    "{{ '%s-%05d-%.2f' % ('a', 42, 1.5) }}{{ '%(a)s%(a)s' % {'a': 1} }}{{ '%s' | format(1) }}{{ '%d' % 10 ** 9 }}",
    "{{ '{}: {!r:>6} {x}'.format('k', 'v', x=2) }}{{ '{0}{0}'.format('a') }}{{ '{:d}'.format(1700000000) }}",
    "{{ range(3) | batch(2, 'f') | list }}{{ range(5) | slice(2) | list }}{{ 'x' | center(9) }}{{ 3.141 | round(1) }}",
    "{{ 'a\nb' | indent(2, true) }}{{ 'aa bb cc' | wordwrap(3) }}{{ [[1], [2]] | sum(start=[]) }}",
    "{{ {'b': 1, 'a': [2]} | dictsort }}{{ {'b': 1}.items() | list }}{{ dict(a=1, **{'b': 2}) }}{{ 2 ** 10 }}",
    "{{ messages | tojson(indent=2) }}{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) ~ ')' if x is iterable else x }}{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a * b }}{{ loop.last }}{{ loop.cycle('x', 'y') }}{% endfor %}",
    "{% for m in messages | reverse %}{{ m.role }}{{ loop.length }}{% endfor %}{{ cycler('a', 'b').next() }}",
    "{% macro f(x) %}<{{ x }}{{ caller(1) if caller }}>{% endmacro %}{{ f(1) }}{% call(z) f(3) %}c{{ z }}{% endcall %}",
    "{% filter upper | replace('A', 'bb') %}aaa{{ 1 }}{% endfilter %}{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set ns = namespace(a=[]) %}{% for m in messages %}{% set ns.a = ns.a + [m.role] %}{% endfor %}{{ ns.a }}",
    "{{ 'a' ~ 1 ~ none ~ [1] ~ nothing }}{{ 'x' is in 'xy' }}{{ [1, 2, 3] | select('odd') | map('string') | list }}",
]
THINK = (
    "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}\n{% endfor %}"
)
CHAT = [
    {"role": "user", "content": " Hi there "},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye <é>"},
]
SYSTEM = [{"role": "system", "content": "Be kind"}, *CHAT]
ANSWER = [*CHAT, {"role": "assistant", "content": "See you "}]
PARTS = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text", "text": "so it"}]}]
SCHEMA = [{"type": "function", "function": {"name": "f", "parameters": {"é": [1, 2.5, None, True]}}}]
# template, messages, options
CHATS: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    (CHATML, CHAT, {}),
    (CHATML, SYSTEM, {"add_generation_prompt": True}),
    (CHATML, ANSWER, {"continue_final_message": True}),
    (CHATML, [{"role": "user", "content": None, "other": 1}], {}),
    (LLAMA2, CHAT, {}),
    (LLAMA2, ANSWER, {"continue_final_message": True}),
    (LLAMA2, SYSTEM, {}),
    (LLAMA2, CHAT[1:], {}),
    (TOOLS, CHAT, {"tools": SCHEMA, "documents": [{"title": "t", "text": "x"}], "flag": "yes"}),
    (TOOLS, [*CHAT, {"role": "tool", "content": "r"}, *CHAT], {}),
    (THINK, [{"role": "assistant", "content": "a", "thinking": "hm"}, *CHAT], {}),
    (THINK, [{"role": "assistant", "content": "a", "reasoning": "so"}], {"continue_final_message": "reasoning"}),
    ("{{ messages[-1].content[0].text }}!", PARTS, {"continue_final_message": True}),
    ("{{ bos_token }}{{ unk_token }}{{ pad_token }}{{ messages[0].nothing }}", CHAT, {}),
    ("{% for m in messages %}\n  {% if m %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\n", CHAT, {}),
    ("{{ undefined_name.attribute }}", CHAT, {}),
    ("{% if %}", CHAT, {}),
    ("{{ ''.__class__.__mro__ }}", CHAT, {}),
    ("{{ messages.append(1) }}", CHAT, {}),
    *((piece, CHAT, {}) for piece in PIECES),
]

# <case>: vocabulary, general.architecture, metadata
GGUF: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("bytes", "llama", {"pre": "gpt-2"}),
    "llama3": ("bytes", "llama", {"pre": "llama-bpe", "add_bos_token": True}),
    "qwen2": ("bytes", "qwen2", {"pre": "qwen2", "add_bos_token": False}),
    "tekken": ("bytes", "llama", {"pre": "tekken", "add_bos_token": True, "add_eos_token": True}),
    "llama": ("spm_llama", "llama", {"pre": "default"}),
    "phi3": ("spm_llama", "phi3", {"add_bos_token": False}),
    "gemma2": ("spm_gemma", "gemma2", {"add_space_prefix": False, "add_bos_token": True}),
}


def build() -> None:
    shutil.rmtree(HERE, ignore_errors=True)
    for name, make in VOCABULARIES.items():
        (HERE / name).mkdir(parents=True)
        make(HERE / name)
    (HERE / "cases.json").write_text(json.dumps(CASES))
    (HERE / "pairs.json").write_text(json.dumps(PAIRS))


def spm(path: Path, **options: Any) -> None:
    import sentencepiece

    with tempfile.TemporaryDirectory() as temporary:
        corpus, rules = Path(temporary, "corpus"), Path(temporary, "rules")
        corpus.write_text(CORPUS)
        rules.write_text("".join(f"{a}\t{b}\n" for a, b in SPM_RULES))
        if "normalization_rule_name" not in options:
            options["normalization_rule_tsv"] = str(rules)
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(Path(temporary, "out")),
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        shutil.copy(Path(temporary, "out.model"), path)


def spm_bpe(path: Path, **options: Any) -> None:
    spm(
        path,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        **options,
    )


def marian(folder: Path) -> None:
    """Two spm files that share vocab.json, as OPUS-MT has them, with some pieces that it lacks."""
    import sentencepiece

    pieces: dict[str, None] = {}
    for side, size in (("source", 170), ("target", 140)):
        spm(folder / f"{side}.spm", model_type="unigram", vocab_size=size, bos_id=-1, eos_id=0, unk_id=1)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces.update(dict.fromkeys(processor.id_to_piece(i) for i in range(2, processor.get_piece_size(), 1)))
    known = [piece for k, piece in enumerate(sorted(pieces)) if k % 13]
    words = ["</s>", "<unk>", *known, ">>fra<<", ">>deu<<", "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False))


def byte_pairs(folder: Path, special: list[str]) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(CORPUS.splitlines(), trainer)
    backend.model.save(str(folder))


def merged_words(folder: Path, *, at: bool) -> None:
    """vocab.json and merges.txt of subword-nmt: </w> ends a word, and CTRL's vocabulary marks all other tokens @@."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    if at:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    else:
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(CORPUS.splitlines(), trainer)
    backend.model.save(str(folder))
    if at:
        vocabulary = json.loads((folder / "vocab.json").read_text())
        whole = [w.removesuffix("</w>") if w.endswith("</w>") else f"{w}@@" for w in list(vocabulary)[1:]]
        words = {word: i for i, word in enumerate(dict.fromkeys(["<unk>", *whole, "Links", "tabs\n"]))}
        (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False))


def wordpiece(folder: Path) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=350, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    backend.train_from_iterator((CORPUS + CORPUS.lower()).splitlines(), trainer)
    backend.model.save(str(folder))


def words(folder: Path) -> None:
    symbols = CORPUS.replace(",", " , ").replace(".", " . ").replace("'", " '").split()
    found = dict.fromkeys(["<eos>", "<unk>", "@,@", "@.@", "n't", "'s", "!", "?", *symbols, *CORPUS.lower().split()])
    (folder / "vocab.txt").write_text(
        "".join(f"{word} {k}\n" if k % 2 else f"{word}\n" for k, word in enumerate(found))
    )


VOCABULARIES = {
    "wordpiece": wordpiece,
    "bytes": lambda folder: byte_pairs(folder, ["<|endoftext|>"]),
    "bytes_roberta": lambda folder: byte_pairs(folder, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "ctrl": lambda folder: merged_words(folder, at=True),
    "gpt": lambda folder: merged_words(folder, at=False),
    "spm_t5": lambda folder: spm(
        folder / "spiece.model", model_type="unigram", vocab_size=200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    ),
    "spm_albert": lambda folder: spm(
        folder / "spiece.model",
        model_type="unigram",
        vocab_size=200,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols="[CLS],[SEP],[MASK]",
        user_defined_symbols="(,)",
    ),
    "spm_fairseq": lambda folder: spm(folder / "sentencepiece.bpe.model", model_type="unigram", vocab_size=200),
    "spm_llama": lambda folder: spm_bpe(folder / "tokenizer.model"),
    "spm_gemma": lambda folder: spm_bpe(
        folder / "tokenizer.model",
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols="<mask>,<start_of_turn>,<end_of_turn>,▁▁,▁▁▁",
    ),
    "marian": marian,
    "words": words,
}


def record() -> None:
    import transformers

    old = transformers.__version__.startswith("4.")
    result = {}
    for name, (vocabulary, model_type, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, name)
            shutil.copytree(HERE / vocabulary, folder)
            (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
            if settings:
                (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            try:
                result[name] = of_case(folder, old)
            except Exception as error:  # what a version does not read, the other does
                print(f"{name}: {type(error).__name__}: {error}"[:300])
    write(f"expected_{4 if old else 5}.json.gz", result)
    if not old:
        write("gguf.json.gz", {name: of_gguf(name, *case) for name, case in GGUF.items()})
        write("chats.json.gz", [of_chat(*chat) for chat in CHATS])
        write("tools.json.gz", of_tools())
    print({name: len(json.dumps(case)) for name, case in result.items()})


def write(name: str, result: Any) -> None:
    data = json.dumps(result, separators=(",", ":"), ensure_ascii=False).encode()
    (HERE / name).write_bytes(gzip.compress(data, mtime=0))


def of_tools() -> list[Any]:
    from transformers.utils import get_json_schema

    sys.path.append(str(Path(__file__).parents[1]))
    import tool_functions

    return [get_json_schema(function) for function in tool_functions.GOOD]


def of_case(folder: Path, old: bool) -> dict[str, Any]:
    import transformers

    if old and folder.name.startswith("transfo"):
        tokenizer = transformers.TransfoXLTokenizer.from_pretrained(folder)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=not old or (folder / "merges.txt").exists()
        )
    fast = tokenizer.is_fast
    texts = [*TEXTS, *special_texts(tokenizer)]
    encoded = tokenizer(texts, return_offsets_mapping=fast, truncation=True)
    pairs = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], return_token_type_ids=True)
    ids = encoded["input_ids"]
    case: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "texts": texts,
        "ids": ids,
        "pairs": pairs["input_ids"],
        "types": pairs["token_type_ids"],
        "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
        "decoded_all": [tokenizer.decode(row, skip_special_tokens=False) for row in ids],
        "special": {k: [str(v), tokenizer.convert_tokens_to_ids(str(v))] for k, v in named(tokenizer).items()},
        "length": len(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "padding_side": tokenizer.padding_side,
    }
    if fast:
        case["offsets"] = [[list(span) for span in row] for row in encoded["offset_mapping"]]
    if fast and not old:
        words = tokenizer([text.split() for text in texts[:6]], is_split_into_words=True)
        case["words"] = [[words["input_ids"][k], words.word_ids(k)] for k in range(6)]
        length = len(pairs["input_ids"][2]) - 2
        cut = tokenizer(
            *PAIRS[2], truncation="only_second", max_length=length, stride=1, return_overflowing_tokens=True
        )
        case["windows"] = cut["input_ids"]
    if folder.name.startswith(("mbart", "marian")):
        case["target"] = tokenizer(text_target=TEXTS[:6])["input_ids"]
    return case


def of_gguf(name: str, vocabulary: str, architecture: str, values: dict[str, Any]) -> dict[str, Any]:
    """A vocabulary as metadata, with control tokens and a user-defined one of those that it has no text for."""
    import gguf
    import sentencepiece
    import transformers

    folder = HERE / vocabulary
    if (folder / "merges.txt").exists():
        tokens = list(json.loads((folder / "vocab.json").read_text()))
        types = [3 if token == "<|endoftext|>" else 1 for token in tokens]
        metadata = {"model": "gpt2", "merges": (folder / "merges.txt").read_text().splitlines()[1:]}
        tokens, types = [*tokens, "<|im_start|>", "<think>"], [*types, 3, 4]
        special = {"bos_token_id": 0, "eos_token_id": len(tokens) - 2}
    else:
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        tokens = [model.id_to_piece(i) for i in range(model.get_piece_size())]
        kinds = ("normal", "unknown", "control", "user_defined", "unused", "byte")
        asked = [getattr(model, f"is_{kind}", lambda i: False) for kind in kinds]
        types = [next((k + 1 for k, is_kind in enumerate(asked) if is_kind(i)), 1) for i in range(len(tokens))]
        types = [
            4 if token in ("<mask>", "<start_of_turn>", "<end_of_turn>") else t
            for token, t in zip(tokens, types, strict=True)
        ]
        special = {f"{k}_token_id": getattr(model, f"{v}_id")() for k, v in (("bos", "bos"), ("eos", "eos"))}
        metadata = {"model": "llama", "scores": [model.get_score(i) for i in range(len(tokens))]}
        special["unknown_token_id"] = model.unk_id()
    metadata |= {"tokens": tokens, "token_type": types, **special, **values}
    with tempfile.TemporaryDirectory() as temporary:
        writer = gguf.GGUFWriter(Path(temporary, "x.gguf"), architecture)
        for key, value in metadata.items():
            add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
            add[type(value)](f"tokenizer.ggml.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tokenizer = transformers.AutoTokenizer.from_pretrained(temporary, gguf_file="x.gguf")
    texts = [*TEXTS, *special_texts(tokenizer)]
    encoded = tokenizer(texts, return_offsets_mapping=True)
    return {
        "architecture": architecture,
        "metadata": metadata,
        "texts": texts,
        "ids": encoded["input_ids"],
        "offsets": [[list(span) for span in row] for row in encoded["offset_mapping"]],
        "decoded": [tokenizer.decode(row) for row in encoded["input_ids"]],
        "special": {k: [str(v), tokenizer.convert_tokens_to_ids(str(v))] for k, v in named(tokenizer).items()},
        "length": len(tokenizer),
    }


def of_chat(template: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """The text, None where there is an error, with BERT's vocabulary and these special tokens."""
    import transformers

    tokenizer = transformers.BertTokenizer(str(HERE / "wordpiece" / "vocab.txt"), bos_token="[CLS]", eos_token="[SEP]")
    case = {"template": template, "messages": messages, "options": options, "text": None}
    try:
        case["text"] = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        case["ids"] = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False, **options)
    except Exception as error:  # of the template, which may be meant: then the text stays None
        print(f"chat: {type(error).__name__}: {error}"[:120])
    return case


def named(tokenizer: Any) -> dict[str, Any]:
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    found = {f"{name}_token": getattr(tokenizer, f"_{name}_token", None) for name in names}
    found.update(tokenizer.special_tokens_map)
    return {k: v for k, v in found.items() if v is not None and isinstance(v, str)}


def special_texts(tokenizer: Any) -> list[str]:
    tokens = list(dict.fromkeys(str(token) for token in named(tokenizer).values()))
    texts = [f"Hello {token} world{token}!" for token in tokens]
    return [*texts, ">>fra<< Hello", "<extra_id_0> test<extra_id_3>", "de_DE Hello", "Links Hello\nworld"]


if __name__ == "__main__":
    {"build": build, "record": record}[sys.argv[1]]()
