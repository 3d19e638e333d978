"""The command line: `qkv info`, `demo`, `convert`, `bench`, `view`, `trace`, those of qkv.cli_tasks; `python -m qkv`.

Results go to standard output. What a user got wrong is one sentence on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

PEERS = ("torch", "onnxruntime", "ctranslate2", "openvino", "llama_cpp", "transformers", "sentence_transformers")
DISTRIBUTIONS = {"llama_cpp": "llama_cpp_python"}  # where it is not the module's name
ERRORS = (ValueError, TypeError, OSError)  # of what a user gave
BROKEN_PIPE = 128 + 13  # what a shell reports for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    try:
        if sys.stdout is None:
            raise OSError("standard output is closed")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            parsed = _parse(arguments)
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return 128 + 2
    except (*ERRORS, ImportError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            from .cuda import CudaError

            if not isinstance(error, CudaError):
                raise
        print(f"qkv: {sentence(error)}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """argparse takes a list of positionals in one piece only; here options may stand between them. After '--' there are
    no options."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    parser = _parser()
    parsed, rest = parser.parse_known_args(given[:end])
    if any(item.startswith("-") for item in rest) or (rest + given[end + 1 :] and "many" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(rest + given[end + 1 :])}")
    if "many" in parsed:
        getattr(parsed, parsed.many).extend(rest + given[end + 1 :])
    return parsed


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A sentence, without the line of code that it comes from."""
    print(f"qkv: warning: {message}", file=sys.stderr)


def sentence(error: BaseException) -> str:
    """What an error tells a user."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _parser() -> argparse.ArgumentParser:
    from . import __version__, cli_tasks, demo
    from .bench import run
    from .view import command as view
    from .walk import command as walk

    parser = argparse.ArgumentParser(prog="qkv", description="Transformer inference: NumPy in, NumPy out.")
    parser.add_argument("--version", action="version", version=f"qkv {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo.add_command(commands)

    info = commands.add_parser("info", help="version, instruction sets, cores, caches, GPU, other libraries found")
    info.add_argument("--json", action="store_true", help="as a JSON object")
    info.set_defaults(run=_info)

    cli_tasks.add_commands(commands)
    view.add_command(commands)
    walk.add_command(commands)

    convert = commands.add_parser("convert", help="write a model as a folder or an .npz that loads fast")
    convert.add_argument("model", metavar="IN", help="folder with config.json and safetensors, .npz or .gguf")
    convert.add_argument("output", metavar="OUT", help="a new folder, or a file that ends in .npz")
    convert.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "int8", "int4"], default="auto", help="default: as in IN"
    )
    convert.set_defaults(run=_convert)

    bench = commands.add_parser("bench", help="limits of this machine, then ops and a model against NumPy")
    bench.add_argument("ops", metavar="OP", nargs="*", help=f"limits, {', '.join(run.available())}; default all")
    bench.add_argument("--model", metavar="FOLDER", help="also run this BERT folder")
    run.add_options(bench)
    bench.set_defaults(run=run.command, many="ops")
    return parser


# ---- convert --------------------------------------------------------------------------------------


def _convert(arguments: argparse.Namespace) -> None:
    from .models import load

    model = load(arguments.model, dtype=arguments.dtype)
    model.save(arguments.output)
    print(f"written: {arguments.output} ({model!r})")


# ---- info -----------------------------------------------------------------------------------------


def information() -> dict[str, Any]:
    """What `qkv info` prints."""
    from . import runtime
    from .bench import machine

    present = [name for name in ("_cpu", "_cuda") if importlib.util.find_spec(f"qkv.{name}")]
    return {
        **runtime.config(),
        "cpu": machine.cpu_name(),
        "caches": [_cache(cache) for cache in machine.caches()],
        "extensions": present,
        "numpy": np.__version__,
        "numpy's BLAS": _blas(),
        "peers": {name: version for name in PEERS if (version := _version(name))},
    }


def _cache(cache: Any) -> str:
    size = f"{cache.nbytes >> 10} KiB" if cache.nbytes < 1 << 20 else f"{cache.nbytes / (1 << 20):g} MiB"
    return f"L{cache.level} {cache.kind.lower()} {size}"


def _blas() -> str | None:
    """Name and version of the library under NumPy's products, where NumPy tells (from 1.26)."""
    try:
        config: Any = np.show_config(mode="dicts")  # type: ignore[call-overload, unused-ignore]
        blas = config["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (TypeError, KeyError):
        return None


def _version(module: str) -> str | None:
    """Of an installed library, without importing it."""
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "version unknown"


def _info(arguments: argparse.Namespace) -> None:
    found = information()
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = [f"{name} {version}" for name, version in value.items()]
        if isinstance(value, list):
            value = ", ".join(value)
        print(f"{key}: {'none' if value in (None, '') else value}")
