"""The measuring core: structure, agreement of the sides, broken sides. Speeds are nobody's business here."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qkv.bench import Case, Limits, Measurement, Sides, Suite, bert, machine, measure, numpy_ops, report, run, suites

TINY = {
    "gemm": suites.gemm_case(3, 8, 5),
    "attention": suites.attention_case(2, 3, 9, 8, True),
    "softmax": Case("4x16", {"rows": 4, "width": 16}, nbytes=512.0),
    "norm": Case("4x16", {"rows": 4, "width": 16}, nbytes=512.0),
    "activation": Case("4x16", {"rows": 4, "width": 16}, nbytes=512.0),
    "embedding": Case("5 of 11x16", {"tokens": 5, "vocabulary": 11, "width": 16}, nbytes=640.0),
    "rotary": suites.rotary_case(2, 3, 5, 8),
    "additive_attention": suites.additive_attention_case(2, 3, 4, 8, 6),
}
LIMITS = Limits(1e11, 0.0, 0.0, 1e10, 2e10, 1e10, threads=2, buffer_bytes=1 << 20)


@pytest.mark.parametrize("op", list(suites.SUITES))
def test_numpy_side_computes_what_qkv_computes(op: str) -> None:
    suite = suites.SUITES[op]
    inputs = suite.inputs(**TINY[op].params)
    ours, theirs = (suite.sides[side](**inputs)() for side in ("qkv", "numpy"))
    assert ours.dtype == theirs.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_full_attention_and_bias_in_numpy() -> None:
    import qkv

    q, k, v = (suites.normal(1, 2, 5, 8, seed=i) for i in range(3))
    bias = suites.normal(5, 5, seed=3)
    np.testing.assert_allclose(
        numpy_ops.attention(q, k, v, bias=bias), qkv.attention(q, k, v, bias=bias), rtol=1e-5, atol=1e-6
    )


def test_erf_is_within_its_bound() -> None:
    x = np.linspace(-5, 5, 10001, dtype=np.float32)
    expected = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(numpy_ops.erf(x) - expected).max() < 5e-7


def test_bert_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = {**bert.BERT_BASE, **small, "vocab_size": 50, "max_position_embeddings": 16}
    monkeypatch.setattr(bert, "BERT_BASE", config)
    inputs = bert.inputs(None, [3, 7])
    assert inputs["mask"].sum() == 10
    ours, theirs = bert.qkv_side(**inputs)(), bert.numpy_side(**inputs)()
    assert ours.shape == (2, 32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    # 2 layers, 10 tokens: four (32, 32) and two (32, 48) products, scores and values of 3 and 7 tokens
    assert bert.flops(config, [3, 7]) == 2 * (10 * 2 * (4 * 32 * 32 + 2 * 32 * 48) + (9 + 49) * 2 * 2 * 32)


def test_bert_folder(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "bert_base"
    inputs = bert.inputs(str(golden), [4])
    np.testing.assert_allclose(bert.qkv_side(**inputs)(), bert.numpy_side(**inputs)(), rtol=1e-4, atol=1e-4)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="'gpt2'"):
        bert.cases(str(tmp_path))


def test_measure_interleaves_and_compares() -> None:
    with Sides(["qkv", "numpy"]) as sides:
        for op in ("gemm", "softmax"):
            m = measure(suites.SUITES[op], TINY[op], sides, rounds=2, seconds=1e-3)
            assert not m.errors
            assert set(m.rounds) == {"qkv", "numpy"}
            assert all(len(rounds) == 2 and all(0 < a <= b for a, b in rounds) for rounds in m.rounds.values())
            assert all(ratio > 0 for ratio in m.ratios("numpy"))
            assert m.rate("qkv") == TINY[op].work / m.least("qkv")


def test_memory_limits_are_measured_around_what_they_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter((3e10, 5e10))  # before, after
    monkeypatch.setattr(run, "measure_limits", lambda **_: replace(LIMITS, read=next(speeds)))
    case = replace(TINY["gemm"], flops=0.0, nbytes=1e6, limit="read")
    suite = suites.SUITES["gemm"]
    with Sides(["qkv"]) as sides:
        m, other = run.run_suites(
            [(suite, [case, TINY["gemm"]])], sides, LIMITS, rounds=1, seconds=1e-3, out=lambda _: None
        )
    assert m.share("qkv", LIMITS) == pytest.approx(m.rate("qkv") / 5e10)
    near = m.as_dict(LIMITS)["limits_near"]
    assert near is not None and near["read"] == 5e10
    assert other.near is None


SIDES_SOURCE = """
import os
import numpy as np
from qkv.bench import Case, Suite

