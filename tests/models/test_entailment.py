"""Visual entailment: the loss against its formula, and input that is refused."""

import pytest
import torch
from head_checks import inference_inputs, step_inputs, tiny_head


def _logits_by_hand(vicha, classifier, inputs, row):
    """One sample alone, without padding."""
    length, concepts = inputs["attention_mask"][row].sum(), inputs["concept_attention_mask"][row].sum()
    images = vicha.encode_images(
        inputs["pixel_values"][row : row + 1], inputs["concept_input_ids"][row : row + 1, :concepts]
    )
    texts = vicha.encode_texts(inputs["input_ids"][row : row + 1, :length])
    fused = vicha.text_model(
        inputs_embeds=texts.hidden_states, encoder_hidden_states=images.hidden_states, mode="fusion"
    ).last_hidden_state[0, 0]
    return classifier.output(torch.relu(classifier.dense(fused)))


def test_distilled_loss_against_its_formula():
    model, alpha = tiny_head("entailment", momentum=0.7).train(), 0.3
    model.add_training_state()
    with torch.no_grad():
        for parameter in model.entailment_classifier.parameters():
            parameter.mul_(1.5)
    inputs = step_inputs("entailment")
    output = model(**inputs, distillation_alpha=alpha)
    teacher, expected = model.training_state.teacher, []
    with torch.no_grad():
        for row, label in enumerate(inputs["labels"]):
            log_probabilities = _logits_by_hand(model.vicha, model.entailment_classifier, inputs, row).log_softmax(0)
            soft = _logits_by_hand(teacher["vicha"], teacher["entailment_classifier"], inputs, row).softmax(0)
            expected.append(-(1 - alpha) * log_probabilities[label] - alpha * (soft * log_probabilities).sum())
    torch.testing.assert_close(output.loss, torch.stack(expected).mean())
    assert output.distillation_alpha == alpha


def test_evaluation_loss_is_plain_cross_entropy_and_changes_nothing():
    model, inputs = tiny_head("entailment"), step_inputs("entailment")
    output = model(**inputs)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, inputs["labels"]))
    assert model.training_state is None and output.distillation_alpha is None
    assert model(**inference_inputs("entailment")).loss is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), r"\[3\]"),
        (torch.tensor([0, 1, 3]), "contradiction"),
        (torch.tensor([0, -1, 1]), "contradiction"),
        (torch.tensor([0.0, 1.0, 2.0]), "integer"),
    ],
)
def test_impossible_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_head("entailment")(**inference_inputs("entailment"), labels=labels)


def test_training_without_labels():
    output = tiny_head("entailment").train()(**inference_inputs("entailment"))
    assert output.loss is None and output.logits.requires_grad
