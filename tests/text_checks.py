"""What the tests of tokenizers share: the recorded cases, and tokenizers made of their files."""

from __future__ import annotations

import gzip
import json
from typing import Any

from golden_checks import GOLDEN
from qkv.config import Config
from qkv.text import Encoding, Tokenizer

FOLDER = GOLDEN / "tokenizers"
CASES = json.loads((FOLDER / "cases.json").read_text())
PAIRS = json.loads((FOLDER / "pairs.json").read_text())


def recorded(name: str) -> Any:
    return json.loads(gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()))


EXPECTED = {4: recorded("expected_4"), 5: recorded("expected_5")}


def files_of(vocabulary: str, settings: dict[str, Any] | None = None) -> dict[str, bytes]:
    files = {path.name: path.read_bytes() for path in (FOLDER / vocabulary).iterdir()}
    if settings:
        files["tokenizer_config.json"] = json.dumps(settings).encode()
    return files


def open_case(case: str, **settings: Any) -> Tokenizer:
    vocabulary, model_type, own = CASES[case]
    return Tokenizer.from_files(files_of(vocabulary, {**own, **settings}), Config({"model_type": model_type}), None)


def ids_of(encodings: list[Encoding]) -> list[list[int]]:
    return [encoding.ids for encoding in encodings]


def spans(encoding: Encoding) -> list[list[int]]:
    return [list(span) for span in encoding.offsets]