def cases():
    return [Case("one", {"n": 3})]

def inputs(n):
    return {"x": np.ones(n)}

def good(x):
    print("noise on standard output")
    return lambda: x

def raises(x):
    raise KeyError("no such thing")

def differs(x):
    return lambda: 2 * x

def dies(x):
    os._exit(3)

SIDES = {"good": good, "other": good, "raises": raises, "differs": differs, "dies": dies}
SUITES = {"odd": Suite("odd", __name__, cases, inputs, SIDES)}
"""


def test_sides_that_fail_are_reported_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "odd_sides.py").write_text(SIDES_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite: Suite = importlib.import_module("odd_sides").SUITES["odd"]
    names = ["good", "raises", "differs", "dies", "absent", "missing", "other"]
    pythons = {"missing": str(tmp_path / "no-python")}
    with Sides(names, paths=[str(tmp_path)], pythons=pythons) as sides:
        m = measure(suite, suite.cases()[0], sides, rounds=1, seconds=1e-3, names=names)
        again = measure(suite, suite.cases()[0], sides, rounds=1, seconds=1e-3, names=["dies", "good"])
    assert set(m.rounds) == {"good", "other"}
    assert m.errors["raises"] == "KeyError: 'no such thing'"
    assert "something else than good" in m.errors["differs"]
    assert m.errors["dies"] == "the process ended with status 3"
    assert m.errors["absent"].startswith("KeyError")
    assert "No such file" in m.errors["missing"]
    assert set(again.rounds) == {"good"}


TOKENS_SOURCE = """
import numpy as np
from qkv.bench import Case, Suite

IDS = np.arange(8).reshape(2, 4)

def cases():
    return [Case("exact", {}, tokens=8, tolerance=0.0), Case("rough", {}, tokens=8, tolerance=1.0)]

def inputs():
    return {}

def same():
    return lambda: IDS

def strays():
    other = IDS.copy()
    other[1, 1] = 9  # what follows does not count any more
    return lambda: other

def short():
    return lambda: IDS[:, :3]

