"""`intervene` edits exactly what it is told to, and raises where an edit does not reach the computation."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from qkvit import QKViTModel
from qkvit.analysis import Apply, Given, Mean, Noise, OtherImage, Zero, intervene, record
from qkvit.analysis.recording import TENSORS
from qkvit.analysis.replacements import TARGET_NUMBERS

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
MASK = torch.arange(16) < torch.tensor([[10], [16]])


@pytest.fixture(params=TENSORS)
def target(request) -> str:
    return request.param


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, uncompiled_flex) -> str:
    return request.param


@torch.no_grad()
def recorded(model, pixels, layer=0, edits=None, **arguments):
    """One layer's record, with or without edits."""
    with record(model, layer, TENSORS) as recording:
        if edits is None:
            model(pixels, **arguments)
        else:
            with intervene(model, edits):
                model(pixels, **arguments)
    return recording[layer]


@torch.no_grad()
def tokens_after(model, pixels, edits=None, **arguments) -> torch.Tensor:
    if edits is None:
        return model(pixels, **arguments).last_hidden_state
    with intervene(model, edits):
        return model(pixels, **arguments).last_hidden_state


# ---- what reaches the computation


def test_each_tensor_is_replaced_by_what_was_given(tiny_model, pixels, target):
    model = tiny_model(QKViTModel)
    plain = recorded(model, pixels)
    given = torch.rand_like(getattr(plain, target))
    edited = recorded(model, pixels, edits={(0, target): Given(given)})
    assert torch.equal(getattr(edited, target), given)
    if target in ("query", "key", "scores"):
        torch.testing.assert_close(edited.scores.softmax(-1), edited.attention)
    if target != "output":
        torch.testing.assert_close(edited.attention @ edited.value, edited.output, rtol=1e-4, atol=1e-5)


def test_putting_back_what_was_there_changes_nothing(tiny_model, pixels, implementation, target):
    model = tiny_model(QKViTModel)
    model.set_attn_implementation(implementation)
    for mask in (None, MASK):
        plain = tokens_after(model, pixels, attention_mask=mask)
        same = {(None, target): Apply(lambda tensor: tensor.clone())}
        found = tokens_after(model, pixels, same, attention_mask=mask)
        if target in ("scores", "attention"):
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(found, plain)


