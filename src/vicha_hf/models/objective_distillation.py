"""Cross-entropy whose targets are shared between the labels and a momentum teacher (ALBEF section 3.3)."""

import torch


def distilled_cross_entropy(
    logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    alpha: float,
    soft_log_probabilities: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    (1 - alpha) * cross-entropy with `labels` [M] + alpha * cross-entropy with the softmax of `teacher_logits`
    [M, classes], for each row of `logits` [M, classes] -> [M]. Without teacher logits the labels alone count.
    `soft_log_probabilities` [M, classes] meet the teacher's in place of the logits' own.
    """
    precision = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.log_softmax(dim=-1, dtype=precision)
    hard = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    if teacher_logits is None:
        return hard
    if soft_log_probabilities is None:
        soft_log_probabilities = log_probabilities
    soft = -(soft_log_probabilities * teacher_logits.softmax(dim=-1, dtype=precision)).sum(dim=-1)
    return (1 - alpha) * hard + alpha * soft
