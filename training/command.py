"""The command `python -m qkvit.training.train`, for launchers that start several processes."""

import argparse
import sys
from typing import NoReturn

from .errors import TrainingRefusedError, TrainingStoppedError
from .processes.last_words import leave, leave_broken
from .processes.world import end_together, processes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        leave(f"{message}; see --help", 2)


def parser() -> argparse.ArgumentParser:
    """What can be said on the command line."""
    made = _Parser(prog="python -m qkvit.training.train", description="Train a model as a recipe says.")
    made.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    made.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="any field")
    made.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    made.add_argument("--dry-run", action="store_true", help="only plan")
    made.add_argument("--allow", action="append", default=[], metavar="FIELD", help="may differ from the resumed run")
    return made


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run and exit: 0 success; 2 a request that cannot be met, a bad image or a full disk; 143 stopped by SIGTERM; 1 a
    loss that is not finite, and all else."""
    options = parser().parse_args(arguments)
    from .train import train

    try:
        train(
            options.recipe,
            options.settings,
            resume=options.resume,
            dry_run=options.dry_run,
            allow=options.allow,
        )
    except TrainingRefusedError as error:
        leave(str(error), 2)
    except TrainingStoppedError as error:
        leave(str(error), getattr(error, "code", 1))
    except Exception as error:
        if processes() == 1:
            raise
        leave_broken(error)
    end_together()
    sys.exit(0)
