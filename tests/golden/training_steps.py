"""Running the training-step cases: pretraining (in one or several processes) and retrieval fine-tuning."""

import copy
import tempfile
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from comparison import Comparison, GoldenCase
from real_processes import run_in_processes
from recording import PublishedNames, decay_groups, observed_step, recording

from vicha_hf.conversion import convert_checkpoint
from vicha_hf.conversion.checkpoint_config import detect_family
from vicha_hf.models.encoder_attention import RealTokens
from vicha_hf.models.objective_mlm import IGNORED
from vicha_hf.training.optimizer import parameter_groups


# Of each family: patterns of expected keys that have no counterpart here, each with its reason.
WITHOUT_COUNTERPART = {
    "vicha": {},
    "simla": {
        r"(rank\d+\.)?after_step\.idx_queue": "the published code never writes the ids of the features that it enqueues, so "
        "that they name other features after one step; here both are enqueued, as ViCHA's golden numbers have it",
    },
}

ARGUMENTS = {
    "image": "pixel_values",
    "text_input_ids": "input_ids",
    "text_attention_mask": "attention_mask",
    "concept_input_ids": "concept_input_ids",
    "concept_attention_mask": "concept_attention_mask",
    "idx": "image_ids",
    "mlm_input_ids": "mlm_input_ids",
    "mlm_labels": "mlm_labels",
    "mae_noise": "mim_noise",
    "visual_token_ids": "visual_token_ids",
    "masked_visual_token_pos": "bool_masked_pos",
    "itm_neg_image_idx": "negative_image_indices",
    "itm_neg_text_idx": "negative_text_indices",
}


