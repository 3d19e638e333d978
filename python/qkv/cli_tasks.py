"""The commands that run a model on texts or images: one result for each argument, or for each line of standard input
or a file, as readable text or with --json as transformers' pipelines return it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .bench.run import positive
from .cli import ERRORS, sentence
from .cli_inputs import Input, inputs_of, json_object, named, read_text

Options = tuple[str, dict[str, Any]]  # the name of a pipeline's task, and its options
Lines = Iterable[str]


@dataclass(frozen=True)
class Command:
    """help, what: of the command and of its inputs. add: its own arguments. options: what they mean. show: a result as
    lines. read: of an input as it is written, what the pipeline takes."""

    help: str
    what: str
    add: Callable[[argparse.ArgumentParser], None]
    options: Callable[[argparse.Namespace], Options]
    show: Callable[[Any, Any, argparse.Namespace], Lines]
    read: Callable[[str, argparse.Namespace], Any] = lambda text, arguments: text


def add_commands(commands: Any) -> None:
    for name, command in COMMANDS.items():
        parser = commands.add_parser(name, help=command.help)
        _add_model(parser, command.what)
        command.add(parser)
        parser.add_argument("--json", action="store_true", help="a line of JSON for each input, as in transformers")
        parser.add_argument("--batch-size", type=positive(int), metavar="N", help="inputs at once; default: by tokens")
        parser.set_defaults(run=_run, many="inputs", command=command)
    embed = commands.add_parser("embed", help="embed texts with an encoder from a Hugging Face folder or an .npz")
    _add_model(embed, "TEXT")
    embed.add_argument("--similarity", action="store_true", help="print the cosine of every pair instead")
    embed.add_argument("--output", metavar="FILE.npy", help="write the embeddings (texts, width) there instead")
    embed.add_argument("--normalize", action="store_true", help="scale every embedding to length 1")
    embed.add_argument("--batch-size", type=positive(int), default=32, metavar="N", help="texts at once (default 32)")
    embed.set_defaults(run=_embed, many="inputs")


def _add_model(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder, its name on the hub, .npz or .gguf")
    help_ = f"'-', or none: the lines of standard input{', JSON objects' if what == 'JSON' else ''}"
    parser.add_argument("inputs", metavar=what, nargs="*", default=[], help=help_)
    parser.add_argument("--file", metavar="FILE", help="take the lines of a file as inputs too")
    dtypes = ["auto", "float32", "bfloat16", "float16", "int8", "int4"]
    parser.add_argument("--dtype", choices=dtypes, help="of the weights; default: float32, auto for a .gguf")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1; default: cpu")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="default: as many as there are cores")


def dtype_of(arguments: argparse.Namespace) -> str:
    if arguments.threads is not None:
        from .runtime import set_num_threads

        set_num_threads(arguments.threads)
    return str(arguments.dtype or ("auto" if arguments.model.endswith(".gguf") else "float32"))


# ---- running ----------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> None:
    from .tasks import pipeline

    command: Command = arguments.command
    task, options = command.options(arguments)
    where = {"dtype": dtype_of(arguments), "device": arguments.device}
    pipe = pipeline(task, arguments.model, **where, batch_size=arguments.batch_size)
    if getattr(arguments, "stream", False):
        for one in (one for inputs in inputs_of(arguments) for one in inputs):
            with named(one.where):
                given = command.read(one.text, arguments)
                pieces = pipe.stream(given, **options)  # type: ignore[attr-defined]
                if not arguments.chat and not arguments.only_new:
                    print(given, end="")
                for piece in pieces:
                    print(piece, end="", flush=True)
                print(flush=True)
        return
    for given, result in _results(pipe, arguments, options):
        if arguments.json:
            print(_json(result))
        else:
            for line in command.show(given, result, arguments):
                print(line)


def _results(pipe: Any, arguments: argparse.Namespace, options: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Inputs and their results. Those before an input that is wrong come before its error, which names it."""
    waiting: deque[tuple[Any, str]] = deque()  # inputs, and where they come from

    def lists() -> Iterator[list[Any]]:
        for inputs in inputs_of(arguments):
            wrong = None
            for one in inputs:
                try:
                    waiting.append((arguments.command.read(one.text, arguments), one.where))
                except ValueError as error:
                    wrong = ValueError(f"{one.where}{error}")
                    break
            yield [given for given, _ in waiting]
            if wrong is not None:
                raise wrong
            sys.stdout.flush()  # before the next ones are waited for

    pipe.prepare([], pipe.read(options))  # so that what is wrong with all inputs is not said of the first
    try:
        for result in pipe.each(lists(), **options):
            given, _ = waiting.popleft()
            yield given, result
    except ERRORS as error:
        if not waiting:  # it is of no input
            raise
        raise ValueError(f"{waiting[0][1]}{sentence(error)}") from None


