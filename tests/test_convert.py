"""qkv convert and Model.save: folders and .npz that load to the same bits, in the layout of packed weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import qkv
from golden_checks import GOLDEN, expected, inputs, outputs
from qkv import cli, files
from qkv.models import DTYPES
from safetensors.numpy import save_file

FOLDERS = ["bert_base", "bert_masked_lm", "bert_bfloat16", "bart_untied", "t5_v1_1", "llama_tied", "gpt2_lm"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", ["out", "out.npz"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_loads_to_the_same_bits(folder: str, target: str, dtype: str, tmp_path: Path) -> None:
    case = next(iter(expected(folder).values()))
    assert cli.main(["convert", str(GOLDEN / folder), str(tmp_path / target), "--dtype", dtype]) == 0
    direct = qkv.load(GOLDEN / folder, dtype=dtype)
    again = qkv.load(tmp_path / target, dtype="auto")
    first, second = outputs(direct(**inputs(case))), outputs(again(**inputs(case)))
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    kinds = [[getattr(w, "dtype", None) for w in model.parameters.values()] for model in (direct, again)]
    assert kinds[0] == kinds[1]
    assert again.config == direct.config and again.architecture == direct.architecture
    assert sum(len(set(map(id, m.parameters.values()))) for m in (direct, again)) == 2 * len(
        set(map(id, direct.parameters.values()))
    )  # what is tied stays one


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_SHARD", 20_000)
    model = qkv.load(GOLDEN / "bert_base")
    model.save(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(names) > 2 and names[0] == f"model-00001-of-{len(names):05}.safetensors"
    again = qkv.load(tmp_path / "out")
    np.testing.assert_array_equal(again([[5, 6, 7]]).last_hidden_state, model([[5, 6, 7]]).last_hidden_state)


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = qkv.load(GOLDEN / "bert_base")
    model.save(tmp_path / "out")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir())
    with pytest.raises(ValueError, match="is there already"):
        model.save(tmp_path / "out")
    assert cli.main(["convert", str(GOLDEN / "bert_relu"), str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing half written
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is there already"):
        model.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        model.save(tmp_path / "model.safetensors")


def test_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    """Names of the small files come from the checkpoint."""
    with pytest.raises(ValueError, match="leads out of the folder"):
        files.write_folder(tmp_path / "out", [("../x.json", np.frombuffer(b"{}", np.uint8))])
    assert not list(tmp_path.iterdir())


def test_broken_descriptions(tmp_path: Path) -> None:
    qkv.load(GOLDEN / "bert_base", dtype="int8").save(tmp_path / "out")
    path = tmp_path / "out" / "qkv.json"
    whole = path.read_text()
    for old, new, message in (
        ('"format": 1', '"format": 2', "has format 2"),
        ('["int8", 0, 32]', '["int8", 0, 33]', r"\(96, 33\), expected"),
        ('["int8", 0, 32]', '["int9", 0, 32]', "int9"),
        ('"packed": {', '"packed": {"absent": ["int8", 0, 32], ', "absent is packed as"),
    ):
        assert old in whole
        path.write_text(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            qkv.load(tmp_path / "out")


LOAD = """
import sys
import numpy as np, qkv, qkv.models
# not getrusage, whose maximum a process takes over from the one that started it
resident = lambda field: int(next(x for x in open("/proc/self/status") if x.startswith(field)).split()[1])
before = resident("VmRSS")
model = qkv.load(sys.argv[1], dtype=sys.argv[2])
peak = resident("VmHWM") - before
print(1024 * peak, sum(w.nbytes for w in {id(w): w for w in model.parameters.values()}.values()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_memory_while_loading(name: str, dtype: str, tmp_path: Path) -> None:
    """At most the packed model, its largest tensor and 100 MB; gpt2's matrices are transposed on the way."""
    rng = np.random.default_rng(0)
    width, rows, layers = 512, 60_000, 8
    if name == "gpt2":
        config = {"architectures": ["GPT2LMHeadModel"], "n_embd": width, "n_layer": layers, "n_head": 8}
        shapes = {
            "wte.weight": (rows, width),
            "wpe.weight": (1024, width),
            "ln_f.weight": (width,),
            "ln_f.bias": (width,),
        }
        for i in range(layers):
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"h.{i}.{norm}.{part}": (width,) for part in ("weight", "bias")}
            for part, n_in, n_out in (
                ("attn.c_attn", 1, 3),
                ("attn.c_proj", 1, 1),
                ("mlp.c_fc", 1, 4),
                ("mlp.c_proj", 4, 1),
            ):
                shapes[f"h.{i}.{part}.weight"] = (n_in * width, n_out * width)
                shapes[f"h.{i}.{part}.bias"] = (n_out * width,)
    else:
        config = {"architectures": ["BertModel"], "hidden_size": width, "num_hidden_layers": layers}
        config |= {"num_attention_heads": 8, "intermediate_size": 4 * width}
        shapes = {f"embeddings.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
        for table, n in (("word", rows), ("position", 512), ("token_type", 2)):
            shapes[f"embeddings.{table}_embeddings.weight"] = (n, width)
        for i in range(layers):
            layer = f"encoder.layer.{i}."
            for part in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes |= {f"{layer}{part}.{kind}": (width,) for kind in ("weight", "bias")}
            for part, n_in, n_out in (
                *((f"attention.self.{part}", 1, 1) for part in ("query", "key", "value")),
                *(("attention.output.dense", 1, 1), ("intermediate.dense", 1, 4), ("output.dense", 4, 1)),
            ):
                shapes[f"{layer}{part}.weight"] = (n_out * width, n_in * width)
                shapes[f"{layer}{part}.bias"] = (n_out * width,)
    config["vocab_size"] = rows
    save_file(
        {n: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = subprocess.run([sys.executable, "-c", LOAD, tmp_path, dtype], capture_output=True, text=True, check=True)
    peak, packed = map(int, run.stdout.split())
    assert packed <= peak <= packed + 4 * rows * width + 100_000_000
    assert packed >= (1 if dtype == "int8" else 4) * rows * width
