"""Readers of safetensors, shards and npz that take nothing for granted about a file."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qkv import files
from qkv.files import Tensor
from safetensors.numpy import save_file

A = np.arange(12, dtype=np.float32).reshape(4, 3)
B = np.arange(6, dtype=np.float32).reshape(2, 3) + 100


# ---- safetensors


def raw(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_safetensors_of_every_dtype(tmp_path: Path) -> None:
    types = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.bool_]
    types += [np.int64, np.int32, np.int16, np.int8, np.uint64, np.uint32, np.uint16, np.uint8]
    arrays = {np.dtype(t).name: np.arange(6).reshape(2, 3).astype(t) for t in types}
    arrays |= {"scalar": np.full((), 3, np.float32), "empty": np.zeros((0, 5), np.float32)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    tensors = files.read_safetensors(tmp_path / "x.safetensors")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = tensors[name].read()
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        assert (read.shape, read.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(read, array)
        assert read.flags.owndata and read.flags.writeable


def test_safetensors_cut_short_while_open(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": A, "b": B}, path)
    tensors = files.read_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(tensors["a"].read(), A)
    with pytest.raises(ValueError, match=r"x.safetensors: the file has become shorter"):
        tensors["b"].read()


def test_safetensors_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for header in (b"{}", b"{}   ", b'{"__metadata__": {"a": "b"}}'):
        path.write_bytes(raw(header))
        assert files.read_safetensors(path) == {}


BROKEN = {
    "empty": (b"", "too few"),
    "short": (b"1234567", "too few"),
    "header too long": (raw(b"{}", size=100_000_001), "limit"),
    "header of 2^64-1": (b"\xff" * 16, "limit"),
    "header truncated": (raw(b"{}", size=3), "truncated"),
    "no json": (raw(b"{]"), "not valid JSON"),
    "no header": (raw(b""), "not valid JSON"),
    "no object": (raw([1]), "JSON object"),
    "null": (raw(b"null"), "JSON object"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not UTF-8"),
    "UTF-16": (raw('{"a": 1}'.encode("utf-16")), "not UTF-8"),
    "nested": (raw(b'{"a":' + b"[" * 200_000), "nested too deeply|not valid JSON"),
    "huge number": (raw(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON|must have"),
    "twice": (raw(b'{"a": 1, "a": 2}'), "'a' is there twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "map names to strings"),
    "metadata list": (raw({"__metadata__": []}), "map names to strings"),
    "entry no object": (raw({"a": 3}), "'a': must have"),
    "entry incomplete": (raw({"a": {"dtype": "F32", "shape": [2]}}), "'a': must have"),
    "entry with more": (raw({"a": entry() | {"more": 1}}, b"8" * 8), "'a': must have"),
    "unknown dtype": (raw({"a": entry("F31")}, b"8" * 8), "dtype 'F31' is not known"),
    "dtype no string": (raw({"a": entry(["F32"])}, b"8" * 8), "is not known"),
    "shape negative": (raw({"a": entry(shape=[-2])}, b"8" * 8), "none negative"),
    "shape float": (raw({"a": entry(shape=[2.0])}, b"8" * 8), "shape must be"),
    "shape bool": (raw({"a": entry("F64", [True])}, b"8" * 8), "shape must be"),
    "shape string": (raw({"a": entry(shape="2")}, b"8" * 8), "shape must be"),
    "shape of rank 33": (raw({"a": entry("U8", [1] * 33, 0, 1)}, b"8"), "shape must be"),
    "shape too large": (raw({"a": entry(shape=[3])}, b"8" * 8), "takes 12 bytes; data_offsets hold 8"),
    "shape overflows": (raw({"a": entry(shape=[2**62, 2**62, 8])}, b"8" * 8), "takes"),
    "shape overflows to 8": (raw({"a": entry(shape=[2**32 + 1, 2**32, 4])}, b"8" * 8), "takes"),
    "offsets reversed": (raw({"a": entry(begin=8, end=0)}, b"8" * 8), "outside"),
    "offsets negative": (raw({"a": entry(begin=-8, end=0)}, b"8" * 8), "data_offsets must be"),
    "offsets too many": (raw({"a": entry() | {"data_offsets": [0, 8, 8]}}, b"8" * 8), "data_offsets must be"),
    "offsets float": (raw({"a": entry(end=8.0)}, b"8" * 8), "data_offsets must be"),
    "data truncated": (raw({"a": entry()}, b"7" * 7), "outside the file's 7 bytes"),
    "data absent": (raw({"a": entry()}), "outside"),
    "offset of 2^64": (raw({"a": entry(begin=2**64, end=2**64 + 8)}, b"8" * 8), "outside"),
    "data after the last": (raw({"a": entry()}, b"9" * 9), "oversized, 1 bytes"),
    "hole": (raw({"a": entry(), "b": entry(begin=9, end=17)}, b"8" * 17), "'b'.*leaves a hole"),
    "hole at the start": (raw({"a": entry(begin=1, end=9)}, b"9" * 9), "'a'.*leaves a hole"),
    "overlap": (raw({"a": entry(), "b": entry(begin=4, end=12)}, b"8" * 12), "'b'.*overlaps"),
    "same place": (raw({"a": entry(), "b": entry()}, b"8" * 8), "overlaps"),
}


@pytest.mark.parametrize("what", list(BROKEN))
def test_broken_safetensors(what: str, tmp_path: Path) -> None:
    data, message = BROKEN[what]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        files.read_safetensors(path)
    assert "x.safetensors" in str(caught.value)


@given(st.data())
def test_mangled_safetensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes, and any change to a good file, are read or refused with a ValueError, never worse."""
    good = raw({"a": entry(), "b": entry("BF16", [3, 1], 8, 14)}, bytes(range(14)))
    if data.draw(st.booleans()):
        content = data.draw(st.binary(max_size=200))
    else:
        mangled = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            mangled[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
        content = bytes(mangled[: data.draw(st.integers(0, len(good)))])
    path = tmp_path_factory.mktemp("mangled") / "x.safetensors"
    path.write_bytes(content)
    try:
        tensors = files.read_safetensors(path)
    except ValueError:
        return
    for tensor in tensors.values():
        assert tensor.read().shape == tensor.shape


# ---- shards and folders


def shards(folder: Path, weight_map: Any, **contents: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, arrays in contents.items():
        save_file(arrays, folder / f"{name}.safetensors")


def test_shards(tmp_path: Path) -> None:
    shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a={"x": A}, b={"y": B})
    tensors = files.folder_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["x"].read(), A)
    np.testing.assert_array_equal(tensors["y"].read(), B)


