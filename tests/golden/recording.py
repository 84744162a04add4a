"""Listening to a training step: the numbers that modules pass to each other, under their golden names."""

import inspect
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vicha_hf.conversion.checkpoint_config import detect_layout
from vicha_hf.conversion.key_table import translate
from vicha_hf.models.objective_image_token_reconstruction import ImageTokenReconstructionOutput
from vicha_hf.training.optimizer import parameter_groups


@dataclass
class Call:
    """One call of a module: its arguments by name and what it returned."""

    arguments: dict
    output: object


@torch.no_grad()
def _with_all_rows(module, args, kwargs, output):
    """
    What a text encoder would have returned for every position, where the step asked for some (golden numbers hold
    all). Those that it asked for must be the same.
    """
    index = kwargs["output_index"]
    complete = module.forward(*args, **{**kwargs, "output_index": None})
    wanted = complete.last_hidden_state.take_along_dim(index.unsqueeze(-1), dim=1)
    torch.testing.assert_close(output.last_hidden_state, wanted, rtol=1e-5, atol=1e-6)
    return complete


class Recorder:
    """The calls of the modules that are listened to, in order."""

    def __init__(self):
        self.calls: dict[str, list[Call]] = defaultdict(list)

    def listen(self, name: str, module: torch.nn.Module | None) -> Callable:
        if module is None:
            return lambda: None
        signature = inspect.signature(inspect.unwrap(type(module).forward))

        def hook(module, args, kwargs, output):
            arguments = signature.bind(module, *args, **kwargs).arguments
            if kwargs.get("output_index") is not None:
                output = _with_all_rows(module, args, kwargs, output)
            self.calls[name].append(Call({**arguments.pop("kwargs", {}), **arguments}, output))

        return module.register_forward_hook(hook, with_kwargs=True).remove

    def first(self, name: str, condition=lambda arguments: True) -> Call | None:
        return next((call for call in self.calls[name] if condition(call.arguments)), None)


@contextmanager
def recording(model, teacher):
    """Listens to a model and its teacher, if it has one, while the block runs."""
    recorder = Recorder()
    stoppers = [recorder.listen(name, module) for name, module in _listened(model, teacher)]
    try:
        yield recorder
    finally:
        for stop in stoppers:
            stop()


def _listened(model, teacher):
    for prefix, modules in (("", dict(model.named_children())), ("teacher_", teacher or {})):
        if model.base_model_prefix in modules:
            base = modules[model.base_model_prefix]
            yield f"{prefix}concepts", getattr(base, "concept_projection", None)
            yield f"{prefix}vision", base.vision_model
            yield f"{prefix}text", base.text_model
        for name in ("entailment_classifier", "reasoning_classifier", "answer_decoder"):
            if name in modules:
                yield f"{prefix}{name}", modules[name]
    for name in ("itc", "negative_sampler", "itm", "hierarchical_itc", "mim", "psl"):
        yield name, getattr(model, name, None)


def observed_step(recorder: Recorder, model, teacher) -> dict[str, torch.Tensor]:
    """The intermediate numbers of one training step, by golden name."""
    observed = {}
    for suffix, prefix in (("", ""), ("_m", "teacher_")):
        if (call := recorder.first(f"{prefix}concepts")) is not None:
            observed[f"kw_embeds{suffix}"] = call.output
        call = recorder.first(f"{prefix}vision", lambda arguments: arguments.get("patch_indices") is None)
        observed[f"image_embeds{suffix}"] = call.output.last_hidden_state
    text = recorder.first("text", lambda arguments: arguments.get("mode") == "text")
    observed["text_embeds"] = text.output.last_hidden_state

    itc = recorder.first("itc")
    names = {"image_embeds": "image_feat", "text_embeds": "text_feat"}
    for ours, golden in names.items():
        observed[golden] = itc.arguments[ours]
        observed[f"{golden}_m"] = itc.arguments[f"teacher_{ours}"]
    for direction in ("i2t", "t2i"):
        observed[f"sim_{direction}"] = itc.output[f"sim_{direction}"]
        observed[f"sim_{direction}_m"] = itc.output[f"sim_{direction}_teacher"]
        observed[f"sim_{direction}_targets"] = itc.output[f"targets_{direction}"]
        observed[f"loss_{direction}"] = itc.output[f"loss_{direction}"]
    observed |= _negative_weights(recorder.first("negative_sampler"))
    observed["sim_targets"] = _positives(itc)
    observed["loss_ita_main"] = itc.output.loss

    pairs = recorder.first("text", lambda arguments: arguments.get("encoder_index") is not None)
    batch_size = len(itc.arguments["image_embeds"])
    observed["output_pos"] = pairs.output.last_hidden_state[:batch_size]
    observed["output_neg"] = pairs.output.last_hidden_state[batch_size:]
    observed["vl_output"] = recorder.first("itm").output.logits
    observed["loss_itm"] = recorder.first("itm").output.loss

    masked = recorder.first("text", lambda arguments: arguments.get("mode") is None)
    if masked is not None:
        observed["mlm_logits"] = model.mlm_head(masked.output.last_hidden_state)
        masked = recorder.first("teacher_text", lambda arguments: arguments.get("mode") is None)
        observed["logits_m"] = teacher["mlm_head"](masked.output.last_hidden_state)
    observed |= _hierarchy(recorder.first("hierarchical_itc"))
    if (mim := recorder.first("mim")) is not None:
        is_simla = isinstance(mim.output, ImageTokenReconstructionOutput)
        observed |= _image_tokens(recorder, model, teacher, mim) if is_simla else _image_modelling(mim)
    observed |= _keywords(recorder.first("psl"))
    return observed


