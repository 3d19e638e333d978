"""Dates as people write them, each with its ISO form: what the model in this folder learns from and is tested on.

The dates are the days of 1900 to 2099, in English or in numbers. Where a style leaves open what is meant, one rule
holds:

* Three numbers with the year first, which then has four digits, are year, month, day, whatever stands between them.
* Otherwise the year is last. Between slashes the month comes first (5/3/2031 is May 3), between dots, hyphens or
  spaces the day does (5.3.2031 is March 5). If that would make a number above 12 the month, it is the day.
* A year of two digits lies in 1969 to 2068, as for POSIX: 69 to 99 are 19.., 00 to 68 are 20..
* Only days that there are occur, February 29 in leap years alone: what a model makes of February 30 is not defined.
* The weekday is no part of the result. One in twenty is wrong, and so is not to be relied on.
* A time of day, and words around the date, are left out. Other numbers do not occur.

Of the tests nothing is among what training sees, by construction: a tenth of the days, a tenth of the phrasings (a
phrasing is all that is the same for any two dates written alike: order, forms of month, day and year, marks, weekday,
lead-in, time, capitals) and words around the date are `held_out`, and the tests have all three from there. Half of the
words that training sees are made up of random letters, for the model to learn that they do not matter.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

FIRST, LAST = date(1900, 1, 1), date(2099, 12, 31)
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
    "twentieth",
    *(f"twenty-{unit}" for unit in ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")),
    *("twenty-ninth", "thirtieth", "thirty-first"),
)

# ---- parts of a phrasing: D day, M month, Y year, which are given a form later; fields of `Phrasing` in braces

SPELLED = (
    *("D M Y", "D M, Y", "D. M Y", "D of M Y", "Dth M Y", "Dth M, Y", "Dth of M Y", "Dth of M, Y"),
    *("the Dth of M Y", "the Dth of M, Y", "the Dth M Y", "the Dth day of M, Y", "Dth day of M Y"),
    *("M D, Y", "M D Y", "M D. Y", "M Dth, Y", "M Dth Y", "M the Dth, Y", "M the Dth Y", "M Y, the Dth"),
    *("D-M-Y", "D/M/Y", "D.M.Y", "DMY", "DM Y", "M-D-Y", "M/D/Y", "Y M D", "Y, M D", "Y M Dth", "Y-M-D", "Y, Dth of M"),
    *("the ORD of M Y", "the ORD of M, Y", "ORD of M Y", "ORD M Y", "M ORD, Y", "M ORD Y", "M the ORD, Y"),
)
YEAR_FIRST = ("Y-M-D", "Y/M/D", "Y.M.D", "Y M D", "Y - M - D", "Y / M / D", "Y. M. D", "YMD")
MONTH_FIRST = ("M/D/Y", "M / D / Y")
DAY_FIRST = ("D.M.Y", "D. M. Y", "D-M-Y", "D - M - Y", "D M Y")
BEFORE = ("{weekday}, ", "{weekday} ", "{wkd} ", "{wkd}, ", "{wkd}. ")
BEHIND = (" ({weekday})", " ({wkd})", ", {weekday}", ", a {weekday}", " {wkd}", " {weekday}")
LEAD_INS = (
    *("on ", "due ", "due on ", "due: ", "by ", "before ", "after ", "since ", "until ", "from ", "as of ", "dated "),
    *("date: ", "date ", "Date: ", "born ", "born on ", "of ", "for ", "is ", "was ", "it is ", "was on ", "will be "),
    *("will be on ", "no later than ", "not before ", "starting ", "from now to ", "deadline: ", "valid until "),
    *("- ", "(", "[", '"', "= ", ": ", "~ ", "re: "),
)
CLOSING = {"(": ")", "[": "]", '"': '"'}
ENDINGS = (".", "!", "?", ",", ";", ":")
TIMES = (
    *(" {HH}:{MM}", " at {HH}:{MM}", ", {HH}:{MM}", " {HH}:{MM}:{SS}", " {HH}:{MM}h"),
    *(", {h}:{MM} am", " at {h} pm", " {h}:{MM} PM"),
)
ISO_TIMES = ("T{HH}:{MM}", "T{HH}:{MM}:{SS}", "T{HH}:{MM}:{SS}Z")
WORDS = """
the meeting train party paper letter invoice report show game concert flight order parcel house garden
my your our their his her a an this that new old last next big small early late final open closed
begins ends opens closes starts arrives leaves was is will be came went made sent paid signed written
delivery birthday wedding holiday contract lease project school doctor dinner visit trial launch vote
in at to with for about please note remember check call see book pay send return happened planned
Berlin Paris London Anna Peter Smith Tokyo office station river bank museum church hotel airport
first-class tomorrow evening noon morning night summer winter week year day year-end UTC no. approx.
"""
HELD_OUT_WORDS = """
ticket exam lecture picnic shipment passport deposit battle harvest festival premiere rent bill
expires departs happens finished moved bought sold married founded renewed cancelled postponed
Madrid Oslo Rome Maria John Brown village bridge library castle embassy clinic bakery between under
lovely strange huge final-round quick rather maybe surely everyone nobody somewhere twice soon
"""


OF_TRAINING, OF_TESTS = tuple(WORDS.split()), tuple(HELD_OUT_WORDS.split())
LETTERS = "eeeeeettttaaaaooooiiiinnnnsssshhhrrrrdddlllcccuuummmwffggyyppbbvvkkjxqz"
MEANING = {name[:n].lower() for name in (*MONTHS, *WEEKDAYS) for n in range(2, 10)} | {*ORDINALS, "am", "pm"}


def held_out_day(day: date) -> bool:
    """Whether a day belongs to the tests."""
    return zlib.crc32(day.isoformat().encode()) % 10 == 0


def held_out_phrasing(phrasing: Phrasing) -> bool:
    """Whether a phrasing belongs to the tests."""
    return zlib.crc32(f"{phrasing.case}: {phrasing.pattern}".encode()) % 10 == 0


def sample(random: Random, *, held_out: bool = False) -> tuple[str, str]:
    """A text with a date in it, and the date in ISO form. held_out: for the tests."""
    while True:
        day = FIRST + timedelta(random.randrange((LAST - FIRST).days + 1))
        if held_out_day(day) == held_out and (text := write(day, random, held_out=held_out)) is not None:
            return text, day.isoformat()


def write(day: date, random: Random, *, held_out: bool = False) -> str | None:
    """A text with the day in it; None where the phrasing that comes up is not for the day, or on the other side."""
    phrasing = draw(day, random)
    if phrasing is None or held_out_phrasing(phrasing) != held_out:
        return None
    return misspell(fill(phrasing, day, random, held_out=held_out), random)


# ---- phrasings


@dataclass(frozen=True)
class Phrasing:
    """pattern: a text with fields in braces, as `fill` has them. case: "lower" or "upper" for all of it, or ""."""

    pattern: str
    case: str = ""


def draw(day: date, random: Random) -> Phrasing | None:
    """A phrasing; None where a two-digit year could not mean the day's."""
    pattern = _spelled(random) if random.random() < 0.6 else _numeric(day, random)
    if "{yy}" in pattern and not 1969 <= day.year <= 2068:
        return None
    iso = pattern == "{yyyy}-{mm}-{dd}"
    chance = random.random()
    if chance < 0.3:
        ordinal = pattern.startswith(("{dth}", "{word}"))
        pattern = random.choice(BEFORE) + ("the " if ordinal and random.random() < 0.3 else "") + pattern
    elif chance < 0.4:
        pattern += random.choice(BEHIND)
    if random.random() < 0.15:
        pattern += random.choice(ISO_TIMES if iso and chance >= 0.4 else TIMES)
    elif random.random() < 0.03:
        pattern = "{HH}:{MM}" + random.choice((" ", ", ", " on ")) + pattern
    closing = ""
    if random.random() < 0.45:
        lead_in = random.choice(LEAD_INS)
        pattern, closing = lead_in + pattern, CLOSING.get(lead_in, "")
    if random.random() < 0.3:
        pattern = "{words} " + pattern
    pattern += closing
    if random.random() < 0.12:
        pattern += random.choice((" ", ", ")) + "{more}"
    if random.random() < 0.15:
        pattern += random.choice(ENDINGS)
    return Phrasing(pattern, random.choice(("",) * 7 + ("lower", "lower", "upper")))


