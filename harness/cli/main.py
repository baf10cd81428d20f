"""The command line: find the verb, run it, turn errors into one sentence and an exit code.

Exit codes: 0 done; 1 the verb's own "no" (a comparison beyond its tolerance, a failed check); 2 something is wrong
with what the user gave (or the disk), said in one sentence; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import harness.cli as package
from harness.errors import AmmeterError


def verbs(only: str | None = None) -> dict[str, ModuleType]:
    """Return every verb's module by name, or that of one verb (none, if there is no such verb)."""
    found = {}
    for entry in pkgutil.iter_modules(package.__path__):
        name = entry.name.removesuffix("_")
        if only is not None and name != only:
            continue
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        if hasattr(module, "HELP"):
            found[name] = module
    return found


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Return the command's parser; if `verb` is one, it knows that verb alone, and the others are not imported."""
    top = argparse.ArgumentParser(
        prog="ammeter",
        description="Measure split federated learning systems: time, bytes and idle time you can trust.",
    )
    commands = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, module in ((verbs(verb) if verb else None) or verbs()).items():
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.arguments(command)
        command.set_defaults(main=module.main)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = parser(given[0] if given else None).parse_args(given)
        code: int = args.main(args)
        sys.stdout.flush()
    except AmmeterError as error:
        print(f"ammeter: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ammeter: interrupted; complete runs are kept, the same command makes the others", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:
            print(f"ammeter: {error.filename}: {error.strerror or error}", file=sys.stderr)
            return 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of our output has seen enough
            return 0
        print(f"ammeter: the output cannot be written: {error.strerror}; send it elsewhere", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
