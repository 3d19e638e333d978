"""Checkpoint files as lazily read tensors: safetensors (one file or shards) and npz.

Files are untrusted: names, counts, shapes, dtypes and offsets are checked before anything is allocated,
nothing is ever unpickled, and no name in a file leads outside its folder. Whatever is wrong is a ValueError
in words that names the file and the tensor. A tensor's bytes are touched only when its `read` is called.

Formats: https://huggingface.co/docs/safetensors (8 bytes little-endian header size N, N bytes of JSON, data);
npz is a zip of .npy members, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
MAX_TOKENIZER = 256_000_000  # bytes of tokenizer.json (the largest have 35 MB)
MAX_FILE = 16_000_000  # bytes of any other JSON file
MAX_FILES = MAX_TOKENIZER + 4 * MAX_FILE  # bytes of all that one checkpoint makes us read
MAX_NPY_HEADER = 65535  # bytes; version 1 of .npy cannot have more
MAX_SHARD = 1_000_000_000  # bytes of one safetensors file that write_folder makes
MAX_RANK = 32  # NumPy 1 cannot hold more
FILE_ENDINGS = (".json", ".txt", ".spm", ".model", ".jinja")  # of entries that are files, not tensors
SHIPPED = ("dates",)  # models in data/
META = "qkv.json"  # the npz entry that says: the names are our own, not a checkpoint's

# safetensors' dtype names -> NumPy's; data is little-endian
SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "bfloat16",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
PICKLE_ADVICE = (
    "that is a pickle, which can run code when it is opened, so qkv never opens one. Convert it once, in its folder, "
    'where torch is: python -c "import glob, torch, safetensors.torch as s; '
    "w = {{k: v for f in glob.glob('{pattern}') for k, v in "
    "torch.load(f, map_location='cpu', weights_only=True).items()}}; "
    "s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, 'model.safetensors')\""
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Tensor:
    """A tensor that has not been read yet. `names`: where it comes from, in the file's own names.

    parts: of a packed weight the arguments of PackedWeight.from_parts, of which packed tells the first two before
    anything is read: dtype and group. `read` gives its values as floats.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    parts: Callable[[], tuple[Any, ...]] | None = None
    packed: tuple[str, int] | None = None

    @staticmethod
    def of(name: str, array: np.ndarray) -> Tensor:
        return Tensor((name,), array.shape, array.dtype, lambda: array)

    def rows(self, index: slice | np.ndarray) -> Tensor:
        """Some of the rows, or all in another order."""
        count = len(range(*index.indices(self.shape[0]))) if isinstance(index, slice) else len(index)
        shape = (count, *self.shape[1:])
        whole = self.parts

        def parts() -> tuple[Any, ...]:
            assert whole is not None
            dtype, group, width, *arrays = whole()
            return (dtype, group, width, *(None if a is None else np.ascontiguousarray(a[index]) for a in arrays))

        return replace(self, shape=shape, read=lambda: self.read()[index], parts=None if whole is None else parts)

    def of_values(self, **changes: Any) -> Tensor:
        """With changes that need the values as floats."""
        return replace(self, parts=None, packed=None, **changes)


