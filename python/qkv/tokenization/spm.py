"""Tokenizers of the `tokenizers` package from SentencePiece models, for folders that have nothing else.

What transformers makes of such a folder is the measure; where its version 5 loses something of the model that version
4 kept (mBART's normalisation, ALBERT's user-defined pieces, the space of a mask), version 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..config import Config
from . import fast
from .languages import LANGUAGES
from .protobuf import BPE, CONTROL, NORMAL, UNIGRAM, USER_DEFINED, SpmModel, read_spm
from .special import SpecialTokens

MARK = "▁"  # stands for a space
MAX_PIECE = 2000  # characters
CLASSES = (
    *("T5Tokenizer", "AlbertTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "MBartTokenizer"),
    *("MBart50Tokenizer", "LlamaTokenizer", "Llama", "GemmaTokenizer"),
)


def open_spm(files: Mapping[str, bytes], file: str, name: str, settings: Config, special: SpecialTokens) -> Any:
    """The backend of a SentencePiece file for a tokenizer class. ValueError, naming the file: it is broken."""
    model = read_spm(files[file], file)
    with fast.backend_errors(file):
        if name == "T5Tokenizer":
            return _t5(model, settings, special)
        if name == "AlbertTokenizer":
            return _albert(model, settings, special)
        if name in ("XLMRobertaTokenizer", "CamembertTokenizer", *LANGUAGES):
            return _fairseq(model, name, settings, special)
        return _generic(model, settings, special)


def _unigram(
    model: SpmModel,
    vocabulary: list[tuple[str, float]],
    unk_id: int,
    special: SpecialTokens,
    *,
    prefix: bool = True,
    before: list[Any] | None = None,
    added: Sequence[str] = (),
) -> Any:
    """before: normalizers that come before the model's own. added: special tokens besides those with a name."""
    if model.model_type != UNIGRAM:
        raise ValueError("this tokenizer class needs a unigram model")
    t = fast.import_tokenizers()
    backend = t.Tokenizer(t.models.Unigram(vocabulary, unk_id=unk_id, byte_fallback=False))
    steps = [*(before or []), *([t.normalizers.Precompiled(model.charsmap)] if model.charsmap else [])]
    if steps:
        backend.normalizer = t.normalizers.Sequence(steps)
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = t.pre_tokenizers.Sequence(
        [t.pre_tokenizers.WhitespaceSplit(), t.pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme)]
    )
    backend.decoder = t.decoders.Metaspace(replacement=MARK, prepend_scheme=scheme)
    known = {piece for piece, _ in vocabulary}
    control = [piece for piece, _, kind in model.pieces if kind == CONTROL and piece in known]
    fast.add_special(backend, special, [*control, *added])
    return backend


def _t5(model: SpmModel, settings: Config, special: SpecialTokens) -> Any:
    count = settings.integer("extra_ids", 100, low=0, high=100_000)
    sentinels = [f"<extra_id_{k}>" for k in reversed(range(count))]
    vocabulary = [(piece, score) for piece, score, _ in model.pieces] + [(token, 0.0) for token in sentinels]
    backend = _unigram(model, vocabulary, model.unk_id, special, added=sentinels[::-1])
    eos = fast.known(backend, special, "eos_token")
    backend.post_processor = fast.template(backend, [], [eos], pair=["$A", eos, "$B", eos])
    return backend


def _albert(model: SpmModel, settings: Config, special: SpecialTokens) -> Any:
    normalizers = fast.import_tokenizers().normalizers
    before = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.flag("keep_accents", False):
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.flag("do_lower_case", True):
        before.append(normalizers.Lowercase())
    settings.only("remove_space", True)
    # a number with a comma behind it is split before the comma
    vocabulary = [
        (piece, score - 100 if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit() else score)
        for piece, score, _ in model.pieces
    ]
    prefix = settings.flag("add_prefix_space", True)
    backend = _unigram(model, vocabulary, model.unk_id, special, prefix=prefix, before=before)
    cls, sep = fast.known(backend, special, "cls_token"), fast.known(backend, special, "sep_token")
    backend.post_processor = fast.template(
        backend, [cls], [sep], pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"]
    )
    return backend


