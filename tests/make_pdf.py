"""Print the book's one page (``cellaug book --one-page``) to ``<build>/cellaug.pdf``."""

import sys
from pathlib import Path

from cellaug.files import write_atomically

from browser import chromium

FOOTER = """<div style="font-size: 8px; width: 100%; text-align: center">
<span class="pageNumber"></span></div>"""
# Links to files beside the page would name this machine's folders.
WITHOUT_FILES = """() => document.querySelectorAll("a[href]").forEach((link) => {
  const elsewhere = link.pathname !== location.pathname;
  if (link.protocol === "file:" && elsewhere) link.removeAttribute("href");
})"""
MARGIN = dict.fromkeys(("top", "bottom", "left", "right"), "18mm")


def print_book(build: Path) -> Path:
    """Write the PDF, with an outline, links and tags for screen readers; returns its path."""
    source, out = build.absolute() / "print" / "index.html", build / "cellaug.pdf"
    if not source.is_file():
        sys.exit(f"{source} is not there: 'cellaug book --one-page' first")
    with chromium() as browser:
        page = browser.new_page()
        page.goto(source.as_uri(), wait_until="load")
        page.evaluate("() => new Promise((done) => MathJax.Hub.Queue(done))")
        page.evaluate(WITHOUT_FILES)
        pdf = page.pdf(
            format="A4", margin=MARGIN, outline=True, tagged=True, print_background=True,
            display_header_footer=True, header_template="<span></span>", footer_template=FOOTER,
        )  # fmt: skip
    write_atomically(out, pdf)
    return out


if __name__ == "__main__":
    print(print_book(Path(sys.argv[1])))
