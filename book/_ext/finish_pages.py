"""The last touches to every page: tables, minus signs, and the text that the search reads.

A table gets a box that scrolls sideways and can be reached with the Tab key; columns of numbers are
aligned on the right, also with a short word among them, the first column stays in sight
(``book.css``). A number is broken, if at all, before its interval. Hyphens before digits become
minus signs, but for those in code. The text of all pages goes into a script, ``search_text.js``,
because a browser does not let a page under ``file://`` fetch other pages.
"""

import json
import re
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx

# A number, with its unit, spread or interval: "−0.5 %", "94.6 ± 0.2", "+0.5 (−1.2 to +2.2)".
NUMBER = re.compile(
    r"[<≈~]?[+−]?\d[\d,. :]*(e[+−]?\d+)?( ?(%|px|s|MiB|points))?( ?± ?\d[\d.]*)?( ?\(.*\))?$"
)
SHORT = 24  # letters of a word in a column of numbers, as in "not measured"
NOTHING = {"", "–", "None", "nan", "NaN", "<NA>"}
_HYPHEN = re.compile(r"(?:(?<![\w.\-–])|(?<=\de))-(?=\d)")
_PLAIN = re.compile(r"\d{4,}(?=\.|$)")  # a number without separators
_VERBATIM = {"code", "pre", "script", "style", "svg", "textarea"}


def minus_signs(body: Tag) -> None:
    """Write a minus sign where a hyphen stands before a digit, but not in code or equations."""
    for text in body.find_all(string=_HYPHEN):
        around = list(text.parents)
        if not any(tag.name in _VERBATIM or "math" in tag.get("class", ()) for tag in around):
            text.replace_with(_HYPHEN.sub("−", text))


def columns(table: Tag) -> dict[int, list[Tag]]:
    """The cells of a table by the column in which they begin, rows and columns spanned counted."""
    found: dict[int, list[Tag]] = {}
    held: dict[int, int] = {}  # rows that a cell above still fills, by column
    for row in table.find_all("tr"):
        column = 0
        for cell in row.find_all(["td", "th"], recursive=False):
            while held.get(column, 0):
                held[column] -= 1
                column += 1
            found.setdefault(column, []).append(cell)
            for _ in range(int(cell.get("colspan") or 1)):
                held[column] = int(cell.get("rowspan") or 1) - 1
                column += 1
        for rest in [c for c in held if c >= column and held[c]]:
            held[rest] -= 1
    return found


def join_heads(table: Tag) -> None:
    """Put the names of a table's rows beside those of its columns, which pandas puts above them."""
    rows = [row.find_all(["td", "th"]) for row in table.select("thead tr")]
    if len(rows) < 2 or len(rows[-1]) != len(rows[-2]):
        return
    for above, below in zip(rows[-2], rows[-1], strict=True):
        if above.get_text(strip=True) and below.get_text(strip=True):
            return
    for above, below in zip(rows[-2], rows[-1], strict=True):
        if below.get_text(strip=True):
            above.string = below.get_text(strip=True)
    rows[-1][0].find_parent("tr").extract()


def dress(page: BeautifulSoup, table: Tag, number: int) -> None:
    """Put a table into its box and mark columns of numbers and the first column."""
    join_heads(table)
    if "dataframe" in table.get("class", ()):  # the theme has stripes and lines for these alone
        table["class"].remove("dataframe")
    found = columns(table)
    heads = [cells[0].get_text(" ", strip=True) for cells in found.values()]
    mixed = heads[1:] == ["thesis", "here"]  # each row is of another kind
    for place, cells in found.items():
        body = [cell for cell in cells if cell.find_parent("thead") is None]
        words = [cell.get_text(" ", strip=True) for cell in body]
        told = [word for word in words if word not in NOTHING]
        others = [word for word in told if not NUMBER.match(word)]
        few = 2 * len(others) < len(told) and all(len(word) <= SHORT for word in others)
        if place and (few or (mixed and len(others) < len(told))):
            for cell in body:
                for text in list(cell.find_all(string=True)):
                    said = re.sub(r"(?<=\d)%", " %", text)
                    if _PLAIN.match(text) and heads[place] not in ("year", "seed"):
                        said = _PLAIN.sub(lambda found: f"{int(found[0]):,}", said, count=1)
                    text.replace_with(re.sub(r" (?!\()", "\u00a0", said))
            for cell in cells:
                if int(cell.get("colspan") or 1) == 1:
                    cell["class"] = [*cell.get("class", ()), "number"]
        if not place:
            for cell in cells:
                cell["class"] = [*cell.get("class", ()), "first"]
    for empty in table.select("thead th"):
        if not empty.get_text(strip=True):
            empty.name = "td"  # a heading without words tells a screen reader nothing
    for old in (table, *table.find_all(True)):
        for key in ("border", "align", "valign"):
            old.attrs.pop(key, None)
        if "text-align" in old.get("style", ""):
            del old["style"]
    box = table.find_parent(class_=["scroll", "pst-scrollable-table-container"])
    box = box or table.wrap(page.new_tag("div"))
    box["class"] = ["scroll"]
    box["tabindex"], box["role"], box["aria-label"] = "0", "region", f"Table {number}"


def finish(app: Sphinx, name: str, template: str, context: dict, doctree: object) -> None:
    """Dress the tables of a page, and keep its text for the search."""
    if doctree is None or "body" not in context:
        return
    page = BeautifulSoup(context["body"], "html.parser")
    minus_signs(page)
    for number, table in enumerate(page.find_all("table"), 1):
        dress(page, table, number)
    for entry in page.select(".citation-list, .citation"):
        del entry["role"]  # those that docutils gives are deprecated
    for link in page.select("a.image-reference"):
        link["title"] = "The image in full size"
    if banner := app.config.html_theme_options.get("announcement"):
        said = page.new_tag("p", attrs={"class": "banner onlyprint"})
        said.string = banner  # themes leave their banner off the paper
        page.insert(0, said)
    context["body"] = str(page)
    app.search_text += sections(page, name)


def sections(page: BeautifulSoup, name: str) -> list[list[str]]:
    """A page's sections: its file and anchor, its title, the section's heading, its lines."""
    found, title = [], ""
    for part in page.find_all("section"):
        heading = part.find(re.compile("h[1-6]"), recursive=False)
        if heading is None:
            continue
        words = plain(heading)
        title = title or words
        children = part.find_all(True, recursive=False)
        own = (child for child in children if child.name != "section" and child is not heading)
        lines = " ".join(filter(None, map(plain, own)))
        found.append([f"{name}.html#{part.get('id', '')}", title, words, lines])
    return found


def plain(tag: Tag) -> str:
    """The words of a part of a page, without equations and what belongs to no text."""
    text = BeautifulSoup(str(tag), "html.parser")
    for unseen in text.select("script, style, summary, .headerlink, .math, .above-input"):
        unseen.extract()
    return re.sub(r" (?=[,.;:)\]])|(?<=[(\[]) ", "", " ".join(text.get_text(" ").split()))


def begin(app: Sphinx) -> None:
    """Begin with no text."""
    app.search_text = []


def write_search_text(app: Sphinx, exception: Exception | None) -> None:
    """Write the text of all pages as a script."""
    if exception is None and app.builder.format == "html":
        text = json.dumps(app.search_text, ensure_ascii=False).replace("</", "<\\/")
        path = Path(app.outdir, "_static", "search_text.js")
        path.write_text(f"window.bookText = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("builder-inited", begin)
    app.connect("html-page-context", finish, priority=900)
    app.connect("build-finished", write_search_text)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
