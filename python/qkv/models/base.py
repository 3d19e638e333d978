"""What all models share: configuration, parameters, tokenizer, saving, pickling."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..config import Config
from ..files import META, Checkpoint, write_folder, write_npz
from ..layers import Array
from ..options import FILE
from ..text import TOKENIZER_FILES, Tokenizer

OTHER_FILES = (".npy", ".json", ".safetensors", ".gguf", ".bin", ".pt", ".pth", ".onnx", ".zip", ".txt")  # no folders
# what later loads of a saved model may want of the folder besides: vocabularies, and how text and images are prepared
KEPT_FILES = (
    *(
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "preprocessor_config.json",
    ),
    *("source.spm", "target.spm", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
    *("chat_template.jinja", "chat_template.json"),
)


class Model:
    """A model as qkv.load returns it; the families' classes derive from it and add what they compute.

    config: the config.json. parameters: name -> float32 array or PackedWeight, under qkv's own names; tied
    ones are one object. files: the small files of the checkpoint (config, tokenizer,
    sentence-transformers), by name.
    """

    config: Config
    architecture: str
    dtype: str
    parameters: dict[str, Any]
    files: dict[str, bytes]
    max_tokens: int | None = None  # the longest row of text, if the model has such a limit
    token_types = True  # whether the tokenizer makes token_type_ids
    _tokenizer: Tokenizer | None = None

    def attach(
        self,
        checkpoint: Checkpoint,
        config: Config,
        architecture: str,
        dtype: str,
        parameters: dict[str, Any],
    ) -> None:
        """Called once, when the weights are in place: keep what else is needed, so that the checkpoint can
        go."""
        self.config = config
        self.architecture = architecture
        self.dtype = dtype
        self.parameters = parameters
        for name in (*TOKENIZER_FILES, *KEPT_FILES, FILE):
            checkpoint.file(name)
        self.files = checkpoint.files

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.json, opened at first use. Needs the extra `text`."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_files(self.files, self.config, self.max_tokens, types=self.token_types)
        return self._tokenizer

    def refuse(self, **inputs: Any) -> None:
        """ValueError for inputs that this kind of model does not have, unless they are None."""
        for name, value in inputs.items():
            if value is not None:
                raise ValueError(f"{name}: a {self.architecture} has no such input")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what qkv.load reads back to the same bits, packed weights with dtype="auto": weights, config,
        tokenizer and all.

        A path that ends in .npz: one file. Entries named *.json are the checkpoint's files as uint8 bytes; the rest
        are parameters. Otherwise a new folder: these files, and the parameters in model.safetensors. ValueError: the
        ending is that of another kind of file, or the folder is there already.
        """
        suffix = os.path.splitext(path)[1]
        if suffix == ".npz" or suffix in OTHER_FILES:
            write_npz(path, self._entries())
        else:
            write_folder(path, self._entries())

    def _all_parameters(self) -> dict[str, Any]:
        return self.parameters

    def _entries(self) -> Iterator[tuple[str, Array]]:
        files = {**self.files, "config.json": json.dumps(self.config.to_dict()).encode()}
        for name, data in files.items():
            yield name, np.frombuffer(data, np.uint8)
        written: dict[int, str] = {}
        ties, dtypes, packed = {}, {}, {}
        for name, value in self._all_parameters().items():
            if id(value) in written:
                ties[name] = written[id(value)]
                continue
            written[id(value)] = name
            if isinstance(value, np.ndarray):
                array = value
            elif value.dtype == "float32":
                array = value.dequantize()
            else:
                dtype, group, width, array, *others = value.parts()
                packed[name] = [dtype, group, width]
                for kind, part in zip(("scale", "offset"), others, strict=True):
                    if part is not None:
                        yield f"{name}.{kind}", part
            if array.dtype.name == "bfloat16":  # .npy has no name for it
                dtypes[name] = "bfloat16"
                array = array.view(np.uint16)
            yield name, array
        meta = {"format": 1, "architecture": self.architecture, "dtypes": dtypes, "ties": ties, "packed": packed}
        yield META, np.frombuffer(json.dumps(meta).encode(), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        from . import from_entries

        return from_entries, (dict(self._entries()), self.dtype)

    def __repr__(self) -> str:
        unique = {id(value): value for value in self.parameters.values()}
        count = sum(int(np.prod(value.shape)) for value in unique.values())
        return f"<{self.architecture}: {count / 1e6:.3g} M parameters, {self.dtype}>"
