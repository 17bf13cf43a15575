"""What is not on the Hub, may not be had, or breaks off: one sentence, exit code 2, and nothing half-written."""

import pytest

pytestmark = pytest.mark.slow


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
    *model_commands(*["me/private"] * 4),
    *data_commands(*["me/private-photos"] * 5),
    *model_commands(*["me/unknown"] * 4),
    *data_commands(*["me/unknown-photos"] * 5),
    *model_commands(*["me/gated"] * 4),
    *data_commands(*["me/gated-photos"] * 5),
    *model_commands(*MORTAL_MODELS),
    *data_commands(*MORTAL_DATA),
]
KINDS = len(COMMANDS) // 5  # commands of each kind of trouble
PRIVATE, UNKNOWN, GATED, MORTAL = range(KINDS, 5 * KINDS, KINDS)
AGAIN = [["statistics", MORTAL_MODELS[0], "--weights", "--output", "out"], ["data", "check", MORTAL_DATA[4]]]


@pytest.fixture(scope="module")
def answers(hub, tiny, photos, qkvit_commands, tmp_path_factory):
    """What came of each command; then the Hub is there again, and some are given again."""
    for kind, model, copies in (
        ("models", "me/tiny", ["me/private", "me/unknown", "me/gated", *MORTAL_MODELS]),
        ("datasets", "me/photos", ["me/private-photos", "me/unknown-photos", "me/gated-photos", *MORTAL_DATA]),
    ):
        for name in copies:
            hub.commit(name, dict(hub.find(kind, model).files), kind=kind)
    hub.refused |= dict.fromkeys(["me/private", "me/private-photos"], (401, "RepoNotFound", "Repository not found"))
    token = (401, "", "Invalid credentials in Authorization header")
    hub.refused |= dict.fromkeys(["me/unknown", "me/unknown-photos"], token)
    hub.gated |= {"me/gated", "me/gated-photos"}
    hub.dying |= dict.fromkeys(MORTAL_MODELS, "model.safetensors")
    hub.dying |= dict.fromkeys(MORTAL_DATA, "train-00001-of-00002.parquet")
    return qkvit_commands(tmp_path_factory.mktemp("refusals"), [*COMMANDS, ["revive"], *AGAIN])


@pytest.fixture(params=range(len(COMMANDS)), ids=[" ".join(command) for command in COMMANDS])
def answer(request, answers):
    return answers[request.param]


def test_each_is_one_sentence_and_exit_code_2(answer):
    errors = answer.errors
    sentence = errors.splitlines()[-1]
    assert answer.code == 2, errors
    assert sentence.startswith("error: ")
    assert errors.count("error: ") == 1
    assert "Traceback" not in errors
    assert ". " not in sentence


def test_nothing_is_left_of_it(answer):
    assert [path.name for path in answer.folder.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (0, "the Hub has no {} of that name, or a private one"),
        (PRIVATE, "the Hub has no {} of that name, or a private one"),
        (UNKNOWN, "is not given by the Hub, which does not know your token; log in anew with `hf auth login`"),
        (GATED, "is gated; ask for access on its page on the Hub, and log in with `hf auth login`"),
        (MORTAL, "broke off on its way from the Hub ("),
    ],
    ids=["missing", "private", "unknown token", "gated", "broken off"],
)
def test_the_reason_is_the_same_whatever_meets_it(answers, start, words):
    for number in range(start, start + KINDS):
        errors = answers[number].errors
        assert words.format("model" if number % KINDS < 4 else "data set") in errors, COMMANDS[number]


def test_a_missing_model_is_refused_before_the_data_are_fetched(answers):
    """The training command looks for the model that it starts from first."""
    assert answers[3].errors.startswith("error: the model cannot be made: there is no folder or file me/nothing here")


@pytest.mark.parametrize("number", range(len(AGAIN)))
def test_what_broke_off_comes_when_it_is_asked_for_again(answers, number):
    """Half of a file is in the cache; the rest is put to it."""
    again = answers[len(COMMANDS) + 1 + number]
    assert again.code == 0, again.errors
