"""Pages and figures of attention: what is in them is what was given, and text stays text."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import golden_checks
import numpy as np
import pytest
import qkv
from checks import run_python
from qkv import cli
from qkv.outputs import ModelOutput
from qkv.view import measures, pictures
from small_models import folder, load
from view_checks import Elements, data_of, random_weights, weights_of

__all__ = ["folder", "load"]
EXACT = 3e-5  # of 16 bits: half of the largest step, 3 / 65534


# ---- weights in few bits ----------------------------------------------------------------------------------


def bound(w: np.ndarray, levels: int) -> np.ndarray:
    """Half a step in the cube root, to either side."""
    half = 0.5 / levels
    return (np.cbrt(w.astype(np.float64)) + half) ** 3 - w + 1e-7


@pytest.mark.parametrize(("shape", "bits"), [((2, 3, 5, 7), 16), ((1, 1, 1, 1), 16), ((4, 8, 200, 150), 8)])
def test_every_weight_is_within_half_a_step(shape: tuple[int, ...], bits: int) -> None:
    w = random_weights(*shape)
    page = qkv.view.attention(w)
    ((found, _),), data = weights_of(page), data_of(page)
    assert (data["bits"], data["kept"], data["levels"]) == (bits, 1, 2**bits - 2)
    error = np.abs(found - w)
    assert (error <= bound(w, data["levels"])).all()
    assert data["maps"][0]["error"] == pytest.approx(error.max(), abs=1e-7)


def test_masked_keys_are_exactly_zero() -> None:
    w = random_weights(2, 2, 9, 9, causal=True)
    ((found, _),) = weights_of(qkv.view.attention(w))
    np.testing.assert_array_equal(found == 0, w == 0)


def test_what_is_not_kept_is_the_mean_of_its_row() -> None:
    """Rows keep their sums, and rows of equal weights stay equal."""
    rng = np.random.default_rng(1)
    w = random_weights(4, 12, 512, 512, spread=1.0)
    w[0, 0] = 1 / 512
    page = qkv.view.attention(w, list("x" * 512), list("y" * 512))
    data, ((found, _),) = data_of(page), weights_of(page)
    assert data["kept"] < 1
    count = round(data["kept"] * 512)
    rows = [(0, 0, 5), *(tuple(rng.integers(0, n) for n in (4, 12, 512)) for _ in range(200))]
    for at in rows:
        row, shown = w[at].astype(np.float64), found[at]
        assert shown.sum() == pytest.approx(1, abs=0.05)  # 512 times half a step
        least = np.sort(row)[-count]
        own = row >= least
        assert (np.abs(shown - row)[own] <= bound(row, data["levels"])[own]).all()
        if not own.all():
            mean = row[~own].mean()
            assert np.ptp(shown[~own]) == 0 and abs(shown[~own][0] - mean) <= bound(mean, data["levels"])
    assert data["maps"][0]["error"] == pytest.approx(np.abs(found - w).max(), abs=1e-6)
    assert data["maps"][0]["error"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])  # of scores; 0: all weights alike
def test_the_page_of_a_long_text_is_below_10_mb(spread: float) -> None:
    w = random_weights(12, 12, 512, 512, spread=spread)
    page = qkv.view.attention(w, [f"token{i}" for i in range(512)])
    assert len(page.encode()) < 10_000_000
    told = data_of(page)["maps"][0]
    print(f"spread {spread}: error {told['error']:.2g}; of kept weights {told['own_error']:.2g} of the head's largest")
    assert told["error"] < 0.02
    assert told["own_error"] <= 1.5 / data_of(page)["levels"] * 1.01  # half of the largest step, 3 / levels


def test_errors_are_parts_of_what_a_head_has() -> None:
    """Heads of small weights keep their digits beside one that looks at a single token."""
    w = np.full((1, 2, 200, 200), 1 / 200, np.float32)
    w[0, 0] = np.eye(200)
    w[0, 1] += np.random.default_rng(0).uniform(-1e-4, 1e-4, (200, 200)).astype(np.float32)
    page = qkv.view.attention(w, [str(i) for i in range(200)])
    ((found, _),), told = weights_of(page), data_of(page)["maps"][0]
    np.testing.assert_allclose(told["largest"][0], [1, w[0, 1].max()], rtol=1e-6)
    assert np.abs(found[0, 1] - w[0, 1]).max() <= 1.5 / data_of(page)["levels"] * w[0, 1].max() * 1.01
    assert told["own_error"] <= 1.5 / data_of(page)["levels"] * 1.01


@pytest.mark.parametrize(("layers", "heads"), [([1, 3], None), (2, 0), (None, [0, 2]), (np.array([0]), range(1, 3))])
def test_some_layers_and_heads(layers: Any, heads: Any) -> None:
    w = random_weights(4, 3, 6, 6)
    page = qkv.view.attention(w, layers=layers, heads=heads)
    told, ((found, rolled),) = data_of(page)["maps"][0], weights_of(page)
    of_layers = list(range(4)) if layers is None else np.atleast_1d(layers).tolist()
    of_heads = list(range(3)) if heads is None else np.atleast_1d(heads).tolist()
    assert (told["layer_numbers"], told["head_numbers"]) == (of_layers, of_heads)
    np.testing.assert_allclose(found, w[np.ix_(of_layers, of_heads)], atol=EXACT)
    assert rolled is not None
    np.testing.assert_allclose(rolled, measures.rollout(w)[of_layers], atol=EXACT)  # through all of them


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": [4]}, ValueError, "layers of Attention go from 0 to 3; got 4"),
        ({"heads": -1}, ValueError, "heads of Attention go from 0 to 2; got -1"),
        ({"heads": []}, ValueError, "heads must name at least one"),
        ({"layers": True}, TypeError, "layers must be an integer or a list of them; got True"),
        ({"layers": "1"}, TypeError, "layers must be an integer or a list of them; got '1'"),
    ],
)
def test_layers_and_heads_that_there_are_not(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        qkv.view.attention(random_weights(4, 3, 6, 6), **options)


def test_a_notebook_shows_the_page() -> None:
    page = qkv.view.attention(random_weights(1, 1, 2, 2), ["<a>", '"b"'])
    assert isinstance(page, str) and len(repr(page)) < 100
    (frame,) = (attributes for tag, attributes, _ in Elements(page._repr_html_()).found if tag == "iframe")
    assert frame["srcdoc"] == str(page) and frame["sandbox"] == "allow-scripts" and frame["title"] == "Attention"


class Bytes:
    """A byte-level tokenizer of some tokens, whose letters are those of GPT-2's published table."""

    tokens = ("Ã©", "ĠÃ©t", "âĤ", "Ġâ", "Ġthe", "é", "</s>")
    texts = ("é", " ét", "\ufffd", " \ufffd", " the", "\ufffd", "</s>")

    def convert_ids_to_tokens(self, i: int) -> str | None:
        return self.tokens[i] if i < len(self.tokens) else None

    def decode(self, ids: list[int], **_: Any) -> str:
        return self.texts[ids[0]]