def test_shards_that_do_not_fit_the_index(tmp_path: Path) -> None:
    shards(tmp_path, {"x": "a.safetensors", "y": "a.safetensors"}, a={"x": A})
    with pytest.raises(ValueError, match=r"'y' should be in a.safetensors, but it is in no shard"):
        files.folder_tensors(tmp_path)
    shards(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"}, a={"x": A, "y": A}, b={"y": B})
    with pytest.raises(ValueError, match=r"'y' is in a.safetensors and again in b.safetensors"):
        files.folder_tensors(tmp_path)
    shards(tmp_path, {"x": "b.safetensors", "y": "a.safetensors"}, a={"x": A}, b={"y": B})
    with pytest.raises(ValueError, match=r"'x' should be in b.safetensors, but it is in a.safetensors"):
        files.folder_tensors(tmp_path)
    shards(tmp_path, {"x": "gone.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"gone.safetensors is not in the folder"):
        files.folder_tensors(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"weight_map": {"x": 3}}', b'{"weight_map": [1]}', b"{", b"\xff"])
def test_broken_index(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json"):
        files.folder_tensors(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "", "a\\..\\..\\x", "C:\\x", "x\0y"]
)
def test_shards_stay_inside_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": A}, tmp_path / "x.safetensors")
    shards(folder, {"x": name})
    with pytest.raises(ValueError, match="leads out of the folder"):
        files.folder_tensors(folder)


def test_links_stay_inside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": A}, tmp_path / "x.safetensors")
    (folder / "x.safetensors").symlink_to(tmp_path / "x.safetensors")
    shards(folder, {"x": "x.safetensors"})
    with pytest.raises(ValueError, match="a link that leads out of the folder"):
        files.folder_tensors(folder)


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"x": A}, blobs / "abc")
    (snapshot / "x.safetensors").symlink_to(Path("../../blobs/abc"))
    shards(snapshot, {"x": "x.safetensors"})
    np.testing.assert_array_equal(files.folder_tensors(snapshot)["x"].read(), A)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"pytorch_model.bin; that is a pickle.*weights_only=True"):
        files.folder_tensors(tmp_path)
    with pytest.raises(ValueError, match=r"pickle.*glob\('pytorch_model.bin'\)"):
        files.open_checkpoint(tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(ValueError, match="that is a pickle"):
        files.folder_tensors(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors"):
        files.folder_tensors(tmp_path)


# ---- npz


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, tmp_path: Path) -> None:
    arrays = {"a.weight": A, "b": B.astype(np.float16), "c": np.asfortranarray(A), "d": np.arange(3)}
    save(tmp_path / "x.npz", **arrays)
    tensors = files.read_npz(tmp_path / "x.npz")
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (tensors[name].shape, tensors[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensors[name].read(), array)


BAD_ARRAYS = {
    "pickle": (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "pickled"),
    "text": (npy(np.array(["a"])), "dtype"),
    "records": (npy(np.zeros(2, [("a", "f4")])), "dtype"),
    "complex": (npy(np.zeros(2, complex)), "dtype"),
    "no header": (b"", "broken .npy header"),
    "wrong magic": (b"\x93NUMPX\x01\x00", "broken .npy header"),
    "version 9": (b"\x93NUMPY\x09\x00" + b" " * 20, "broken .npy header"),
    "not a dict": (header("[]"), "broken .npy header"),
    "code": (header("__import__('os').system('true')"), "broken .npy header"),
    "negative": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "shape|header"),
    "larger than it is": (
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99,)}", b"1234"),
        "takes 396",
    ),
    "overflow": (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2**62, 8)}"), "header|takes"),
    "terabytes": (header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**50},)}}"), "takes"),
    "trailing": (npy(A) + b"x", "takes 48 bytes; there are 49"),
}