SUITES = {"ids": Suite("ids", __name__, cases, inputs, {"first": same, "same": same, "strays": strays, "short": short})}
"""


def test_tokens_of_the_sides_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token_sides.py").write_text(TOKENS_SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    suite: Suite = importlib.import_module("token_sides").SUITES["ids"]
    with Sides(["first", "same", "strays", "short"], paths=[str(tmp_path)]) as sides:
        exact, rough = (measure(suite, case, sides, rounds=1, seconds=1e-3) for case in suite.cases())
    for m in (exact, rough):
        assert set(m.rounds) == {"first", "same", "strays"}
        assert m.errors == {"short": "makes [3, 3] tokens, not [4, 4] as first"}
        assert m.as_dict(LIMITS, "first")["agreement"] == {"same": 1.0, "strays": 5 / 8}
    told = [line for line in report.row(exact, ["first", "same", "strays", "short"], LIMITS) if "strays" in line]
    assert told == ["    strays: 62% of its tokens come before the first in a row that is not first's"]
    assert not any("strays" in note for note in rough.notes())


def test_speeds_in_tokens_and_phases() -> None:
    """Prompt: 2e8 operations at 1e11, 1e7 bytes at 1e10 (2 ms). Tokens: 4e8 bytes at 1e10, 1e9 operations (40 ms)."""
    phases = ({"fma": 2e8, "read": 1e7}, {"fma": 1e9, "read": 4e8})
    m = Measurement("generate", Case("x", {}, tokens=64, phases=phases))
    m.rounds = {"qkv": [(0.084, 0.1)]}
    assert m.case.least_seconds(LIMITS) == pytest.approx(0.042)
    assert m.share("qkv", LIMITS) == pytest.approx(0.5)
    assert m.speed("qkv") == pytest.approx(64 / 0.084)
    (line,) = report.row(m, ["qkv"], LIMITS)
    assert line.split() == ["x", "84", "ms", "761.9", "tok/s", "50%"]
    assert m.as_dict(LIMITS)["sides"]["qkv"]["tokens_per_s"] == pytest.approx(64 / 0.084)
    unknown = Case("y", {}, tokens=1, phases=({"bf16_dot": 1.0},))  # not measured on this machine
    assert unknown.least_seconds(LIMITS) is None


def test_workers_do_not_stay_behind() -> None:
    with Sides(["numpy"]) as sides:
        measure(suites.SUITES["softmax"], TINY["softmax"], sides, rounds=1, seconds=1e-3)
        process = sides._processes["numpy"]
        assert process.poll() is None
    assert process.poll() == 0


def measurement() -> Measurement:
    m = Measurement("gemm", suites.gemm_case(128, 64, 64))
    m.rounds = {"qkv": [(1e-5, 2e-5), (2e-5, 4e-5)], "numpy": [(2e-5, 3e-5), (3e-5, 3e-5)]}
    m.errors = {"torch": "ModuleNotFoundError: No module named 'torch'"}
    return m


def test_numbers_of_a_measurement() -> None:
    m = measurement()
    flops = 2 * 128 * 64 * 64
    assert m.least("qkv") == 1e-5
    assert m.median("qkv") == pytest.approx(3e-5)
    assert m.ratios("numpy") == pytest.approx([1.5, 0.75])
    assert m.rate("qkv") == pytest.approx(flops / 1e-5)
    assert m.share("qkv", LIMITS) == pytest.approx(flops / 1e-5 / 1e11)
    assert Measurement("x", Case("y", {}, nbytes=1.0)).share("qkv", LIMITS) is None


def test_table_and_json(tmp_path: Path) -> None:
    m = measurement()
    head, lines = report.header("gemm", ["qkv", "numpy", "torch"]), report.row(m, ["qkv", "numpy", "torch"], LIMITS)
    assert head.split() == ["gemm", "qkv", "rate", "of", "limit", "numpy", "ratio", "least", "torch", "ratio", "least"]
    expected = "128x64x64 10 µs 104.9 GFLOP/s 105% 20 µs 1.12 0.75 - - -"
    assert lines[0].split() == expected.split()
    assert lines[1].strip() == "torch: ModuleNotFoundError: No module named 'torch'"
    assert len(lines[0]) <= len(head)
    path = tmp_path / "result.json"
    report.write_json(path, report.document(machine.describe(), LIMITS, [m]))
    content = json.loads(path.read_text())
    assert content["limits"]["fma"] == 1e11
    assert content["machine"]["threads"] >= 1
    (result,) = content["results"]
    assert result["ratio_to_qkv"]["numpy"] == {"min": pytest.approx(0.75), "median": pytest.approx(1.125)}
    assert result["sides"]["numpy"]["rounds_s"] == [[2e-5, 3e-5], [3e-5, 3e-5]]
    assert result["errors"] == m.errors


def test_seconds_are_readable() -> None:
    written = [report.format_seconds(x) for x in (2.5, 0.123, 0.0123, 1.5e-6, 250e-6, 3e-9)]
    assert written == ["2.5 s", "123 ms", "12.3 ms", "1.5 µs", "250 µs", "3 ns"]


def test_final_limits_are_the_higher_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    higher = LIMITS.best(Limits(2e11, 0.0, 0.0, 1e9, 2e10, 1e10, threads=2, buffer_bytes=1 << 20))
    assert (higher.fma, higher.read) == (2e11, 1e10)
    monkeypatch.setattr(run, "measure_limits", lambda: higher)
    said: list[str] = []
    assert run.final_limits(LIMITS, said.append) == higher
    assert any("higher now" in line for line in said)
    said.clear()
    assert run.final_limits(higher, said.append) == higher
    assert not said


def test_caches_are_read_from_the_system(tmp_path: Path) -> None:
    for i, content in enumerate([("1", "Data", "48K"), ("3", "Unified", "32M"), ("2", "Unified", "odd"), None]):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, text in zip(("level", "type", "size"), content or (), strict=False):
            (folder / name).write_text(text + "\n")
    found = machine.caches(tmp_path)
    assert [(c.level, c.kind, c.nbytes) for c in found] == [(1, "Data", 48 << 10), (3, "Unified", 32 << 20)]
    assert machine.caches(tmp_path / "none") == []
    assert machine.last_cache() > 0


def bench_module(name: str) -> Any:
    """A file of the repository's bench/."""
    root = Path(__file__).parents[1]
    if not (root / "bench" / "__main__.py").exists():
        pytest.skip("bench/ is not beside the tests")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(name)


@pytest.mark.parametrize(
    "stem",
    [
        *("gemm", "gemm_quantized", "quantize", "attention", "attention_grid", "attention_paged", "paged_write"),
        *("norm", "activation", "rotary"),
    ],
)
def test_cases_of_the_op_files_are_plain_values(stem: str) -> None:
    for suite in bench_module(f"bench.{stem}").SUITES.values():
        cases = suite.cases()
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            assert json.loads(json.dumps(case.params)) == case.params
            assert case.limit is None or case.limit in Limits.UNITS
            assert case.work > 0


