"""The `tokenizers` package (extra `text`): opening a tokenizer.json, errors, and copies that cut otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from ..config import Config
from .encoding import Truncation
from .special import Added, SpecialTokens

# transformers builds these anew and lets tokenizer_config.json decide about case and accents
BERT_TOKENIZERS = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")


def import_tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.normalizers
        import tokenizers.pre_tokenizers
        import tokenizers.processors
    except ImportError:
        raise ImportError('text needs the tokenizers package: pip install "qkv[text]"') from None
    return tokenizers


@contextlib.contextmanager
def backend_errors(where: str) -> Iterator[None]:
    """Whatever tokenizers raises for files that are wrong, as a ValueError. It raises plain Exceptions, and where its
    Rust code panics, a class derived from BaseException."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ImportError):
        raise
    except BaseException as error:
        raise ValueError(f"{where}: {error}") from None


def open_json(data: bytes, name: str, settings: Config) -> Any:
    """The backend of a tokenizer.json. name: the tokenizer class."""
    tokenizers = import_tokenizers()
    with backend_errors("tokenizer.json"):
        backend = tokenizers.Tokenizer.from_str(data.decode())
    backend.no_padding()  # what tokenizer.json says of both is how it was trained
    backend.no_truncation()
    if name in BERT_TOKENIZERS:
        _bert(backend, settings)
    return backend


def _bert(backend: Any, settings: Config) -> None:
    tokenizers = import_tokenizers()
    old = backend.normalizer
    if isinstance(old, tokenizers.normalizers.BertNormalizer):
        backend.normalizer = bert_normalizer(settings, clean_text=old.clean_text)
    if backend.decoder is None:
        backend.decoder = tokenizers.decoders.WordPiece(prefix="##")


def bert_normalizer(settings: Config, *, clean_text: bool = True) -> Any:
    return import_tokenizers().normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=None if settings.get("strip_accents") is None else settings.flag("strip_accents", False),
        lowercase=settings.flag("do_lower_case", True),
    )


def lower_case(backend: Any) -> None:
    """Lower case first of all, as sentence-transformers' do_lower_case has it."""
    normalizers = import_tokenizers().normalizers
    steps = [normalizers.Lowercase()]
    if backend.normalizer is not None:
        steps.append(backend.normalizer)
    backend.normalizer = normalizers.Sequence(steps)


def add_tokens(backend: Any, tokens: Iterable[Added]) -> None:
    """Tokens that the text is searched for first; those that the vocabulary lacks get the next ids."""
    kind = import_tokenizers().AddedToken
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    new = {token.content: token for token in reversed(list(tokens)) if token.content not in known}
    backend.add_tokens([kind(**dataclasses.asdict(token)) for token in reversed(new.values())])


def template(backend: Any, before: list[str], after: list[str], *, pair: list[str] | None = None) -> Any:
    """A post-processor that puts special tokens around a text. pair: the same for two texts, "$A" and "$B" among them
    as TemplateProcessing has it; None: one after the other, inside before and after."""
    pieces = pair if pair is not None else [*before, "$A", "$B", *after]
    plain = {piece.rsplit(":", 1)[0] if piece[-2:] in (":0", ":1") else piece for piece in [*before, *after, *pieces]}
    special = sorted(plain - {"$A", "$B"})
    return import_tokenizers().processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=pieces, special_tokens=[(t, backend.token_to_id(t)) for t in special]
    )


def add_special(backend: Any, special: SpecialTokens, more: Iterable[str] = ()) -> None:
    """Add the tokens that the files number or name, those of the family that the vocabulary has, and more."""
    named = [
        token
        for token in special.all_named().values()
        if token in special.named.values() or backend.token_to_id(token) is not None
    ]
    numbered = [token for _, token in special.numbered]
    add_tokens(backend, [*numbered, *map(special.token, [*named, *more, *special.extra])])


def around_text(backend: Any, special: SpecialTokens, *, bos: bool, eos: bool) -> None:
    """Put bos before each text and eos behind it, or only one of them."""
    before = [known(backend, special, "bos_token")] if bos and special.get("bos_token") else []
    after = [known(backend, special, "eos_token")] if eos and special.get("eos_token") else []
    pair = [*(f"{token}:0" for token in before), "$A:0", *(f"{token}:0" for token in after)]
    pair += [*(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)]
    backend.post_processor = template(backend, before, after, pair=pair)


def known(backend: Any, special: SpecialTokens, name: str) -> str:
    """The special token of a name. ValueError: the vocabulary does not have it."""
    token = special.get(name)
    if token is None or backend.token_to_id(token) is None:
        raise ValueError(f"the vocabulary has no {name} {token!r:.99}")
    return token


def cut(backend: Any, truncation: Truncation | None) -> Any:
    """A backend with the same vocabulary, which it shares, that cuts texts so, or not at all. The given one stays as
    it is: a backend that is in use elsewhere must not change."""
    copy = import_tokenizers().Tokenizer(backend.model)
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(backend, name)
        if part is not None:
            setattr(copy, name, part)
    added = backend.get_added_tokens_decoder()
    copy.add_tokens([added[i] for i in sorted(added)])
    if truncation is not None:
        copy.enable_truncation(
            truncation.max_length,
            stride=truncation.stride,
            strategy=truncation.strategy,
            direction=truncation.direction,
        )
    return copy
