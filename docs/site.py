"""What mkdocs does beside: a page for each public name, and equations as MathML."""

from __future__ import annotations

import html
import re

import latex2mathml.converter
from mkdocs.structure.files import File

import lejax

# A group of names in lejax's docstring: its title, and a line for each name.
GROUP = re.compile(r"^(\S[^\n]*)\n((?:    \S[^\n]*\n)+)", re.MULTILINE)
NAME = re.compile(r"^    (\w+) +(.*)$", re.MULTILINE)
# Equations as Markdown leaves them, and as they stand in notebooks.
EQUATION = re.compile(
    r'<(?:span|div) class="arithmatex">\\[(\[](?P<of_page>.*?)\\[)\]]</(?:span|div)>',
    re.DOTALL,
)
IN_NOTEBOOK = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)
CODE = re.compile(r"(?<!<a )<code>(?:lejax\.)?(\w+)(\([^<]*\))?</code>")


def groups() -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles, and names with what they are, as the package lists them."""
    return [
        (title.split(":")[0], NAME.findall(lines))
        for title, lines in GROUP.findall(f"{lejax.__doc__}\n")
    ]


def on_config(config):
    """The table of contents has every public name."""
    pages = ["api/index.md"]
    pages += [
        {title: [{name: f"api/{name}.md"} for name, _ in names]}
        for title, names in groups()
    ]
    (place,) = [entry for entry in config.nav if "API" in entry]
    place["API"] = pages
    return config


def on_files(files, config):
    """A page for each public name, and one that lists them."""
    lines = ["# API\n"]
    for title, names in groups():
        lines += [f"\n## {title}\n", "| | |", "| --- | --- |"]
        for name, what in names:
            lines.append(f"| [`{name}`]({name}.md) | {what} |")
            page = f"---\ntitle: {name}\n---\n\n::: lejax.{name}\n"
            files.append(File.generated(config, f"api/{name}.md", content=page))
    files.append(
        File.generated(config, "api/index.md", content="\n".join(lines) + "\n")
    )
    return files


def mathml(latex: str, *, block: bool) -> str:
    """An equation for browsers, which need no script for it."""
    display = "block" if block else "inline"
    return latex2mathml.converter.convert(html.unescape(latex), display=display)


def of_page(found: re.Match[str]) -> str:
    return mathml(found["of_page"], block=found[0].startswith("<div"))


def in_notebook(found: re.Match[str]) -> str:
    return mathml(found["block"] or found["inline"], block=bool(found["block"]))


def outside(pattern: str, text: str, change) -> str:
    """`text` with what is outside of the pattern changed."""
    parts = re.split(f"({pattern})", text, flags=re.DOTALL)
    return "".join(
        part if place % 2 else change(part) for place, part in enumerate(parts)
    )


def on_page_content(page_html, page, config, files):
    """Equations become MathML, and public names links to their pages."""

    def link(found):
        name = found[1]
        if name not in lejax.__all__ or page.url == f"api/{name}/":
            return found[0]
        up = "../" * page.url.count("/")
        return f'<a href="{up}api/{name}/">{found[0]}</a>'

    page_html = EQUATION.sub(of_page, page_html)
    if page.file.src_path.endswith(".ipynb"):
        code = "<pre.*?</pre>|<code.*?</code>|<script.*?</script>|<style.*?</style>"
        page_html = outside(
            code, page_html, lambda part: IN_NOTEBOOK.sub(in_notebook, part)
        )
        page_html = re.sub(r'href="(\w+)\.ipynb"', r'href="../\1/"', page_html)
        for entry in page.toc:
            for heading in (entry, *entry.children):
                heading.title = IN_NOTEBOOK.sub(in_notebook, heading.title)
    code = "<a .*?</a>|<pre.*?</pre>|<h[1-6].*?</h[1-6]>"
    return outside(code, page_html, lambda part: CODE.sub(link, part))
