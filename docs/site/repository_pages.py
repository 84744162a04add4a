"""Site hook: pages of the repository that lie outside `docs/`, and links that leave `docs/`."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[2]
# Where a file of the repository stands on the site.
PAGES = {
    "examples/benchmarks/RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<target>[^)\s]+)\)")


def on_files(files, config):
    """Adds the results, the contributors' guide and the changelog to the site."""
    for source, page in PAGES.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    """Points links at the site's pages; a link to a file that has no page becomes plain text."""
    sources = {target: source for source, target in PAGES.items()}
    generated = page.file.generated_by is not None
    source = sources[page.file.src_uri] if generated else f"docs/{page.file.src_uri}"

    def rewrite(match: re.Match) -> str:
        path, mark, anchor = match["target"].partition("#")
        if not path or "://" in path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        on_site = PAGES.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if on_site is None:
            return match["text"]
        relative = posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{match['text']}]({relative}{mark}{anchor})"

    return "".join(
        part if part.startswith("```") else LINK.sub(rewrite, part)
        for part in re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    )
