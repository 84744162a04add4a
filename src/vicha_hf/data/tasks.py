"""Names of the tasks whose annotations can be read."""

TASKS = ("retrieval", "vqa", "entailment", "reasoning", "grounding")