@pytest.mark.parametrize("what", list(BAD_ARRAYS))
def test_bad_npz_members(what: str, tmp_path: Path) -> None:
    data, message = BAD_ARRAYS[what]
    with pytest.raises(ValueError, match=message) as caught:
        files.read_npz(npz(tmp_path / "x.npz", good=npy(A), bad=data))
    assert "x.npz: 'bad'" in str(caught.value)


def test_pickles_in_npz_do_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "x.npz", bomb=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="pickled"):
        files.read_npz(tmp_path / "x.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", npy(A)])
def test_files_that_are_no_npz(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.npz"):
        files.read_npz(path)


def test_zip_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"'a.txt' is no .npy member"):
        files.read_npz(tmp_path / "x.npz")


def test_one_name_twice_in_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy(A))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", npy(B))
    with pytest.raises(ValueError, match="'a' is there twice"):
        files.read_npz(tmp_path / "x.npz")


def test_damaged_npz_data_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=A)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    place = content.find(A.tobytes())
    content[place] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC"):
        files.read_npz(tmp_path / "x.npz")["a"].read()


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=A, b=B)
    content = (tmp_path / "x.npz").read_bytes()
    for size in range(0, len(content), 7):
        (tmp_path / "x.npz").write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"x.npz"):
            files.read_npz(tmp_path / "x.npz")


def test_written_npz_is_numpys(tmp_path: Path) -> None:
    files.write_npz(tmp_path / "x.npz", [("a", A), ("b/c", np.frombuffer(b"{}", np.uint8))])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["a"], A)
        assert loaded["b/c"].tobytes() == b"{}"
    with pytest.raises(ValueError, match=r"ends in .npz"):
        files.write_npz(tmp_path / "x.npy", [])


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    def entries() -> Any:
        yield "a", A
        raise RuntimeError("stop")

    files.write_npz(tmp_path / "x.npz", [("a", B)])
    with pytest.raises(RuntimeError, match="stop"):
        files.write_npz(tmp_path / "x.npz", entries())
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    np.testing.assert_array_equal(files.read_npz(tmp_path / "x.npz")["a"].read(), B)


