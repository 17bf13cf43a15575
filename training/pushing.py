"""The finished model of a run on the Hub, where `push_to_hub` is set: one commit, at the end.

transformers' Trainer uploads the run's folder as it is at each checkpoint, with a checkpoint's weights and half-written
files in it. Nothing of that is a model that can be loaded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..configuration.reasons import first_line
from .errors import TrainingRefusedError, TrainingStoppedError
from .run_folder import RECORD, note, read_record

_CARD = "README.md"
_PUSHED = "pushed"  # in a run's record: where to


def repository_for(args: Any) -> str | None:
    """Make the repository that a run is to be pushed to, before it starts; its id, or None where none is asked for.

    Args:
        args: `TrainingArguments`; its `push_to_hub` is taken back, so that Trainer uploads nothing.

    Raises:
        TrainingRefusedError: the Hub does not give one.
    """
    if not args.push_to_hub:
        return None
    args.push_to_hub = False
    if args.process_index != 0:
        return None
    from huggingface_hub import HfApi

    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    try:
        return HfApi().create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # of the network, in a library that huggingface_hub chooses
        raise TrainingRefusedError(
            f"push_to_hub: there cannot be a {name} on the Hub ({_reason(error)}); log in with `hf auth login`, name"
            " another hub_model_id, or leave push_to_hub out"
        ) from error


def push(output: Path, repository: str, revision: str | None = None) -> None:
    """Upload what a finished run has left in one commit: not its checkpoints, nor what it says of the machine.

    A repository without a README.md gets one, with the results. The run's record notes that it has been done.

    Raises:
        TrainingStoppedError: it was not uploaded; the run's folder is whole.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    try:
        additions = [CommitOperationAdd(path.relative_to(output).as_posix(), path) for path in _files(output)]
        if not api.file_exists(repository, _CARD, revision=revision):
            additions.append(CommitOperationAdd(_CARD, _card(output).encode()))
        api.create_commit(repository, additions, commit_message="Upload the finished model", revision=revision)
    except Exception as error:  # of the network, in a library that huggingface_hub chooses
        raise TrainingStoppedError(
            f"the finished model is in {output}, but not on the Hub ({_reason(error)}): upload it with"
            f" `hf upload {repository} {output} --exclude 'checkpoint-*'`"
        ) from error
    note(output, _PUSHED, repository)


def is_pushed(output: Path) -> bool:
    """Whether the finished model of a run has been uploaded."""
    return _PUSHED in read_record(output)


def _files(output: Path) -> Iterator[Path]:
    for path in sorted(output.rglob("*")):
        first = path.relative_to(output).parts[0]
        if path.is_file() and first != RECORD and not first.startswith((".", "_", "checkpoint-")):
            yield path


def _card(output: Path) -> str:
    from huggingface_hub import ModelCardData

    facts = ModelCardData(library_name="transformers", pipeline_tag="image-classification", tags=["qkvit"])
    results = (output / "results.md").read_text(encoding="utf-8")
    return f"---\n{facts.to_yaml()}\n---\n\n{results}"


def _reason(error: Exception) -> str:
    return first_line(error).partition(". ")[0]
