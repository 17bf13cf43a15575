"""What the four models share: loading and saving, the weights' first values, what transformers may do with them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_qkvit import QKViTConfig
from ..configuration.preprocessing_qkvit import settings_beside, without_companions
from .attention_qkvit import QKViTAttention
from .checksums_qkvit import write_sums
from .embeddings_qkvit import QKViTEmbeddings
from .layers_qkvit import QKViTLayer, QKViTResidual
from .loading_qkvit import load_checked, plain_load_errors
from .pooling_qkvit import QKViTAttentionPooling

# Arguments of `from_pretrained` that say where a model's files are.
_WHERE = ("subfolder", "revision", "cache_dir", "token", "local_files_only")


class QKViTPreTrainedModel(PreTrainedModel):
    """What `QKViTModel`, the models with a head and the backbone are made from."""

    config: QKViTConfig
    config_class = QKViTConfig
    base_model_prefix = "qkvit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    # The loss is a mean over the batch that it is given: Trainer divides by the accumulation steps itself.
    accepts_loss_kwargs = False
    _no_split_modules = ["QKViTEmbeddings", "QKViTLayer"]  # noqa: RUF012
    _input_embed_layer = "patch_projection"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": OutputRecorder(QKViTLayer, index=0)}  # noqa: RUF012

    def __init__(self, config: QKViTConfig, *args: Any, **kwargs: Any) -> None:
        config.validate()  # fields may have been set one by one since the config was made
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers loads it, with one sentence where a file or tensor is missing, damaged or changed."""
        has_config, subfolder = kwargs.get("config") is not None, kwargs.get("subfolder") or ""
        with plain_load_errors(pretrained_model_name_or_path, subfolder, has_config):
            loaded = load_checked(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.settle()
        if pretrained_model_name_or_path is not None:
            # Now, for saving knows neither the subfolder nor the revision, and the folder may be gone.
            at = {name: kwargs[name] for name in _WHERE if kwargs.get(name) is not None}
            settings = settings_beside(pretrained_model_name_or_path, model.config, **at)
            if settings is not None:
                model.config.image_processor_settings = settings
        return loaded

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> None:
        """As transformers saves it, with the sums of the weight files beside them: `from_pretrained` checks them.

        Raises:
            NotADirectoryError: there is a file of that name, of which transformers tells its log alone.
        """
        if Path(save_directory).is_file():
            raise NotADirectoryError(f"{save_directory} is a file; pass a folder for the model, or a name that is free")
        if is_main_process:
            _copy_code(Path(save_directory))
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_sums(save_directory)

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], *args: Any, **kwargs: Any
    ) -> Any:
        write_sums(working_dir)  # save_pretrained(push_to_hub=True) uploads before it returns
        times = without_companions(files_timestamps)
        return super()._upload_modified_files(working_dir, repo_id, times, *args, **kwargs)

    def settle(self) -> None:
        """Lay the weights of Q, K and V next to each other in memory, for one product in inference.

        Done when a model is made, loaded or moved; call it after giving the projections other weights.
        """
        for module in self.modules():
            if isinstance(module, QKViTAttention):
                module.settle()

    def _refuse_patch_dropout(self, purpose: str) -> None:
        if self.training and self.config.patch_drop_rate:
            raise ValueError(
                f"patch_drop_rate={self.config.patch_drop_rate} leaves out patches that {purpose} cannot do without;"
                " set it to 0.0"
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All first values:

        | parameter | first value |
        |---|---|
        | weights of linear layers | normal, truncated at 2, std `initializer_range` |
        | class, distillation and register tokens, positions, the pooling's probe | the same |
        | biases, the mask token | 0 |
        | normalisations | weight 1, bias 0 |
        | LayerScale | `layer_scale_init_value` |
        """
        super()._init_weights(module)
        std = self.config.initializer_range

        def truncated_normal(tensor: torch.Tensor | None) -> None:
            if tensor is not None:
                init.trunc_normal_(tensor, mean=0.0, std=std, a=-2 * std, b=2 * std)

        if isinstance(module, nn.Linear):
            truncated_normal(module.weight)
        elif isinstance(module, QKViTEmbeddings):
            truncated_normal(module.class_token)
            truncated_normal(module.distillation_token)
            truncated_normal(module.register_tokens)
            truncated_normal(module.position_embeddings)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
        elif isinstance(module, QKViTAttentionPooling):
            truncated_normal(module.probe)
        elif isinstance(module, QKViTResidual) and module.layer_scale is not None:
            init.constant_(module.layer_scale, float(module.layer_scale_init_value))


def _copy_code(folder: Path) -> None:
    """The code of a model that was loaded with its code.

    transformers copies it for a class that an Auto class made, not for a base model or another head made from there.
    """
    here = Path(__file__).parent
    if QKViTConfig.ship_code is not None or not (here / "configuration_qkvit.py").is_file():
        return  # `ship_code` does it
    folder.mkdir(parents=True, exist_ok=True)
    for file in here.glob("*_qkvit.py"):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
