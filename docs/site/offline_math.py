"""Site hook: equations become MathML, which browsers draw by themselves, without a script from anywhere."""

import html
import re

from latex2mathml.converter import convert


INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content, page, config, files):
    """Replaces what the Markdown extension `arithmatex` has marked."""
    content = DISPLAY.sub(lambda match: f'<div class="equation">{_mathml(match[1], "block")}</div>', content)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), content)


def _mathml(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