@dataclass
class Checkpoint:
    """Where a model comes from: `tensors` by name and `files`, the JSON files read so far.

    canonical: the names and layouts are those of qkv's own layers, as Model.save writes them.
    subfolders: the tensors of an npz that are named `folder/name`. entries: its files, not read yet.
    """

    where: str
    tensors: dict[str, Tensor]
    canonical: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    folder: Path | None = None
    subfolders: dict[str, Tensor] = field(default_factory=dict)
    entries: dict[str, Tensor] = field(default_factory=dict)

    def file(self, name: str) -> bytes | None:
        """The bytes of a small file, by its path relative to the folder; None if there is none."""
        if name not in self.files and self.folder is not None:
            path = inside(self.folder, name) if "/" in name else self.folder / name
            if path.is_file():
                self._admit(name, path.stat().st_size)
                self.files[name] = path.read_bytes()
        elif name not in self.files and name in self.entries:
            self._admit(name, self.entries[name].shape[0])
            self.files[name] = self.entries[name].read().tobytes()
        return self.files.get(name)

    def _admit(self, name: str, size: int) -> None:
        limit = MAX_TOKENIZER if name == "tokenizer.json" else MAX_FILE
        if size > limit:
            raise ValueError(f"{self.where}: {name}: {size} bytes are too many for this kind of file (limit {limit})")
        total = size + sum(len(data) for data in self.files.values())
        if total > MAX_FILES:
            raise ValueError(f"{self.where}: {name}: with it the JSON files have {total} bytes (limit {MAX_FILES})")

    def json(self, name: str, kind: type = dict) -> Any:
        """The parsed file, an object unless another `kind` is expected; None if there is no such file."""
        data = self.file(name)
        if data is None:
            return None
        value = parse_json(data, f"{self.where}: {name}")
        if not isinstance(value, kind):
            raise ValueError(f"{self.where}: {name} must hold a JSON {'object' if kind is dict else 'list'}")
        return value

    def sub_tensors(self, folder: str) -> dict[str, Tensor]:
        """The tensors of a subfolder: those of its model.safetensors, or the entries `folder/name`."""
        if self.folder is not None and not self.canonical:
            return folder_tensors(inside(self.folder, folder))
        prefix = folder + "/"
        return {name[len(prefix) :]: t for name, t in self.subfolders.items() if name.startswith(prefix)}


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A folder as transformers saves it (or its name on the Hugging Face hub), an .npz or a .gguf, or the name of a
    model in SHIPPED.

    FileNotFoundError: nothing there; ValueError: it is something else.
    """
    if path == "":  # which would be the current folder
        raise ValueError("load: the path is empty")
    path = _shipped(str(path)) or _cached(str(path)) or _downloaded(str(path)) or Path(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{path}: there is no config.json in this folder")
        checkpoint = Checkpoint(str(path), folder_tensors(path), folder=path)
        _canonical(checkpoint)
        if checkpoint.canonical:
            held = checkpoint.tensors
            checkpoint.subfolders = {name: held.pop(name) for name in list(held) if "/" in name}
        return checkpoint
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such folder or file, nor a model in the Hugging Face cache, nor one that comes with qkv "
            f"({', '.join(SHIPPED)}); qkv itself downloads nothing (where the package huggingface_hub is installed, "
            "it does)"
        )
    if path.suffix == ".gguf":
        from .gguf import open_gguf

        return open_gguf(path)
    if path.suffix in PICKLES:
        raise ValueError(f"{path}: {PICKLE_ADVICE.format(pattern=path.name)}")
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a folder with config.json and model.safetensors, an .npz or a .gguf file")
    return from_entries(str(path), read_npz(path))


def _shipped(name: str) -> Path | None:
    """The file of a model that is part of the package. A folder of that name is meant only if it holds a model."""
    if name not in SHIPPED or Path(name, "config.json").is_file():
        return None
    return Path(__file__).parent / "data" / f"{name}.npz"


def _cached(name: str) -> Path | None:
    """The folder of `owner/model`, or of an old name without owner, in the local Hugging Face cache, where its main
    branch was last downloaded."""
    if os.path.exists(name) or not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if not reference.is_file():
        return None
    with open(reference, "rb") as file:
        commit = file.read(100).decode("ascii", "replace").strip()
    if not re.fullmatch(r"\w[\w.-]*", commit, re.ASCII):
        raise ValueError(f"{reference}: expected the name of a snapshot; got {commit!r}")
    return repository / "snapshots" / commit


def _downloaded(name: str) -> Path | None:
    """The folder of `owner/model`, from the Hugging Face hub, where huggingface_hub is installed and may go online.
    FileNotFoundError: it did not get it."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    if offline or os.path.exists(name) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{end}" for end in (".safetensors", *FILE_ENDINGS)]))
    except Exception as error:  # of the network, of the hub, or that there is no such model
        raise FileNotFoundError(
            f"{name}: no such folder or file, and huggingface_hub did not get it: {error}"
        ) from None


