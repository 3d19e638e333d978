"""Models on a GPU or its emulator: every family against what transformers recorded, near that in narrower types, and
generation token by token. Run by test_cuda_suite.py; by itself where QKV_CUDA says which."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qkv
import test_bert
from emulated import configured
from golden_checks import GOLDEN, INPUTS, SMOL_BOUNDS, agree, checkpoint, expected, inputs, outputs, real, smollm2
from ml_dtypes import bfloat16
from qkv import capture, cuda, placement
from qkv.generate import beams
from qkv.generate import rows as rows_of_cache
from qkv.generate.ahead import Choice
from qkv.generate.rows import CachedRows
from qkv.gguf import read_gguf
from qkv.layers import MemoryRows
from qkv.models.tokens import SinusoidalPositions
from test_capture import GENERATORS, logits, rows_of
from test_models import DECODERS, FOLDERS

pytestmark = pytest.mark.skipif(not cuda.is_available(), reason=f"no GPU: {cuda.why_not()}")

# Of all outputs together, relative to their root mean square: activations are of the type too, and rounded at every op.
BOUNDS = {"float16": 0.004, "bfloat16": 0.03, "int8": 0.035, "int4": 0.4}
NARROW = ["bert_classify", "gpt2_lm", "llama_lm", "gemma2_lm", "t5_lm", "marian_lm", "vit_classify", "transfo_xl_lm"]


@pytest.fixture(autouse=True)
def _checker(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the emulator one folder of each family runs with its checks, which take as long again: the others differ in
    what their config says, not in who writes or waits for what."""
    name = getattr(request.node, "originalname", "")
    folders = {"test_family": FOLDERS, "test_berts": test_bert.FOLDERS, "test_tokens": GENERATORS}.get(name)
    if folders is None:
        yield
        return
    folder = request.node.callspec.params["folder"]
    first = next(other for other in folders if other.split("_")[0] == folder.split("_")[0])
    with configured("" if folder == first else "check=0"):
        yield


