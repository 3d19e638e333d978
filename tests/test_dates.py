"""The model in the box: what it makes of written dates, what it looks at, and that its tests are not its training."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import qkv
from checks import run_python
from qkv import demo
from qkv.files import SHIPPED

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "dates"
FILE = Path(qkv.__file__).parent / "data" / "dates.npz"
BY_HAND = {
    "Saturday, the 3rd of May 2031": "2031-05-03",
    "3 May 2031": "2031-05-03",
    "May 3rd, 2031": "2031-05-03",
    "may the 3rd, 2031": "2031-05-03",
    "3 May '31": "2031-05-03",
    "5/3/2031": "2031-05-03",  # between slashes the month is first
    "3.5.2031": "2031-05-03",  # between dots the day
    "03-05-2031": "2031-05-03",
    "2031-05-03": "2031-05-03",
    "25/12/1999": "1999-12-25",  # there is no month 25
    "20310503": "2031-05-03",
    "2031-05-03T10:30:00Z": "2031-05-03",
    "due 3 MAY 2031": "2031-05-03",
    "on the twenty-first of July, 1969": "1969-07-21",
    "Sept. 1st, 2007": "2007-09-01",
    "February 29, 2096": "2096-02-29",
    "12/31/69": "1969-12-31",
    "1/1/68": "2068-01-01",
    "Thu, Dec 31, 2099 at 11:59 pm": "2099-12-31",
    "1 Jan 1900": "1900-01-01",
}


@pytest.fixture(scope="module")
def model() -> Any:
    return qkv.load("dates")


def translate(model: Any, texts: list[str], **options: Any) -> list[str]:
    ids = model.generate(**model.tokenizer(texts), **options)
    return list(model.tokenizer.batch_decode(ids))


# ---- the file


def test_the_file_is_small() -> None:
    assert FILE.stat().st_size < 1_000_000
    assert {path.stem for path in FILE.parent.iterdir()} == set(SHIPPED)


def test_weights_are_int8(model: Any) -> None:
    packed = qkv.load("dates", dtype="auto")
    matrices = [value for name, value in packed.parameters.items() if name.endswith(".weight") and "norm" not in name]
    assert {value.dtype for value in matrices} == {"int8"}
    for name, value in packed.parameters.items():
        if isinstance(value, qkv.PackedWeight):
            np.testing.assert_array_equal(value.dequantize(), model.parameters[name].dequantize())


def test_a_folder_of_that_name(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is meant if it holds a model, and is not if it holds anything else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dates").mkdir()
    assert qkv.load("dates").config.to_dict() == model.config.to_dict()
    (tmp_path / "dates" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors"):
        qkv.load("dates")
    with pytest.raises(FileNotFoundError, match=r"nor one that comes with qkv \(dates\)"):
        qkv.load("date")


def test_needs_the_core_alone() -> None:
    done = run_python(
        "import sys\n"
        "for name in ('tokenizers', 'sentencepiece', 'jinja2', 'torch', 'transformers'): sys.modules[name] = None\n"
        "import qkv\n"
        "print(qkv.pipeline('text2text-generation', 'dates')('May 3rd, 2031')[0]['generated_text'])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "2031-05-03"), done.stderr


def test_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    qkv.load("dates", dtype="auto").save(tmp_path / "x.npz")
    texts = list(BY_HAND)
    again = qkv.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(
        again(**again.tokenizer(texts), decoder_input_ids=[[0]] * len(texts)).logits,
        model(**model.tokenizer(texts), decoder_input_ids=[[0]] * len(texts)).logits,
    )


# ---- dates


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}], ids=["greedy", "beams"])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_by_hand(dtype: str, options: dict[str, Any]) -> None:
    dates = translate(qkv.load("dates", dtype=dtype), list(BY_HAND), **options)
    assert dict(zip(BY_HAND, dates, strict=True)) == BY_HAND


def test_pipelines(model: Any) -> None:
    text = "Saturday, the 3rd of May 2031"
    assert qkv.pipeline("text2text-generation", model)(text) == [{"generated_text": "2031-05-03"}]
    assert qkv.pipeline("translation", model)([text, "5/3/2031"], num_beams=4) == [
        *({"translation_text": "2031-05-03"} for _ in range(2))
    ]
    assert qkv.pipeline(model=model)(text) == [{"generated_text": "2031-05-03"}]


def test_beams(model: Any) -> None:
    """The best of the beams first; and what is as likely as all others together is the most likely one."""
    batch = model.tokenizer(["5/3/2031"])
    ids = model.generate(**batch, num_beams=4, num_return_sequences=4)
    dates = model.tokenizer.batch_decode(ids)
    assert dates[0] == "2031-05-03" and len(set(dates)) == 4
    scores = model.score(["5/3/2031"] * 4, targets=dates).scores
    assert np.exp(scores[0]) > 0.5
    assert scores.argmax() == 0


def test_tokenizer(model: Any) -> None:
    tokenizer = model.tokenizer
    for text in ("Sept. 3rd, ’31", "", "日"):
        (ids,) = tokenizer.rows([text])
        assert ids == [3 + byte for byte in text.encode()] + [1]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 259 == model.config["vocab_size"]
    assert max(map(len, tokenizer.rows(["3 May 2031 " * 20]))) == model.max_tokens == 128


# ---- attention


def reading(model: Any, text: str, written: str) -> Any:
    """Cross-attention (len(written), len(text) + 1), the mean of layers and heads."""
    ids = [[0, *(3 + byte for byte in written.encode())][:-1]]
    output = model(**model.tokenizer([text]), decoder_input_ids=ids, output_attentions=True)
    layers, heads = model.config["num_decoder_layers"], model.config["nhead"]
    assert len(output.cross_attentions) == layers
    for weights in output.cross_attentions:
        assert weights.shape == (1, heads, len(written), len(text) + 1)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    assert len(output.encoder_attentions) == model.config["num_encoder_layers"]
    return demo.cross_attention(output)


@pytest.mark.parametrize(
    ("text", "year", "month", "day"),
    [
        ("Saturday, the 3rd of May 2031", "2031", "May", "3rd"),
        ("14 September 1987", "1987", "September", "14"),
        ("due on August 26th, 2045", "2045", "August", "26th"),
        ("11/27/1968", "1968", "11", "27"),
        ("27.11.1968", "1968", "11", "27"),
        ("2094-07-30", "2094", "07", "30"),
    ],
)
def test_it_reads_what_it_writes(model: Any, text: str, year: str, month: str, day: str) -> None:
    """Most of the weight of the year's digits lies on the year, of the month's on the month, of the day's on the day:
    on the characters and their neighbours."""
    (written,) = translate(model, [text])
    weights = reading(model, text, written)
    for part, rows in ((year, range(4)), (month, range(5, 7)), (day, range(8, 10))):
        start = text.rindex(part) if part == year else text.index(part)
        near = slice(max(start - 1, 0), start + len(part) + 1)
        assert weights[rows, near].sum(axis=1).mean() > 0.5, (text, part)
        assert weights[rows].mean(axis=0).argmax() in range(near.start, near.stop), (text, part)


# ---- the generator and the evaluation


@pytest.fixture(scope="module")
def written() -> Any:
    if not EXAMPLE.is_dir():
        pytest.skip("examples/ is not beside the tests")
    sys.path.insert(0, str(EXAMPLE))
    try:
        import written

        return written
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.mark.parametrize(("count", "options"), [(600, {}), (200, {"num_beams": 4})], ids=["greedy", "beams"])
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_exact_on_what_training_does_not_see(written: Any, dtype: str, count: int, options: dict[str, Any]) -> None:
    random = Random("tests")
    texts, dates = zip(*(written.sample(random, held_out=True) for _ in range(count)), strict=True)
    found = translate(qkv.load("dates", dtype=dtype), list(texts), **options)
    wrong = [row for row in zip(texts, dates, found, strict=True) if row[1] != row[2]]
    assert len(wrong) <= count / 100, wrong


def test_evaluation(written: Any) -> None:
    """It says what share is right, and which are wrong."""
    command = [sys.executable, str(EXAMPLE / "evaluate.py"), "--texts", "60", "--seed", "3", "--dtype", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *wrong, last = done.stdout.splitlines()
    share = re.fullmatch(r"exact: ([\d.]+)% of 60 \(auto, 1 beams\)", last)
    assert share and float(share[1]) == pytest.approx(100 * (1 - len(wrong) / 60), abs=0.01)


def test_tests_and_training_are_disjoint(written: Any) -> None:
    assert not set(written.OF_TRAINING) & set(written.OF_TESTS)
    random, seen = Random(1), {False: set(), True: set()}
    days: dict[bool, set[str]] = {False: set(), True: set()}
    drawn = []
    real = written.held_out_phrasing

    def watched(phrasing: Any) -> Any:
        drawn.append(phrasing)
        return real(phrasing)

    written.held_out_phrasing = watched
    try:
        for held_out in (False, True):
            for _ in range(1500):
                text, day = written.sample(random, held_out=held_out)
                seen[held_out].add(drawn[-1])
                days[held_out].add(day)
                used = set(re.findall(r"[a-z-]{5,}", text.lower()))
                others = written.OF_TRAINING if held_out else written.OF_TESTS
                assert not used & {word.lower() for word in others if len(word) >= 5 and word.isalpha()}
    finally:
        written.held_out_phrasing = real
    made_up = {written.made_up(random) for _ in range(3000)}
    assert len(made_up) > 2000 and not {word.lower() for word in made_up} & {word.lower() for word in written.OF_TESTS}
    assert not seen[False] & seen[True] and len(seen[True]) > 300
    assert not days[False] & days[True] and len(days[True]) > 1000


def test_a_seed_gives_the_same_texts(written: Any) -> None:
    def some(seed: int) -> list[Any]:
        random = Random(seed)
        return [written.sample(random) for _ in range(50)]

    assert some(1) == some(1) != some(2)


def test_texts_mean_their_dates(written: Any) -> None:
    """Numeric ones by the rule, read here once more; the others by the month's name and the numbers in them."""
    random, numeric, spelled = Random(2), 0, 0
    for _ in range(6000):
        text, iso = written.sample(random)
        day = date.fromisoformat(iso)
        assert 1900 <= day.year <= 2099
        if found := re.fullmatch(r"(\d+)([/.-])(\d+)\2(\d+)", text):
            numeric += 1
            first, second, third = (int(found[k]) for k in (1, 3, 4))
            if len(found[1]) == 4:
                assert (first, second, third) == (day.year, day.month, day.day)
                continue
            month_first = (found[2] == "/" and first <= 12) or second > 12
            assert (first, second) == ((day.month, day.day) if month_first else (day.day, day.month)), text
            assert third == (day.year if third > 99 else day.year % 100)
            assert third > 99 or 1969 <= day.year <= 2068
        elif found := re.fullmatch(r"(\d+)(?:st|nd|rd|th) (?:of )?([A-Z][a-z]{2,})\.?,? (\d{4})", text):
            spelled += 1
            assert (int(found[1]), int(found[3])) == (day.day, day.year)
            assert written.MONTHS[day.month - 1].startswith(found[2][:2])
    assert numeric > 50 and spelled > 20


def test_weekdays_are_right_but_for_a_few(written: Any) -> None:
    random, right, count = Random(4), 0, 400
    for _ in range(count):
        day = date(2031, 5, random.randrange(1, 32))
        text = written.fill(written.Phrasing("{weekday}, {yyyy}-{mm}-{dd}"), day, random)
        right += text == f"{day:%A}, {day.isoformat()}"
    assert 0.9 * count < right < count