def from_entries(where: str, entries: Mapping[str, Tensor]) -> Checkpoint:
    """A checkpoint from one flat mapping, as an npz is: entries named like files (`*.json`, `*.txt`
    and so on) are files, the rest tensors. Files are read when they are asked for."""
    files = {name: entry for name, entry in entries.items() if name.endswith(FILE_ENDINGS)}
    for name, entry in files.items():
        if entry.dtype != np.uint8 or len(entry.shape) != 1:
            raise ValueError(f"{where}: {name} must be a file's bytes, a uint8 array of rank 1")
    tensors = {name: tensor for name, tensor in entries.items() if name not in files}
    checkpoint = Checkpoint(where, tensors, entries=files)
    _canonical(checkpoint)
    checkpoint.subfolders = {name: tensors.pop(name) for name in list(tensors) if "/" in name}
    return checkpoint


def _canonical(checkpoint: Checkpoint) -> None:
    """Where the checkpoint has META: names and layouts are ours, and it says what the entries stand for."""
    meta = checkpoint.json(META)
    if meta is None:
        return
    where, tensors = checkpoint.where, checkpoint.tensors
    checkpoint.canonical = True
    del checkpoint.files[META]
    if meta.get("format") != 1:
        raise ValueError(f"{where}: {META} has format {meta.get('format')!r}; this version reads format 1")
    for name, dtype in _string_map(meta.get("dtypes", {}), f"{where}: {META}: dtypes").items():
        if dtype != "bfloat16" or name not in tensors or tensors[name].dtype != np.uint16:
            raise ValueError(f"{where}: {name} must be a uint16 array that holds bfloat16; {META} says {dtype!r}")
        tensors[name] = _view(tensors[name], bfloat16_dtype())
    _join_packed(tensors, meta.get("packed", {}), f"{where}: {META}")
    for alias, name in _string_map(meta.get("ties", {}), f"{where}: {META}: ties").items():
        if name not in tensors or alias in tensors:
            raise ValueError(f"{where}: {META} ties {alias} to {name}, which does not fit the entries")
        tensors[alias] = tensors[name]


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The weights of a folder: model.safetensors, or the shards of model.safetensors.index.json."""
    if (folder / "model.safetensors").is_file():
        return read_safetensors(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").is_file():
        return _read_shards(folder / "model.safetensors.index.json")
    pickles = sorted(p.name for p in folder.glob("pytorch_model*.bin*")) if folder.is_dir() else []
    if pickles:
        advice = PICKLE_ADVICE.format(pattern="pytorch_model*.bin")
        raise ValueError(f"{folder}: the weights are only there as {pickles[0]}; {advice}")
    raise FileNotFoundError(f"{folder}: there is no model.safetensors and no model.safetensors.index.json here")


def inside(folder: Path, name: str) -> Path:
    """folder/name for a name that comes from a file: it must not lead out of the folder, by links neither.

    The Hugging Face cache is the one exception: its snapshots link to the blobs of the same repository.
    """
    parts = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{folder}: the file name {name!r} leads out of the folder")
    root = folder.resolve()
    path = folder / name
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    try:
        target = path.resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, RuntimeError, UnicodeError) as error:  # a loop of links, a name too long or no text
        raise ValueError(f"{folder}: the file name {name!r:.200} cannot be used ({error})") from None
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(f"{folder}: {name!r} is a link that leads out of the folder")
    return path


def parse_json(data: bytes | memoryview, where: str, *, unique: bool = False) -> Any:
    """JSON from untrusted bytes; every failure is a ValueError. `unique`: refuse an object that repeats a
    name."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in items:
            if name in result:
                repeated.append(name)
            result[name] = value
        return result

    repeated: list[str] = []
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deeply") from None
    if unique and repeated:
        raise ValueError(f"{where}: {repeated[0]!r} is there twice")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file. Each is read on demand, into an array of its own.

    Not memory-mapped: mapped pages count as the process's memory until the map goes, and a file that is cut short
    while it is mapped kills the process instead of raising an error. Reading is as fast.
    """
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path}: {size} bytes are too few for a safetensors file")
    with open(path, "rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > MAX_HEADER:
            raise ValueError(f"{path}: the header claims {header_size} bytes; the limit is {MAX_HEADER}")
        if 8 + header_size > size:
            raise ValueError(f"{path}: truncated, the header claims {header_size} bytes and the file has {size}")
        header = parse_json(file.read(header_size), f"{path}: header", unique=True)
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the header must be a JSON object")
    _string_map(header.pop("__metadata__", {}), f"{path}: __metadata__")

    start = 8 + header_size
    tensors, extents = {}, []
    for name, entry in header.items():
        shape, dtype, begin, end = _check_entry(entry, f"{path}: tensor {name!r}", size - start)
        extents.append((begin, end, name))
        read = functools.partial(read_at, path, start + begin, shape, dtype)
        tensors[name] = Tensor((name,), shape, dtype, read)
    covered = 0
    for begin, end, name in sorted(extents):
        if begin != covered:
            what = "overlaps the tensor before it" if begin < covered else "leaves a hole before it"
            raise ValueError(
                f"{path}: tensor {name!r} at data_offsets [{begin}, {end}] {what}, which ends at {covered}"
            )
        covered = end
    if covered != size - start:
        raise ValueError(f"{path}: oversized, {size - start - covered} bytes after the last tensor belong to none")
    return tensors


def read_at(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.empty(shape, dtype)
    rest = array.reshape(-1).view(np.uint8).data
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while len(rest):  # one call reads 2 GiB at most
            count = file.readinto(rest)
            if not count:
                raise ValueError(f"{path}: the file has become shorter while it was read")
            rest = rest[count:]
    return array


def _check_entry(entry: Any, where: str, available: int) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Shape, dtype and data offsets of one header entry. Python's integers do not overflow, so products are
    exact."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: must have dtype, shape and data_offsets, and nothing else")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in SAFETENSORS_DTYPES:
        raise ValueError(f"{where}: dtype {name!r} is not known; known are {', '.join(SAFETENSORS_DTYPES)}")
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise ValueError(
            f"{where}: shape must be a list of at most {MAX_RANK} integers, none negative; got {shape!r:.99}"
        )
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{where}: data_offsets must be two integers, none negative; got {offsets!r:.99}")
    dtype = bfloat16_dtype() if name == "BF16" else np.dtype(SAFETENSORS_DTYPES[name])
    begin, end = offsets
    if not begin <= end <= available:
        raise ValueError(
            f"{where}: data_offsets {offsets} lie outside the file's {available} bytes of data: truncated?"
        )
    needed = math.prod(shape) * dtype.itemsize
    if needed != end - begin:
        raise ValueError(f"{where}: shape {shape} of {name} takes {needed} bytes; data_offsets hold {end - begin}")
    return tuple(shape), dtype, begin, end


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all shards that the index names; the index and the shards must agree."""
    size = index.stat().st_size
    if size > MAX_FILE:
        raise ValueError(f"{index}: {size} bytes are too many for an index (limit {MAX_FILE})")
    content = parse_json(index.read_bytes(), str(index), unique=True)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    place = _string_map(weight_map, f"{index}: weight_map")
    tensors: dict[str, Tensor] = {}
    found: dict[str, str] = {}
    for shard in sorted(set(place.values())):
        path = inside(index.parent, shard)
        if not path.is_file():
            raise FileNotFoundError(f"{index}: the shard {shard} is not in the folder")
        for name, tensor in read_safetensors(path).items():
            if name in found:
                raise ValueError(f"{index.parent}: tensor {name!r} is in {found[name]} and again in {shard}")
            found[name] = shard
            tensors[name] = tensor
    for name, shard in place.items():
        if found.get(name) != shard:
            where = f"it is in {found[name]}" if name in found else "it is in no shard"
            raise ValueError(f"{index}: tensor {name!r} should be in {shard}, but {where}")
    return tensors