def test_other_layers_stay_on_their_backend(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    plain = tokens_after(model, pixels)
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        tokens_after(model, pixels, {(1, "attention"): Zero(), (2, "key"): Zero()})
    assert len(calls) == 2
    assert torch.equal(tokens_after(model, pixels), plain)


def test_every_family_is_edited_as_its_weights_say(family, family_model, pixels):
    """Keys of zero are keys of a projection with weights and biases of zero, and so are values."""
    model = family_model(family)
    with torch.no_grad():
        plain = model(pixels).last_hidden_state
        for target, names in (("key", (".k_proj", ".key")), ("value", (".v_proj", ".value"))):
            with intervene(model, {(1, target): Zero()}):
                found = model(pixels).last_hidden_state
            assert not torch.allclose(found, plain)
            (weights,) = [module for name, module in model.named_modules() if name.endswith(names) and ".1." in name]
            kept = {name: parameter.clone() for name, parameter in weights.named_parameters()}
            for parameter in weights.parameters():
                parameter.zero_()
            torch.testing.assert_close(model(pixels).last_hidden_state, found)
            weights.load_state_dict(kept)


def test_scores_are_edited_before_the_mask(tiny_model, pixels, implementation):
    model = tiny_model(QKViTModel)
    model.set_attn_implementation(implementation)
    edited = recorded(model, pixels, edits={(0, "scores"): Zero()}, attention_mask=MASK)
    shown = torch.cat([torch.ones(2, 1, dtype=torch.bool), MASK], dim=1)
    uniform = shown / shown.sum(-1, keepdim=True)
    torch.testing.assert_close(edited.attention, uniform[:, None, None].expand(2, 2, 17, 17))


def test_removing_a_column_of_scores_is_hiding_the_token(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    hidden = torch.ones(2, 16)
    hidden[:, 4] = 0
    least = torch.finfo(torch.float32).min
    edits = {(None, "scores"): Apply(lambda scores: torch.full_like(scores, least), key_tokens=5)}
    torch.testing.assert_close(
        tokens_after(model, pixels, edits)[:, :5], tokens_after(model, pixels, attention_mask=hidden)[:, :5]
    )


@given(data=st.data())
def test_the_chosen_part_is_replaced_and_the_rest_is_not(tiny_model, data):
    model = tiny_model(QKViTModel, num_attention_heads=4)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    target = data.draw(st.sampled_from(TENSORS))

    def some(size: int):
        indices = st.lists(st.integers(-size, size - 1), min_size=1, unique_by=lambda index: index % size)
        booleans = st.lists(st.booleans(), min_size=size, max_size=size).filter(any)
        return data.draw(st.one_of(st.none(), st.integers(-size, size - 1), indices, st.just(slice(1, -1)), booleans))

    places = {"heads": some(4), "tokens": some(17)}
    if target in ("scores", "attention"):
        places["key_tokens"] = some(17)
    plain = getattr(recorded(model, pixels), target)
    chosen = torch.ones(plain.shape, dtype=torch.bool)
    for dim, (_, place) in enumerate(places.items(), start=1):
        if place is not None:
            row = torch.zeros(plain.shape[dim], dtype=torch.bool)
            row[place] = True
            chosen &= row.view([-1 if other == dim else 1 for other in range(4)])
    seven = Apply(lambda part: torch.full_like(part, 7), **places)
    edited = getattr(recorded(model, pixels, edits={(0, target): seven}), target)
    torch.testing.assert_close(edited, torch.where(chosen, 7, plain))
    whole = torch.rand_like(plain)
    edited = getattr(recorded(model, pixels, edits={(0, target): Given(whole, **places)}), target)
    torch.testing.assert_close(edited, torch.where(chosen, whole, plain))


# ---- the replacements


def test_a_function_that_writes_does_not_write_into_what_was_given(tiny_model, pixels):
    model, given = tiny_model(QKViTModel), torch.ones(2, 2, 17, 16)
    edits = {(0, "key"): [Given(given), Apply(lambda part: part.mul_(2))]}
    for _ in range(2):
        assert recorded(model, pixels, edits=edits).key.unique().tolist() == [2]
    assert given.unique().tolist() == [1]
    mean = torch.ones(2, 16)  # of all tokens, without memory for each
    edits = {(0, "key"): [Mean(mean), Apply(lambda part: part.mul_(2))]}
    assert recorded(model, pixels, edits=edits).key.unique().tolist() == [2]


def test_a_mean_is_the_same_for_each_image_and_where_asked_for_each_token(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    plain = recorded(model, pixels).key
    per_channel, per_token = plain.double().mean((0, 2)), plain.double().mean(0)
    edited = recorded(model, pixels, edits={(0, "key"): Mean(per_channel, heads=1)}).key
    assert torch.equal(edited[:, 0], plain[:, 0])
    assert torch.equal(edited[:, 1], per_channel[1].float().expand(2, 17, 16))
    edited = recorded(model, pixels, edits={(0, "key"): Mean(per_token, tokens=[0, -1])}).key
    assert torch.equal(edited[:, :, 1:-1], plain[:, :, 1:-1])
    assert torch.equal(edited[:, :, -1], per_token[:, -1].float().expand(2, 2, 16))
    maps = recorded(model, pixels).attention.mean(0)
    edited = recorded(model, pixels, edits={(0, "attention"): Mean(maps, heads=0)}).attention
    assert torch.equal(edited[:, 0], maps[0].expand(2, 17, 17))


def test_noise_has_the_mean_and_the_standard_deviation_of_what_it_replaces():
    part = torch.randn(64, 2, 50, 4) * torch.tensor([0.1, 1, 3, 10]) + torch.arange(2.0).view(2, 1, 1)
    noise = Noise(seed=1).apply("key", part, (0, TARGET_NUMBERS["key"], 0, 0))
    assert (noise - part).abs().mean() > 0.05
    torch.testing.assert_close(noise.mean((0, 2)), part.mean((0, 2)), rtol=0.1, atol=0.6)
    torch.testing.assert_close(noise.std((0, 2)), part.std((0, 2)), rtol=0.05, atol=0)
    scores = torch.randn(16, 2, 20, 20) * torch.tensor([1.0, 5.0]).view(2, 1, 1)
    noise = Noise().apply("scores", scores, (0, TARGET_NUMBERS["scores"], 0, 0))
    torch.testing.assert_close(noise.std((0, 2, 3)), scores.std((0, 2, 3)), rtol=0.05, atol=0)
    mean, std = torch.full((2, 4), 5.0), torch.full((2, 4), 0.5)
    noise = Noise(mean=mean, std=std).apply("key", part, (0, TARGET_NUMBERS["key"], 0, 0))
    torch.testing.assert_close(noise.mean((0, 2)), mean, rtol=0.02, atol=0)
    torch.testing.assert_close(noise.std((0, 2)), std, rtol=0.05, atol=0)


def test_noise_is_the_same_for_a_seed_and_another_for_each_layer_tensor_and_forward_pass(tiny_model, pixels):
    model = tiny_model(QKViTModel)

    def draw(seed: int) -> list[torch.Tensor]:
        edits = {(layer, name): Noise(seed=seed) for layer in (0, 1) for name in ("query", "key")}
        with torch.no_grad(), record(model, keep="all") as recording, intervene(model, edits):
            model(pixels)
            torch.rand(1)  # the global random state does not matter
            model(pixels)
        calls = [call for layer in (0, 1) for call in recording.calls[layer]]
        return [tensor - tensor.mean((0, 2), keepdim=True) for call in calls for tensor in (call.query, call.key)]

    first, again, other = draw(0), draw(0), draw(1)
    for tensor, same in zip(first, again, strict=True):
        assert torch.equal(tensor, same)
    normal = [tensor / tensor.std((0, 2), keepdim=True) for tensor in (*first, *other)]
    for index, one in enumerate(normal):
        for another in normal[:index]:
            assert (one * another).mean().abs() < 0.2, "independent draws are not correlated"


def test_another_image_is_the_next_or_the_one_of_the_permutation(tiny_model):
    model, pixels = tiny_model(QKViTModel), torch.rand(3, 3, 16, 16)
    plain = recorded(model, pixels).value
    assert torch.equal(recorded(model, pixels, edits={(0, "value"): OtherImage()}).value, plain[[1, 2, 0]])
    edited = recorded(model, pixels, edits={(0, "value"): OtherImage(permutation=[2, 2, 0], heads=0)}).value
    assert torch.equal(edited[:, 0], plain[[2, 2, 0], 0])
    assert torch.equal(edited[:, 1], plain[:, 1])


def test_another_window_is_no_other_image(raises_sentence):
    fields = {"image_size": 32, "patch_size": 4, "num_attention_heads": 2, "hidden_size": 32, "num_hidden_layers": 2}
    swin = transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1], num_heads=[2], window_size=4)
    windowed = transformers.LwDetrViTConfig(**fields, window_block_indices=[0], num_windows=4, pretrain_image_size=32)
    models = transformers.SwinModel(swin), transformers.LwDetrViTBackbone(windowed)
    images = torch.rand(2, 3, 32, 32)
    for model, parts in zip(models, (32, 8), strict=True):
        words, edits = f"layer 0: OtherImage finds {parts} parts of 2 images", {(0, "value"): OtherImage()}
        with torch.no_grad(), raises_sentence(ValueError, words), intervene(model.eval(), edits):
            model(images)
    with torch.no_grad(), intervene(models[1], {(1, "value"): OtherImage()}):  # the second layer sees whole images
        models[1](pixel_values=images)


def test_patching_all_of_the_first_output_from_another_image_gives_what_the_rest_makes_of_it(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    swapped = tokens_after(model, pixels, {(None, "output"): OtherImage(), (None, "value"): OtherImage()})
    plain = tokens_after(model, pixels)
    assert not torch.allclose(swapped, plain)
    given = Given(recorded(model, pixels.flip(0)).output)
    torch.testing.assert_close(
        tokens_after(model, pixels, {(0, "output"): given}), tokens_after(model, pixels, {(0, "output"): OtherImage()})
    )


def test_gradients_go_around_an_edit_and_through_a_function(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    projections = model.layers[1].attention
    for edit, reaches in ((Zero(), False), (Noise(), False), (Apply(lambda key: 2 * key), True), (Zero(heads=0), True)):
        model.zero_grad()
        with intervene(model, {(1, "key"): edit}):
            model(pixels).last_hidden_state.square().sum().backward()
        gradient = projections.k_proj.weight.grad
        assert (gradient is not None and gradient.abs().sum() > 0) == reaches
        assert projections.v_proj.weight.grad.abs().sum() > 0


# ---- errors


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({}, "edits holds nothing"),
        ([("key", Zero())], "edits holds nothing"),
        ({(3, "key"): Zero()}, "asks for layer 3 of a model with layers 0 to 2"),
        ({((0, 9), "key"): Zero()}, "asks for layer 9"),
        ({(0, "keys"): Zero()}, "edits has the tensor 'keys'"),
        ({0: Zero()}, "edits has the key 0"),
        ({(0, "key"): Zero}, "edits[(0, 'key')] is a class"),
        ({(0, "key"): [lambda key: key]}, "has a function"),
        ({(0, "key"): []}, "is a list"),
        ({(0, "key"): Zero(key_tokens=0)}, "has key_tokens, which scores and attention alone have"),
    ],
)
def test_what_cannot_be_an_edit_is_refused_at_once(tiny_model, raises_sentence, edits, words):
    with raises_sentence(ValueError, words):
        intervene(tiny_model(QKViTModel), edits)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Zero(heads=[]), "heads=[] selects nothing"),
        (lambda: Zero(tokens="patches"), "tokens='patches'"),
        (lambda: Zero(tokens=[False, False]), "selects nothing"),
        (lambda: Zero(heads=1.0), "heads=1.0"),
        (lambda: Noise(mean=torch.zeros(2, 4)), "one of mean and std"),
        (lambda: Noise(seed=-1), "seed=-1"),
    ],
)
def test_what_cannot_be_a_replacement_is_refused_at_once(raises_sentence, make, words):
    with raises_sentence(ValueError, words):
        make()


