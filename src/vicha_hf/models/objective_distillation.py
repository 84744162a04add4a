"""Cross-entropy whose targets are shared between the labels and a momentum teacher (ALBEF section 3.3)."""

import torch


def distilled_cross_entropy(
    logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor, alpha: float
) -> torch.Tensor:
    """
    (1 - alpha) * cross-entropy with `labels` [M] + alpha * cross-entropy with the softmax of `teacher_logits`
    [M, classes], for each row of `logits` [M, classes] -> [M]. Without teacher logits the labels alone count.
    """
    log_probabilities = logits.float().log_softmax(dim=-1)
    hard = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    if teacher_logits is None:
        return hard
    soft = -(log_probabilities * teacher_logits.float().softmax(dim=-1)).sum(dim=-1)
    return (1 - alpha) * hard + alpha * soft