def test_bench_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main = bench_module("bench.__main__")
    monkeypatch.setattr(run, "measure_limits", lambda **_: LIMITS)
    path = tmp_path / "result.json"
    options = ["--rounds", "1", "--seconds", "0.001", "--only", "128x64x64", "--json", str(path)]
    assert main.main(["gemm", "import", "--peers", "numpy", *options]) == 0
    content = json.loads(path.read_text())
    assert [m["suite"] for m in content["results"]] == ["gemm"]
    assert not content["results"][0]["errors"]
    assert content["import"]["seconds"]["qkv"][0] > 0
    assert "import, beyond numpy" in capsys.readouterr().out


SIZES = {  # parameters as published, and the tables and vectors among them that are not multiplied with
    "gpt2": (124_439_808, 1024 * 768 + 12 * (3 + 1 + 4 + 1 + 4) * 768 + 2 * 768),
    "t5": (60_506_624, 2 * 32 * 8 + (6 * 2 + 1 + 6 * 3 + 1) * 512),
    "smollm2": (134_515_008, (2 * 30 + 1) * 576),
}


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_of_the_models_that_generate(name: str) -> None:
    size = bench_module("bench.checkpoints").size(name)
    total, rest = SIZES[name]
    assert size.source + size.step + size.head == total - rest


def test_generate_counts_what_bounds_it() -> None:
    generate = bench_module("bench.generate")
    cases = {case.name: case for suite in generate.SUITES.values() for case in suite.cases()}
    for case in cases.values():
        assert json.loads(json.dumps(case.params)) == case.params
        assert {name for phase in case.phases for name in phase} <= set(Limits.UNITS)
    assert cases["GPT-2 decode bfloat16"].tokens == 64
    assert cases["GPT-2 prefill int8"].tokens == 512
    assert cases["Marian beam 4 float32"].tokens == 8 * 32
    prompt, rest = cases["GPT-2 decode float32"].phases
    products = 124_439_808 - SIZES["gpt2"][1]  # the head's among them
    assert rest["fma"] == 63 * 2 * products + sum(4 * 12 * 768 * keys for keys in range(33, 96))
    assert prompt["fma"] == 2 * (32 * (products - 50257 * 768) + 50257 * 768) + 4 * 12 * 768 * 32 * 33 / 2
    if products * 4 > 2 * machine.last_cache():
        assert prompt["read"] == 4 * products and rest["read"] == 63 * 4 * products
    else:
        assert "read" not in prompt and "read" not in rest


def test_generate_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = bench_module("bench.__main__")
    monkeypatch.setattr(run, "measure_limits", lambda **_: LIMITS)
    path = tmp_path / "result.json"
    options = ["--rounds", "1", "--seconds", "0.001", "--json", str(path)]
    assert main.main(["generate", "--tiny", "--peers", "", *options]) == 0
    results = json.loads(path.read_text())["results"]
    assert {m["suite"] for m in results} == {"generate_gpt2", "generate_marian", "generate_t5"}
    for m in results:
        assert not m["errors"] and m["unit"] == "tok/s" and m["sides"]["qkv"]["tokens_per_s"] > 0
    kinds = {m["case"].rpartition(" ")[0] for m in results}
    decoders = {"GPT-2 decode", "GPT-2 prefill"}
    assert kinds == decoders | {f"{name} beam {beams}" for name in ("Marian", "T5") for beams in (1, 4)}


def test_generate_makes_as_many_tokens_as_asked() -> None:
    """eos, to which random weights come sooner or later, is never among them."""
    generate, checkpoints = (bench_module(f"bench.{name}") for name in ("generate", "checkpoints"))
    with checkpoints.shared():
        for model, lengths in (("gpt2-tiny", [4]), ("marian-tiny", [3, 9]), ("t5-tiny", [3, 9])):
            inputs = generate.inputs(model, "float32", lengths, 60, 1)
            made = generate.qkv_side(**inputs)()
            config = checkpoints.CONFIGS[model]
            assert made.shape == (len(lengths), 60)
            assert not (made == config["eos_token_id"]).any()
            assert len(np.unique(made)) > 5  # weights that say something, or the comparison would not
    assert checkpoints.PLACE not in os.environ