def test_labels_are_text_and_not_letters_of_bytes() -> None:
    assert qkv.view.labels(Bytes(), range(8)) == ["é", "▁ét", "\\xe2\\x82", "▁\\xe2", "▁the", "\\xe9", "</s>", "#7"]


def test_too_many_weights_are_refused() -> None:
    huge = np.broadcast_to(np.float32(1 / 4096), (1, 16, 4096, 4096))
    with pytest.raises(ValueError, match="268435456 weights do not fit into a page of 10 MB; show a shorter text"):
        qkv.view.attention(huge)


# ---- measures ---------------------------------------------------------------------------------------------


def test_entropy_is_that_of_the_formula() -> None:
    w = random_weights(2, 3, 6, 5)
    w[1, 2, 3] = 0  # a query that looks at nothing
    for layer in range(2):
        for head in range(3):
            bits = [-sum(p * np.log2(float(p)) for p in row if p) for row in w[layer, head] if row.any()]
            assert measures.entropy(w)[layer, head] == pytest.approx(np.mean(bits), rel=1e-5)
    assert data_of(qkv.view.attention(np.full((1, 1, 4, 8), 1 / 8)))["maps"][0]["entropy"] == [[3.0]]
    assert data_of(qkv.view.attention(np.eye(4)[None]))["maps"][0]["entropy"] == [[0.0]]


