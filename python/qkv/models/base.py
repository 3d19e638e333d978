"""What all models share: configuration, parameters, tokenizer, saving, pickling."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..config import Config
from ..files import META, PICKLES, Checkpoint, write_folder, write_npz
from ..images import ImageProcessor
from ..layers import Array
from ..outputs import ModelOutput
from ..placement import HOST, Place, host
from ..text import TOKENIZER_FILES, Tokenizer

OTHER_FILES = (*PICKLES, ".npy", ".json", ".safetensors", ".gguf", ".onnx", ".zip", ".txt")  # no folders
# what later loads of a saved model may want of the folder besides: vocabularies, and how text and images are prepared
KEPT_FILES = (
    *("generation_config.json", "preprocessor_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt"),
    *("source.spm", "target.spm", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tokenizer.gguf.json"),
    *("chat_template.jinja", "chat_template.json"),
)


class Model:
    """A model as qkv.load returns it; the families' classes derive from it and add what they compute.

    config: the config.json. parameters: name -> float32 array or PackedWeight, under qkv's own names; tied
    ones are one object; on a GPU qkv.cuda's. place: the device that computes. files: the small files of the
    checkpoint (config, tokenizer, sentence-transformers), by name.
    """

    config: Config
    architecture: str
    dtype: str
    place: Place = HOST
    parameters: dict[str, Any]
    files: dict[str, bytes]
    inputs: tuple[str, ...] = ()  # of a call, those that the model has
    max_tokens: int | None = None  # the longest row of text, if the model has such a limit
    token_types = True  # whether the tokenizer makes token_type_ids
    _tokenizer: Tokenizer | None = None
    _image_processor: ImageProcessor | None = None

    def attach(
        self,
        checkpoint: Checkpoint,
        config: Config,
        architecture: str,
        dtype: str,
        place: Place,
        parameters: dict[str, Any],
    ) -> None:
        """Called once, when the weights are in place: keep what else is needed, so that the checkpoint can
        go."""
        self.config = config
        self.architecture = architecture
        self.dtype = dtype
        self.place = place
        self.parameters = parameters
        for name in (*TOKENIZER_FILES, *KEPT_FILES):
            checkpoint.file(name)
        self.files = checkpoint.files

    @property
    def device(self) -> str:
        """Where it computes: "cpu", or "cuda:" and the number of the GPU."""
        return self.place.name

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back, from the checkpoint's files, opened at first use. Needs the extra `text`, but
        for ByT5's."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_files(self.files, self.config, self.max_tokens, types=self.token_types)
        return self._tokenizer

    @property
    def image_processor(self) -> ImageProcessor:
        """What makes pixel_values, or ImageGPT's input_ids, of images, as the checkpoint's preprocessor_config.json
        says. Needs the extra `images`. ValueError: a model of texts, or no such file."""
        if self._image_processor is None:
            self._image_processor = ImageProcessor.from_files(self.files, self.config)
        return self._image_processor

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        pixel_values: Any = None,
        mems: Any = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Run a batch: arrays, nested lists or tensors. Inputs that the model does not have (`model.inputs` names those
        that it has) must be None.

        input_ids: (B, S) integers. attention_mask: (B, S), 1 or True for real tokens, 0 for padding, which may stand
        anywhere; None: all are real. token_type_ids: (B, S), None: all 0, or none at all where they are rows of the
        word table (GPT). position_ids: (B, S) or (S,); None: the number of real tokens before each.
        decoder_input_ids, decoder_attention_mask: (B, T), the same for the decoder of two stacks; without ids BART
        and mBART take the encoder's, shifted, and see no padding there, as in transformers. pixel_values: (B,
        channels, height, width) floats of the size that the model was made for, normalised as its
        preprocessor_config.json says. mems: of Transformer-XL, as an output has them, L float arrays (M, B, C); None:
        `mem_len` zeros each.

        Returns float32 arrays in fields named as in transformers, zero at padding: last_hidden_state (B, S, C), for
        two stacks the decoder's, beside encoder_last_hidden_state, with pooler_output (B, C) where the model has a
        pooler; or the head's, such as logits. output_hidden_states: tuples of L + 1 arrays (B, S, C).
        output_attentions: tuples of L arrays (B, H, S, T). Of two stacks their names begin with encoder_ and
        decoder_, and there are cross_attentions.

        TypeError for a dtype; ValueError for a shape, an unknown id, a row that is too long, an input that is missing
        or that the model does not have.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "pixel_values": pixel_values,
            "mems": mems,
        }
        self.refuse(**{name: value for name, value in given.items() if name not in self.inputs})
        out = self.run(given, attentions=output_attentions, hidden_states=output_hidden_states)
        for name, value in out.items():  # heads leave what they need not look at where it is
            out[name] = host(value)
        return out

    def run(self, given: Mapping[str, Any], *, attentions: bool, hidden_states: bool) -> ModelOutput:
        """What a call computes of its inputs by name, None where there is nothing."""
        raise NotImplementedError

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
            if hasattr(value, "numpy"):  # on a GPU
                value = value.numpy()
            if isinstance(value, np.ndarray):
                array = value
            elif value.dtype == "float32":
                array = host(value.dequantize())
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

        return from_entries, (dict(self._entries()), self.dtype, self.place)

    def __repr__(self) -> str:
        unique = {id(value): value for value in self.parameters.values()}
        count = sum(int(np.prod(value.shape)) for value in unique.values())
        where = "" if self.place.number is None else f", {self.device}"
        return f"<{self.architecture}: {count / 1e6:.3g} M parameters, {self.dtype}{where}>"
