"""Random checkpoints in the published layout, of any family, head and size, written from the description of the systems alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Published:
    """
    One published checkpoint; the defaults are the base size of the papers.

    Args:
        family: "vicha", "albef" or "simla".
        head: as `vicha-hf convert --head` names it.
        patches: on a side of the image.
    """

    family: str
    head: str
    patches: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    text_width: int = 768
    text_layers: int = 12
    first_fused: int = 6
    feed_forward: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    projection: int = 256
    queue: int = 65536
    concept_layers: int = 2
    levels: int = 5
    mim_width: int = 768
    mim_layers: int = 2
    visual_codes: int = 8192

    @property
    def contrasts(self) -> bool:
        return self.head in ("pretraining", "retrieval", "grounding")

    def shapes(self) -> Shapes:
        """Name and shape of every tensor, teacher and queues included."""
        online = dict(self._online())
        if self.head == "text-assignment":
            return online | dict(self._alone())
        modules = ("visual_encoder", "text_encoder", "text_decoder", "vision_proj", "text_proj", "cls_head")
        modules += ("kw_encoder", "kw_proj", "mim_head", "concept_head")
        teacher = {}
        for name, shape in online.items():
            module, _, rest = name.partition(".")
            if module in modules:
                teacher[f"{module}_m.{rest}"] = shape
        return online | teacher | dict(self._alone())

    def tensors(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """Random values; what the published code ties is equal."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name, shape in self.shapes().items():
            if name.endswith("position_ids"):
                tensors[name] = torch.arange(shape[-1])[None]
            elif name in ("queue_ptr", "idx_queue"):
                tensors[name] = torch.zeros(shape, dtype=torch.long)
            else:
                tensors[name] = torch.empty(shape).uniform_(-0.035, 0.035, generator=generator)
        if "temp" in tensors:
            tensors["temp"].fill_(0.07)
        for name in tensors:
            if "norm" in name.lower() and name.endswith("weight"):
                tensors[name] += 1.0
        for name, other in self._tied(tensors):
            tensors[name] = tensors[other]
        return tensors

    def _tied(self, tensors) -> Iterator[tuple[str, str]]:
        for name in tensors:
            module, _, rest = name.partition(".")
            if rest == "cls.predictions.decoder.weight":
                yield name, f"{module}.bert.embeddings.word_embeddings.weight"
            if rest == "cls.predictions.decoder.bias":
                yield name, f"{module}.cls.predictions.bias"
            if (
                self.head in ("reasoning", "text-assignment")
                and ".crossattention.self." in name
                and ".query." not in name
            ):
                layer = int(name.split(".layer.")[1].split(".")[0])
                if layer >= self.first_fused and (layer - self.first_fused) % 2:
                    yield name, name.replace(f".layer.{layer}.", f".layer.{layer - 1}.")

    def _online(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        v, t = self.vision_width, self.text_width
        yield "visual_encoder.cls_token", (1, 1, v)
        yield "visual_encoder.pos_embed", (1, 1 + self.patches**2, v)
        if self.family == "simla" and self.head in ("pretraining", "text-assignment"):
            yield "visual_encoder.mask_token", (1, 1, v)
        yield "visual_encoder.patch_embed.proj.weight", (v, 3, 16, 16)
        yield "visual_encoder.patch_embed.proj.bias", (v,)
        yield from _blocks("visual_encoder.blocks", self.vision_layers, v)
        yield from _norm("visual_encoder.norm", v)
        yield from self._text()
        if self.head == "vqa":
            decoder = range(self.text_layers - self.first_fused)
            yield from self._bert("text_decoder.bert", len(decoder), decoder)
            yield from self._word_head("text_decoder")
        if self.family == "vicha":
            yield from self._bert("kw_encoder", self.concept_layers, ())
            yield from _linear("kw_proj", t, v)
        if self.contrasts or self.head == "text-assignment":
            yield from _linear("vision_proj", v, self.projection)
            yield from _linear("text_proj", t, self.projection)
        if self.head in ("entailment", "reasoning"):
            yield from _linear("cls_head.0", t, t)
            yield from _linear("cls_head.2", t, 3 if self.head == "entailment" else 2)
        if self.family == "simla" and self.head == "pretraining":
            yield from _linear("mim_head", t, self.visual_codes)
            yield from _linear("concept_head", self.projection, self.vocabulary)

    def _text(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        layers = self.text_layers
        if self.head in ("reasoning", "text-assignment"):
            layers += layers - self.first_fused
        first = 0 if self.family == "simla" else self.first_fused
        name = "text_encoder.bert" if self.head == "pretraining" else "text_encoder"
        yield from self._bert(name, layers, range(first, layers))
        if self.head == "pretraining":
            yield from self._word_head("text_encoder")

    def _bert(self, name: str, layers: int, crossing) -> Iterator[tuple[str, tuple[int, ...]]]:
        width = self.text_width
        yield f"{name}.embeddings.position_ids", (1, self.positions)
        yield f"{name}.embeddings.word_embeddings.weight", (self.vocabulary, width)
        yield f"{name}.embeddings.position_embeddings.weight", (self.positions, width)
        if self.family != "simla" or self.head in ("reasoning", "text-assignment"):
            yield f"{name}.embeddings.token_type_embeddings.weight", (2, width)
        yield from _norm(f"{name}.embeddings.LayerNorm", width)
        for layer in (f"{name}.encoder.layer.{number}" for number in range(layers)):
            attentions = ["attention"] + ["crossattention"] * (int(layer.rpartition(".")[2]) in crossing)
            for attention in attentions:
                # The decoder reads the question's states, which the published code takes for as wide as the image's.
                keys = self.vision_width if attention == "crossattention" else width
                yield from _linear(f"{layer}.{attention}.self.query", width, width)
                yield from _linear(f"{layer}.{attention}.self.key", keys, width)
                yield from _linear(f"{layer}.{attention}.self.value", keys, width)
                yield from _linear(f"{layer}.{attention}.output.dense", width, width)
                yield from _norm(f"{layer}.{attention}.output.LayerNorm", width)
            yield from _linear(f"{layer}.intermediate.dense", width, self.feed_forward)
            yield from _linear(f"{layer}.output.dense", self.feed_forward, width)
            yield from _norm(f"{layer}.output.LayerNorm", width)

    def _word_head(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.cls.predictions.bias", (self.vocabulary,)
        yield from _linear(f"{name}.cls.predictions.transform.dense", self.text_width, self.text_width)
        yield from _norm(f"{name}.cls.predictions.transform.LayerNorm", self.text_width)
        yield from _linear(f"{name}.cls.predictions.decoder", self.text_width, self.vocabulary)

    def _alone(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """What has no teacher."""
        if self.contrasts:
            yield "image_queue", (self.projection, self.queue)
            yield "text_queue", (self.projection, self.queue)
            yield "queue_ptr", (1,)
            if self.head != "pretraining":
                yield "idx_queue", (1, self.queue)
            yield from _linear("itm_head", self.text_width, 2)
        if self.contrasts or self.head == "text-assignment":
            yield "temp", ()
        if self.head == "text-assignment":
            yield from _linear("ta_head", self.text_width, 3)
        if self.family == "vicha" and self.head == "pretraining":
            for level in range(self.levels):
                yield from _linear(f"vision_proj_hidden.{level}", self.vision_width, self.projection)
                yield from _linear(f"text_proj_hidden.{level}", self.text_width, self.projection)
            yield "mask_token", (1, 1, self.mim_width)
            yield "decoder_pos_embed", (1, 1 + self.patches**2, self.mim_width)
            yield from _linear("decoder_embed", self.vision_width, self.mim_width)
            yield from _blocks("decoder_blocks", self.mim_layers, self.mim_width)
            yield from _norm("decoder_norm", self.mim_width)
            yield from _linear("mae_proj", self.mim_width, 16 * 16 * 3)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _blocks(name: str, layers: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for block in (f"{name}.{number}" for number in range(layers)):
        yield from _norm(f"{block}.norm1", width)
        yield from _linear(f"{block}.attn.qkv", width, 3 * width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _norm(f"{block}.norm2", width)
        yield from _linear(f"{block}.mlp.fc1", width, 4 * width)
        yield from _linear(f"{block}.mlp.fc2", 4 * width, width)