def test_the_folders_are_there() -> None:
    assert len(FOLDERS) > 80 and set(NARROW) <= {*FOLDERS, "bert_classify"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_family(folder: str) -> None:
    model = qkv.load(GOLDEN / folder, device="cuda")
    assert model.device == "cuda:0"
    agree(model, folder)


@pytest.mark.parametrize("folder", test_bert.FOLDERS)
def test_berts(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the error that naive arithmetic in float32 may have."""
    monkeypatch.setattr(qkv, "load", functools.partial(qkv.load, device="cuda"))
    test_bert.test_agrees_with_transformers(folder, "cuda")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("folder", NARROW)
def test_near_float32(folder: str, dtype: str) -> None:
    model = qkv.load(GOLDEN / folder, dtype=dtype, device="cuda")
    case = next(iter(expected(folder).values()))
    out = outputs(model(**inputs(case)))
    for name in set(out) & set(case) - {*INPUTS, "mems", "hidden_states"}:
        exact, got = real(name, case[name], case), real(name, out[name], case)
        finite = np.isfinite(exact)
        error = np.sqrt(((got - exact)[finite] ** 2).mean() / (exact[finite] ** 2).mean())
        assert 0 < error < BOUNDS[dtype], (name, error)


def test_auto_is_what_the_file_has() -> None:
    for folder, name in (("bert_base", "float32"), ("bert_bfloat16", "bfloat16"), ("bert_float16", "float16")):
        assert np.dtype(qkv.load(GOLDEN / folder, dtype="auto", device="cuda").place.activations).name == name


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blocks of a real file, on the emulator those of its first two layers and 4096 tokens."""
    gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`")
    path = smollm2()
    if not cuda.is_emulated():
        return path
    short = tmp_path_factory.mktemp("gguf") / "short.gguf"
    writer = gguf.GGUFWriter(short, "llama")
    for key, value in read_gguf(path)[0].items():
        if key.startswith("llama."):
            value = {"llama.block_count": 2, "llama.vocab_size": 4096}.get(key, value)
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for tensor in gguf.GGUFReader(path).tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < 2:
            data = tensor.data[:4096] if tensor.name == "token_embd.weight" else tensor.data
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return short


def test_blocks_of_a_gguf_file(blocks: Path) -> None:
    """auto: the blocks as they are. They are widened to bfloat16, of which activations are: so near to float32 as
    bfloat16 weights, and the same tokens."""
    exact, there = qkv.load(blocks), qkv.load(blocks, dtype="auto", device="cuda")
    kinds = {name: w.dtype for name, w in there.parameters.items() if isinstance(w, cuda.PackedWeight)}
    assert kinds.pop("embeddings.word.weight") == kinds.pop("head.decoder.weight") == "int8"
    assert set(kinds.values()) == {"int4"} and there.place.activations == bfloat16
    ids = [[504, 3575, 282, 1180, 314, 28]]
    ours, theirs = (model(ids).logits for model in (there, exact))
    assert 0 < np.linalg.norm(ours - theirs) <= SMOL_BOUNDS["bfloat16"] * np.linalg.norm(theirs)
    ours, theirs = (model.generate(ids, max_new_tokens=8, eos_token_id=None) for model in (there, exact))
    np.testing.assert_array_equal(ours, theirs)


def test_t5_does_not_overflow_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sublayers so large that their sums are beyond 65504."""
    config, weights = checkpoint("t5_v1_1")
    for name in weights:
        if name.endswith(("wo.weight", "o.weight")):
            weights[name] = weights[name] * np.float32(40000)
    exact = qkv.from_weights(config, weights)
    narrow = qkv.from_weights(config, weights, dtype="float16", device="cuda")
    largest, norm = [], exact.decoder.stack.final_norm
    monkeypatch.setattr(exact.decoder.stack, "final_norm", lambda x: (largest.append(np.abs(x).max()), norm(x))[1])
    ids = np.random.default_rng(2).integers(3, exact.encoder.embeddings.word.rows, (2, 9))
    theirs = exact(ids, decoder_input_ids=ids, output_hidden_states=True)
    ours = narrow(ids, decoder_input_ids=ids, output_hidden_states=True)
    assert largest[0] > 65504
    for name in ("logits", "encoder_last_hidden_state"):
        error = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        assert error < 0.02, (name, error)
    for a, b in zip(ours.decoder_hidden_states, theirs.decoder_hidden_states, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.02 * np.abs(b).max())


# ---- generation


def prompts(model: Any) -> dict[str, Any]:
    ids = np.array([[5, 9, 7, 4], [6, 8, 10, 11]])
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    return {"input_ids": ids} if hasattr(model, "mem_len") else {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("folder", GENERATORS)
def test_tokens(folder: str) -> None:
    """Greedy, sampled and by beams: the CPU's, which are held to transformers'."""
    here, there = qkv.load(GOLDEN / folder), qkv.load(GOLDEN / folder, device="cuda")
    for options in (
        {},
        {"do_sample": True, "seed": 3, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
        {"num_beams": 3, "num_return_sequences": 2},
    ):
        common = {**prompts(here), "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, **options}
        if hasattr(here, "decoder"):
            common["decoder_start_token_id"] = 2
        np.testing.assert_array_equal(there.generate(**common), here.generate(**common), str(options))


MASKS: dict[str, Any] = {"no_repeat_ngram_size": 2, "bad_words_ids": [[7], [9, 4]], "min_new_tokens": 3}


@pytest.mark.parametrize("options", [{}, MASKS, {"repetition_penalty": 1.3}], ids=["best", "masks", "all"])
def test_beams_bring_their_best_alone(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a processor wants the others too."""
    here, there = qkv.load(GOLDEN / "gpt2_lm"), qkv.load(GOLDEN / "gpt2_lm", device="cuda")
    common = {**prompts(here), "max_new_tokens": 6, "eos_token_id": 6, "num_beams": 3, "num_return_sequences": 3}
    brought: list[int] = []
    bring = placement.host
    for module in (beams, rows_of_cache):
        monkeypatch.setattr(module, "host", lambda x: (brought.append(x.shape[1]), bring(x))[1])
    tokens = there.generate(**common, **options)
    assert len(brought) >= 6
    assert (max(brought) == here.config["vocab_size"]) == ("repetition_penalty" in options)
    np.testing.assert_array_equal(tokens, here.generate(**common, **options))


TOKENS: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "seed": 3, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
    {"do_sample": True, "seed": 4, "num_return_sequences": 2, "eos_token_id": [7, 11, 20, 21, 22]},
    {"eos_token_id": [13, 20]},
]


@pytest.mark.parametrize("options", TOKENS, ids=["greedy", "sampled", "ending", "eos"])
@pytest.mark.parametrize("folder", ["llama_lm", "t5_lm"])
def test_tokens_stay_on_the_gpu(folder: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From one step to the next, but where the cache takes a new block or rows leave; with streams that work as late as
    they may, so that a wait which is missing shows."""
    here, there = qkv.load(GOLDEN / folder), qkv.load(GOLDEN / folder, device="cuda")
    common = {**prompts(here), "max_new_tokens": 22, "eos_token_id": None, "pad_token_id": 0, **options}
    if hasattr(here, "decoder"):
        common["decoder_start_token_id"] = 2
    steps: list[bool] = []
    goes_on = CachedRows.goes_on
    monkeypatch.setattr(CachedRows, "goes_on", lambda self: (steps.append(goes_on(self)), steps[-1])[1])
    sent: list[Any] = []
    monkeypatch.setattr(capture, "write", lambda target, source: (sent.append(target), placement.write(target, source)))
    with configured("check=0,streams=late"):
        tokens = there.generate(**common)
    np.testing.assert_array_equal(tokens, here.generate(**common))
    made = tokens.shape[1] - (1 if hasattr(here, "decoder") else 4)
    if common["eos_token_id"] is None:
        assert made == 22 and sum(steps) >= 17
    assert len(sent) <= 4 * (made - sum(steps)) + 2  # by the other steps
    assert sum(steps) > made // 3


@pytest.mark.parametrize("folder, limit", [("ctrl_lm", "n_positions"), ("marian_lm", "max_position_embeddings")])
def test_sinusoids_stay_on_the_gpu(folder: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that goes on by itself brings nothing there; rows of positions that are computed later are brought by one
    that is recorded anew."""
    config, weights = checkpoint(folder)
    here, there = (qkv.from_weights({**config, limit: 20}, weights, device=device) for device in ("cpu", "cuda"))
    monkeypatch.setattr(SinusoidalPositions, "FIRST", 3)
    common = {**prompts(here), "max_new_tokens": 14, "eos_token_id": None, "pad_token_id": 0}
    if hasattr(here, "decoder"):
        common |= {"decoder_start_token_id": 2, "forced_eos_token_id": None}
    sent: list[str] = []
    for name in ("array", "upload_into"):
        bring = getattr(cuda.module(), name)
        spy = functools.partial(lambda bring, *args: (sent.append("sent"), bring(*args))[1], bring)
        monkeypatch.setattr(cuda.module(), name, spy)
    goes_on, steps = CachedRows.goes_on, []

    def step(self: CachedRows) -> bool:
        before = len(sent)
        steps.append(goes_on(self))
        assert len(sent) == before
        return steps[-1]

    monkeypatch.setattr(CachedRows, "goes_on", step)
    with configured("check=0"):
        tokens = there.generate(**common)
    assert sum(steps) >= 7 and sent
    np.testing.assert_array_equal(tokens, here.generate(**common))


def test_sinusoids_of_distances_are_brought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the longest text so far, or twice that of the one before."""
    here, there = (qkv.load(GOLDEN / "transfo_xl_lm", device=device) for device in ("cpu", "cuda"))
    before, width = here(np.array([[5]])).mems[0].shape[0], here.embeddings.width
    sent: list[tuple[int, ...]] = []
    bring = cuda.module().array
    monkeypatch.setattr(cuda.module(), "array", lambda x, *stream: (sent.append(x.shape), bring(x, *stream))[1])
    for count, rows in ((3, before + 3), (3, 0), (2, 0), (4, 2 * (before + 3)), (before + 6, 0), (1, 0)):
        ids, place = np.arange(count)[None] % 40, len(sent)
        np.testing.assert_allclose(there(ids).logits, here(ids).logits, rtol=0, atol=1e-4)
        assert [s for s in sent[place:] if len(s) == 2 and s[1] == width] == [(rows, width)] * bool(rows), count


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3}, {"max_time": 1000.0}])
def test_prompts_that_leave_one_token_a_row(options: dict[str, Any]) -> None:
    """The first step after them is recorded before tokens are chosen on the device."""
    here, there = qkv.load(GOLDEN / "llama_lm"), qkv.load(GOLDEN / "llama_lm", device="cuda")
    shared = [5 + i % 7 for i in range(16)]  # a block of the cache
    for ids in ([[5]], [[5], [9]], [[*shared, 5], [*shared, 9]]):
        common = {"input_ids": ids, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, **options}
        np.testing.assert_array_equal(there.generate(**common), here.generate(**common))
    alone = {"bos_token_id": 5, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0, **options}
    np.testing.assert_array_equal(there.generate(**alone), here.generate(**alone))


def test_random_numbers_are_those_of_one_at_a_time() -> None:
    streams = [[np.random.default_rng(seed) for seed in (5, 6)] for _ in range(2)]
    choice = Choice(streams[0], {})
    rows = np.arange(2)
    for _ in range(40):
        if not choice.sent:
            choice.send(rows)
        assert choice.load()
        np.testing.assert_array_equal(choice.drawn.numpy()[rows], [stream.random() for stream in streams[1]])
        choice.taken()


def test_everything_of_generate() -> None:
    """Processors, criteria, scores and attentions look at what is on the device."""
    here, there = qkv.load(GOLDEN / "gpt2_lm"), qkv.load(GOLDEN / "gpt2_lm", device="cuda")
    common = {**prompts(here), "max_new_tokens": 5, "pad_token_id": 0}
    for options in (
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
        {"logits_processor": lambda ids, scores: -scores},
        {"stopping_criteria": lambda ids, scores: scores[:, 0] > 1e9},
        {"do_sample": True, "seed": 1, "typical_p": 0.8},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    ):
        np.testing.assert_array_equal(there.generate(**common, **options), here.generate(**common, **options))
    shown = {name: True for name in ("output_scores", "output_logits", "output_attentions", "output_hidden_states")}
    ours, theirs = (model.generate(**common, **shown, return_dict_in_generate=True) for model in (there, here))
    assert ours.keys() == theirs.keys()
    for name in ("scores", "logits"):
        np.testing.assert_allclose(np.stack(ours[name]), np.stack(theirs[name]), rtol=0, atol=1e-4)
    for name in ("attentions", "hidden_states"):
        for a, b in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_allclose(np.stack(a), np.stack(b), rtol=0, atol=1e-4)
    steps = list(there.stream(**common))
    np.testing.assert_array_equal(np.stack(steps, axis=1), there.generate(**common)[:, 4:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("folder", ["gpt2_lm", "llama_lm", "gemma2_lm", "t5_lm", "marian_lm", "roberta_causal"])
def test_captured_as_eager(folder: str, dtype: str) -> None:
    """The same bits from a CUDA graph as call by call, while rows are forked and leave."""
    model = qkv.load(GOLDEN / folder, dtype=dtype, device="cuda")
    ours, theirs = rows_of(model, captured=True), rows_of(model, captured=False)
    recordings = set()
    limit = model.decoder.embeddings.limit if hasattr(model, "decoder") else model.max_tokens
    count = min(7, (limit or 15) - 5)
    for one, other in zip(logits(ours, count), logits(theirs, count), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
        if ours.captured is not None and ours.captured.last is not None:
            recordings.add(ours.captured.last)
    assert 2 <= len(recordings) <= 4


@pytest.mark.parametrize("folder", ["llama_lm", "t5_lm"])
def test_memory_is_flat(folder: str) -> None:
    """Whatever looks at the tokens, and though the garbage collector does not come by."""
    model = qkv.load(GOLDEN / folder, device="cuda")
    used = []
    gc.disable()
    try:
        for i in range(8):
            options: dict[str, Any] = [{}, {"logits_processor": lambda ids, x: x}, {"num_beams": 2}][i % 3]
            options |= {"prefix_allowed_tokens_fn": lambda text, ids: [4, 5, 6]} if i % 2 else {}
            model.generate([[5, 6, 7]], max_new_tokens=4, **options)
            used.append(cuda.memory_info()["used_bytes"])
    finally:
        gc.enable()
    assert used[1:] == used[1:2] * 7


def test_attentions_of_steps_leave_nothing() -> None:
    model = qkv.load(GOLDEN / "t5_lm", device="cuda")
    shown = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 9, "eos_token_id": None}
    rows: list[Any] = []
    attend = MemoryRows.attend

    def spy(self: MemoryRows, *args: Any, **options: Any) -> Any:
        rows.append(self)
        return attend(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryRows, "attend", spy)
        model.generate([[5, 6, 7]], **shown)
    assert all(len(row.copies._made) <= 4 for row in rows)


def test_weights_that_float16_does_not_hold() -> None:
    config, weights = checkpoint("gpt2_lm")
    name = next(name for name in weights if name.endswith("c_fc.weight"))
    weights[name] = weights[name].copy()
    weights[name][0, 0] = 1e5
    with pytest.raises(ValueError, match="too large for float16; use bfloat16"):
        qkv.from_weights(config, weights, dtype="float16", device="cuda")
    assert qkv.from_weights(config, weights, dtype="bfloat16", device="cuda").place.activations == bfloat16


def test_masks_do_not_count_for_auto() -> None:
    config, weights = checkpoint("gpt2_lm")
    weights = {name: w.astype(np.float16) for name, w in weights.items()}
    weights["transformer.h.0.attn.bias"] = np.ones((1, 1, 1024, 1024), np.uint8)
    assert qkv.from_weights(config, weights, dtype="auto", device="cuda").place.activations == np.float16


def test_what_is_on_the_gpu_goes_in() -> None:
    model = qkv.load(GOLDEN / "bert_base", device="cuda")
    ids, mask = np.array([[5, 6, 7], [8, 9, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
    there = model(cuda.array(ids), cuda.array(mask)).last_hidden_state
    np.testing.assert_array_equal(there, model(ids, mask).last_hidden_state)


def test_transformer_xl_without_tokens() -> None:
    here, there = qkv.load(GOLDEN / "transfo_xl_lm"), qkv.load(GOLDEN / "transfo_xl_lm", device="cuda")
    for shape in ((0, 4), (2, 0)):
        ids = np.zeros(shape, np.int64)
        assert there(ids).logits.shape == here(ids).logits.shape


def test_cached_rows_leave_nothing() -> None:
    model = qkv.load(GOLDEN / "gpt2_lm", device="cuda")
    before = cuda.memory_info()["used_bytes"]
    rows: CachedRows | None = rows_of(model, captured=True)
    assert rows is not None
    for x in logits(rows, 4):
        del x
    del rows
    assert cuda.memory_info()["used_bytes"] == before


# ---- what stands on models


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_saved_pickled_and_copied(dtype: str, tmp_path: Path) -> None:
    """To the same bits, and packed weights to those that the CPU saves."""
    model = qkv.load(GOLDEN / "bert_base", dtype=dtype, device="cuda")
    model.save(tmp_path / "model.npz")
    ids = [[5, 6, 7, 8]]
    exact = model(ids).last_hidden_state
    loaded = qkv.load(tmp_path / "model.npz", dtype="auto" if dtype != "float32" else dtype, device="cuda")
    for again in (loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.device == "cuda:0" and again.place == model.place
        np.testing.assert_array_equal(again(ids).last_hidden_state, exact)
    if dtype in ("int8", "int4"):
        qkv.load(GOLDEN / "bert_base", dtype=dtype).save(tmp_path / "host.npz")
        with np.load(tmp_path / "model.npz") as ours, np.load(tmp_path / "host.npz") as theirs:
            assert ours.keys() == theirs.keys() and any(name.endswith(".scale") for name in ours)
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_words_about_devices() -> None:
    for device in ("gpu", "cuda:", "cuda:x", "cpu:1", -2, True):
        with pytest.raises(ValueError, match="is not available; use 'cpu', 'cuda'"):
            qkv.load(GOLDEN / "bert_base", device=device)
    with pytest.raises(ValueError, match=r"there (is 1 device|are [2-7] devices)$"):
        qkv.load(GOLDEN / "bert_base", device="cuda:7")
    with pytest.raises(ValueError, match="float16 is for device='cuda'"):
        qkv.load(GOLDEN / "bert_base", dtype="float16")
    assert "cuda:0" in repr(qkv.load(GOLDEN / "bert_base", device="cuda:0"))
    for device in (np.int64(-1), "cpu:0"):
        assert qkv.load(GOLDEN / "bert_base", device=device).device == "cpu"
    assert qkv.load(GOLDEN / "bert_base", dtype=np.float16, device=0).dtype == "float16"


def test_decoders_are_among_the_generators() -> None:
    assert set(GENERATORS) <= set(DECODERS)