ONES = torch.ones(2, 2, 17, 16)


@pytest.mark.parametrize(
    ("target", "edit", "words"),
    [
        ("key", Zero(heads=2), "heads=2 is beyond the 2"),
        ("key", Zero(tokens=[0, 17]), "beyond the 17"),
        ("attention", Zero(key_tokens=-18), "key_tokens=-18 is beyond the 17"),
        ("key", Given(ONES[:, :, :16]), "Given has the shape (2, 2, 16, 16) for a part (2, 2, 17, 16)"),
        ("key", Given(ONES[0]), "Given has the shape (2, 17, 16)"),
        ("key", Given(ONES[:, :, :3], tokens=[0, 1]), "for a part (2, 2, 2, 16) of (2, 2, 17, 16)"),
        ("key", Given(ONES.double()), "gives torch.float64 where torch.float32 is computed"),
        ("key", Given(ONES.int()), "gives torch.int32"),
        ("attention", Given(ONES), "Given has the shape"),
        ("key", Mean(torch.ones(16)), "Mean has a tensor of shape (16,) for a layer with 2 heads"),
        ("key", Mean(torch.ones(1, 16), heads=0), "Mean has a tensor of shape (1, 16)"),
        ("key", Mean(torch.ones(2, 16).int()), "Mean has a tensor of torch.int32"),
        ("key", Noise(mean=torch.ones(2, 15), std=torch.ones(2, 16)), "Noise has a tensor of shape (2, 15)"),
        ("key", OtherImage(permutation=[0, 2]), "permutation=[0, 2] does not fit a batch of 2"),
        ("key", OtherImage(permutation=[0]), "does not fit"),
        ("key", Apply(lambda key: key[:, :1]), "function gives (2, 1, 17, 16) for (2, 2, 17, 16)"),
        ("key", Apply(lambda key: None), "function gives NoneType"),
        ("key", Apply(lambda key: key.half()), "gives torch.float16 where"),
    ],
)
def test_an_edit_that_does_not_fit_raises_in_the_forward_pass(tiny_model, pixels, raises_sentence, target, edit, words):
    model = tiny_model(QKViTModel)
    plain = tokens_after(model, pixels)
    with (
        raises_sentence(ValueError, f"edit of the {target} of layer 1: ", words),
        intervene(model, {(1, target): edit}),
    ):
        model(pixels)
    assert torch.equal(tokens_after(model, pixels), plain)


