"""The facts about the heads that a quickstart tells are those of `collect`."""

import csv
import math

import pytest
import torch

from qkvit.analysis import TokenLayout, attention_statistics, collect
from qkvit.quickstart_report import STATISTICS, facts_table, head_facts, write_facts


@pytest.fixture(scope="module")
def collected(tiny_model):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return collect(tiny_model(), images.split(2), statistics=STATISTICS, show_progress=False)


def test_every_head_has_its_means_and_their_standard_errors(collected, tmp_path):
    facts = head_facts(collected, num_tokens=17)
    assert [(fact["layer"], fact["head"]) for fact in facts] == [(i, j) for i in range(3) for j in range(2)]
    for fact in facts:
        place = fact["layer"], fact["head"]
        assert fact["images"] == 5
        for name in ("entropy", "distance", "on_class_token", "on_self"):
            deviation = collected.standard_deviation(name)[place].item()
            assert fact[name] == collected.mean(name)[place].item()
            assert fact[f"{name}_error"] == pytest.approx(deviation / math.sqrt(5))
        assert fact["entropy_share"] == pytest.approx(fact["entropy"] / math.log(17))
        assert fact["entropy_share_error"] == pytest.approx(fact["entropy_error"] / math.log(17))
    write_facts({"trained": facts}, tmp_path / "facts.csv")
    with (tmp_path / "facts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(row[name]) for name in facts[0]} for row in rows] == facts


def test_the_table_ends_with_what_the_numbers_are_to_be_compared_with(collected):
    layout = TokenLayout(grid=(4, 4), has_class_token=True)
    alike = torch.zeros(1, 1, 17, 1)
    equal = attention_statistics(alike, alike, layout, scaling=1, statistics=STATISTICS).per_head()
    facts = head_facts(collected, 17)
    other = [{name: 2 * number for name, number in fact.items()} for fact in facts]
    numbers = {name: number.item() for name, number in equal.items()}
    lines = facts_table({"trained": facts, "untrained": other}, numbers, 17).splitlines()
    assert [float(number) for number in lines[1].split()[4:]] == pytest.approx(
        [facts[0][name] for name in ("entropy", "entropy_share", "distance", "on_class_token", "on_self")], abs=0.006
    )
    untrained, alike = (line.split()[-5:] for line in lines[7:9])
    assert float(untrained[0]) == pytest.approx(2 * sum(fact["entropy"] for fact in facts) / 6, abs=0.006)
    assert [alike[0], alike[1], alike[3], alike[4]] == [f"{math.log(17):.2f}", "1.00", "0.06", "0.06"]