def read_npz(path: Path) -> dict[str, Tensor]:
    """All arrays of an .npz, each read (and its CRC checked) on demand. Pickled objects are refused."""
    tensors: dict[str, Tensor] = {}
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"{path}: no regular file, so no .npz")
    size = path.stat().st_size
    with _zip_errors(f"{path}: not a readable .npz file"):
        archive = zipfile.ZipFile(path)  # closed with the last tensor that reads from it
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename:
            raise ValueError(f"{path}: {name!r} is no .npy member, so this is no .npz file")
        where = f"{path}: {name!r}"
        if name in tensors:
            raise ValueError(f"{where} is there twice")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{where} is compressed in a way that NumPy does not use")
        # deflate shrinks by 1032 at most, and nothing can be larger than the file that holds it
        if info.compress_size > size or info.file_size > 1040 * (info.compress_size + 1):
            raise ValueError(f"{where} claims {info.file_size} bytes, which the file cannot hold")
        with _zip_errors(where), archive.open(info) as member:
            shape, dtype = _npy_header(member, where, info.file_size)
        tensors[name] = Tensor((name,), shape, dtype, functools.partial(_read_npy, archive, info, where))
    return tensors


@contextlib.contextmanager
def _zip_errors(where: str) -> Iterator[None]:
    """What zipfile raises for broken, truncated, encrypted or exotic archives, as a ValueError."""
    try:
        yield
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
        *(NotImplementedError, RuntimeError, OSError, OverflowError, UnicodeError),
    ) as error:
        raise ValueError(f"{where}: {error}") from None


