"""Running the cases of question answering: a training step, and ranking a list of answers."""

import torch
from comparison import Comparison, GoldenCase
from recording import PublishedNames, Recorder, recording
from training_steps import compare_gradient_norms, gradients_in_float64

from vicha_hf.conversion import convert_checkpoint


ARGUMENTS = {
    "image": "pixel_values",
    "question_input_ids": "input_ids",
    "question_attention_mask": "attention_mask",
    "concept_input_ids": "concept_input_ids",
    "concept_attention_mask": "concept_attention_mask",
}
ANSWERS = {
    "answer_input_ids": "answer_input_ids",
    "answer_attention_mask": "answer_attention_mask",
    "k": "answer_counts",
    "weights": "answer_weights",
}


def compare_question_step(case: GoldenCase) -> Comparison:
    """Every expected tensor and gradient norm of one training step, and the ranking in evaluation mode."""
    comparison = Comparison()
    published = torch.load(case.checkpoint, weights_only=True)["model"]
    model = convert_checkpoint(case.checkpoint, training_state=True, **case.config_overrides).train()
    named = PublishedNames(model, published)
    questions = {ours: case.inputs[golden] for golden, ours in ARGUMENTS.items() if golden in case.inputs}
    answers = {ours: case.inputs[golden] for golden, ours in ANSWERS.items()}
    arguments = {**questions, **answers, "distillation_alpha": case.alpha}
    with recording(model, model.training_state.teacher) as recorder:
        output = model(**arguments)
    output.loss.backward()
    observed = {"total": output.loss, "answer_loss": output.answer_losses}
    observed |= _decoding(recorder, model, answers)
    observed |= named.gradients({name for name in case.expected if name.startswith("grad.")}, "grad.")
    observed |= named.values({name for name in case.expected if name.startswith("after_step.")}, "after_step.")
    observed |= _ranking(case, model.eval(), questions)
    comparison.tensors(case.expected, observed, lambda: gradients_in_float64(case, arguments))
    norms = named.gradient_norms(case.description["grad_norms_of_all_parameters"])
    compare_gradient_norms(comparison, case, norms)
    return comparison


@torch.no_grad()
def _decoding(recorder: Recorder, model, answers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Images, questions and token logits of the model and of its teacher."""
    observed, teacher = {}, model.training_state.teacher
    if (call := recorder.first("concepts")) is not None:
        observed["kw_embeds"] = call.output
    for suffix, prefix in (("", ""), ("_m", "teacher_")):
        observed[f"image_embeds{suffix}"] = recorder.first(f"{prefix}vision").output.last_hidden_state
        states = recorder.first(f"{prefix}text").output.last_hidden_state
        observed[f"question_states{suffix}"] = states.repeat_interleave(answers["answer_counts"], dim=0)
    observed["logits_m"] = teacher["mlm_head"](recorder.first("teacher_answer_decoder").output.last_hidden_state)
    # The step leaves out the last column, which predicts nothing; the golden logits have it.
    given = recorder.first("answer_decoder").arguments
    states = model.answer_decoder(
        answers["answer_input_ids"],
        answers["answer_attention_mask"],
        question=given["question"],
        question_index=given["question_index"],
    ).last_hidden_state
    observed["answer_logits"] = model.mlm_head(states)
    return observed


def _ranking(case: GoldenCase, model, questions: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if "eval.answer_input_ids" not in case.inputs:
        return {}
    ids, k = case.inputs["eval.answer_input_ids"], case.inputs["eval.k"].item()
    answers = {"input_ids": ids, "attention_mask": case.inputs["eval.answer_attention_mask"]}
    ranking = model.rank_answers(**questions, answers=answers, top_k=k)
    first_token = ranking.first_token_logits.softmax(dim=1)[:, ids[:, 1]]
    # The golden scores stand in the order of the first tokens' probabilities, the model's in the order that results.
    first_probability, candidates = first_token.topk(k, dim=1)
    place = (ranking.answer_indices[:, None, :] == candidates[:, :, None]).long().argmax(dim=2)
    scores = ranking.scores.gather(1, place)
    return {
        "eval.topk_ids": ranking.answer_indices,
        "eval.topk_probs": ranking.probabilities,
        "eval.first_token_logits": ranking.first_token_logits,
        "eval.prob_first_token": first_token,
        "eval.log_probs_sum": scores,
        "eval.answer_loss": (first_probability.log() - scores).reshape(-1, 1),
    }
