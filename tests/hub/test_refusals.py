"""What is not on the Hub, may not be had, or breaks off: one sentence, exit code 2, and nothing half-written."""

import json

import pytest

# Commands of one process: each of them is answered before the next. Their working folders have their numbers.
RUN = """
import contextlib, io, json, os, pathlib, sys, time

time.sleep = lambda seconds: None  # the Hub's client waits between its tries
from qkvit.cli import main

work = pathlib.Path.cwd()
for number, arguments in enumerate(json.loads(pathlib.Path("commands.json").read_text())):
    folder = work / str(number)
    folder.mkdir()
    os.chdir(folder)
    (folder / "recipe.yaml").write_text(
        "{data: {source: me/photos, train_split: train}, arguments: {max_steps: 1, output_dir: out}}"
    )
    errors, code = io.StringIO(), None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            errors.write(f"{type(error).__name__}: {error}")
    (work / f"{number}.json").write_text(json.dumps([code, errors.getvalue()]))
"""


def model_commands(*models):
    """One for each of the four commands."""
    statistics, evaluate, convert, train = models
    return [
        ["statistics", statistics, "--data", "me/photos", "--split", "test", "--output", "out"],
        ["evaluate", evaluate, "--data", "me/photos", "--split", "test", "--output", "out"],
        ["convert", convert, "out"],
        ["train", "recipe.yaml", "--set", f"start={train}"],
    ]


def data_commands(*names):
    statistics, evaluate, train, streamed, check = names
    return [
        ["statistics", "me/tiny", "--data", statistics, "--split", "test", "--output", "out"],
        ["evaluate", "me/tiny", "--data", evaluate, "--split", "test", "--output", "out"],
        ["train", "recipe.yaml", "--set", f"data.source={train}"],
        ["train", "recipe.yaml", "--set", f"data.source={streamed}", "--set", "streaming=true"],
        ["data", "check", check],
    ]


MORTAL_MODELS = [f"me/mortal-{number}" for number in range(4)]
MORTAL_DATA = [f"me/mortal-photos-{number}" for number in range(5)]
COMMANDS = [
    *model_commands(*["me/nothing"] * 4),
    *data_commands(*["me/none"] * 5),
    *model_commands(*["me/gated"] * 4),
    *data_commands(*["me/gated-photos"] * 5),
    *model_commands(*MORTAL_MODELS),
    *data_commands(*MORTAL_DATA),
]
KINDS = len(COMMANDS) // 3  # commands of each kind of trouble
GATED, MORTAL = KINDS, 2 * KINDS


@pytest.fixture(scope="module")
def answers(hub, tiny, photos, python, tmp_path_factory):
    """For each command its folder, exit code, and what it wrote to standard error."""
    for kind, model, copies in (
        ("models", "me/tiny", ["me/gated", *MORTAL_MODELS]),
        ("datasets", "me/photos", ["me/gated-photos", *MORTAL_DATA]),
    ):
        for name in copies:
            hub.commit(name, dict(hub.find(kind, model).files), kind=kind)
    hub.gated |= {"me/gated", "me/gated-photos"}
    hub.dying |= dict.fromkeys(MORTAL_MODELS, "model.safetensors")
    hub.dying |= dict.fromkeys(MORTAL_DATA, "train-00001-of-00002.parquet")
    work = tmp_path_factory.mktemp("refusals")
    (work / "commands.json").write_text(json.dumps(COMMANDS))
    python(work, RUN)
    return [(work / str(n), *json.loads((work / f"{n}.json").read_text())) for n in range(len(COMMANDS))]


@pytest.fixture(params=range(len(COMMANDS)), ids=[" ".join(command) for command in COMMANDS])
def answer(request, answers):
    return answers[request.param]


def test_each_is_one_sentence_and_exit_code_2(answer):
    _, code, errors = answer
    sentence = errors.splitlines()[-1]
    assert code == 2, errors
    assert sentence.startswith("error: ")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert ". " not in sentence


def test_nothing_is_left_of_it(answer):
    assert [path.name for path in answer[0].iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (0, "the Hub has no {} of that name, or a private one"),
        (GATED, "is gated; ask for access on its page on the Hub, and log in with `hf auth login`"),
        (MORTAL, "broke off on its way from the Hub ("),
    ],
    ids=["missing", "gated", "broken off"],
)
def test_the_reason_is_the_same_whatever_meets_it(answers, start, words):
    for number in range(start, start + KINDS):
        errors = answers[number][2]
        assert words.format("model" if number < 4 else "data set") in errors, COMMANDS[number]


def test_a_missing_model_is_refused_before_the_data_are_fetched(answers):
    """The training command looks for the model that it starts from first."""
    assert answers[3][2].startswith("error: the model cannot be made: there is no folder or file me/nothing here")