def test_bfloat16_in_npz_by_name() -> None:
    values = A.astype(ml_dtypes.bfloat16)
    meta = json.dumps({"format": 1, "dtypes": {"a": "bfloat16"}, "ties": {"b": "a"}}).encode()
    arrays = {"a": values.view(np.uint16), "qkv.json": np.frombuffer(meta, np.uint8)}
    checkpoint = files.from_entries("x", {name: Tensor.of(name, array) for name, array in arrays.items()})
    assert checkpoint.canonical and checkpoint.tensors["a"].dtype == values.dtype
    np.testing.assert_array_equal(checkpoint.tensors["a"].read(), values)
    assert checkpoint.tensors["b"] is checkpoint.tensors["a"]


@pytest.mark.parametrize(
    "meta",
    [
        b"[]",
        b"{",
        b'{"format": 2}',
        b'{"format": 1, "dtypes": {"a": "bfloat16"}}',
        b'{"format": 1, "dtypes": {"b": "bfloat16"}}',
        b'{"format": 1, "ties": {"b": "c"}}',
        b'{"format": 1, "ties": {"a": "a"}}',
        b'{"format": 1, "ties": 3}',
    ],
)
def test_broken_description_in_npz(meta: bytes) -> None:
    arrays = {"a": A, "qkv.json": np.frombuffer(meta, np.uint8)}
    with pytest.raises(ValueError, match="x"):
        files.from_entries("x", {name: Tensor.of(name, array) for name, array in arrays.items()})


def test_files_in_npz_are_bytes() -> None:
    with pytest.raises(ValueError, match=r"config.json must be a file's bytes"):
        files.from_entries("x", {"config.json": Tensor.of("config.json", A)})


def test_json_in_npz_is_read_when_it_is_asked_for() -> None:
    """A deflated file of a few kilobytes may hold many times 250 MB of it."""

    def read() -> np.ndarray:
        raise AssertionError("read")

    entries = {f"{k}.json": Tensor((f"{k}.json",), (250_000_000,), np.dtype(np.uint8), read) for k in range(12)}
    entries["config.json"] = Tensor.of("config.json", np.frombuffer(b'{"a": 1}', np.uint8))
    checkpoint = files.from_entries("x", entries)
    assert checkpoint.json("config.json") == {"a": 1} and checkpoint.tensors == {}
    with pytest.raises(ValueError, match=r"x: 3.json: 250000000 bytes are too many .*limit 16000000"):
        checkpoint.file("3.json")


def test_json_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE", 10)
    monkeypatch.setattr(files, "MAX_TOKENIZER", 20)
    monkeypatch.setattr(files, "MAX_FILES", 35)
    sizes = {"tokenizer.json": 20, "a.json": 10, "b.json": 11, "c.json": 6}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b" " * size)
    entries = {name: Tensor.of(name, np.zeros(size, np.uint8)) for name, size in sizes.items()}
    for checkpoint in (files.Checkpoint("x", {}, folder=tmp_path), files.from_entries("x", entries)):
        assert [len(checkpoint.file(name) or b"") for name in ("tokenizer.json", "a.json")] == [20, 10]
        assert len(checkpoint.file("a.json") or b"") == 10  # again: it counts once
        with pytest.raises(ValueError, match=r"b.json: 11 bytes are too many"):
            checkpoint.file("b.json")
        with pytest.raises(ValueError, match=r"c.json: with it the JSON files have 36 bytes \(limit 35\)"):
            checkpoint.file("c.json")
    (tmp_path / "model.safetensors.index.json").write_bytes(b" " * 11)
    with pytest.raises(ValueError, match=r"11 bytes are too many for an index"):
        files.folder_tensors(tmp_path)


