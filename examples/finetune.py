"""Fine-tune a pretrained ViT of any family on your images, with transformers' Trainer.

    python examples/finetune.py --model MODEL --data DATA --output runs/mine
    torchrun --nproc_per_node 4 examples/finetune.py --model MODEL --data DATA --output runs/mine

MODEL is a QKViT folder or Hub id, or any checkpoint that `qkvit.convert` reads; DATA a folder of class folders, a
folder of Parquet files or a data set's id, with splits for training and testing.

AdamW with layer-wise learning-rate decay (Clark et al. 2020, arXiv 2003.10555; for ViTs, Bao et al. 2021, arXiv
2106.08254), a cosine schedule, stochastic depth, label smoothing, random cropping and mirroring. On a GPU that has it,
bf16. The best epoch on the validation split (or the last one, without such a split) is tested and saved:
`qkvit evaluate OUTPUT/model --data DATA --split test` measures it again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transfer import Prepare, load_base
from transformers import Trainer, TrainingArguments

import qkvit
from qkvit import metrics
from qkvit.data import ImageDataset, open_images


def classifier_on(base: qkvit.QKViTModel, class_names: list[str], drop_path_rate: float) -> nn.Module:
    """The pretrained model with a new classifier on its class token and the mean of its patches."""
    config = base.config.__class__.from_dict(base.config.to_dict())
    config.update(
        {
            "id2label": dict(enumerate(class_names)),
            "label2id": {name: index for index, name in enumerate(class_names)},
            "pooling": "class_mean" if config.use_class_token and not config.use_distillation_token else config.pooling,
            "drop_path_rate": drop_path_rate,
            "label_smoothing": 0.1,
        }
    )
    model = qkvit.QKViTForImageClassification(config)
    missing, unexpected = model.qkvit.load_state_dict(base.state_dict(), strict=False)
    odd = [name for name in (*missing, *unexpected) if not name.startswith("pooler.")]
    assert not odd, f"the pretrained model has other tensors: {odd}"
    return model


def parameter_groups(model: nn.Module, rate: float, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: the rate shrinks by `layer_decay` for each layer below the head; vectors are not decayed."""
    depth = model.config.num_hidden_layers
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("qkvit.embeddings."):
            below_head = depth + 1
        elif name.startswith("qkvit.layers."):
            below_head = depth - int(name.split(".")[2])
        else:
            below_head = 0
        is_matrix = parameter.ndim == 2
        groups.setdefault((below_head, is_matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * layer_decay**below_head,
            "weight_decay": weight_decay if is_matrix else 0.0,
        }
        for (below_head, is_matrix), parameters in groups.items()
    ]


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What the model takes, of the items of an `ImageDataset`."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def accuracy(prediction: Any) -> dict[str, float]:
    """For Trainer."""
    return metrics.compute("accuracy", prediction.predictions.argmax(-1), prediction.label_ids)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a QKViT folder or Hub id, or a checkpoint of another family")
    parser.add_argument("--data", required=True, help="class folders, Parquet files or a data set's id")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", default="train", help="name of the split to train on")
    parser.add_argument("--validation", default="validation", help='name of the split to choose on; "" for none')
    parser.add_argument("--test", default="test", help="name of the split to test on")
    parser.add_argument("--size", type=int, default=224, help="height and width that the model sees")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps, to try it")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step on each device")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of the head")
    parser.add_argument("--layer-decay", type=float, default=0.7)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--drop-path", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=4, help="processes that prepare images")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def training_arguments(given: argparse.Namespace) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    each = "epoch" if given.validation and given.max_steps < 0 else "no"
    return TrainingArguments(
        output_dir=str(given.output / "checkpoints"),
        num_train_epochs=given.epochs,
        max_steps=given.max_steps,
        per_device_train_batch_size=given.batch_size,
        per_device_eval_batch_size=given.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # of the run
        max_grad_norm=1.0,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not on_gpu,
        dataloader_num_workers=given.workers,
        dataloader_persistent_workers=given.workers > 0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,  # Trainer would take the pixels for one
        eval_strategy=each,
        save_strategy=each,
        save_total_limit=1,
        load_best_model_at_end=each == "epoch",
        metric_for_best_model="accuracy",
        logging_steps=10,
        report_to="none",
        seed=given.seed,
    )


def main() -> dict[str, float]:
    given = arguments()
    torch.manual_seed(given.seed)
    base = load_base(given.model)
    train, test = open_images(given.data, split=given.train), open_images(given.data, split=given.test)
    validation = open_images(given.data, split=given.validation) if given.validation else None
    for source in (train, validation, test):
        if source is not None and (source.class_names is None or source.class_names != train.class_names):
            raise SystemExit(f"{source} has other classes than {train}; give all splits the same ones")

    model = classifier_on(base, list(train.class_names), given.drop_path)
    prepare = Prepare.like(base, given.size)
    model.config.image_processor_settings = prepare.settings()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, given.learning_rate, given.layer_decay, given.weight_decay), lr=given.learning_rate
    )
    trainer = Trainer(
        model=model,
        args=training_arguments(given),
        train_dataset=ImageDataset(train, Prepare.like(base, given.size, augment=True)),
        eval_dataset=ImageDataset(validation, prepare) if validation is not None else None,
        data_collator=collate,
        compute_metrics=accuracy,
        optimizers=(optimizer, None),
    )
    trainer.train()
    result = trainer.evaluate(ImageDataset(test, prepare), metric_key_prefix="test")
    trainer.save_model(str(given.output / "model"))
    if trainer.is_world_process_zero():
        (given.output / "result.json").write_text(json.dumps(vars(given) | result, indent=2, default=str) + "\n")
        print(f"{result['test_accuracy']:.1%} of {len(test)} test images right; {given.output}/model has the model")
    return result


if __name__ == "__main__":
    main()
