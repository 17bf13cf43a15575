"""`collect`: statistics of attention over a data set, on one process or many, stopped and taken up as one likes.

Shapes: B images, H heads, N tokens, P patches, D width of a head.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..modeling.tensor_digest import tensor_digest
from .attention_door import configs_of
from .attention_layers import parents_of, see_images, unwrapped, whole_attention
from .collected import Collected
from .collecting import Collecting
from .progress_file import ProgressFile, remove_progress
from .run_identity import identity_of, settings_of
from .shares import Share, knows_its_share, merged, processes, refuse_in_all, wrong_share
from .tally import Tally
from .token_layout import TokenLayout

SECONDS_BETWEEN_SAVES = 30.0
MANY_CLASSES = 100  # their quantiles are kept when asked for: of 1,000 classes and ViT-S they may take gigabytes


def collect(
    model: Any,
    dataloader: Iterable[Any],
    *,
    layers: int | Iterable[int] | None = None,
    statistics: str | Iterable[str] | None = None,
    rollout: bool = False,
    class_names: Iterable[str] | None = None,
    class_quantiles: bool | None = None,
    layout: TokenLayout | None = None,
    forward: Callable[[Any, torch.Tensor], Any] | None = None,
    progress_folder: str | Path | None = None,
    keep_progress: bool = False,
    show_progress: bool = True,
) -> Collected:
    """Run a model over images and keep statistics of every head; memory does not grow with the number of images.

    Every number is first taken for each image, then summed up over images: mean, standard deviation, 95 % interval of
    the mean, quantiles; and for each class. The statistics are those of `attention_statistics`, averaged over an
    image's tokens (`AttentionStatistics.per_head`), and

    | statistic | of | formula |
    |---|---|---|
    | largest_received | head | largest attention that a patch is given, in multiples of the average token's |
    | outliers | layer | patches that are given more than 5 times the average, all heads together |
    | on_outliers | head | share of all attention that goes to these patches |
    | outlier_contrast | layer | rank of these patches by the standard deviation of their pixels, 0 to 1: 1/2 if the
      content does not matter, near 0 if they lie where nothing is to be seen; NaN without outliers |
    | token_norm_ratio | layer | largest over median norm of the patches' tokens as they enter the layer |
    | rollout_on_class_token, rollout_on_registers, rollout_on_patches | layer | with `rollout`: what the last layer's
      class token takes from the tokens that enter the layer; without class token, what the patches take on average |
    | rollout_entropy | layer | entropy of this row over the tokens, in nats |

    Also mean and second moment of each head's queries, keys, values and output, over all tokens; and, where all images
    are of one size, the mean attention that each place receives, how often it is an outlier, and the mean rollout.

    With torch.distributed initialised, each process passes the batches of its own share, as
    `batches(..., shard=(rank, world))` gives them; all of them get the result of the whole. A share that is another
    process's too is refused, and so is a sampler that repeats images to make shares even.

    Args:
        model: QKViT, or any transformers vision model whose attention goes through the interface. It is put into eval
            mode meanwhile, and runs where its parameters are.
        dataloader: Batches: dictionaries with `pixel_values` and perhaps `labels`, as `qkvit.data.batches` gives them;
            tuples of both; or tensors of pixel values. Labels are a tensor or a list of numbers.
        layers: Which layers, negative ones from the end. `None`: all.
        statistics: Groups of `attention_statistics`, but for "mean_map". `None`: all.
        rollout: Attention rollout too. Up to 400 tokens, every layer's map is kept, the mean of its heads; of more, the
            queries and keys: up to 2,000 those of all layers where they weigh no more than half of the model, as
            those of one image of 1,025 do; else those of half the layers, and the first half of the model runs a second
            time; beyond 2,000, where half would weigh more than the model, a quarter's, and the model runs one and a
            half times more in sum.
        class_names: Names of the labels 0, 1, ..., of which each image has one. `None`: those of the data, or no
            statistics for each class, as where an image has several labels.
        class_quantiles: Quantiles for each class too: up to 16 bytes for each image and statistic of a head, while
            there are fewer than a few hundred images of a class. `None`: up to 100 classes.
        layout: What the tokens are. `None`: from the model's configuration and the size of the images.
        forward: Runs the model: a function of model and pixel values. `None`: `model(pixel_values=...)`.
        progress_folder: Where to keep how far it is, every 30 seconds and when it is stopped. A later call with the
            same arguments goes on from there; at the end it is removed. Progress of other weights, configuration, data,
            image processor or transform, layout or class names is refused; of batches that are not
            `qkvit.data.batches`, only how many images they hold is compared, and `forward` is not. Refused are also a
            DataLoader that shuffles without a generator, for it has another order the next time, and a model inside
            `intervene`.
        keep_progress: Leave it there at the end, for a caller who has the result still to write; `remove_progress` of
            `qkvit.analysis.progress_file` takes it away.
        show_progress: A bar with images a second.

    Raises:
        ValueError: weights, queries, keys, values or outputs hold NaN or infinity (the layer is named), there are no
            images, no classes where `class_quantiles` asks for them, or with classes other labels than one whole number
            an image, the model's attention cannot be seen, or is not that of query and key (inside `intervene`, edited
            scores or maps; softcap, sinks or a window), a layer runs twice for a batch, a mask hides tokens (padding:
            they would count as queries), or the progress is of another run.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> from qkvit.analysis import collect
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> collected = collect(QKViTModel(config), images.split(4), statistics="entropy", show_progress=False)
    >>> collected.images, collected.mean("entropy").shape  # layers, heads
    (6, torch.Size([2, 3]))

    ```
    """
    model = unwrapped(model)
    check_weights(model)
    source = getattr(dataloader, "source", None)
    of_source = None if getattr(source, "multi_label", False) else getattr(source, "class_names", None)
    names = class_names if class_names is not None else of_source
    names = None if names is None else tuple(names)
    asked = None if statistics is None else sorted([statistics] if isinstance(statistics, str) else statistics)
    session = Collecting(model, layers, asked, _new_tally(names, class_quantiles), rollout)
    rank, world = processes()
    refuse_in_all(wrong_share(dataloader, rank, world), world)
    file = None
    if progress_folder is not None:
        if session.is_altered():
            raise ValueError(
                "progress_folder= keeps numbers for a later call, and an edit is not kept with them: leave it out"
                " inside intervene and record(explicit=True)"
            )
        identity = identity_of(dataloader, tensor_digest(model.named_parameters())[:16], layout, names)
        identity |= {f"config{number or ''}": settings_of(it) for number, it in enumerate(configs_of(session))}
        identity |= {"layers": session.chosen, "statistics": asked, "rollout": rollout}
        identity |= {"quantiles of classes": session.tally.has_class_quantiles}
        file = ProgressFile(progress_folder, identity, rank, world)
        session.tally = file.load() or session.tally
    with _evaluating(model), _bar(dataloader, session.tally, show_progress and rank == 0) as bar:
        share = Share(wanted=world > 1 and not knows_its_share(dataloader))
        _run(model, dataloader, session, layout, forward or see_images, file, bar, share)
    if file is not None and world > 1 and session.tally.images:
        file.save(session.tally)  # whoever is stopped now is waiting for others
    tally = merged(session.tally, rank, world, share)
    if not tally.images:
        raise ValueError("there are no images to collect statistics from; pass data with one usable image at least")
    if file is not None and keep_progress:
        file.save(session.tally)
    elif file is not None:
        remove_progress(file.path.parent, rank, world)
    return Collected.from_tally(tally, names)


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: with the name of the parameter, and so of the layer.
    """
    for name, parameter in model.named_parameters():
        total = float(parameter.detach().double().sum())
        if not math.isfinite(total):
            raise ValueError(f"the weights of {name} hold NaN or infinity; pass a model that was saved whole")


def _new_tally(class_names: tuple[str, ...] | None, class_quantiles: bool | None) -> Tally:
    count = len(class_names or ())
    if class_quantiles and not count:
        raise ValueError("class_quantiles=True needs classes; pass class_names, and one label for each image")
    return Tally(count, 0 < count <= MANY_CLASSES if class_quantiles is None else class_quantiles)


def _run(
    model: nn.Module,
    dataloader: Iterable[Any],
    session: Collecting,
    layout: TokenLayout | None,
    forward: Callable[[Any, torch.Tensor], Any],
    file: ProgressFile | None,
    bar: Any,
    share: Share,
) -> None:
    tally = session.tally
    parameter = next(model.parameters())
    saved = time.monotonic()
    try:
        with torch.no_grad(), session, _seeing_tokens(session):
            for number, batch in _batches(dataloader, tally, share):
                pixel_values, labels = _parts(batch)
                if tally.num_classes and labels is not None:
                    labels = _one_label_each(labels, len(pixel_values))
                share.add(pixel_values)
                pixel_values = pixel_values.to(parameter.device)
                height, width = pixel_values.shape[-2:]
                tokens = layout or TokenLayout.from_model(model, (height, width))
                found = session.begin(number, tokens, pixel_values)
                pixel_values = pixel_values.to(parameter.dtype)
                session.run(partial(forward, model, pixel_values))
                if session.missed:
                    raise ValueError(
                        f"{type(model).__name__} did not reach the layers {session.missed}; pass forward=, a function"
                        " of model and pixel values that runs it whole, or layers= that it reaches"
                    )
                tally.add(found, labels)
                bar(len(pixel_values))
                if file is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                    _take_bad_images(dataloader, tally)
                    file.save(tally)
                    saved = time.monotonic()
    except BaseException:
        if file is not None and tally.images and tally.whole:
            _take_bad_images(dataloader, tally)
            with suppress(OSError):  # a full disk must not hide what happened; what was saved before is still there
                file.save(tally)
        raise
    _take_bad_images(dataloader, tally)


def _batches(dataloader: Any, tally: Tally, share: Share) -> Iterator[tuple[int, Any]]:
    """Batches with their numbers, without those that the tally has seen."""
    done = tally.batches
    if knows_its_share(dataloader):
        yield from dataloader.starting_at(done).numbered()
        return
    batches = enumerate(dataloader)
    for _, batch in itertools.islice(batches, done):
        share.add(_parts(batch)[0])
    skipped = share.images
    if skipped != tally.images:  # cut otherwise: some images would count twice, and others not at all
        raise ValueError(
            f"the first {done} batches hold {skipped} images, and held {tally.images} when the progress was kept; pass"
            " the same batches again, or delete the progress folder to start anew"
        )
    yield from batches


def _parts(batch: Any) -> tuple[torch.Tensor, Any]:
    """Pixel values and labels of a batch, these as they are."""
    if isinstance(batch, torch.Tensor):
        pixel_values, labels = batch, None
    elif isinstance(batch, (tuple, list)):
        pixel_values, labels = batch[0], batch[1] if len(batch) > 1 else None
    elif isinstance(batch, Mapping) and "pixel_values" in batch:
        pixel_values, labels = batch["pixel_values"], batch.get("labels")
    else:
        kind = f"with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"of {type(batch).__name__}"
        raise ValueError(f"a batch {kind} has no pixel_values; pass dictionaries with pixel_values, tuples or tensors")
    if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
        shape = tuple(pixel_values.shape) if isinstance(pixel_values, torch.Tensor) else type(pixel_values).__name__
        raise ValueError(f"pixel_values are {shape}; pass a tensor (images, channels, height, width)")
    return pixel_values, labels


def _one_label_each(labels: Any, images: int) -> torch.Tensor:
    """The number of each image's class: (B,)."""
    try:
        numbers = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"labels are a {type(labels).__name__} of what is no number; pass a tensor or list with the number of each"
            " image's class, or none"
        ) from error
    numbers = numbers[:, 0] if numbers.ndim == 2 and numbers.shape[1] == 1 else numbers
    if numbers.shape != (images,) or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(
            f"labels are {tuple(numbers.shape)} of {numbers.dtype} for {images} images, and class_names need one whole"
            " number an image; pass its class, or leave class_names out"
        )
    return numbers


@contextmanager
def _seeing_tokens(session: Collecting) -> Iterator[None]:
    """Show the session what enters each layer: the module around attention gets the tokens first."""
    parents = parents_of(session.model)
    handles = []
    for layer in session.chosen:
        around = parents.get(whole_attention(session.modules[layer], parents))
        if around is None or around is session.model:
            continue

        def look(module: nn.Module, args: tuple, kwargs: dict, layer: int = layer) -> None:
            tokens = args[0] if args else kwargs.get("hidden_states")
            if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 and tokens.shape[1] == session.layout.num_tokens:
                session.see_tokens(layer, tokens)

        handles.append(around.register_forward_pre_hook(look, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _bar(dataloader: Any, tally: Tally, shown: bool) -> Iterator[Callable[[int], Any]]:
    from tqdm import tqdm

    try:
        total = len(dataloader.indices)
    except (AttributeError, TypeError):  # not ours, or a stream
        total = None
    with tqdm(total=total, initial=tally.images, unit="image", disable=not shown, desc="collecting") as bar:
        yield bar.update


def _take_bad_images(dataloader: Any, tally: Tally) -> None:
    known = {bad["index"] for bad in tally.bad}
    for bad in getattr(getattr(dataloader, "source", None), "bad_images", ()):
        if bad.index not in known:
            tally.bad.append({"index": bad.index, "name": bad.name, "reason": bad.reason})