def test_npy_headers_of_version_2(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"
    magic = b"\x93NUMPY\x02\x00"
    good = magic + struct.pack("<I", len(text)) + text.encode() + bytes(8)
    assert files.read_npz(npz(tmp_path / "x.npz", a=good))["a"].read().tolist() == [0, 0]
    for size in (65536, 2**32 - 1):
        bomb = magic + struct.pack("<I", size) + text.encode() + b" " * 100_000
        with pytest.raises(ValueError, match=f"'a': broken .npy header .it claims {size} bytes; the limit is 65535"):
            files.read_npz(npz(tmp_path / "x.npz", a=bomb))


def test_npz_that_is_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    (tmp_path / "folder.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for name in ("zero", "folder", "pipe"):
        with pytest.raises(ValueError, match=rf"{name}.npz: no regular file"):
            files.read_npz(tmp_path / f"{name}.npz")
    for name in ("zero", "pipe"):
        with pytest.raises(ValueError, match="no regular file"):
            files.open_checkpoint(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("name", ["loop", "x" * 300, "\ud800x", "x.safetensors/below/" + "y" * 300])
def test_names_that_cannot_be_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    shards(tmp_path, {"x": name})
    with pytest.raises((ValueError, FileNotFoundError), match=r"cannot be used|is not in the folder") as caught:
        files.folder_tensors(tmp_path)
    assert str(tmp_path) in str(caught.value) and not isinstance(caught.value, UnicodeError)


def patched(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def test_npz_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = patched(npz(tmp_path / "x.npz", é=npy(A)), "é.npy".encode(), b"\xff\xff.npy")
    with pytest.raises(ValueError, match=r"x.npz: not a readable .npz file") as caught:
        files.read_npz(path)
    assert not isinstance(caught.value, UnicodeError)


def central(path: Path) -> int:
    """Where the one member's entry in the zip's directory begins."""
    return path.read_bytes().index(b"PK\x01\x02")


def overwrite(path: Path, place: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)


def test_npz_members_that_claim_too_much(tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", a=npy(A))
    overwrite(path, central(path) + 24, struct.pack("<I", 2**31))  # the size before compression
    with pytest.raises(ValueError, match="'a' claims 2147483648 bytes, which the file cannot hold"):
        files.read_npz(path)
    path = npz(tmp_path / "x.npz", a=npy(A))
    overwrite(path, central(path) + 20, struct.pack("<I", 2**31))  # and after
    with pytest.raises(ValueError, match="which the file cannot hold"):
        files.read_npz(path)


def test_npz_in_other_ways(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
            archive.writestr("a.npy", npy(A))
        with pytest.raises(ValueError, match="'a' is compressed in a way that NumPy does not use"):
            files.read_npz(tmp_path / "x.npz")
    path = npz(tmp_path / "x.npz", a=npy(A))
    overwrite(path, central(path) + 8, b"\x01")  # the flag of encryption
    overwrite(path, 6, b"\x01")
    with pytest.raises(ValueError, match=r"x.npz: 'a'.*(encrypted|password)"):
        files.read_npz(path)


# ---- saving


def test_saves_at_the_same_time(tmp_path: Path) -> None:
    """The last one counts, whole; none disturbs another."""
    path, errors = tmp_path / "x.npz", []

    def save(k: int) -> None:
        try:
            for _ in range(10):
                files.write_npz(path, [(name, np.full(3000, k)) for name in ("a", "b", "c")])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
    assert len({int(x) for t in files.read_npz(path).values() for x in t.read()}) == 1


def test_save_keeps_links_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    link, target = tmp_path / "x.npz", tmp_path / "place" / "real"
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        files.write_npz(link, [("a", A)])
    finally:
        os.umask(old)
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o604)
    files.write_npz(link, [("a", B)])
    assert link.is_symlink() and stat.S_IMODE(target.stat().st_mode) == 0o604
    np.testing.assert_array_equal(files.read_npz(link)["a"].read(), B)


def test_save_under_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".npz")
    files.write_npz(path, [("a", A)])
    np.testing.assert_array_equal(files.read_npz(path)["a"].read(), A)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "null.npz").symlink_to("/dev/null")
    for name in ("folder.npz", "null.npz"):
        with pytest.raises(ValueError, match=f"save: .*{name} is there and no regular file"):
            files.write_npz(tmp_path / name, [("a", A)])
    with pytest.raises(FileNotFoundError, match=r"absent/x.npz"):
        files.write_npz(tmp_path / "absent" / "x.npz", [("a", A)])
    if os.geteuid() != 0:  # root may write everywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(PermissionError, match=r"locked/x.npz"):
            files.write_npz(tmp_path / "locked" / "x.npz", [("a", A)])