def _npy_header(member: Any, where: str, size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from a .npy header, checked against the member's size before anybody allocates the
    array."""
    try:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"version {version} of the format is not supported")
        prefix = member.read(2 * version[0])  # the header's size, which is all that tells how much NumPy would read
        length = int.from_bytes(prefix, "little")
        if length > MAX_NPY_HEADER:
            raise ValueError(f"it claims {length} bytes; the limit is {MAX_NPY_HEADER}")
        shape, _, dtype = read[version](io.BytesIO(prefix + member.read(length)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: broken .npy header ({error})") from None
    if dtype.hasobject:
        raise ValueError(f"{where}: holds pickled Python objects, which qkv never opens")
    if dtype.kind not in "fiub":
        raise ValueError(
            f"{where}: dtype {dtype} is not supported; expected floats or integers (bfloat16: as uint16, "
            f"named in {META})"
        )
    if not _is_sizes(shape) or len(shape) > MAX_RANK:
        raise ValueError(f"{where}: shape {shape!r:.99} is not one")
    needed = math.prod(shape) * dtype.itemsize
    if needed != size - member.tell():
        raise ValueError(f"{where}: shape {shape} of {dtype} takes {needed} bytes; there are {size - member.tell()}")
    return tuple(shape), dtype


def _read_npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    with _zip_errors(where), archive.open(info) as member:
        array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
        member.read(1)  # at the end zipfile compares the CRC
    return array


def write_npz(path: str | os.PathLike[str], entries: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write an uncompressed .npz, one array at a time, in the place of `path` only once it is complete.

    The file keeps the permissions of the one that it replaces. ValueError: the name, or what stands there, is not
    that of a file; OSError: it cannot be written.

    bfloat16 arrays must already be uint16 (their names go into qkv.json), because .npy has no name for them.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"save: expected a file name that ends in .npz, or the name of a folder; got {path}")
    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and not target.is_file():
        raise ValueError(f"save: {path} is there and no regular file")
    partial = target.parent / f".{secrets.token_hex(8)}.partial"  # short, and no other writer's
    try:
        stream = open(partial, "xb")  # noqa: SIM115 - the errors of opening are the target's
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with stream, zipfile.ZipFile(stream, "w") as archive:
            for name, array in entries:
                # a fixed date: the same model gives the same file
                info = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
                info.external_attr = 0o644 << 16
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        if target.exists():
            os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(path: str | os.PathLike[str], entries: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write entries as a folder: those named like files (*.json and so on) as files, the others into
    model.safetensors, or shards of at most 1 GB with an index: so much is held a second time. It gets its name only
    once it is complete.

    ValueError: something is there already, other than an empty folder; OSError: it cannot be written.
    """
    from safetensors.numpy import save_file

    target = Path(os.path.realpath(path))  # a link stays one
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"save: {path} is there already; choose another name, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.absolute().parent / f".{secrets.token_hex(8)}.partial"
    try:
        partial.mkdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        shard: dict[str, np.ndarray] = {}
        shards: list[list[str]] = []
        total = 0

        def flush() -> None:
            save_file(shard, partial / f"{len(shards)}.safetensors")
            shards.append(list(shard))
            shard.clear()

        for name, array in entries:
            if name.endswith(FILE_ENDINGS):
                file = inside(partial, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(array.tobytes())
                continue
            if shard and sum(a.nbytes for a in shard.values()) + array.nbytes > MAX_SHARD:
                flush()
            shard[name] = np.ascontiguousarray(array)
            total += array.nbytes
        flush()
        names = ["model.safetensors"]
        if len(shards) > 1:
            names = [f"model-{k + 1:05}-of-{len(shards):05}.safetensors" for k in range(len(shards))]
            weight_map = {name: file for file, held in zip(names, shards, strict=True) for name in held}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (partial / "model.safetensors.index.json").write_text(json.dumps(index))
        for k, name in enumerate(names):
            (partial / f"{k}.safetensors").rename(partial / name)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _join_packed(tensors: dict[str, Tensor], packed: Any, where: str) -> None:
    """Packed weights lie in up to three entries: name, name.scale, name.offset. packed: name -> (dtype, group, width),
    as Model.save writes it; shapes and dtypes are checked when the weight is put together."""
    if not isinstance(packed, dict):
        raise ValueError(f"{where}: packed must map names to dtype, group and width")
    for name, about in packed.items():
        values = tensors.get(name)
        if (
            values is None
            or len(values.shape) != 2
            or not (isinstance(about, list) and len(about) == 3 and isinstance(about[0], str) and _is_sizes(about[1:]))
        ):
            raise ValueError(f"{where}: {name} is packed as {about!r:.99}, which does not fit the entries")
        others = [tensors.pop(f"{name}.{kind}", None) for kind in ("scale", "offset")]

        def parts(about: list[Any] = about, of: tuple[Tensor | None, ...] = (values, *others)) -> tuple[Any, ...]:
            return (*about, *(None if t is None else t.read() for t in of))

        shape = (values.shape[0], about[2])
        tensors[name] = packed_tensor((name,), shape, (about[0], about[1]), parts)


def packed_tensor(
    names: tuple[str, ...], shape: tuple[int, ...], packed: tuple[str, int], parts: Callable[[], tuple[Any, ...]]
) -> Tensor:
    """A tensor that its file holds packed. Reading it as floats makes them."""

    def read() -> np.ndarray:
        from .ops import PackedWeight  # files are read before kernels are needed

        return PackedWeight.from_parts(*parts()).dequantize()

    return Tensor(names, shape, np.dtype(np.float32), read, parts, packed)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(type(n) is int and n >= 0 for n in value)


def _string_map(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"{where} must map names to strings")
    return value


def _view(tensor: Tensor, dtype: np.dtype) -> Tensor:
    return Tensor(tensor.names, tensor.shape, dtype, lambda: tensor.read().view(dtype))


def bfloat16_dtype() -> np.dtype[Any]:
    import ml_dtypes  # here, so that importing qkv does not pay for it

    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