def test_rollout_is_that_of_the_formula() -> None:
    w = random_weights(4, 3, 6, 6)
    ((_, found),) = weights_of(qkv.view.attention(w))
    assert found is not None
    product = np.eye(6)
    for layer in range(4):
        product = (0.5 * w[layer].astype(np.float64).mean(axis=0) + 0.5 * np.eye(6)) @ product
        np.testing.assert_allclose(found[layer], product, atol=EXACT)


def test_rollout_needs_the_same_tokens_on_both_sides() -> None:
    w = random_weights(2, 2, 5, 5)
    page = qkv.view.attention(w, list("abcde"), list("vwxyz"))
    assert not data_of(page)["maps"][0]["rollout"]


# ---- text is untrusted --------------------------------------------------------------------------------------

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "&lt;b&gt;",
    "\u2028\u2029\x00\x1b",
    "{{script}}{{codes}}",
    "'\"`${1}",
    "\ud800",
]


def test_tokens_and_titles_stay_text() -> None:
    w, title = random_weights(1, 1, 8, 8), "</title><script>alert(1)</script>{{data}}"
    page = qkv.view.attention(w, HOSTILE, title=title)
    plain = qkv.view.attention(w, list("abcdefgh"), title="x")
    assert [tag for tag, *_ in Elements(page).found] == [tag for tag, *_ in Elements(plain).found]
    data = data_of(page)
    assert data["maps"][0]["keys"] == data["maps"][0]["queries"] == HOSTILE
    assert Elements(page).named("title") == [title]
    (tokens,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert tokens.isascii() and not set("<>&") & set(tokens)


def test_nothing_but_the_page_s_own_script_may_run() -> None:
    page = qkv.view.attention(random_weights(1, 1, 2, 2), HOSTILE[:2])
    elements = Elements(page)
    (policy,) = (a["content"] for tag, a, _ in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    scripts = [text for tag, a, text in elements.found if tag == "script" and not a]
    (style,) = elements.named("style")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*scripts, style)]
    assert len(scripts) == 1
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[1]}'; script-src 'sha256-{hashes[0]}'"
    )
    addresses = [value for _, a, _ in elements.found for name, value in a.items() if name in ("src", "href", "action")]
    assert addresses == [] and "://" not in page


def test_the_page_is_written_as_it_is_returned(tmp_path: Path) -> None:
    text = qkv.view.attention(random_weights(1, 1, 2, 2), ["日本", "\ud800"], path=tmp_path / "x.html", title="\ud800é")
    assert (tmp_path / "x.html").read_bytes() == text.encode()


# ---- what can be given --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        lambda w: w,
        lambda w: w.astype(np.float64),
        lambda w: list(w),
        lambda w: tuple(layer[None] for layer in w),
        lambda w: [np.stack([layer[::-1], layer]) for layer in w],
        lambda w: w.tolist(),
        lambda w: ModelOutput(attentions=tuple(layer[None] for layer in w)),
        lambda w: type("Output", (), {"attentions": [layer[None] for layer in w]})(),
    ],
)
def test_kinds_of_weights(given: Any) -> None:
    w = random_weights(2, 3, 4, 4)
    value = given(w)
    row = 1 if isinstance(value, list) and np.ndim(value[0]) == 4 and len(value[0]) == 2 else 0
    page = qkv.view.attention(value, list("abcd"), row=row)
    ((found, _),) = weights_of(page)
    np.testing.assert_allclose(found, w, atol=EXACT)
    assert data_of(page)["maps"][0]["keys"] == list("abcd")


def test_one_layer_or_one_head() -> None:
    w = random_weights(3, 4, 5)
    page = qkv.view.attention(w, list("abcde"), ["x", "y", "z", "w"])
    assert data_of(page)["maps"][0]["shape"] == [1, 3, 4, 5]
    assert data_of(page)["maps"][0]["queries"] == ["x", "y", "z", "w"]
    assert data_of(qkv.view.attention(w[0]))["maps"][0]["shape"] == [1, 1, 4, 5]
    assert data_of(qkv.view.attention(w[0]))["maps"][0]["queries"] == ["0", "1", "2", "3"]