def _json(value: Any, ascii_only: bool = False) -> str:
    """A line. JSON has no NaN and no infinities: they become null."""
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _embed(arguments: argparse.Namespace) -> None:
    from . import load

    if arguments.output and not arguments.output.endswith(".npy"):
        raise ValueError(f"--output: {arguments.output!r} must end in .npy")
    model = load(arguments.model, dtype=dtype_of(arguments), device=arguments.device)
    if not hasattr(model, "encode"):
        raise ValueError(f"{arguments.model}: a {model.architecture} does not embed texts")
    settings = {"batch_size": arguments.batch_size, "normalize_embeddings": arguments.normalize}
    empty = model.encode([], **settings)  # (0, C); what is wrong with all inputs is not said of the first
    if not arguments.output and not arguments.similarity:
        for inputs in inputs_of(arguments):
            for one, row in zip(inputs, _embeddings(model, inputs, settings), strict=True):
                print(
                    _json({"text": one.text, "embedding": [round(float(value), 7) for value in row]}, ascii_only=True)
                )
            sys.stdout.flush()
        return
    rows = list(_embeddings(model, [one for inputs in inputs_of(arguments) for one in inputs], settings))
    x = np.array(rows, np.float32).reshape(-1, empty.shape[1])  # (N, C)
    if arguments.output:
        np.save(arguments.output, x)
    if arguments.similarity:
        unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for row in unit @ unit.T:
            print(" ".join(f"{value:7.4f}" for value in row))


def _embeddings(model: Any, inputs: list[Input], settings: dict[str, Any]) -> Iterator[Any]:
    """A row for each input. Those before an input that is wrong come before its error, which names it."""
    try:
        rows = model.encode([one.text for one in inputs], **settings)
    except ERRORS:
        rows = None  # one of them is wrong: each alone, up to it
    for i, one in enumerate(inputs):
        with named(one.where):
            row = model.encode(one.text, **settings) if rows is None else rows[i]
        yield row


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Of some arguments those that the user gave."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# ---- labels -----------------------------------------------------------------------------------------