def _fairseq(model: SpmModel, name: str, settings: Config, special: SpecialTokens) -> Any:
    """Vocabularies of fairseq: their special tokens stand where the model has others, languages and mask behind."""
    tokens = {key: special.get(key) or special.defaults.get(key, "<s>") for key in ("bos_token", *special.defaults)}
    bos, pad, eos, unk = (tokens[f"{key}_token"] for key in ("bos", "pad", "eos", "unk"))
    pieces = [(piece, score) for piece, score, _ in model.pieces]
    if name == "CamembertTokenizer":
        first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unk, 0.0), ("<unk>NOTUSED", -100.0)]
        rest = pieces[1:]
    else:
        first, rest = [(token, 0.0) for token in (bos, pad, eos, unk)], pieces[3:]
    languages = LANGUAGES.get(name, [])
    vocabulary = [*first, *rest, *((token, 0.0) for token in (*languages, tokens["mask_token"]))]
    added = ["<s>NOTUSED", "</s>NOTUSED"] if name == "CamembertTokenizer" else languages
    prefix = settings.flag("add_prefix_space", True)
    backend = _unigram(model, vocabulary, 3, special, prefix=prefix, added=added)
    if name == "MBart50Tokenizer":  # which has the spaces inside of its tokens
        t = fast.import_tokenizers()
        steps = [t.normalizers.Strip(), t.normalizers.Replace(t.Regex(" {2,}"), " ")]
        first = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = t.normalizers.Sequence([*first, *steps])
        backend.pre_tokenizer = backend.pre_tokenizer[1]
    if not languages:
        bos, eos = fast.known(backend, special, "bos_token"), fast.known(backend, special, "eos_token")
        backend.post_processor = fast.template(backend, [bos], [eos], pair=[bos, "$A", eos, eos, "$B", eos])
    return backend


def build_generic(model: SpmModel, *, prefix: bool, legacy: bool) -> Any:
    """As the model's own specs say. prefix: a space is put before a text; legacy: and before what follows an added
    token."""
    t = fast.import_tokenizers()
    longest = max(len(piece) for piece, _, _ in model.pieces)
    if longest > MAX_PIECE:  # all ways to split each are tried
        raise ValueError(f"a piece of {longest} characters is too long (limit {MAX_PIECE})")
    whole = [piece for piece, _, kind in model.pieces if kind == USER_DEFINED]
    if model.model_type == BPE:
        ranks = {piece: (-score, k) for k, (piece, score, kind) in enumerate(model.pieces) if kind == NORMAL}
        splits = sorted(
            (*rank, piece[:k], piece[k:])
            for piece, rank in ranks.items()
            for k in range(1, len(piece))
            if piece[:k] in ranks and piece[k:] in ranks
        )
        core = t.models.BPE(
            {piece: k for k, (piece, _, _) in enumerate(model.pieces)},
            [(left, right) for *_, left, right in splits],
            unk_token=model.pieces[model.unk_id][0],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
            ignore_merges=bool(whole),
        )
    else:
        scores = [(piece, score) for piece, score, _ in model.pieces]
        core = t.models.Unigram(scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    backend = t.Tokenizer(core)
    steps = [t.normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.remove_extra_whitespaces:
        steps += [t.normalizers.Replace(t.Regex(r"\A +| +\z"), ""), t.normalizers.Replace(t.Regex(" {2,}"), " ")]
    steps.append(t.normalizers.Replace(" ", MARK))
    if prefix and legacy:  # Metaspace would find that there is a space already
        steps.append(t.normalizers.Replace(t.Regex(rf"\A{MARK}"), MARK * 2))
    backend.normalizer = t.normalizers.Sequence(steps)
    splitters = []
    if prefix:
        scheme = "always" if legacy else "first"
        splitters.append(t.pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme=scheme, split=False))
    if whole:
        pattern = "|".join(re.escape(piece) for piece in sorted(whole, key=len, reverse=True))
        splitters.append(t.pre_tokenizers.Split(t.Regex(pattern), behavior="isolated"))
    if splitters:
        backend.pre_tokenizer = t.pre_tokenizers.Sequence(splitters)
    parts = [t.decoders.Replace(MARK, " "), t.decoders.ByteFallback(), t.decoders.Fuse()]
    if prefix:
        parts.append(t.decoders.Strip(content=" ", left=1))
    backend.decoder = t.decoders.Sequence(parts)
    return backend


def _generic(model: SpmModel, settings: Config, special: SpecialTokens) -> Any:
    """Llama, Mistral, Phi-3, Gemma. Where tokenizer_config.json does not say, as transformers 4 has it."""
    prefix = model.add_dummy_prefix and settings.flag("add_prefix_space", True)
    backend = build_generic(model, prefix=prefix, legacy=settings.flag("legacy", True))
    fast.add_special(backend, special, [piece for piece, _, kind in model.pieces if kind == CONTROL])
    fast.around_text(
        backend, special, bos=settings.flag("add_bos_token", True), eos=settings.flag("add_eos_token", False)
    )
    return backend
