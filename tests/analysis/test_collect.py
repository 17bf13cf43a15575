"""`collect` gives the numbers of all images at once, however they are cut and shared out."""

import errno
import itertools
import json
import math
import sys

import pytest
import safetensors.torch
import torch
import transformers
from safetensors import SafetensorError

from qkvit.analysis import TokenLayout, Zero, attention_statistics, intervene, record, rollout
from qkvit.analysis.attention_product import AttentionCall
from qkvit.analysis.collecting import OUTLIER, Collecting, patch_contrast
from qkvit.analysis.tally import Tally

NUM_IMAGES = 7


# ---- the numbers


def test_the_numbers_are_those_of_all_images_at_once(model, source, over, quiet):
    collected = quiet(model, over(source))
    (whole,) = over(source, NUM_IMAGES)
    with torch.no_grad(), record(model, tensors=("query", "key", "value", "output")) as recording:
        model(whole["pixel_values"])
    layout = TokenLayout.from_config(model.config)
    for layer in range(3):
        seen = recording[layer]
        projection = next(m for m in model.modules() if getattr(m, "layer_idx", None) == layer).o_proj
        expected = attention_statistics(
            seen.query, seen.key, layout, scaling=seen.scaling, value=seen.value, output_projection=projection
        )
        for name, values in expected.per_head().items():
            for what, of_all in (("mean", values.double().mean(0)), ("standard_deviation", values.double().std(0))):
                found = getattr(collected, what)(name)[layer]
                torch.testing.assert_close(found, of_all, rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(
            collected.map("received")[layer], expected.received.double().mean(dim=(0, 1)), rtol=1e-5, atol=1e-6
        )
        for name in ("query", "key", "value", "output"):
            vectors = getattr(seen, name).double().transpose(0, 1).flatten(1, 2)  # (H, B * N, D)
            mean, second = collected.vectors(name)
            torch.testing.assert_close(mean[layer], vectors.mean(1), rtol=1e-5, atol=1e-6)
            moments = vectors.mT @ vectors / vectors.shape[1]
            torch.testing.assert_close(second[layer], moments, rtol=1e-5, atol=1e-6)


def test_under_autocast_the_numbers_are_those_of_what_was_computed(model, quiet):
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        collected = quiet(model, [images], rollout=True)
        with record(model, tensors=("query", "key", "value", "output")) as recording:
            model(images)
    expected = rollout(recording, layout=TokenLayout.from_config(model.config))
    torch.testing.assert_close(collected.map("rollout")[0], expected.double().mean(dim=0), rtol=1e-5, atol=1e-7)
    for name in ("query", "key", "value", "output"):
        mean, second = collected.vectors(name)
        for layer in range(3):
            vectors = getattr(recording[layer], name).double().transpose(0, 1).flatten(1, 2)  # (H, B * N, D)
            torch.testing.assert_close(mean[layer], vectors.mean(1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(second[layer], vectors.mT @ vectors / vectors.shape[1], rtol=1e-5, atol=1e-6)


def test_classes_have_their_own_numbers(model, source, over, quiet, to_tensor):
    collected = quiet(model, over(source))
    cats = quiet(model, [torch.stack([to_tensor(source[index].image) for index in range(4)])])
    torch.testing.assert_close(collected.class_mean("entropy")[0], cats.mean("entropy"), rtol=1e-6, atol=1e-6)
    rows = [row for row in collected.class_rows() if row["statistic"] == "entropy" and row["layer"] == row["head"] == 0]
    assert [(row["class"], row["n"]) for row in rows] == [("cat", 4), ("dog", 1), ("owl", 2)]
    assert math.isnan(rows[1]["standard_deviation"])  # of one image there is none
    assert math.isfinite(rows[1]["mean"])


def test_classes_have_their_own_quantiles(model, source, over, quiet, to_tensor, next_bin):
    collected = quiet(model, over(source))
    for label, of_class in enumerate((range(4), range(4, 5), range(5, 7))):
        alone = quiet(model, [torch.stack([to_tensor(source[index].image) for index in of_class])])
        for statistic, share in itertools.product(("entropy", "outliers"), (0.05, 0.5, 1.0)):
            found = collected.class_quantile(statistic, share)[label]
            torch.testing.assert_close(found, alone.quantile(statistic, share), rtol=next_bin, atol=1e-6)
    rows = [row for row in collected.class_rows() if (row["statistic"], row["layer"], row["head"]) == ("entropy", 1, 1)]
    medians = collected.class_quantile("entropy", 0.5)[:, 1, 1]
    assert [row["median"] for row in rows] == medians.tolist()
    assert math.isclose(rows[1]["median"], rows[1]["mean"], rel_tol=1e-6)  # of one image: no bin's middle


def test_quantiles_of_many_classes_are_kept_when_asked_for(model, source, over, quiet, monkeypatch):
    monkeypatch.setattr(sys.modules["qkvit.analysis.collect"], "MANY_CLASSES", 2)
    without = quiet(model, over(source), statistics="entropy")
    assert "median" not in next(without.class_rows())
    with pytest.raises(ValueError, match="no quantiles of classes: collect with class names and class_quantiles=True"):
        without.class_quantile("entropy", 0.5)
    asked = quiet(model, over(source), statistics="entropy", class_quantiles=True)
    assert asked.class_quantile("entropy", 0.5).shape == (3, 3, 2)
    assert "median" in next(asked.class_rows())
    two = quiet(model, [torch.rand(3, 3, 16, 16)], statistics="entropy", class_names=["cat", "dog"])
    assert two.class_quantile("entropy", 0.5).isnan().all()  # no image had a label
    with pytest.raises(ValueError, match="class_quantiles=True needs classes; pass class_names"):
        quiet(model, [torch.rand(3, 3, 16, 16)], class_quantiles=True)


def test_labels_may_be_a_list(model, quiet):
    images = torch.rand(3, 3, 16, 16)
    collected = quiet(model, [{"pixel_values": images, "labels": [1, 0, 1]}], class_names=["cat", "dog"])
    torch.testing.assert_close(collected.class_mean("entropy")[1], quiet(model, [images[::2]]).mean("entropy"))


def test_chosen_layers_and_groups(model, source, over, quiet):
    collected = quiet(model, over(source), layers=[0, -1], statistics=("entropy", "maximum"))
    assert collected.layers == (0, 2)
    assert collected.statistics == ("token_norm_ratio", "entropy", "maximum")
    torch.testing.assert_close(collected.mean("entropy"), quiet(model, over(source)).mean("entropy")[[0, 2]])


def test_outliers_are_patches_that_draw_much_attention(model):
    session = Collecting(model, [0], None, Tally())
    layout = TokenLayout.from_config(model.config)  # 2 tokens, then 16 patches
    batch = session.begin(0, layout, torch.rand(1, 3, 16, 16))
    key = torch.zeros(1, 2, 18, 16)
    key[:, :, 7] = 1  # patch 5
    query = torch.ones(1, 2, 18, 16)
    call = AttentionCall(session.modules[0], query, key, key)
    session.run(lambda: session.see(call, {"output": key}))
    weight = math.exp(4) / (math.exp(4) + 17)  # each score with that key is 16 / sqrt(16)
    assert 18 * weight > OUTLIER
    assert batch.values["outliers", 0].tolist() == [1]
    torch.testing.assert_close(batch.values["on_outliers", 0], torch.full((1, 2), weight))
    torch.testing.assert_close(batch.values["largest_received", 0], torch.full((1, 2), 18 * weight))
    assert batch.maps["outliers", 0].nonzero().tolist() == [[5]]


def test_contrast_ranks_patches_of_every_shape():
    image = torch.zeros(2, 3, 7, 9)  # the last row and column fill no patch
    image[0, :, 3:6, 4:8:2] = 1
    image[1, :, 0, 0] = 5
    contrast = patch_contrast(image, TokenLayout(grid=(2, 2)))
    assert contrast[0].argmax() == 3
    assert contrast[1].argmax() == 0
    assert contrast.max() == 1
    assert patch_contrast(image, TokenLayout(grid=(1, 1))) is None


def test_contrast_is_of_the_patches_that_the_model_sees():
    """Three rows of pixels are left over, and patches of 5 fit in: the model's are of 4."""
    config = transformers.DINOv3ViTConfig(patch_size=4, image_size=16)
    image = torch.zeros(1, 3, 15, 15)
    image[..., 4:8, 4:8] = torch.rand(3, 4, 4)
    layout = TokenLayout.from_config(config, (15, 15))
    assert layout.grid == (3, 3)
    assert patch_contrast(image, layout)[0].tolist() == [7 / 16] * 4 + [1] + [7 / 16] * 4
    of_five = patch_contrast(image, TokenLayout(grid=(3, 3)))
    assert of_five[0, 0] > 7 / 16
    assert torch.equal(patch_contrast(image, TokenLayout(grid=(3, 3), patch_size=(6, 6))), of_five)


def test_equal_patches_have_equal_contrast():
    image = torch.zeros(1, 1, 6, 6)
    assert patch_contrast(image, TokenLayout(grid=(3, 3))).unique().tolist() == [0.5]
    image[0, 0, 0, 0] = 1
    contrast = patch_contrast(image, TokenLayout(grid=(3, 3)))[0]
    assert contrast[0] == 1
    assert contrast[1:].tolist() == pytest.approx([7 / 16] * 8)  # ranks 0 to 7 of 8, on average 3.5


def test_images_of_several_labels_have_no_statistics_of_classes(model, quiet):
    images, labels = torch.rand(4, 3, 16, 16), torch.eye(4)
    collected = quiet(model, [{"pixel_values": images, "labels": labels}])
    torch.testing.assert_close(collected.mean("entropy"), quiet(model, [images]).mean("entropy"))


def test_what_enters_a_layer_is_seen(model, source, over, quiet):
    (whole,) = over(source, NUM_IMAGES)
    with torch.no_grad():
        states = model(whole["pixel_values"], output_hidden_states=True).hidden_states
    expected = []
    for state in states[:3]:
        norms = state[:, 2:].norm(dim=-1)
        expected.append((norms.amax(1) / norms.quantile(0.5, dim=1)).double().mean())
    torch.testing.assert_close(quiet(model, over(source)).mean("token_norm_ratio"), torch.stack(expected))


def test_the_model_is_left_as_it_was(model, source, over, quiet):
    model.train()
    model.layers[1].eval() if hasattr(model, "layers") else None
    modes = [module.training for module in model.modules()]
    before = model.config._attn_implementation
    quiet(model, over(source))
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    "name", ["ViT", "DeiT", "Dinov2WithRegisters", "DINOv3ViT", "CLIPVision", "SiglipVision", "IJepa", "Aimv2Vision"]
)
def test_the_families_of_transformers(name, quiet):
    torch.manual_seed(0)
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = getattr(transformers, f"{name}Config")(**fields, image_size=16, patch_size=4)
    model, pixels = getattr(transformers, f"{name}Model")(config).eval(), torch.rand(3, 3, 16, 16)
    collected = quiet(model, pixels.split(2))
    with torch.no_grad(), record(model, tensors="attention") as recording:
        model(pixel_values=pixels)
    maps = torch.stack([recording[layer].attention for layer in range(2)]).double()  # (layers, B, H, N, N)
    expected = torch.special.entr(maps).sum(-1).mean(dim=(1, 3))
    torch.testing.assert_close(collected.mean("entropy"), expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states[:2]
    layout = TokenLayout.from_config(config)
    norms = torch.stack(states)[:, :, layout.patches].norm(dim=-1)  # (layers, B, P): of what enters a layer
    expected = (norms.amax(-1) / norms.quantile(0.5, dim=-1)).double().mean(1)
    torch.testing.assert_close(collected.mean("token_norm_ratio"), expected)


def test_a_model_with_a_text_tower(quiet):
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.CLIPConfig(
        vision_config={**fields, "image_size": 16, "patch_size": 4}, text_config={**fields, "num_hidden_layers": 1}
    )
    assert quiet(transformers.CLIPModel(config), [torch.rand(3, 3, 16, 16)]).mean("entropy").shape == (2, 4)


# ---- of an edited model


@pytest.mark.parametrize("target", ["scores", "attention"])
@pytest.mark.parametrize("maps", [0, 400], ids=["runs again", "maps"])
def test_edited_maps_are_refused_where_they_would_be_ignored(model, quiet, raises_sentence, monkeypatch, target, maps):
    monkeypatch.setattr("qkvit.analysis.collecting.TOKENS_FOR_MAPS", maps)
    images = torch.rand(2, 3, 16, 16)
    edits = {(1, target): Zero(heads=0)}
    with raises_sentence(ValueError, "layer 1", f"replaces the {target}"), intervene(model, edits):
        quiet(model, [images])
    with raises_sentence(ValueError, "layer 1", f"replaces the {target}"), intervene(model, edits):
        quiet(model, [images], layers=0, rollout=True)
    with intervene(model, edits):
        assert quiet(model, [images], layers=[0, 2]).layers == (0, 2)  # before and after it


def test_an_edited_key_is_that_of_the_statistics(model, quiet):
    with intervene(model, {(1, "key"): Zero()}):
        entropy = quiet(model, [torch.rand(2, 3, 16, 16)], statistics="entropy").mean("entropy")
    torch.testing.assert_close(entropy[1], torch.full((2,), math.log(18), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edited_output_is_that_of_the_statistics(model, quiet, dtype):
    with intervene(model, {(1, "output"): Zero(heads=1)}):
        norms = quiet(model.to(dtype), [torch.rand(2, 3, 16, 16)], statistics="values").mean("output_norm")
    assert norms[1, 1] == 0
    assert norms.count_nonzero() == 5


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sliding_window"])
def test_a_product_that_is_not_known_is_refused(model, raises_sentence, name):
    session = Collecting(model, [0], None, Tally())
    session.begin(0, TokenLayout.from_config(model.config), torch.rand(1, 3, 16, 16))
    tensor = torch.ones(1, 2, 18, 16)
    call = AttentionCall(session.modules[0], tensor, tensor, tensor, None, {name: 30.0})
    with raises_sentence(ValueError, "layer 0", f"attention with {name}"):
        session.see(call, {"output": tensor})


# ---- the same however it is cut


def test_what_is_kept_does_not_grow_with_the_images(model, tmp_path, quiet):
    sizes = {}
    for count in (40, 400):
        images = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        collected = quiet(model, [images] * (count // 40))
        tensors, _ = collected._tally.state()
        sizes[count] = {name: tensor.numel() for name, tensor in tensors.items()}
    assert sizes[40] == sizes[400]


# ---- what cannot be collected


def test_weights_that_are_not_numbers_are_refused_with_their_layer(model, source, raises_sentence, over, quiet):
    name, parameter = next((n, p) for n, p in model.named_parameters() if "k_proj.weight" in n and ".1." in n)
    with torch.no_grad():
        parameter[0, 0] = math.nan
    with raises_sentence(ValueError, name, "NaN"):
        quiet(model, over(source))


def test_vectors_that_are_not_numbers_are_refused_with_their_layer(model, raises_sentence, quiet):
    images = torch.rand(2, 3, 16, 16)

    def overflowing(model, pixel_values):
        model.get_submodule("layers.2" if hasattr(model, "layers") else "encoder.layers.2")(
            torch.full((2, 18, 32), math.inf)
        )

    with raises_sentence(ValueError, "layer 2", "query vectors", "NaN"):
        quiet(model, [images], forward=overflowing, layers=2)


def test_no_images(model, raises_sentence, quiet):
    with raises_sentence(ValueError, "no images"):
        quiet(model, [])


def test_every_image_bad(model, source, tmp_path, raises_sentence, over, quiet):
    for path in (tmp_path / "pets").rglob("*.png"):
        path.write_bytes(b"")
    with raises_sentence(ValueError, "no images"):
        quiet(model, over(source))


def test_a_label_without_a_name(model, raises_sentence, quiet):
    with raises_sentence(ValueError, "label 2", "2 class names"):
        quiet(model, [(torch.rand(1, 3, 16, 16), torch.tensor([2]))], class_names=["cat", "dog"])


@pytest.mark.parametrize("labels", [["cat", "dog"], [[0], [0, 1]]])
def test_labels_that_are_no_numbers(model, raises_sentence, quiet, labels):
    with raises_sentence(ValueError, "labels are a list"):
        quiet(model, [{"pixel_values": torch.rand(2, 3, 16, 16), "labels": labels}], class_names=["cat", "dog"])


@pytest.mark.parametrize(("batch", "word"), [({"image": 1, "label": 2}, "with image, label"), (None, "of NoneType")])
def test_a_batch_without_pixels(model, raises_sentence, quiet, batch, word):
    with raises_sentence(ValueError, word, "no pixel_values"):
        quiet(model, [batch])


def test_pixels_of_a_wrong_shape(model, raises_sentence, quiet):
    with raises_sentence(ValueError, "(3, 16, 16)"):
        quiet(model, [torch.rand(3, 16, 16)])


# ---- what is written


def test_the_tables(model, source, tmp_path, over, quiet):
    pd = pytest.importorskip("pandas")
    collected = quiet(model, over(source))
    collected.save(tmp_path / "out", {"model": "tiny"})
    table = pd.read_parquet(tmp_path / "out" / "statistics.parquet")
    row = table.query("layer == 1 and head == 0 and statistic == 'entropy'").iloc[0]
    assert row["mean"] == collected.mean("entropy")[1, 0].item()
    assert row["n"] == NUM_IMAGES
    half = collected.half_interval("entropy")[1, 0].item()
    assert math.isclose(row["high"] - row["low"], 2 * half)
    assert table[table.statistic == "outliers"]["head"].isna().all()
    assert len(pd.read_csv(tmp_path / "out" / "statistics.csv")) == len(table)
    classes = pd.read_parquet(tmp_path / "out" / "classes.parquet")
    assert len(classes) == 3 * len(table)
    assert set(classes.columns) == {"class", *table.columns}
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (provenance["images"], provenance["model"]) == (NUM_IMAGES, "tiny")


def test_vectors_that_a_full_disk_refuses_are_an_os_error(model, source, tmp_path, over, quiet, monkeypatch):
    pytest.importorskip("pandas")

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"vectors\.safetensors") as caught:
        quiet(model, over(source)).save(tmp_path / "out", {})
    assert caught.value.errno == errno.ENOSPC


def test_images_of_different_sizes_have_no_maps(model, raises_sentence, quiet):
    collected = quiet(model, [torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 20)])
    assert collected.images == 2
    assert collected.grid is None
    with raises_sentence(ValueError, "one size"):
        collected.map("received")