def _add_top_k(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top-k", type=positive(int), metavar="N", help="so many results, the best first")


def _add_truncate(parser: argparse.ArgumentParser, what: str = "cut inputs that are too long for the model") -> None:
    parser.add_argument("--truncate", action="store_true", help=what)


def _truncation(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"truncation": True} if arguments.truncate else {}


def _scores(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    found = result if isinstance(result, list) else [result]
    name = given if isinstance(given, str) else "\t".join(given.values())
    return [f"{label['score']:.4f}\t{label['label']}\t{name}" for label in found]


def _add_classify(parser: argparse.ArgumentParser) -> None:
    _add_top_k(parser)
    parser.add_argument("--labels", type=_list, metavar="A,B,...", help="labels of your own, for a model of inference")
    parser.add_argument("--template", metavar="TEXT", help="with --labels: a sentence with {} for the label")
    parser.add_argument("--multi-label", action="store_true", help="with --labels: several may be true")
    parser.add_argument("--pairs", action="store_true", help="inputs are JSON objects with text and text_pair")
    _add_truncate(parser)


def _classify(arguments: argparse.Namespace) -> Options:
    if arguments.labels is None:
        if arguments.template is not None or arguments.multi_label:
            raise ValueError("--template and --multi-label need --labels")
        return "text-classification", _given(arguments, "top_k") | _truncation(arguments)
    if arguments.pairs:
        raise ValueError("--labels does not go with --pairs")
    options = {"candidate_labels": arguments.labels, "multi_label": arguments.multi_label}
    if arguments.template is not None:
        options["hypothesis_template"] = arguments.template
    return "zero-shot-classification", options


def _show_classified(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    if arguments.labels is None:
        return _scores(given, result, arguments)
    best = list(zip(result["labels"], result["scores"], strict=True))[: arguments.top_k]
    return [f"{score:.4f}\t{label}\t{given}" for label, score in best]


def _add_tag(parser: argparse.ArgumentParser) -> None:
    strategies = ["none", "simple", "first", "average", "max"]
    parser.add_argument("--aggregation", choices=strategies, help="how tokens become groups (default none)")


def _show_tags(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    for entity in result:
        label = entity.get("entity_group", entity.get("entity"))
        yield f"{entity['score']:.4f}\t{label}\t{entity['start']}\t{entity['end']}\t{entity['word']}"
    yield ""  # between texts


# ---- answers ----------------------------------------------------------------------------------------


def _add_answer(parser: argparse.ArgumentParser) -> None:
    _add_top_k(parser)
    parser.add_argument("--question", metavar="TEXT", help="of all inputs, which are contexts then")
    parser.add_argument("--context", metavar="FILE", help="of all inputs, which are questions then")
    parser.add_argument("--no-answer", action="store_true", help="there may be none")


def _answer(arguments: argparse.Namespace) -> Options:
    if arguments.context is not None:
        arguments.context = read_text(Path(arguments.context))
        if arguments.question is not None:
            if arguments.inputs or arguments.file:
                raise ValueError("--question and --context are all; there can be no inputs beside them")
            arguments.inputs = [arguments.question]
    options = _given(arguments, "top_k")
    return "question-answering", options | ({"handle_impossible_answer": True} if arguments.no_answer else {})


def _read_question(text: str, arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.context is not None:
        return {"question": text, "context": arguments.context}
    if arguments.question is not None:
        return {"question": arguments.question, "context": text}
    return json_object(text, "question", "context")


def _show_answers(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    answers = result if isinstance(result, list) else [result]
    return [f"{answer['score']:.4f}\t{answer['answer']}" for answer in answers]


def _add_fill(parser: argparse.ArgumentParser) -> None:
    _add_top_k(parser)
    parser.add_argument("--targets", type=_list, metavar="A,B,...", help="score these words only")
    _add_truncate(parser)


def _show_filled(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    for of_mask in result if result and isinstance(result[0], list) else [result]:
        for found in of_mask:
            yield f"{found['score']:.4f}\t{found['token_str']}\t{found['sequence']}"


# ---- generated texts --------------------------------------------------------------------------------

LENGTHS = ("max_new_tokens", "min_new_tokens", "max_length", "min_length")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")
SEARCH = ("num_beams", "num_return_sequences", "length_penalty", "repetition_penalty", "no_repeat_ngram_size", "seed")


def _add_search(parser: argparse.ArgumentParser) -> None:
    """Arguments of transformers' generate."""
    counts = (*LENGTHS, "num_beams", "num_return_sequences", "no_repeat_ngram_size", "top_k", "seed")
    for name in (*LENGTHS, *SAMPLING, *SEARCH):
        kind, metavar = (int, "N") if name in counts else (float, "X")
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=SEARCH_HELP[name])


SEARCH_HELP = {
    "max_new_tokens": "the most tokens that are made",
    "min_new_tokens": "the fewest tokens that are made",
    "max_length": "the most tokens, a prompt's included",
    "min_length": "the fewest tokens, a prompt's included",
    "num_beams": "beam search with so many",
    "num_return_sequences": "so many texts for each input",
    "length_penalty": "of beam search: above 0 for longer texts, below 0 for shorter ones",
    "repetition_penalty": "above 1: tokens that are there already become less likely",
    "no_repeat_ngram_size": "no N tokens in a row come twice",
    "temperature": "of sampling: below 1 surer, above 1 freer",
    "top_k": "sample from the N likeliest tokens",
    "top_p": "sample from the likeliest tokens that make up this probability",
    "min_p": "sample from tokens of at least this share of the likeliest one's probability",
    "typical_p": "sample from the most typical tokens that make up this probability",
    "seed": "of sampling",
}


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    sampling = _given(arguments, *SAMPLING)
    return _given(arguments, *LENGTHS, *SEARCH) | sampling | ({"do_sample": True} if sampling else {})


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_search(parser)
    parser.add_argument("--greedy", action="store_true", help="the likeliest token each time, instead of sampling")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end behind this text; may be given again")
    parser.add_argument("--only-new", action="store_true", help="do not repeat the prompt")
    parser.add_argument("--chat", action="store_true", help="each input is a message, or a JSON list of messages")
    parser.add_argument("--system", metavar="TEXT", help="a message of the system before each chat")
    parser.add_argument("--stream", action="store_true", help="print the text as it is made")
    _add_truncate(parser, "cut long prompts at their beginning, so that there is room for what follows")


def _generate(arguments: argparse.Namespace) -> Options:
    options = _search(arguments)
    if arguments.greedy:
        if "do_sample" in options:
            raise ValueError(
                f"--greedy does not go with --{', --'.join(_given(arguments, *SAMPLING)).replace('_', '-')}"
            )
        options["do_sample"] = False
    if arguments.stream and arguments.json:
        raise ValueError("--stream does not go with --json")
    if arguments.system is not None and not arguments.chat:
        raise ValueError("--system needs --chat")
    if arguments.stop:
        options["stop_sequence"] = arguments.stop
    if arguments.only_new:
        options["return_full_text"] = False
    if arguments.truncate:
        options["handle_long_generation"] = "hole"
    return "text-generation", options


def _read_prompt(text: str, arguments: argparse.Namespace) -> Any:
    if not arguments.chat:
        return text
    messages: Any = None
    if text.startswith("["):
        try:
            messages = json.loads(text)
        except (ValueError, RecursionError):  # then it is what somebody says
            messages = None
    messages = messages if isinstance(messages, list) else [{"role": "user", "content": text}]
    return messages if arguments.system is None else [{"role": "system", "content": arguments.system}, *messages]


def _show_texts(given: Any, result: Any, arguments: argparse.Namespace) -> Lines:
    for record in result:
        (text,) = record.values()
        yield text if isinstance(text, str) else text[-1]["content"]


def _add_rewrite(parser: argparse.ArgumentParser) -> None:
    _add_search(parser)
    _add_truncate(parser)


def _rewrite(arguments: argparse.Namespace) -> dict[str, Any]:
    return _search(arguments) | _truncation(arguments)


def _add_translate(parser: argparse.ArgumentParser) -> None:
    _add_rewrite(parser)
    parser.add_argument("--source-language", metavar="XX", help="as the model names it, if it knows several")
    parser.add_argument("--target-language", metavar="YY", help="so too")


def _translate(arguments: argparse.Namespace) -> Options:
    source, target = arguments.source_language, arguments.target_language
    if (source is None) != (target is None):
        raise ValueError("--source-language and --target-language go together")
    return "translation" if source is None else f"translation_{source}_to_{target}", _rewrite(arguments)


COMMANDS: Mapping[str, Command] = {
    "classify": Command(
        "labels of texts, the model's or your own",
        "TEXT",
        _add_classify,
        _classify,
        _show_classified,
        lambda text, arguments: json_object(text, "text", "text_pair") if arguments.pairs else text,
    ),
    "tag": Command(
        "labelled words of texts, such as names",
        "TEXT",
        _add_tag,
        lambda arguments: (
            "token-classification",
            {} if arguments.aggregation is None else {"aggregation_strategy": arguments.aggregation},
        ),
        _show_tags,
    ),
    "answer": Command("answers to questions from texts", "JSON", _add_answer, _answer, _show_answers, _read_question),
    "fill": Command(
        "words for the mask tokens in texts",
        "TEXT",
        _add_fill,
        lambda arguments: (
            "fill-mask",
            _given(arguments, "top_k", "targets") | {"tokenizer_kwargs": _truncation(arguments)},
        ),
        _show_filled,
    ),
    "generate": Command("go on with prompts, or chat", "PROMPT", _add_generate, _generate, _show_texts, _read_prompt),
    "translate": Command("translate texts", "TEXT", _add_translate, _translate, _show_texts),
    "summarize": Command(
        "summarize texts", "TEXT", _add_rewrite, lambda arguments: ("summarization", _rewrite(arguments)), _show_texts
    ),
    "image": Command(
        "labels of images",
        "PATH",
        _add_top_k,
        lambda arguments: ("image-classification", _given(arguments, "top_k")),
        _scores,
    ),
}