def test_generation_memory(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_module("bench.generation_memory").report(tiny=True)
    assert set(found) == {"gpt2-tiny", "marian-tiny"}
    times = ("first", "again")
    assert set(found["marian-tiny"]) == {f"10 batches, {time}" for time in times}
    assert set(found["gpt2-tiny"]) == {f"{what}, {time}" for what in ("100 tokens", "10 batches") for time in times}
    for model in found.values():
        for name, one in model.items():
            start, *between, end = one["resident_bytes"]
            assert len(between) == 9
            if name.endswith("again"):
                assert end - start < 1 << 20
    assert "gpt2-tiny, 10 batches, again" in capsys.readouterr().out


def test_footprint(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_module("bench.footprint").report(calls=3, types=("int4",))["int4"]
    assert 0.5 * found["packed_bytes"] < found["peak_bytes"] < found["file_bytes"] / 2  # never the whole file at once
    for tokens in ("1x16", "1x128"):
        by = found[tokens]["shares"]
        assert 0 < by["python"] < 1 and by["linear"] > by["norm"] > 0
        assert found[tokens]["faults"] < 50  # hidden states alone would fault in hundreds of pages
    assert "linear" in capsys.readouterr().out


def test_threads_of_a_side() -> None:
    threads = bench_module("bench.threads")
    found = threads.measure_side("qkv", 8, 1, 1e-4)
    assert len(found) == len(threads.GEMMS) + 1
    for by in found.values():
        assert {"one", "two", "busy"} <= set(by)
        assert all(0 < t["min_s"] <= t["median_s"] for t in by.values())


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: CI runs it beside the wheel")
    monkeypatch.setattr("qkv.bench.suites.last_cache", lambda: 32 << 20)  # a case whose weights no cache holds
    suites = {"gemm": bench_module("bench.gemm"), "generate_t5": bench_module("bench.generate").SUITES["generate_t5"]}
    results = [
        Measurement(name, case, {"qkv": [(1e-3, 1e-3)]}) for name, suite in suites.items() for case in suite.cases()
    ]
    written = bench_module("bench.plots").plot(results, LIMITS, tmp_path)
    assert {"gemm", "gemm_over_m", "gemm_roofline", "gemm_bytes", "generate_t5"} == {path.stem for path in written}
    assert all(path.stat().st_size > 5000 for path in written)


def test_every_step_of_the_ladder_computes_attention() -> None:
    import qkv

    ladder = bench_module("bench.ladder")
    q, k, v = np.random.default_rng(0).standard_normal((3, 300, 16), dtype=np.float32)
    expected = {
        causal: qkv.reference.attention(q[None, None], k[None, None], v[None, None], causal=causal)[0, 0]
        for causal in (False, True)
    }
    found = ladder.rungs(qkv.isas(), 2)
    assert [rung.name for rung in found][:2] == ["loop in Python", "NumPy, a query at a time"]
    for rung in found:
        part = slice(None, rung.queries)
        tolerance = 2e-2 if rung.limit == "bf16_dot" else 1e-5
        np.testing.assert_allclose(
            rung.step(q[part], k, v), expected[rung.name == "causal"][part], rtol=tolerance, atol=tolerance
        )


def test_the_ladder_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench_module("bench.ladder").report(rounds=1, seconds=1e-3, threads=2, tokens=64)
    assert all(0 < rung["seconds"] < math.inf for rung in found["rungs"])
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("  ") and line.strip()]) == len(found["rungs"]) + 1


def test_a_line_of_the_ladder_has_the_limit_of_its_own_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of dot products beside tiles that are several times as fast."""
    import qkv
    from qkv.bench import machine
    from qkv.ops import _cpu

    ladder, isas = bench_module("bench.ladder"), qkv.isas()

    def measured(**_: Any) -> Limits:
        place = isas.index(_cpu.current_isa()) + 1
        return replace(LIMITS, fma=1e9 * place, bf16_dot=7e9 * place)

    monkeypatch.setattr(machine, "measure_limits", measured)
    found = ladder.measure(1, 1e-4, 1, 32)
    for rung in found["rungs"]:
        isa = rung["name"].rpartition(", ")[2] if rung["name"].startswith("bfloat16") else isas[-1]
        fewer_bits = rung["name"].startswith("bfloat16") or rung["name"] == "causal"
        limit = (isas.index(isa) + 1) * (7e9 if fewer_bits and isas[-1] not in ladder.FLOAT_ISAS else 1e9)
        assert rung["share"] == pytest.approx(rung["flops"] / rung["seconds"] / limit)