def test_edits_that_need_more_images_or_tokens_raise(tiny_model, raises_sentence):
    model, one = tiny_model(QKViTModel), torch.rand(1, 3, 16, 16)
    for edit, words in ((OtherImage(), "needs another image"), (Noise(tokens=0), "cannot match a single token")):
        with raises_sentence(ValueError, words), intervene(model, {(0, "key"): edit}):
            model(one)


def test_an_edit_that_is_never_reached_raises_on_leaving(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel)
    edits, missed = (
        {(0, "key"): Zero(), (2, "value"): Zero()},
        "never reached the computation (key of layer 0, value of",
    )
    with raises_sentence(ValueError, missed), intervene(model, edits):
        pass
    missed = "never reached the computation (value of layer 2)"
    with raises_sentence(ValueError, missed), intervene(model, edits):
        model.layers = model.layers[:2]
        model(pixels)
    with pytest.raises(KeyboardInterrupt), intervene(model, {(0, "key"): Zero()}):
        raise KeyboardInterrupt


def test_a_context_that_is_used_again_notices_again_what_is_never_reached(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel)
    context = intervene(model, {(0, "key"): Zero()})
    with torch.no_grad(), context:
        model(pixels)
    with raises_sentence(ValueError, "never reached the computation (key of layer 0)"), context:
        pass


def test_a_context_that_is_used_again_draws_the_same_noise_again(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    context = intervene(model, {(0, "key"): Noise()})
    runs = []
    for _ in range(2):
        with context:
            runs.append([tokens_after(model, pixels) for _ in range(2)])
    assert not torch.equal(*runs[0])
    assert all(torch.equal(first, again) for first, again in zip(*runs, strict=True))
