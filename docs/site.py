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
EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)
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


def on_page_content(page_html, page, config, files):
    """Equations are MathML, which browsers know; public names lead to their pages."""

    def equation(found):
        kind, _, latex = found.groups()
        display = "block" if kind == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(latex), display=display)

    def link(found):
        name = found[1]
        if name not in lejax.__all__ or page.url == f"api/{name}/":
            return found[0]
        up = "../" * page.url.count("/")
        return f'<a href="{up}api/{name}/">{found[0]}</a>'

    page_html = EQUATION.sub(equation, page_html)
    # Neither in links nor in headings and blocks of code.
    parts = re.split(r"(<a .*?</a>|<pre.*?</pre>|<h\d.*?</h\d>)", page_html, flags=re.S)
    return "".join(
        part if place % 2 else CODE.sub(link, part) for place, part in enumerate(parts)
    )
