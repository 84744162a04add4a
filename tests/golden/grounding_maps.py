"""Running the grounding cases: Grad-CAM heat maps, and what they are made of."""

import torch
from comparison import Comparison, GoldenCase
from training_steps import model_arguments

from vicha_hf.conversion import convert_checkpoint


def compare_grounding(case: GoldenCase) -> Comparison:
    """Both methods, called as inference is: in evaluation mode, with gradients switched off outside."""
    comparison = Comparison()
    model = convert_checkpoint(case.checkpoint, head="grounding", **case.config_overrides)
    arguments, blocks = model_arguments(case.inputs), case.description["blocks"]
    observed = {}
    with torch.no_grad():
        match = model(**arguments, method="itm", layer=blocks["itm"]["text_layer"])
        similarity = model(**arguments, method="itc", layer=blocks["itc"]["vision_block"])
    for name, output in (("itm", match), ("itc", similarity)):
        observed[f"{name}.heatmap"] = output.heatmaps
        observed[f"{name}.attention"] = output.attention
        observed[f"{name}.grads"] = output.attention_gradient
    observed |= {"itm.logits": match.match_logits, "itc.sim": similarity.similarity}
    if "itc.attention" in case.expected and case.expected["itc.attention"].dim() == 2:
        # The published script uses the variable again, to go through the maps: what was recorded is the last map.
        observed["itc.attention"] = similarity.heatmaps[-1]
    comparison.tensors(case.expected, observed)
    return comparison