def _negative_weights(call: Call) -> dict[str, torch.Tensor]:
    """The proportions in which hard negatives are drawn: softmaxed similarity, 0 for pairs of the same image."""
    given = call.arguments
    columns = torch.arange(given["sim_i2t"].shape[1])
    same = columns[: len(given["sim_i2t"]), None] + given["own_start"] == columns
    if given["image_ids"] is not None:
        candidates = given["image_ids"] if given["candidate_ids"] is None else given["candidate_ids"]
        same = same | (given["image_ids"][:, None] == candidates[None, :])
    return {
        f"weights_{direction}": given[f"sim_{direction}"].softmax(dim=1).masked_fill(same, 0.0)
        for direction in ("i2t", "t2i")
    }


def _positives(itc: Call) -> torch.Tensor:
    """The targets without the teacher's share."""
    alpha = itc.arguments["alpha"]
    return (itc.output.targets_i2t - alpha * itc.output.sim_i2t_teacher.softmax(dim=1)) / (1 - alpha)


def _image_tokens(recorder: Recorder, model, teacher, call: Call) -> dict[str, torch.Tensor]:
    """Reconstruction of visual tokens, at every patch: the image tokens are the text encoder's only given embeddings."""
    tokens, tokens_m = (
        recorder.first(name, lambda arguments: arguments.get("inputs_embeds") is not None).output.last_hidden_state
        for name in ("text", "teacher_text")
    )
    log_probabilities = call.output.logits.log_softmax(dim=-1)
    return {
        "post_mask_cross_embeds": tokens[:, 1:],
        "predicted_visual_tokens": model.mim.head(tokens[:, 1:]),
        "vis_tok_logits_m": teacher["mim"].head(tokens_m[:, 1:]),
        "loss_distill": -(call.output.teacher_logits.softmax(dim=-1) * log_probabilities).sum(dim=-1).mean(),
        "loss_mim": call.output.loss,
    }


def _keywords(call: Call | None) -> dict[str, torch.Tensor]:
    if call is None:
        return {}
    output = call.output
    return {
        "pseudo_attention": call.arguments["attention"],
        "counts_per_position": output.keywords.votes,
        "most_salient_tokens": call.arguments["input_ids"].gather(1, output.keywords.positions),
        "concept_hard_targets": output.hard_targets,
        "concept_soft_targets": output.soft_targets,
        "pseudolabel_predictions": output.logits,
        "loss_pseudolabels_hard": output.hard_loss,
        "loss_pseudolabels_soft": output.soft_loss,
        "loss_pseudolabels": output.loss,
    }


def _hierarchy(call: Call | None) -> dict[str, torch.Tensor]:
    if call is None:
        return {}
    return {
        "image_hidden_cls": torch.stack(list(call.arguments["image_levels"])),
        "text_hidden_cls": torch.stack(list(call.arguments["text_levels"])),
        "hidden_sim_i2t_last_level": call.output.sim_i2t[-1],
        "hidden_targets": call.output.targets[-1],
        "loss_ita_hidden": call.output.loss,
    }


def _image_modelling(call: Call) -> dict[str, torch.Tensor]:
    output = call.output
    observed = {
        "mae_encoder_out": output.image_tokens,
        "mae_mask": output.mask.removed,
        "mae_ids_restore": output.mask.restore_indices,
        "mae_target": output.target,
        "loss_mae": output.loss,
    }
    if output.decoder_states is not None:
        observed["mae_decoder_out"] = output.decoder_states
    for index, (prediction, loss) in enumerate(zip(output.predictions, output.branch_losses, strict=True)):
        observed[f"mae_pred_{index}" if len(output.predictions) > 1 else "mae_pred"] = prediction
        observed[f"mae_loss_part_{index}"] = loss
    return observed


class PublishedNames:
    """A model's tensors under the names of the published checkpoint that it was converted from."""

    def __init__(self, model, published: dict[str, torch.Tensor]):
        self.model = model
        self.published = published
        self.layout = detect_layout(published)

    def values(self, names, prefix: str) -> dict[str, torch.Tensor]:
        return self._collect(names, prefix, dict(self.model.state_dict(keep_vars=True)))

    def gradients(self, names, prefix: str) -> dict[str, torch.Tensor]:
        parameters = self.model.named_parameters(remove_duplicate=False)
        return self._collect(names, prefix, {name: p.grad for name, p in parameters if p.grad is not None})

    def gradient_norms(self, names) -> dict[str, torch.Tensor]:
        return {name: value.norm() for name, value in self.gradients(names, "").items()}

    def parameters(self, name: str) -> tuple[str, ...]:
        return translate(name, self.layout).names

    def _collect(self, names, prefix, tensors) -> dict[str, torch.Tensor]:
        collected = {}
        for name in names:
            target = translate(name.removeprefix(prefix), self.layout)
            if target is not None and target.names and all(part in tensors for part in target.names):
                joined = target.join(tensors)
                shape = self.published[name.removeprefix(prefix)].shape
                collected[name] = joined.reshape(shape) if joined.numel() == shape.numel() else joined
        return collected


def decay_groups(model) -> tuple[set[str], set[str]]:
    """The names of the parameters that are decayed and that are not."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {True: set(), False: set()}
    for group in parameter_groups(model, 1.0):
        groups[group["weight_decay"] > 0] |= {names[id(parameter)] for parameter in group["params"]}
    return groups[True], groups[False]