def _spelled(random: Random) -> str:
    pattern = random.choice(SPELLED)
    month = random.choice(("{month}", "{month}", "{mon}", "{mon}", "{mon}."))
    if month == "{mon}." and any(mark in pattern for mark in ("M-", "M/", "M.", "MY")):
        month = "{mon}"
    day = "{d}" if "Dth" in pattern else random.choice(("{d}", "{d}", "{dd}"))
    year = "{yyyy}" if pattern.startswith("Y") else random.choice(("{yyyy}",) * 5 + ("'{yy}", "’{yy}", "{yy}"))
    if pattern.startswith("M Y"):
        year = "{yyyy}"
    pattern = pattern.replace("ORD", "{word}").replace("Dth", "{dth}")
    return _forms(pattern, day, month, year)


def _numeric(day: date, random: Random) -> str:
    chance = random.random()
    if chance < 0.3:
        pattern, year = random.choice(YEAR_FIRST), "{yyyy}"
    else:
        year = random.choice(("{yyyy}", "{yyyy}", "{yyyy}", "{yy}"))
        month_first = chance < 0.65
        pattern = random.choice(MONTH_FIRST if month_first else DAY_FIRST)
        if day.day > 12 and random.random() < 0.15:  # against the rule, but it can mean nothing else
            pattern = pattern.translate({ord("M"): "D", ord("D"): "M"})
    padded = pattern == "YMD" or random.random() < 0.5
    return _forms(pattern, "{dd}" if padded else "{d}", "{mm}" if padded else "{m}", year)


