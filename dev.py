#!/usr/bin/env python3
"""Work on Cascade Studio: demo | test | bench | host | run | models.

The first command sets everything up (a ComfyUI host and a Python environment, kept outside the clone and found
again in a moment). Environment variables: COMFYUI_PATH uses an existing ComfyUI installation and its Python
(COMFYUI_PYTHON names another one), CASCADE_STUDIO_CACHE chooses where setups are kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit(
        "Python %d.%d is too old: dev.py needs Python 3.10 or newer. Run it with such a Python." % sys.version_info[:2]
    )

ROOT = str(Path(__file__).resolve().parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

from studio import load_pack  # noqa: E402

load_pack()

from cascade_studio.commands.messages import Stop, say, speak_plainly  # noqa: E402
from tools.env import Setup, set_up  # noqa: E402
from tools.hosts import PINS  # noqa: E402


def _setup(options: argparse.Namespace) -> Setup:
    return set_up(options.host_version, options.host_archive, options.host_sha256)


def demo(options: argparse.Namespace) -> int:
    """Turn a prompt into a picture inside a real ComfyUI server."""
    from tools.demo import run_demo

    return run_demo(_setup(options), options)


def test(options: argparse.Namespace) -> int:
    """Run the tests; further arguments go to pytest."""
    from tools.testing import run_tests

    return run_tests(_setup(options), options.arguments, options.all_hosts, options.soak)


def bench(options: argparse.Namespace) -> int:
    """Run the benchmarks of the networks; further arguments go to them."""
    return _setup(options).run("tests/benchmarks/bench.py", *options.arguments)


def host(options: argparse.Namespace) -> int:
    """Start ComfyUI with the pack in the foreground; further arguments go to ComfyUI."""
    from tools.demo import run_host

    return run_host(_setup(options), options)


def run(options: argparse.Namespace) -> int:
    """Run Python inside the environment, from the repository root: run SCRIPT | -m MODULE | -c CODE."""
    if not options.arguments:
        raise Stop("dev.py run needs something to run: a script, -m MODULE or -c CODE.")
    return _setup(options).run(*options.arguments)


def models(options: argparse.Namespace) -> int:
    """As ``studio.py models``, in the environment: models list | plan PRESET | get PRESET --to DIR | verify DIR."""
    return _setup(options).run("studio.py", "models", *options.arguments)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    chosen = common.add_argument_group("the ComfyUI host")
    chosen.add_argument("--host-version", choices=list(PINS), help="a pinned ComfyUI version")
    chosen.add_argument("--host-archive", metavar="PATH", help="any other source archive that holds vendor/ComfyUI")
    chosen.add_argument("--host-sha256", metavar="HEX", help="the SHA-256 of --host-archive")

    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for action in (demo, test, bench, host, run, models):
        command = commands.add_parser(
            action.__name__, parents=[common], help=action.__doc__, description=action.__doc__, allow_abbrev=False
        )
        command.set_defaults(action=action)
        if action is demo:
            _demo_options(command)
        if action is test:
            command.add_argument(
                "--all-hosts", action="store_true", help="run the host and server tests on every pinned ComfyUI"
            )
            command.add_argument("--soak", action="store_true", help="run the long tests too (many minutes)")
        if action is host:
            command.add_argument("--model", metavar="DIR", help="a ComfyUI models folder (default: Cascade Mini)")
            command.add_argument("--base", metavar="DIR", help="a ComfyUI base directory (default: a temporary one)")
            command.add_argument("--port", type=int, default=8188)
    return parser


def _demo_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", help="what the picture shows")
    command.add_argument("--seed", type=int, help="the seed of the picture")
    command.add_argument("--size", metavar="WxH", help="the size of the picture in pixels, for example 1024x768")
    command.add_argument("--workflow", metavar="FILE", help="another workflow file (as ComfyUI saves it)")
    command.add_argument("--model", metavar="DIR", help="a ComfyUI models folder (default: Cascade Mini)")
    command.add_argument("--output", metavar="FILE", help="where the PNG goes (default: demo-N.png)")


VALUED = ("--host-version", "--host-archive", "--host-sha256", "--model", "--base", "--port")


def _parse(arguments: list[str]) -> argparse.Namespace:
    """All commands but the demo hand on what is not theirs, untouched."""
    if not arguments or arguments[0] not in ("test", "bench", "host", "run", "models"):
        return _parser().parse_args(arguments)
    own, rest = _split(arguments)
    options = _parser().parse_args(own)
    options.arguments = rest
    return options


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our own options, and what is handed on. For ``run`` and ``models`` ours end at the
    first other argument, or at ``--``."""
    command, rest = arguments[0], []
    valued = VALUED if command == "host" else VALUED[:3]
    flags = {"test": ("-h", "--help", "--all-hosts", "--soak"), "models": ()}.get(command, ("-h", "--help"))
    own, position = [command], 1
    while position < len(arguments):
        argument = arguments[position]
        if argument == "--":
            return own, rest + arguments[position + 1 :]
        if argument in flags or argument.split("=")[0] in valued:
            end = position + (1 if argument in flags or "=" in argument else 2)
            own += arguments[position:end]
            position = end
        elif command in ("run", "models"):
            return own, arguments[position:]
        else:
            rest.append(argument)
            position += 1
    return own, rest


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    options = _parse(arguments)
    try:
        return options.action(options)
    except Stop as stop:
        say(f"dev.py: {stop}")
        return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 130


if __name__ == "__main__":
    speak_plainly()
    sys.exit(main(sys.argv[1:]))
