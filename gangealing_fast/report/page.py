# SPDX-License-Identifier: Apache-2.0
"""The page around the sections: one HTML file with everything inside, no scripts, nothing fetched."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gangealing_fast.report.sections import Section
from gangealing_fast.storage.files import make_folder, write_text

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --ink: #1d2125; --soft: #5d666f; --line: #dfe3e6;
  --accent: #1f5fae; --good: #1d6b3a; --bad: #a12a22; --alert: #fdf3df; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --card: #1c2024; --ink: #e5e8ea; --soft: #a0a9b1;
  --line: #343a40; --accent: #7fb3f2; --good: #79cf98; --bad: #f0928a; --alert: #33291a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system,
  "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 0 0 .75rem; }
p { margin: 0 0 .8rem; max-width: 44rem; }
header p, footer, figcaption, small { color: var(--soft); }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 1rem 0 1.5rem; list-style: none; }
a { color: var(--accent); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem; margin: 0 0 1.25rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; margin-top: .3rem; }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.25rem; }
.rows, .scroll { overflow-x: auto; }
.rows img { max-width: none; }
.rows figure + figure { margin-top: .7rem; }
.rows figure { display: flex; flex-direction: column-reverse; }
.rows figcaption { margin: 0 0 .2rem; position: sticky; left: 0; width: max-content; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
.plot { width: 100%; height: auto; }
.plot text { fill: var(--soft); font-size: 11px; }
.plot .t { fill: var(--ink); font-size: 14px; font-weight: 600; }
.plot .m { text-anchor: middle; }
.plot .e { text-anchor: end; }
.plot .g { stroke: var(--line); }
.plot .c { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.plot .b { fill: var(--accent); opacity: .18; }
.plot .d { fill: var(--accent); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th:first-child, th.left, td.left { text-align: left; }
tbody th { font-weight: 500; }
thead th { color: var(--soft); font-weight: 500; font-size: .9rem; vertical-align: bottom; }
td.left { overflow-wrap: anywhere; white-space: normal; }
th small { display: block; font-weight: 400; }
.badge { border: 1px solid currentColor; border-radius: 4px; padding: 0 .35rem; font-size: .85rem;
  white-space: nowrap; }
.met { color: var(--good); }
.missed { color: var(--bad); }
.alert { background: var(--alert); border-radius: 6px; padding: .8rem 1rem .1rem; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  overflow-x: auto; }
code { font: .9rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
summary { cursor: pointer; }
footer { padding-bottom: 2.5rem; font-size: .9rem; }
@media print { section { break-inside: avoid; } }
"""


def render_report(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """The whole page as text; the same sections always give the same page."""
    anchors = _anchors([section.heading for section in sections])
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.heading)}</a></li>' for anchor, section in zip(anchors, sections, strict=True)
    )
    bodies = "".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{escape(section.heading)}</h2>\n{section.html()}\n</section>\n'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    lead = f"<p>{escape(subtitle)}</p>" if subtitle else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{lead}<nav aria-label="Contents"><ul>{links}</ul></nav></header>
<main>
{bodies}</main>
<footer>{escape(footer)}</footer>
</body>
</html>
"""


def write_report(
    folder: str | os.PathLike[str],
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    footer: str = "",
    name: str = "report.html",
) -> Path:
    """Write the page to `folder`/`name` atomically, creating the folder where missing; returns its path.

    Raises UserError where it cannot be written.
    """
    path = make_folder(folder) / name
    write_text(path, render_report(title, sections, subtitle=subtitle, footer=footer))
    return path


def _anchors(headings: Sequence[str]) -> list[str]:
    """A unique id for every heading."""
    seen: dict[str, int] = {}
    anchors = []
    for heading in headings:
        anchor = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"
        seen[anchor] = seen.get(anchor, 0) + 1
        anchors.append(anchor if seen[anchor] == 1 else f"{anchor}-{seen[anchor]}")
    return anchors
