"""python -m bench limits|gemm|...|bert|footprint|import [--peers numpy,torch,onnxruntime]: see README.md.

python -m bench cuda [...]: on a GPU, with options of its own (cuda.py)."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from qkv.bench import Case, Measurement, Sides, Suite, run

from . import bert, checkpoints, footprint, generate, generation_memory, ladder, startup, threads
from .peers import PEERS

OPS = (
    *(
        "gemm",
        "gemm_quantized",
        "quantize",
        "softmax",
        "norm",
        "activation",
        "scaled_sum",
        "top_k",
        "linear_top_k",
        "embedding",
        "rotary",
    ),
    *("attention", "attention_paged", "paged_write", "additive_attention", "bert"),
)
LONG = ("attention_grid", "generate", "generation_memory", "ladder")  # not among `all`
SUBJECTS = ("limits", *OPS, "footprint", "threads", "import")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="qkv beside other libraries")
    parser.add_argument(
        "subjects", nargs="+", choices=[*SUBJECTS, *LONG, "all"], help="what to measure", metavar="SUBJECT"
    )
    parser.add_argument("--peers", default="numpy", help=f"of {','.join(PEERS)}, separated by commas (default numpy)")
    parser.add_argument("--python", metavar="PATH", help="interpreter of the peers other than numpy (default this one)")
    parser.add_argument("--model", metavar="FOLDER", help="bert: this folder instead of random weights")
    parser.add_argument("--tiny", action="store_true", help="generate, generation_memory: tiny models, to try them")
    parser.add_argument("--only", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--plot", metavar="FOLDER", help="write a picture for each suite there")
    run.add_options(parser)
    parsed = parser.parse_args(arguments)
    parsed.peers = [name for name in parsed.peers.split(",") if name]
    for name in parsed.peers:
        if name not in PEERS:
            parser.error(f"no peer {name!r}; there are {', '.join(PEERS)}")
    parsed.subjects = SUBJECTS if "all" in parsed.subjects else tuple(dict.fromkeys(parsed.subjects))
    return parsed


def chosen(arguments: argparse.Namespace) -> list[tuple[Suite, list[Case]]]:
    plan = []
    for subject in arguments.subjects:
        if subject not in (*OPS, "attention_grid", "generate"):
            continue
        for suite in importlib.import_module(f"{__package__}.{subject}").SUITES.values():
            if subject == "bert":
                cases = bert.cases(arguments.model)
            elif subject == "generate" and arguments.tiny:
                cases = generate.tiny_cases(suite.name)
            else:
                cases = suite.cases()
            cases = [case for case in cases if not arguments.only or arguments.only in case.name]
            if cases:
                plan.append((suite, cases))
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["cuda"]:
        from . import cuda

        return cuda.main(arguments[1:])
    parsed = parse(arguments)
    pythons = {peer: parsed.python for peer in parsed.peers if parsed.python and peer != "numpy"}
    run.set_threads(parsed.threads)
    names = ["qkv", *dict.fromkeys(parsed.peers)]
    results: list[Measurement] = []
    try:
        first = run.first_limits()
        plan = chosen(parsed)
        if plan:
            root = str(Path(__file__).resolve().parents[1])
            with checkpoints.shared(), Sides(names, pythons=pythons, paths=[root], threads=parsed.threads) as sides:
                results = run.run_suites(plan, sides, first, rounds=parsed.rounds, seconds=parsed.seconds)
        imports = startup.report(names, pythons, parsed.rounds) if "import" in parsed.subjects else None
        costs = footprint.report(parsed.threads) if "footprint" in parsed.subjects else None
        scaling = threads.report(names, pythons, parsed.rounds) if "threads" in parsed.subjects else None
        more = {"footprint": costs, "import": imports, "threads": scaling}
        if "generation_memory" in parsed.subjects:
            more["generation_memory"] = generation_memory.report(parsed.threads, tiny=parsed.tiny)
        if "ladder" in parsed.subjects:
            more["ladder"] = ladder.report(parsed.rounds, parsed.seconds, parsed.threads)
        limits = run.finish(parsed, first, results, {name: x for name, x in more.items() if x})
        if parsed.plot:
            from .plots import plot

            for path in plot(results, limits, Path(parsed.plot)):
                print(f"written: {path}")
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