def model_arguments(inputs: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
    return {ours: inputs[prefix + golden] for golden, ours in ARGUMENTS.items() if prefix + golden in inputs}


def run_step(case: GoldenCase, head: str, names, prefix: str = "") -> dict[str, torch.Tensor]:
    """One training step; the values of the golden `names` (which carry the rank's `prefix`)."""
    wanted = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    published = torch.load(case.checkpoint, weights_only=True)["model"]
    model = convert_checkpoint(case.checkpoint, head=head, training_state=True, **case.config_overrides).train()
    named = PublishedNames(model, published)
    arguments = model_arguments(case.inputs, prefix)
    observed, losses = _observed_with_padding(copy.deepcopy(model), arguments, case.alpha)
    output = model(**arguments, distillation_alpha=case.alpha)
    for name, loss in losses.items():
        torch.testing.assert_close(
            output[name], loss, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    total = output.loss
    if "mlm_loss" in output:
        # The published code averages each process's mean; here the mean is over the positions of all processes. The
        # two differ by the own share of the positions, which is undone for the comparison.
        own_share = _share_of_predicted_positions(arguments["mlm_labels"])
        observed["loss_mlm"] = output.mlm_loss / own_share
        total = total + model.config.mlm_weight * (observed["loss_mlm"] - output.mlm_loss)
    observed["loss_ita"] = observed["loss_ita_main"]
    if "loss_ita_hidden" in observed:
        hidden = model.config.hierarchical_itc_weight * observed["loss_ita_hidden"]
        observed["loss_ita"] = observed["loss_ita"] + hidden
    if "most_salient_tokens" in observed:
        observed["most_salient_tokens"] = _in_the_order_of(
            case.expected[prefix + "most_salient_tokens"], observed["most_salient_tokens"]
        )
    observed["total"] = total
    total.backward()
    observed |= named.gradients({name for name in wanted if name.startswith("grad.")}, "grad.")
    observed |= named.values({name for name in wanted if name.startswith("after_step.")}, "after_step.")
    observed["gradient_norms"] = named.gradient_norms(case.description.get("grad_norms_of_all_parameters", {}))
    observed |= _evaluation(case, model)
    if any(name.startswith("after_optim.") for name in wanted):
        norms = observed.pop("gradient_norms")
        observed = {name: value.detach().clone() for name, value in observed.items()} | {"gradient_norms": norms}
        torch.optim.AdamW(parameter_groups(model, 0.02), lr=1e-3).step()
        observed |= named.values({name for name in wanted if name.startswith("after_optim.")}, "after_optim.")
    observed["decay_groups"] = decay_groups(model), named
    return observed


def _observed_with_padding(model, arguments: dict, alpha: float) -> tuple[dict, dict]:
    """
    The intermediate numbers, by golden name, and the losses of a step that computes the states of padding too, as the
    published code does. Nothing reads them, and the package's own step leaves them out: the golden numbers hold them.
    """
    teacher = model.training_state.teacher
    kept = mock.patch.object(RealTokens, "of", lambda attention_mask: None)
    with kept, recording(model, teacher) as recorder:
        output = model(**arguments, distillation_alpha=alpha)
    losses = {name: value.detach() for name, value in output.items() if name.endswith("loss")}
    return observed_step(recorder, model, teacher), losses


def _in_the_order_of(expected: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Rows of the same tokens in the golden order: among equal votes it is arbitrary."""
    same = observed.sort(dim=1).values == expected.sort(dim=1).values
    return torch.where(same.all(dim=1, keepdim=True), expected, observed)


def _share_of_predicted_positions(labels: torch.Tensor) -> float:
    own = total = (labels != IGNORED).sum().double()
    processes = 1
    if dist.is_initialized():
        total, processes = own.clone(), dist.get_world_size()
        dist.all_reduce(total)
    return (own / (total / processes)).item()


@torch.no_grad()
def _evaluation(case: GoldenCase, model) -> dict[str, torch.Tensor]:
    """Retrieval inference: encodings, similarities and the re-ranked score matrices for each k in the names."""
    if "eval.image" not in case.inputs:
        return {}
    model.eval()
    given = {name.removeprefix("eval."): value for name, value in case.inputs.items() if name.startswith("eval.")}
    images = model.encode_images(given["image"], given.get("concept_input_ids"), given.get("concept_attention_mask"))
    texts = model.encode_texts(given["text_input_ids"], given["text_attention_mask"])
    observed = {
        "eval.image_feats": images.hidden_states,
        "eval.image_embeds": images.embeds,
        "eval.text_feats": texts.hidden_states,
        "eval.text_embeds": texts.embeds,
        "eval.sims": images.embeds @ texts.embeds.T,
    }
    for k in {name.split(".")[1] for name in case.expected if ".score_matrix_" in name}:
        scores = model.rerank(images, texts, k=int(k.removeprefix("k")), similarity_weight=0)
        observed[f"eval.{k}.score_matrix_i2t"] = scores.scores_i2t
        observed[f"eval.{k}.score_matrix_t2i"] = scores.scores_t2i
    return observed


def compare_step(case: GoldenCase, head: str) -> Comparison:
    """A single-process case: every expected tensor, every gradient norm, and the optimiser's groups."""
    comparison = Comparison(_without_counterpart(case))
    observed = run_step(case, head, case.expected)
    groups, named = observed.pop("decay_groups")
    comparison.tensors(case.expected, observed)
    compare_gradient_norms(comparison, case, observed["gradient_norms"])
    if "optimizer" in case.description:
        for golden, ours in zip(("decay", "no_decay"), groups, strict=True):
            for name in case.description["optimizer"][golden]:
                comparison.equal(f"optimizer.{golden}.{name}", True, set(named.parameters(name)) <= ours)
    return comparison


def _without_counterpart(case: GoldenCase) -> dict[str, str]:
    return WITHOUT_COUNTERPART[detect_family(torch.load(case.checkpoint, weights_only=True)["model"])]


def compare_gradient_norms(comparison: Comparison, case: GoldenCase, observed: dict[str, torch.Tensor]) -> None:
    """
    All the norms as one vector: the tolerance follows the largest. The smallest are rounding in the golden numbers
    themselves. A key bias has no gradient at all (it adds the same number to every score of a query, which softmax
    ignores), and float64 moves the upper layers' query and key norms, about 1e-5 beside 70 for the temperature, by 3e-4.
    """
    norms = case.description["grad_norms_of_all_parameters"]
    for name in [name for name, norm in norms.items() if norm is None]:
        comparison.equal(f"norm.{name} has a gradient", False, name in observed)
    names = [name for name, norm in norms.items() if norm is not None and name in observed]
    missing = [name for name, norm in norms.items() if norm is not None and name not in observed]
    comparison.differences.extend(f"norm.{name}: nothing to compare it with" for name in missing)
    comparison.vector(
        [f"norm.{name}" for name in names],
        torch.tensor([norms[name] for name in names]),
        torch.stack([observed[name] for name in names]),
    )


def gradients_in_float64(case: GoldenCase, arguments: dict) -> dict[str, torch.Tensor]:
    """The gradients of a fine-tuning step with the checkpoint's own head, computed in float64."""
    published = torch.load(case.checkpoint, weights_only=True)["model"]
    model = convert_checkpoint(case.checkpoint, training_state=True, **case.config_overrides).train().double()
    model(**arguments).loss.backward()
    return PublishedNames(model, published).gradients({n for n in case.expected if n.startswith("grad.")}, "grad.")


def compare_step_across_processes(case: GoldenCase, head: str) -> Comparison:
    """A case of several processes: each rank's tensors, under the prefix `rankR.`."""
    world_size = case.description["hyper"]["world_size"]
    comparison = Comparison(_without_counterpart(case))
    for name in ("grad_norms_of_all_parameters", "optimizer"):
        if case.description.get(name):
            comparison.differences.append(f"{name}: of which process? There is no way to compare it")
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_in_processes(_rank_step, folder, world_size, str(case.folder), head)
    observed = {f"rank{rank}.{name}": value for rank, record in enumerate(ranks) for name, value in record.items()}
    comparison.tensors(case.expected, observed)
    return comparison


def _rank_step(rank: int, case_folder: str, head: str) -> dict[str, torch.Tensor]:
    case = GoldenCase.load(Path(case_folder))
    observed = run_step(case, head, case.expected, prefix=f"rank{rank}.")
    return {name: value.detach() for name, value in observed.items() if torch.is_tensor(value)}
