"""Running the cases of the classifying heads: entailment, reasoning and text assignment."""

import torch
from comparison import Comparison, GoldenCase
from recording import PublishedNames, Recorder, recording
from training_steps import compare_gradient_norms

from vicha_hf.conversion import convert_checkpoint
from vicha_hf.models.task_text_assignment import SIMILARITY_TEMPERATURE


ARGUMENTS = {
    "image": "pixel_values",
    "text_input_ids": "input_ids",
    "text_attention_mask": "attention_mask",
    "concept_input_ids": "concept_input_ids",
    "concept_attention_mask": "concept_attention_mask",
    "targets": "labels",
    "labels": "labels",
    "pair_idx": "pair_indices",
}


def model_arguments(inputs: dict[str, torch.Tensor]) -> dict:
    arguments = {ours: inputs[golden] for golden, ours in ARGUMENTS.items() if golden in inputs}
    if "images" in inputs:
        arguments["pixel_values"] = torch.stack(inputs["images"].chunk(2), dim=1)
    for part in ("input_ids", "attention_mask"):
        if f"concept1_{part}" in inputs:
            arguments[f"concept_{part}"] = (inputs[f"concept1_{part}"], inputs[f"concept2_{part}"])
    return arguments


def compare_head_step(case: GoldenCase, head: str) -> Comparison:
    """Every expected tensor and every gradient norm of one training step, and inference in evaluation mode."""
    comparison = Comparison()
    published = torch.load(case.checkpoint, weights_only=True)["model"]
    model = convert_checkpoint(case.checkpoint, head=head, training_state=True, **case.config_overrides).train()
    named, arguments = PublishedNames(model, published), model_arguments(case.inputs)
    teacher = None if model.training_state is None else model.training_state.teacher
    # Text assignment has no teacher and hence no alpha.
    if teacher is not None:
        arguments["distillation_alpha"] = case.alpha
    with recording(model, teacher) as recorder:
        output = model(**arguments)
    output.loss.backward()
    observed = {"total": output.loss, "text_output": output.last_hidden_state, "prediction": output.logits}
    observed |= {"pred": output.logits, "hidden_state": output.last_hidden_state[:, 0]}
    observed |= _encodings(recorder, has_teacher=teacher is not None)
    if teacher is not None:
        observed["prediction_m"] = recorder.first(f"teacher_{model.CLASSIFIER}").output
    if model.base_model.vision_projection is not None:
        observed["image_feat"] = model.base_model.project_image(observed["image_embeds"])
        observed["weights"] = other_image_weights(observed["image_feat"])
    observed |= named.gradients({name for name in case.expected if name.startswith("grad.")}, "grad.")
    observed |= named.values({name for name in case.expected if name.startswith("after_step.")}, "after_step.")
    with torch.no_grad():
        inference = {name: value for name, value in arguments.items() if name != "labels"}
        if "eval.prediction" in case.expected:
            observed["eval.prediction"] = model.eval()(**inference).logits
    comparison.tensors(case.expected, observed)
    compare_gradient_norms(comparison, case, named.gradient_norms(case.description["grad_norms_of_all_parameters"]))
    return comparison


def other_image_weights(image_embeds: torch.Tensor) -> torch.Tensor:
    """The proportions in which other images are drawn for each text."""
    similarity = image_embeds @ image_embeds.T / SIMILARITY_TEMPERATURE
    return similarity.softmax(dim=1).fill_diagonal_(0.0)


def _encodings(recorder: Recorder, has_teacher: bool) -> dict[str, torch.Tensor]:
    """Images and concepts; of two images each, whether they were encoded together or one after the other."""
    online = [call.output.last_hidden_state for call in recorder.calls["vision"]]
    teacher = [call.output.last_hidden_state for call in recorder.calls["teacher_vision"]]
    if has_teacher and not teacher:
        # Quirk `nlvr_online_teacher`: the online vision encoder ran a second time.
        online, teacher = online[: len(online) // 2], online[len(online) // 2 :]
    concepts = [call.output for call in recorder.calls["concepts"]]
    observed = {}
    for suffix, states in (("", online), ("_m", teacher)):
        if states:
            observed[f"image_embeds{suffix}"] = states[0]
            observed |= {f"image{index}_embeds{suffix}": part for index, part in enumerate(_two(states))}
    if concepts:
        observed["kw_embeds"] = concepts[0]
        observed |= {f"kw_embeds{index + 1}": part for index, part in enumerate(_two(concepts))}
    return observed


def _two(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return tensors if len(tensors) == 2 else list(tensors[0].chunk(2))
