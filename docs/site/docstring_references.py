"""Site hook: names in docstrings, written [`~ViChaModel.forward`] as transformers does, become links where they can."""

import re


REFERENCE = re.compile(r"\[<code>~?(?P<name>[\w.]+)</code>\]")


def on_page_content(content, page, config, files):
    """The plugin `autorefs` resolves the links later; a name without a place on the site stays plain code."""
    return REFERENCE.sub(_link, content)


def _link(match: re.Match) -> str:
    name = match["name"]
    code = f"<code>{name.removeprefix('transformers.')}</code>"
    return f'<autoref identifier="vicha_hf.{name}" optional>{code}</autoref>'