W = random_weights(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (W, {"tokens": ["a", "b"]}, ValueError, "x has 3 queries, but there are 2 tokens for them"),
        (W[..., :2, :], {"tokens": list("ab")}, ValueError, "x has 3 keys, but there are 2 tokens"),
        (W, {"tokens": list("abc"), "target_tokens": ["a"]}, ValueError, "3 queries, but there are 1 tokens"),
        (W, {"tokens": "abc"}, TypeError, "tokens must be a list of strings"),
        (W, {"tokens": [1, 2, 3]}, TypeError, "tokens must be a list of strings"),
        (W, {"title": 3}, TypeError, "title must be a string"),
        (W, {"row": -1}, ValueError, "row must be an integer of at least 0"),
        (W - 0.5, {}, ValueError, "x holds negative weights, down to -0.4.*; are they scores before the softmax"),
        (W * 2, {}, ValueError, "must sum to 1; in x those at \\(layer, head, query\\) \\(.*\\) sum to 2"),
        (W * np.nan, {}, ValueError, "holds NaN or infinity"),
        (W[:0], {}, ValueError, "x is empty"),
        (np.ones(3), {}, ValueError, "must be \\(layers, heads, queries, keys\\).*got shape \\(3,\\)"),
        (np.array(["a"]), {}, TypeError, "must hold floats"),
        ("weights", {}, TypeError, "must be an array"),
        ([], {}, ValueError, "there are no layers"),
        ([W[0], W[0, :1]], {}, ValueError, "layers of x have different shapes"),
        ([W], {"row": 2}, ValueError, "there is no row 2; x has 2"),
        ([None], {}, ValueError, "layer 0 of x is None"),
        (ModelOutput(logits=W), {}, ValueError, "has no attentions; call the model with output_attentions=True"),
        (ModelOutput(attentions=()), {}, ValueError, "attentions holds no layers"),
        (W, {"row": 1}, ValueError, "an array of weights is of one text; there is no row 1"),
        (ModelOutput(attentions=(W[:1],)), {"target_tokens": list("abc")}, ValueError, "a decoder's beside an encoder"),
        (W, {"grid": (1, 2)}, ValueError, "grid is for an image"),
        (np.eye(4), {"image": np.zeros((4, 4)), "grid": (True, 4)}, ValueError, "grid must be \\(rows, columns\\)"),
        (np.eye(8), {"image": np.zeros((4, 4, 3), np.uint8)}, ValueError, "8 tokens are no square of patches"),
        (W, {"image": np.zeros((4, 4, 3), np.uint8), "grid": (2, 2)}, ValueError, "2 x 2 patches does not go with 3"),
        (
            W[..., :2, :2] / W[..., :2, :2].sum(-1, keepdims=True),
            {"tokens": ["[CLS]", "word"], "image": np.zeros((4, 4))},
            ValueError,
            "pass grid=\\(rows, columns\\) too; if they are a text's, pass no image",
        ),
        (
            ModelOutput(encoder_attentions=(W[:1],), cross_attentions=(W[:1],)),
            {"image": np.zeros((4, 4)), "grid": (1, 2)},
            ValueError,
            "an image is under the weights of a vision model",
        ),
        (W, {"image": np.zeros((4, 4, 3), np.uint8), "grid": 2}, ValueError, "grid must be \\(rows, columns\\)"),
        (W, {"image": np.full((4, 4), 300), "grid": (1, 2)}, ValueError, "integers from 0 to 255"),
        (W, {"image": np.full((4, 4), 1.5), "grid": (1, 2)}, ValueError, "floats must have values from 0 to 1"),
        (W, {"image": np.zeros((4, 4, 5)), "grid": (1, 2)}, ValueError, "image must be"),
    ],
)
def test_errors_are_in_words(x: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^view: .*{message}"):
        qkv.view.attention(x, **options)


def test_rows_that_sum_to_less_are_said_so() -> None:
    w = random_weights(1, 2, 3, 3)
    w[0, 1, 2] *= 0.5
    with pytest.warns(UserWarning, match="the weights of 1 of 6 rows sum to less than 1, the least to 0.5"):
        page = qkv.view.attention(w)
    assert data_of(page)["maps"][0]["notes"] == [
        "Attention: the weights of 1 of 6 rows sum to less than 1, the least to 0.5."
    ]


# ---- models: against what transformers computed ----------------------------------------------------------------

FIELDS = {
    "Self-attention": "attentions",
    "Encoder": "encoder_attentions",
    "Decoder": "decoder_attentions",
    "Cross-attention": "cross_attentions",
}
FOLDERS = [
    *("bert_base", "roberta_base", "albert_base", "distilbert_base", "electra_base"),
    *("gpt_base", "gpt2_base", "ctrl_base", "llama_base", "qwen2_base", "imagegpt_base"),
    *("bart_base", "mbart_base", "marian_base", "t5_base", "vit_base", "deit_base", "transfo_xl_base"),
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_family(folder: str) -> None:
    """Of each row of each recorded batch, without its padding."""
    model, compared = qkv.load(golden_checks.GOLDEN / folder), 0
    for case in golden_checks.expected(folder).values():
        if not any("attentions" in name for name in case):
            continue
        out = model(**golden_checks.inputs(case), output_attentions=True)
        real = golden_checks.masks(case)
        for row in range(len(next(iter(golden_checks.inputs(case).values())))):
            if real and not all(mask[row].any() for mask in real.values()):
                continue
            page = qkv.view.attention(out, row=row)
            for described, (found, _) in zip(data_of(page)["maps"], weights_of(page), strict=True):
                name = FIELDS[described["name"]]
                recorded = case[name][:, row]  # (L, H, S, T)
                if real:
                    # without ids of its own a decoder reads the encoder's, padding included
                    of_decoder = real.get("decoder_", np.ones((row + 1, recorded.shape[2]), bool))[row]
                    source = real[""][row] if "" in real else None
                    queries = of_decoder if name.startswith(("decoder_", "cross_")) else source
                    keys = source if name.startswith("cross_") else queries
                    assert queries is not None and keys is not None
                    keys = np.pad(keys, (recorded.shape[3] - len(keys), 0), constant_values=True)  # of a memory
                    recorded = recorded[:, :, queries][:, :, :, keys]
                np.testing.assert_allclose(found, recorded, atol=EXACT + 1e-5)
                compared += 1
    assert compared


SEARCHES: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}]


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "marian"])
def test_steps_of_generation_are_those_of_one_pass(name: str, search: dict[str, Any], load: Any) -> None:
    """What each step saw is what a pass over the whole text sees, in any row, of beams and behind padding."""
    model, each = load(name), search.get("num_return_sequences", 1)
    batch = model.tokenizer(["ab cd", "a"])
    batch.pop("token_type_ids", None)
    out = model.generate(
        **batch,
        **({"num_beams": 1} | search),
        do_sample=False,
        max_new_tokens=5,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    pair = hasattr(model, "decoder")
    width = batch["input_ids"].shape[1]
    for row in range(2 * each):
        prompt = batch["input_ids"][row // each][batch["attention_mask"][row // each] == 1]
        ids = out.sequences[row] if pair else np.concatenate([prompt, out.sequences[row, width:]])
        page = qkv.view.attention(out, row=row)
        compared = 0
        for described, (found, _) in zip(data_of(page)["maps"], weights_of(page), strict=True):
            read = found.shape[2]  # tokens that were read; the last one written was not
            inputs = {"input_ids": prompt[None] if pair else ids[None, :read]}
            if pair and described["name"] != "Encoder":
                inputs["decoder_input_ids"] = ids[None, :read]
                assert 2 <= read <= len(ids) - 1
            elif pair:
                inputs["decoder_input_ids"] = ids[None, :1]
            whole = np.stack(model(**inputs, output_attentions=True)[FIELDS[described["name"]]])[:, 0]
            np.testing.assert_allclose(found, whole, atol=EXACT + 1e-4)
            assert described["prompt"] == (None if described["name"] == "Encoder" else 1 if pair else len(prompt))
            compared += 1
        assert compared == (3 if pair else 1)


def test_tokens_of_steps(load: Any) -> None:
    model = load("gpt2")
    batch = model.tokenizer(["ab cd", "a"])
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"do_sample": False, "max_new_tokens": 4, "output_attentions": True, "return_dict_in_generate": True}
    out = model.generate(**given, **options)
    padded = [f"t{i}" for i in out.sequences[1]]
    whole = [token for token, real in zip(padded, batch["attention_mask"][1].tolist() + [1] * 4, strict=True) if real]
    for tokens in (padded, whole):
        (described,) = data_of(qkv.view.attention(out, tokens, row=1))["maps"]
        assert described["keys"] == described["queries"] == whole[:-1]
        assert described["written"] == whole[described["prompt"] :] and len(described["written"]) == 4
    with pytest.raises(ValueError, match="attentions has 6 queries, but there are 2 tokens"):
        qkv.view.attention(out, ["a", "b"], row=0)


def test_a_memory_of_transformer_xl_is_named() -> None:
    model = qkv.load(golden_checks.GOLDEN / "transfo_xl_base")
    out = model([[1, 2, 3]], output_attentions=True)
    described = data_of(qkv.view.attention(out, list("abc")))["maps"][0]
    before = out.attentions[0].shape[3] - 3
    assert described["queries"] == list("abc")
    assert described["keys"] == [f"memory {i}" for i in range(-before, 0)] + list("abc")
    assert before and not described["rollout"]


# ---- images -----------------------------------------------------------------------------------------------------


def test_an_image_is_in_the_page_as_it_was_given() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    for given in (image, image.transpose(2, 0, 1), image / 255.0):
        (described,) = data_of(qkv.view.attention(random_weights(1, 1, 7, 7), image=given, grid=(2, 3)))["maps"]
        assert (described["picture"]["rows"], described["picture"]["columns"]) == (2, 3)
        assert described["keys"][:3] == ["[CLS]", "patch 0,0", "patch 0,1"] and described["keys"][-1] == "patch 1,2"
        kind, _, data = described["picture"]["url"].partition(",")
        assert kind == "data:image/png;base64"
        pillow = pytest.importorskip("PIL.Image", reason="reading a PNG back needs the extra `images`")
        np.testing.assert_array_equal(np.asarray(pillow.open(io.BytesIO(base64.b64decode(data)))), image)


def test_a_grey_image_and_one_that_is_too_large() -> None:
    assert pictures._pixels(np.arange(6, dtype=np.uint8).reshape(2, 3))[1, 2].tolist() == [5, 5, 5]
    large = pictures._pixels(np.zeros((3000, 10), np.uint8))
    assert large.shape == (1000, 4, 3)


def test_special_tokens_of_a_square_image() -> None:
    for tokens, special in ((10, ["[CLS]"]), (11, ["[CLS]", "[DIST]"]), (9, [])):
        page = qkv.view.attention(random_weights(1, 1, tokens, tokens), image=np.zeros((3, 3), np.uint8))
        keys = data_of(page)["maps"][0]["keys"]
        assert keys[: tokens - 9] == special and keys[tokens - 9] == "patch 0,0" and len(keys) == tokens


# ---- figures ----------------------------------------------------------------------------------------------------


def test_figures_hold_the_weights(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plot`")
    w = random_weights(2, 3, 4, 4)
    grid = qkv.view.figure(w, list("abcd"), path=tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    shown = [ax.images[0].get_array() for ax in grid.axes if ax.images]
    np.testing.assert_array_equal(np.stack(shown), w.reshape(6, 4, 4))
    assert [ax.get_title() for ax in grid.axes[:3]] == ["head 0", "head 1", "head 2"]
    row = qkv.view.figure(w, layer=1)
    np.testing.assert_array_equal(np.stack([ax.images[0].get_array() for ax in row.axes]), w[1])
    one = qkv.view.figure(w, ["a", "$x^2", "\\alpha", "<b>"], path=tmp_path / "x.svg", layer=1, head=2, title="$\\")
    np.testing.assert_array_equal(one.axes[0].images[0].get_array(), w[1, 2])
    text = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml") and "<b>" not in text


def test_kinds_of_figures(load: Any) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plot`")
    out = load("t5")([[1, 2, 3]], decoder_input_ids=[[0, 4]], output_attentions=True)
    for kind, name in (
        ("encoder", "encoder_attentions"),
        ("decoder", "decoder_attentions"),
        (None, "cross_attentions"),
    ):
        drawn = qkv.view.figure(out, kind=kind, layer=0, head=1)
        np.testing.assert_array_equal(drawn.axes[0].images[0].get_array(), out[name][0][0, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, "layer: numbers of Attention go from 0 to 1; got 2"),
        ({"layer": 0, "head": -1}, "head: numbers of Attention go from 0 to 1; got -1"),
        ({"kind": "cross"}, "there is no kind 'cross'; there are attention"),
        ({"tokens": ["a"]}, "there are 1 tokens"),
    ],
)
def test_errors_of_figures(options: dict[str, Any], message: str) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plot`")
    with pytest.raises(ValueError, match=message):
        qkv.view.figure(W, **options)


def test_figures_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'figures need matplotlib: pip install "qkv\[plot\]"'):
        qkv.view.figure(W)


def test_import_waits_until_it_is_used() -> None:
    done = run_python(
        "import sys, qkv; assert 'qkv.view' not in sys.modules; qkv.view; print('qkv.view' in sys.modules)"
    )
    assert done.stdout.strip() == "True", done.stderr


# ---- the command line -------------------------------------------------------------------------------------------


def run(*arguments: str, output: Path) -> dict[str, Any]:
    assert cli.main(["view", *arguments, "-o", str(output)]) == 0
    return data_of(output.read_text(encoding="utf-8"))


def test_the_command_shows_an_encoder(folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, path, output = "the service is friendly", folder("bert_three"), tmp_path / "x.html"
    data = run(path, text, output=output)
    assert capsys.readouterr().out == f"written: {output}\n"
    model = qkv.load(path)
    ids = model.tokenizer([text])["input_ids"]
    assert data["title"] == "the service is friendly · bert_three"
    assert data["maps"][0]["keys"] == model.tokenizer.convert_ids_to_tokens(ids[0])
    exact = np.stack(model(ids, output_attentions=True).attentions)[:, 0]
    np.testing.assert_allclose(weights_of(output.read_text())[0][0], exact, atol=EXACT)
    pair = run(folder("bert_nli"), text, "--pair", "it is good", "--title", "A & B", output=output)
    assert pair["title"] == "A & B" and pair["maps"][0]["keys"].count("[SEP]") == 2


def test_a_masked_language_model_reads_a_pair(folder: Any, tmp_path: Path) -> None:
    """It has logits, but it makes no text."""
    data = run(folder("bert_mlm"), "it is", "--pair", "good", output=tmp_path / "x.html")
    assert data["title"] == "it is | good · bert_mlm" and data["maps"][0]["keys"].count("[SEP]") == 2


def test_the_command_shows_a_decoder(folder: Any, tmp_path: Path) -> None:
    path, output = folder("gpt2"), tmp_path / "x.html"
    (read,) = run(path, "ab cd", output=output)["maps"]
    assert read["prompt"] is None
    (made,) = run(path, "ab cd", "--max-new-tokens", "3", output=output)["maps"]
    assert made["prompt"] == len(read["keys"]) and made["keys"][: len(read["keys"])] == read["keys"]
    assert len(made["written"]) == 3 and len(made["keys"]) == len(read["keys"]) + 2


@pytest.mark.parametrize("name", ["t5", "bart", "mbart", "marian"])
def test_the_command_shows_two_stacks(name: str, folder: Any, tmp_path: Path) -> None:
    output = tmp_path / "x.html"
    given = run(folder(name), "ab cd", "--target", "ef ab", output=output)["maps"]
    assert [described["name"] for described in given] == ["Encoder", "Decoder", "Cross-attention"]
    model = qkv.load(folder(name))
    labels = model.tokenizer(text_target="ef ab")["input_ids"][0]
    first = labels[-1] if name == "mbart" else model.config["decoder_start_token_id"]
    fed = [[first, *labels]]
    source = model.tokenizer(["ab cd"])["input_ids"]
    exact = model(source, decoder_input_ids=fed, output_attentions=True).cross_attentions
    np.testing.assert_allclose(weights_of(output.read_text())[2][0], np.stack(exact)[:, 0], atol=EXACT)
    made = run(folder(name), "ab cd", output=output)["maps"]
    assert made[0]["prompt"] is None and made[1]["prompt"] == made[2]["prompt"] == 1
    assert made[2]["keys"] == given[0]["keys"] and made[1]["written"]


@pytest.mark.parametrize(("name", "special"), [("vit_classify", 1), ("deit_classify", 2), ("imagegpt_classify", 0)])
def test_the_command_shows_an_image(name: str, special: int, folder: Any, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="images need the extra `images`")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "x.png")
    (described,) = run(folder(name), str(tmp_path / "x.png"), output=tmp_path / "x.html")["maps"]
    picture, count = described["picture"], len(described["keys"])
    assert picture["rows"] * picture["columns"] + special == count
    assert picture["url"].startswith("data:image/png;base64,")
    model = qkv.load(folder(name))
    exact = model(**model.image_processor(tmp_path / "x.png"), output_attentions=True).attentions
    found, _ = weights_of((tmp_path / "x.html").read_text())[0]
    np.testing.assert_allclose(found, np.stack(exact)[:, 0], atol=EXACT)


def test_the_command_shows_some_layers_and_heads(tmp_path: Path) -> None:
    output = tmp_path / "x.html"
    given = ["dates", "3 May 2031", "--target", "2031-05-03", "--layers", "1", "--heads", "0,2"]
    assert cli.main(["view", *given, "-o", str(output)]) == 0
    for described in data_of(output.read_text(encoding="utf-8"))["maps"]:
        assert (described["layer_numbers"], described["head_numbers"]) == ([1], [0, 2])
        assert described["writes"] == (None if described["name"] == "Encoder" else [*"2031-05-03", "</s>"])


def test_the_command_draws_figures(folder: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `plot`")
    output = tmp_path / "x.svg"
    drawn = []
    for more in (["--layers", "0", "--heads", "1"], ["--layer", "0", "--head", "1"], []):  # the shorter names too
        given = [folder("t5"), "ab", "--target", "ef", "--kind", "encoder", *more]
        assert cli.main(["view", *given, "-o", str(output)]) == 0
        drawn.append(output.read_text(encoding="utf-8"))
    assert all("head 1" in text and "Encoder" in text for text in drawn)
    assert "head 0" in drawn[2] and "head 0" not in drawn[0] + drawn[1]


def test_the_command_writes_to_standard_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    given = ["view", "dates", "3 May 2031 – é", "--target", "2031-05-03", "--layers", "0"]
    assert cli.main([*given, "-o", str(tmp_path / "x.html")]) == 0
    capfdbinary.readouterr()
    assert cli.main([*given, "-o", "-"]) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "x.html").read_bytes()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bert_three", ["x", "--target", "y"], "view: a BertForSequenceClassification has no decoder"),
        ("bert_three", ["x", "--max-new-tokens", "3"], "--max-new-tokens: a BertForSequenceClassification makes no"),
        ("bert_three", ["x", "-o", "x.pdfx"], "--output: 'x.pdfx' must be - or end in .html, .htm, .png"),
        ("bert_three", ["x", "-o", "/no/such/x.html"], "/no/such: there is no such folder"),
        ("bert_three", ["x", "--kind", "encoder"], "--kind is for figures"),
        ("bert_three", ["x", "--kind", "encoder", "-o", "-"], "--kind is for figures"),
        ("bert_three", ["x", "--heads", "0-2"], "--heads: expected numbers with commas between them; got '0-2'"),
        ("bert_three", ["x", "--layers", "99"], "layers of Self-attention go from 0 to"),
        ("t5", ["x", "--target", "y", "--max-new-tokens", "3"], "do not go together"),
        ("t5", ["x", "--pair", "y"], "view: a T5ForConditionalGeneration reads one text"),
        ("vit_classify", ["x.png", "--max-new-tokens", "3"], "--max-new-tokens: a ViTForImageClassification takes an"),
        ("vit_classify", ["/no/such.png"], "/no/such.png: No such file"),
    ],
)
def test_errors_of_the_command(
    name: str, arguments: list[str], message: str, folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if "-o" in arguments else ["-o", str(tmp_path / "x.html")]
    assert cli.main(["view", folder(name), *arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("qkv: ") and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_command_reads_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, text in enumerate(([], ["-"], ["3 May 2031"])):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"3 May 2031\n")))
        assert cli.main(["view", "dates", *text, "--layers", "0", "-o", str(tmp_path / f"{i}.html")]) == 0
    assert len({(tmp_path / f"{i}.html").read_text() for i in range(3)}) == 1


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_text_that_is_cut_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["view", "dates", "3 May 2031 " * 20, "-o", str(tmp_path / "x.html")]) == 0
    assert "view: the text is cut to 128 of its 221 tokens, what the model takes" in capsys.readouterr().err
    assert cli.main(["view", "dates", "3 May 2031", "--target", "2031" * 50, "-o", str(tmp_path / "x.html")]) == 0
    assert "view: the target is cut to" in capsys.readouterr().err
