"""The names of the published checkpoints' tensors and where each goes."""

import re
from dataclasses import dataclass

import torch


TEACHER = "training_state.teacher."


@dataclass(frozen=True)
class Layout:
    """
    Facts about a checkpoint that its names alone do not tell.

    Args:
        family: `"vicha"` (ALBEF's checkpoints too) or `"simla"`, the prefix of the base model's tensors.
        mim_mode: decides between the two reconstruction heads that share the name `mae_proj`; `None` without any.
        first_doubled_layer: where reasoning's pairs of layers begin; `None` for single layers.
    """

    family: str = "vicha"
    mim_mode: str | None = None
    first_doubled_layer: int | None = None


PLAIN = Layout()


@dataclass(frozen=True)
class Target:
    """
    Destination of one published tensor. The tensor is the concatenation of the model's parameters `names` along its
    first dimension. Only the fused query-key-value projection has several. `transposed`: stored the other way round.
    No names: the tensor holds nothing that the model does not have.
    """

    names: tuple[str, ...]
    transposed: bool = False

    def split(self, tensor: torch.Tensor, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
        """The published tensor as the model's tensors, by name; `shapes` are those that the model expects."""
        tensor = tensor.T if self.transposed else tensor
        parts = tensor.chunk(len(self.names)) if len(self.names) > 1 else (tensor,)
        converted = {}
        for name, part in zip(self.names, parts, strict=True):
            # Scalars and rows of one are the same numbers in another shape (temperature, id queue).
            same_size = (
                name in shapes and part.numel() == shapes[name].numel() and min(part.dim(), len(shapes[name])) <= 1
            )
            converted[name] = part.reshape(shapes[name]) if same_size else part
        return converted

    def join(self, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """The inverse of [`~Target.split`]: the published tensor from the model's."""
        joined = torch.cat([tensors[name] for name in self.names]) if len(self.names) > 1 else tensors[self.names[0]]
        return joined.T if self.transposed else joined


IGNORED = Target(())

# (pattern, replacement); `{base}` is the online model or the teacher, `{head}` the heads beside it.
_VISION = (
    (r"visual_encoder\.cls_token", "{base}vision_model.embeddings.cls_token"),
    (r"visual_encoder\.pos_embed", "{base}vision_model.embeddings.position_embeddings"),
    (r"visual_encoder\.patch_embed\.proj\.(\w+)", r"{base}vision_model.embeddings.patch_embeddings.\1"),
    (r"visual_encoder\.blocks\.(\d+)\.(.+)", r"{base}vision_model.layers.\1.{block:\2}"),
    (r"visual_encoder\.norm\.(\w+)", r"{base}vision_model.layernorm.\1"),
)
_TEXT = (
    (r"text_encoder\.(?:bert\.)?embeddings\.position_ids", None),
    (r"text_encoder\.(?:bert\.)?((?:embeddings|encoder)\..+)", r"{base}text_model.\1"),
    # The head's bias is stored twice, under its own name and as the decoder's.
    (r"text_encoder\.cls\.predictions\.bias", "{head}mlm_head.decoder.bias"),
    (r"text_encoder\.cls\.predictions\.((?:transform|decoder)\..+)", r"{head}mlm_head.\1"),
)
_CONCEPTS = (
    (r"kw_encoder\.(?:embeddings\.)?position_ids", None),
    (r"kw_encoder\.((?:embeddings|encoder)\..+)", r"{base}concept_model.\1"),
    # Without layers the published concept encoder is the bare embeddings.
    (r"kw_encoder\.((?:\w+_embeddings|LayerNorm)\.\w+)", r"{base}concept_model.embeddings.\1"),
    (r"kw_proj\.(\w+)", r"{base}concept_projection.\1"),
)
_PROJECTIONS = (
    (r"vision_proj\.(\w+)", r"{base}vision_projection.\1"),
    (r"text_proj\.(\w+)", r"{base}text_projection.\1"),
)
_CLASSIFIER = (
    (r"cls_head\.0\.(\w+)", r"{head}{classifier}.dense.\1"),
    (r"cls_head\.2\.(\w+)", r"{head}{classifier}.output.\1"),
)
_DECODER = (
    (r"text_decoder\.bert\.embeddings\.position_ids", None),
    (r"text_decoder\.bert\.((?:embeddings|encoder)\..+)", r"{head}answer_decoder.\1"),
    (r"text_decoder\.cls\.predictions\.bias", "{head}mlm_head.decoder.bias"),
    (r"text_decoder\.cls\.predictions\.((?:transform|decoder)\..+)", r"{head}mlm_head.\1"),
)
_HEADS = (
    (r"temp", "{base}temperature"),
    (r"itm_head\.(\w+)", r"itm_head.\1"),
    (r"ta_head\.(\w+)", r"assignment_head.\1"),
    (r"(vision|text)_proj_hidden\.(\d+)\.(\w+)", r"hierarchical_itc.\1_projections.\2.\3"),
    (r"mask_token", "mim.mask_token"),
    (r"decoder_pos_embed", None),
    (r"decoder_embed\.(\w+)", r"mim.decoder.embed.\1"),
    (r"decoder_blocks\.(\d+)\.(.+)", r"mim.decoder.layers.\1.{block:\2}"),
    (r"decoder_norm\.(\w+)", r"mim.decoder.layernorm.\1"),
    (r"mae_proj_uni\.(\w+)", r"mim.decoder.prediction.\1"),
    (r"mae_proj\.(\w+)", r"mim.{mae_proj}.\1"),
)
_SIMLA = (
    # The mask token stands among the vision encoder's tensors even where no objective masks patches.
    (r"visual_encoder\.mask_token", "{head}{mask_token}"),
    (r"mim_head\.(\w+)", r"{head}mim.head.\1"),
    (r"concept_head\.(\w+)", r"{head}psl.head.\1"),
)
_QUEUE = {
    "image_queue": Target(("training_state.queue.image_features",), transposed=True),
    "text_queue": Target(("training_state.queue.text_features",), transposed=True),
    "idx_queue": Target(("training_state.queue.image_ids",)),
    "queue_ptr": Target(("training_state.queue.pointer",)),
}
_BLOCK = {
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
_TEACHER_MODULE = re.compile(r"^(\w+?)_m\.")


def is_training_only(name: str) -> bool:
    """Whether a published tensor belongs to the teacher or the queue."""
    return name in _QUEUE or _TEACHER_MODULE.match(name) is not None


def translate(name: str, layout: Layout = PLAIN) -> Target | None:
    """Looks up the destination of the published tensor `name`; `None` if it is unknown."""
    if name in _QUEUE:
        return _QUEUE[name]
    teacher = _TEACHER_MODULE.match(name)
    online_name = f"{teacher.group(1)}.{name[teacher.end() :]}" if teacher else name
    head = TEACHER if teacher else ""
    rules = _SIMLA if layout.family == "simla" else _CONCEPTS
    rules += _VISION + _TEXT + _PROJECTIONS + _CLASSIFIER + _DECODER + (() if teacher else _HEADS)
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, online_name)
        if match is None:
            continue
        if replacement is None or ("{mask_token}" in replacement and layout.mim_mode is None):
            return IGNORED
        parts = {
            "{base}": f"{head}{layout.family}.",
            "{head}": head,
            "{mae_proj}": "decoder.prediction" if layout.mim_mode == "unimodal" else "crossmodal_prediction",
            "{mask_token}": "mim.mask_token",
            "{classifier}": "entailment_classifier" if layout.first_doubled_layer is None else "reasoning_classifier",
        }
        for part, value in parts.items():
            replacement = replacement.replace(part, value)
        return _expand_block(_pair_layers(match.expand(replacement), head, layout))
    return None


def _pair_layers(name: str, head: str, layout: Layout) -> str:
    """
    Published pairs of layers are numbered through; here the first of a pair keeps its place, and the second is a twin,
    which reads through its sibling's keys and values.
    """
    layer = re.fullmatch(r"(.*text_model\.encoder\.layer\.)(\d+)\.(.+)", name)
    if layer is None or layout.first_doubled_layer is None or int(layer.group(2)) < layout.first_doubled_layer:
        return name
    pair, second = divmod(int(layer.group(2)) - layout.first_doubled_layer, 2)
    if not second or re.match(r"crossattention\.self\.(key|value)\.", layer.group(3)):
        return f"{layer.group(1)}{layout.first_doubled_layer + pair}.{layer.group(3)}"
    return f"{head}image_pair_encoder.twins.{pair}.{layer.group(3)}"


def _expand_block(name: str) -> Target | None:
    block = re.fullmatch(r"(.*)\{block:(.+)\.(weight|bias)\}", name)
    if block is None:
        return Target((name,))
    prefix, module, kind = block.groups()
    if module not in _BLOCK:
        return None
    return Target(tuple(f"{prefix}{part}.{kind}" for part in _BLOCK[module]))
