"""What is looked for on the Hub, and may be a mistyped path, is said before the wait."""

import pytest

from qkvit.hub_names import say_if_on_hub


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/mymodle", "There is no runs/mymodle here (did you mean runs/mymodel?); looking for it on the Hub.\n"),
        ("runs/other", "There is no runs/other here; looking for it on the Hub.\n"),
        ("runs/mymodel", ""),
        ("google/vit-base-patch16-224", ""),
        ("mnist", ""),
        ("hf://datasets/runs/x", ""),
        ("runs/{000..009}.tar", ""),
        ("./runs/mymodle", ""),
        ("runs/sub/mymodle", ""),
        ("/runs/mymodle", ""),
    ],
)
def test_a_name_in_a_folder_that_is_here(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mymodel").mkdir(parents=True)
    say_if_on_hub(name)
    assert capsys.readouterr() == ("", said)
