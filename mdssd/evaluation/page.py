"""The parts of a report's page: tables, charts, pictures and the style sheet."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from mdssd.evaluation import charts
from mdssd.system.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def escaped(text: str) -> str:
    """Return text for an HTML page, without the control characters that a name may hold."""
    return escape(printable(text))


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], total: Sequence[str] | None = None
) -> str:
    """Return an HTML table of escaped text. The first column holds the row headings."""

    def line(cells: Sequence[str]) -> str:
        rest = "".join(f"<td>{escaped(cell)}</td>" for cell in cells[1:])
        return f"<tr><th>{escaped(cells[0])}</th>{rest}</tr>"

    head = "".join(f"<th>{escaped(name)}</th>" for name in heads) if any(heads) else ""
    foot = f"<tfoot>{line(total)}</tfoot>" if total else ""
    body = "".join(line(row) for row in rows)
    return (
        f'<div class="scroll"><table>{f"<thead><tr>{head}</tr></thead>" if head else ""}'
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def facts(rows: Iterable[Sequence[str]]) -> str:
    """Return a table of escaped names and values, whose long values wrap."""
    body = "".join(f"<tr><th>{escaped(a)}</th><td>{escaped(b)}</td></tr>" for a, b in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def chart(draw: Callable[[charts.Theme], Figure], text: str) -> str:
    """Return a chart for light and for dark pages. The browser shows the one that fits."""
    light, dark = (
        data_uri("image/svg+xml", charts.svg(draw(theme))) for theme in (charts.LIGHT, charts.DARK)
    )
    return (
        '<div class="across"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="chart" src="{light}" alt="{text}"></picture></div>'
    )


def data_uri(kind: str, content: bytes) -> str:
    """Return the address of an embedded file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def digits(value: float) -> str:
    """Return a figure with three digits, or a dash if it does not exist."""
    return "–" if math.isnan(value) else f"{value:.3f}"


CSS = """
:root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d5d9de; --box: #f4f6f8;
  --shade: #0003; --accent: 11, 98, 184; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16191d; --ink: #e4e7ea; --soft: #9aa4af; --line: #3a4048; --box: #1f2429;
    --shade: #fff4; --accent: 47, 127, 208; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; max-width: 78ch; color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; }
.tile { background: var(--box); border-radius: 8px; padding: .6rem 1rem; min-width: 8.5rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.across { overflow-x: auto; }
/* A table scrolls inside the page. Its edges are shaded as long as there is more to scroll to. */
.scroll { overflow: auto; max-height: 40rem; margin-bottom: .8rem; width: fit-content;
  max-width: 100%;
  background:
    linear-gradient(90deg, var(--paper) 30%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(-90deg, var(--paper) 30%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(0deg, var(--paper) 30%, transparent) bottom / 100% 3rem no-repeat local,
    linear-gradient(90deg, var(--shade), transparent) left / .8rem 100% no-repeat scroll,
    linear-gradient(-90deg, var(--shade), transparent) right / .8rem 100% no-repeat scroll,
    linear-gradient(0deg, var(--shade), transparent) bottom / 100% .8rem no-repeat scroll; }
thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 500; }
tfoot th, tfoot td { font-weight: 700; border-bottom: 0; }
.facts th { vertical-align: top; color: var(--soft); }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.chart { max-width: 100%; height: auto; display: block; margin: .4rem 0 1rem; }
@media (max-width: 40rem) {
  th, td { padding: .28rem .4rem; font-size: .82rem; }
  .chart { max-width: none; width: 44rem; }
}
.wide { min-width: 22rem; }
.bar { display: flex; height: 1.1rem; border-radius: 3px; overflow: hidden;
  background: var(--box); }
.bar i { display: block; height: 100%; }
.k0 { background: #2e9e6b; } .k1 { background: #e8a33d; } .k2 { background: #c2410c; }
.k3 { background: #8250c4; } .k4 { background: #7d8894; }
.key { display: inline-block; color: #fff; border-radius: 4px; padding: .1rem .6rem;
  margin-right: .4rem; font-size: .85rem; }
.key.k1 { color: #1f2328; }
.confusion td { min-width: 3.2rem; text-align: center; }
.cell { background: rgba(var(--accent), calc(var(--share) * .75)); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--box); border-radius: 8px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .5rem .8rem .7rem; font-size: .88rem; overflow-wrap: anywhere; }
small { color: var(--soft); }
"""
