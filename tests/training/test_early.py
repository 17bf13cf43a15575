"""A folder that holds a run already is refused before anything is loaded."""

import pytest

from qkvit import cli_train
from qkvit.cli import main
from qkvit.training import TrainingRefusedError
from qkvit.training.early import check_output


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A recipe my.yaml, and finished runs in runs/my and runs/other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("data: {source: photos}\n")
    for name in ("my", "other"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "metrics.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("", []),
        ("name: other\n", []),
        ("arguments: {output_dir: runs/other}\n", ["output_dir_=runs/new"]),
        ("name: new\n", ["arguments.output_dir=runs/my"]),
        ("", ["name=other"]),
    ],
)
def test_the_folder_of_a_finished_run_is_refused(here, recipe, settings, raises_sentence):
    (here / "my.yaml").write_text(f"data: {{source: photos}}\n{recipe}")
    with raises_sentence(TrainingRefusedError, "holds a finished run already", "remove it", "output_dir=ANOTHER"):
        check_output("my.yaml", settings)


@pytest.mark.parametrize("settings", [["output_dir=runs/new"], ["name=new"], ["output_dir = runs/new"]])
def test_a_new_folder_is_not(here, settings):
    check_output("my.yaml", settings)


@pytest.mark.parametrize("recipe", ["arguments: 3\n", "name: 3\n", "arguments: {output_dir: [1]}\n"])
def test_a_wrong_recipe_is_left_to_its_own_sentence(here, recipe):
    (here / "new.yaml").write_text(recipe)
    check_output("new.yaml", ["no equals sign"])


def test_the_command_refuses_before_it_loads_torch(here, monkeypatch, capsys):
    monkeypatch.setattr(cli_train, "load_models", lambda: pytest.fail("too late"))
    with pytest.raises(SystemExit) as leaving:
        main(["train", "my.yaml"])
    assert leaving.value.code == 2
    assert "finished run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--resume", "--dry-run"])
def test_what_writes_no_new_run_goes_on(here, monkeypatch, option):
    class _LoadedError(Exception):
        pass

    def loaded():
        raise _LoadedError

    monkeypatch.setattr(cli_train, "load_models", loaded)
    with pytest.raises(_LoadedError):
        main(["train", "my.yaml", option])
