"""The languages of mBART and mBART-50, whose tokens stand before a text or behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..config import Config
from . import fast

_MBART = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP "
    "nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
_MORE = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE "
    "ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)
LANGUAGES = {"MBartTokenizer": _MBART.split(), "MBart50Tokenizer": [*_MBART.split(), *_MORE.split()]}


@dataclass(frozen=True)
class Languages:
    """Of mBART. codes: their tokens. source, target: of the texts that the model reads and writes; None: the same.
    first: the language's token stands before a text, else behind it."""

    codes: tuple[str, ...]
    source: str
    target: str | None
    first: bool
    eos: str

    def template(self, backend: Any, code: str) -> Any:
        """The same backend with the special tokens of a language."""
        copy = fast.cut(backend, None)
        before, after = ([code], [self.eos]) if self.first else ([], [self.eos, code])
        copy.post_processor = fast.template(copy, before, after)
        return copy


def find_languages(name: str, settings: Config, backend: Any, eos: str) -> Languages | None:
    """Those of a tokenizer class, None if it has none. ValueError: the settings name one that there is not."""
    codes = tuple(code for code in LANGUAGES.get(name, ()) if backend.token_to_id(code) is not None)
    if not codes or backend.token_to_id(eos) is None:
        return None
    for key in ("src_lang", "tgt_lang"):
        if settings.get(key) is not None and settings[key] not in codes:
            raise settings.error(key, f"one of {', '.join(codes)}")
    source = settings.get("src_lang") or ("en_XX" if "en_XX" in codes else codes[0])
    return Languages(codes, source, settings.get("tgt_lang"), name == "MBart50Tokenizer", eos)
