"""Site hook: what docstrings write as transformers does, for a reader of the site.

Names, written [`~ViChaModel.forward`], become links where they can. Types, written `int`, *optional*, lose their marks.
"""

import re


MARKED_TYPE = re.compile(r"<code>(?:<[^>]*>)*`\w[^<]*(?:<[^>]*>[^<]*)*?</code>")
REFERENCE = re.compile(r"\[<code>~?(?P<name>[\w.]+)</code>\]")


def on_page_content(content, page, config, files):
    """The plugin `autorefs` resolves the links later; a name without a place on the site stays plain code."""
    if not page.file.src_uri.startswith("api/"):
        return content
    content = MARKED_TYPE.sub(lambda match: match[0].replace("`", "").replace("*", ""), content)
    return REFERENCE.sub(_link, content)


def _link(match: re.Match) -> str:
    name = match["name"]
    code = f"<code>{name.removeprefix('transformers.')}</code>"
    return f'<autoref identifier="vicha_hf.{name}" optional>{code}</autoref>'
