"""A result is whole or not there, and nobody's files are lost."""

import pytest

from qkvit.errors import UserError
from qkvit.finished_folder import check_target, check_writable, finished_folder

OLD = '{"command": "qkvit test --seed 0"}'


def check(folder, force=False):
    check_target(folder, marker="run.json", force=force, what="qkvit test")


def earlier_result(folder):
    folder.mkdir()
    (folder / "run.json").write_text(OLD)
    return folder


def test_a_new_folder_and_an_empty_one_may_be_written(tmp_path):
    check(tmp_path / "a" / "new")
    check(tmp_path)


def test_an_earlier_result_wants_force(tmp_path, monkeypatch):
    folder = earlier_result(tmp_path / "result")
    monkeypatch.delenv("MAKELEVEL", raising=False)
    with pytest.raises(UserError, match=r"pass --force to replace it, or --output for another folder$"):
        check(folder)
    monkeypatch.setenv("MAKELEVEL", "1")
    with pytest.raises(UserError, match=r'\(with make: ARGS="--force"\)$'):
        check(folder)
    check(folder, force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("text", ['{"starts": []}', '{"command": "qkvit tests"}', '{"command": 3}', "[]", "{"])
def test_a_marker_of_another_command_is_somebody_elses(tmp_path, force, text):
    """A training run has a run.json too."""
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="holds other things"):
        check(tmp_path, force)


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_other_things_is_refused_even_with_force(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other things"):
        check(tmp_path, force)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        check(tmp_path / "file")


def test_the_folder_appears_at_the_end_in_the_place_of_the_old_one(tmp_path):
    folder = earlier_result(tmp_path / "result")
    with finished_folder(folder) as part:
        (part / "run.json").write_text("new")
        assert (folder / "run.json").read_text() == OLD
    assert (folder / "run.json").read_text() == "new"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_run_that_is_stopped_leaves_all_as_it_was(tmp_path, error):
    folder = earlier_result(tmp_path / "result")

    def run():
        with finished_folder(folder) as part:
            (part / "run.json").write_text("new")
            raise error

    with pytest.raises(error):
        run()
    assert (folder / "run.json").read_text() == OLD
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_parents_are_made(tmp_path):
    with finished_folder(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot be written .* pass --output"),
        finished_folder(tmp_path / "file" / "x"),
    ):
        pass
    with pytest.raises(UserError, match=r"cannot be written .* pass --output"):
        check_writable(tmp_path / "file" / "x")


def test_asking_whether_a_place_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "result")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("was_there", [False, True])
def test_what_another_process_wrote_meanwhile_stays(tmp_path, was_there):
    folder = tmp_path / "result"
    if was_there:
        earlier_result(folder)
    (tmp_path / "result-2").mkdir()

    def run():
        with finished_folder(folder) as part:
            (part / "run.json").write_text("ours")
            folder.mkdir(exist_ok=True)
            (folder / "theirs.txt").write_text("theirs")

    with pytest.raises(UserError, match=r"result was written by another process .* is in .*result-3"):
        run()
    assert (folder / "theirs.txt").read_text() == "theirs"
    assert (tmp_path / "result-3" / "run.json").read_text() == "ours"
    assert {path.name for path in tmp_path.iterdir()} == {"result", "result-2", "result-3"}