def _forms(pattern: str, day: str, month: str, year: str) -> str:
    for letter, form in (("D", day), ("M", month), ("Y", year)):
        pattern = pattern.replace(letter, form)
    return pattern


# ---- texts


def fill(phrasing: Phrasing, day: date, random: Random, *, held_out: bool = False) -> str:
    """The text of a phrasing for a day. held_out: with words of the tests around it."""
    month = MONTHS[day.month - 1]
    weekday = WEEKDAYS[random.randrange(7) if random.random() < 0.05 else day.weekday()]
    suffix = "th" if 10 < day.day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")

    text = phrasing.pattern.format(
        d=day.day,
        dd=f"{day.day:02d}",
        dth=f"{day.day}{suffix}",
        word=ORDINALS[day.day - 1],
        m=day.month,
        mm=f"{day.month:02d}",
        month=month,
        mon="Sept" if month == "September" and random.random() < 0.5 else month[:3],
        yyyy=day.year,
        yy=f"{day.year % 100:02d}",
        weekday=weekday,
        wkd=weekday[: random.choice((2, 3, 3, 3, 4))] if weekday[0] == "T" else weekday[:3],
        HH=f"{random.randrange(24):02d}",
        h=random.randrange(1, 13),
        MM=f"{random.randrange(60):02d}",
        SS=f"{random.randrange(60):02d}",
        words=_words(random, held_out),
        more=_words(random, held_out),
    )
    return text.lower() if phrasing.case == "lower" else text.upper() if phrasing.case == "upper" else text


def _words(random: Random, held_out: bool) -> str:
    count = random.choice((1, 1, 2, 2, 3))
    if held_out:
        return " ".join(random.choices(OF_TESTS, k=count))
    return " ".join(random.choice(OF_TRAINING) if random.random() < 0.5 else made_up(random) for _ in range(count))


def made_up(random: Random) -> str:
    """A word of random letters that means nothing here, and is none of the tests."""
    while True:
        word = "".join(random.choices(LETTERS, k=random.choice((1, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 12))))
        if word not in MEANING and word not in OF_TESTS and word.capitalize() not in OF_TESTS:
            return word.capitalize() if random.random() < 0.3 else word


def misspell(text: str, random: Random) -> str:
    """One text in six gets a slip or two: of spaces, of marks, or of one letter in the long name of a month."""
    if random.random() < 5 / 6:
        return text
    for _ in range(random.choice((1, 1, 2))):
        text = random.choice((_more_space, _less_space, _less_marks, _swap_letters))(text, random)
    return text


def _more_space(text: str, random: Random) -> str:
    places = [0, len(text), *(k for k, char in enumerate(text) if char in " ,.")]
    at = random.choice(places)
    return text[:at] + " " + text[at:]


def _less_space(text: str, random: Random) -> str:
    """Takes out a space between two characters of which at most one is a digit, or a letter."""
    kinds = [char.isdigit() + 2 * char.isalpha() for char in text]
    spaces = [k for k in range(1, len(text) - 1) if text[k] == " " and kinds[k - 1] != kinds[k + 1]]
    if not spaces:
        return text
    at = random.choice(spaces)
    return text[:at] + text[at + 1 :]


def _less_marks(text: str, random: Random) -> str:
    """Takes out a comma, or the dot of an abbreviation, that a space follows."""
    places = [k for k in range(1, len(text) - 1) if text[k] in ",." and text[k - 1].isalnum() and text[k + 1] == " "]
    places = [k for k in places if text[k] == "," or text[k - 1].isalpha()]
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + text[at + 1 :]


def _swap_letters(text: str, random: Random) -> str:
    """Two letters change places, or one is left out, inside the name of a month of at least six letters."""
    lower = text.lower()
    for month in MONTHS:
        start = lower.find(month.lower())
        if len(month) >= 6 and start >= 0:
            at = start + random.randrange(2, len(month) - 1)
            swapped = text[at + 1] + text[at] if random.random() < 0.5 else text[at + 1]
            return text[:at] + swapped + text[at + 2 :]
    return text
