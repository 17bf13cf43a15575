"""What is neither here nor on the Hub is refused at once, and what is looked for on the Hub is said before the wait."""

from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from qkvit.data import hub_names, open_images
from qkvit.data.hub_names import look_for, revision_of


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working folder with runs/mymodel and photos, an empty cache, and nothing asked yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mymodel").mkdir(parents=True)
    (tmp_path / "runs" / "mymodel" / "config.json").touch()
    (tmp_path / "photos").mkdir()
    monkeypatch.setattr(hub_names, "_found", set())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "tables"))
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """`hub.answer = error or None`; `hub.asked`: how often."""
    state = SimpleNamespace(answer=None, asked=[])

    def repo_info(self, name, **_):
        state.asked.append(name)
        if state.answer is not None:
            raise state.answer

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    return state


def refusal(kind):
    return kind("no", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/mymodle", "There is no runs/mymodle here (did you mean runs/mymodel?); looking for it on the Hub.\n"),
        ("runs/other", "There is no runs/other here; looking for it on the Hub.\n"),
        ("photo", "There is no photo here (did you mean photos?); looking for it on the Hub.\n"),
        ("mnist", "There is no mnist here; looking for it on the Hub.\n"),
        ("google/vit-base-patch16-224", ""),
    ],
)
def test_the_hub_is_asked_once_and_said_to_be_where_a_path_may_be_meant(hub, capsys, name, said):
    for _ in range(2):
        look_for(name, "model")
    assert hub.asked == [name]
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("name", ["runs/mymodel", "./runs/mymodel", "hf://datasets/runs/x", "runs/{000..009}.tar"])
def test_what_is_here_and_addresses_are_no_matter_for_the_hub(hub, capsys, name):
    look_for(name, "dataset")
    assert hub.asked == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["./runs/mymodle", "runs/sub/mymodle", "/runs/mymodle"])
def test_what_can_only_be_a_path_is_not_asked_for(hub, raises_sentence, name):
    with raises_sentence(ValueError, f"no folder or file {name} here"):
        look_for(name, "model")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ConnectionError("Name or service not known\nand more"), "the Hub cannot be asked (Name or service not known)"),
        (huggingface_hub.errors.OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE"),
        (refusal(RepositoryNotFoundError), "the Hub has no model of that name"),
    ],
)
def test_what_is_nowhere_is_refused_with_both_reasons(hub, raises_sentence, answer, words):
    hub.answer = answer
    with raises_sentence(ValueError, "no folder or file photo here (did you mean photos?)", words):
        look_for("photo", "model")


def test_what_the_hub_has_for_some_is_left_to_its_own_words(hub):
    hub.answer = refusal(GatedRepoError)
    look_for("someone/gated", "model")


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("model", "hub/models--some--Thing/snapshots"),
        ("dataset", "tables/some___thing"),
        ("dataset", "tables/some___Thing"),
    ],
)
def test_what_is_in_the_cache_needs_no_hub(hub, here, kind, place):
    (here / place).mkdir(parents=True)
    hub.answer = ConnectionError("no network")
    look_for("some/Thing", kind)


def test_open_images_refuses_a_mistyped_folder(hub, raises_sentence):
    hub.answer = ConnectionError("no network")
    with raises_sentence(ValueError, "no folder or file photo here (did you mean photos?)", "no network"):
        open_images("photo")


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("photos", "photos is no model: it has no config.json; pass a folder that"),
        ("runs", "did you mean runs/mymodel?"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_with_the_one_in_it(raises_sentence, hub, folder, words):
    with raises_sentence(ValueError, words):
        look_for(folder, "model")
    look_for(folder, "dataset")
    assert hub.asked == []


def test_an_adapter_is_a_model(here):
    (here / "photos" / "adapter_config.json").touch()
    look_for("photos", "model")


def test_the_commit_of_an_id_is_the_one_that_was_loaded(here):
    for kind in ("model", "dataset"):
        assert revision_of("some/thing", kind) is None
        place = here / "hub" / f"{kind}s--some--thing" / "refs" / "main"
        place.parent.mkdir(parents=True)
        place.write_text(f"{kind}-commit")
        assert revision_of("some/thing", kind) == f"{kind}-commit"
    (here / "some" / "thing").mkdir(parents=True)
    assert revision_of("some/thing", "model") is None
    assert revision_of("hf://datasets/some/thing", "dataset") is None
