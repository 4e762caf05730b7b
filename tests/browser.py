"""Open built HTML pages in a headless Chromium without network and say what went wrong."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PHONE = {"width": 390, "height": 844}
TABLET = {"width": 820, "height": 1180}
DESKTOP = {"width": 1400, "height": 900}


def executable() -> str | None:
    """Return the browser to use: $CHROMIUM, else one on PATH, else None for playwright's own."""
    found = (shutil.which(name) for name in NAMES)
    return os.environ.get("CHROMIUM") or next(filter(None, found), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start a headless Chromium, closed at the end."""
    with sync_playwright() as playwright:
        # --no-sandbox: containers run as root, and the pages are our own.
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


class Visit:
    """One page opened under ``file://`` with the network off.

    `prepare` is called with the page before it is opened; `options` go to playwright's context.

    Attributes:
        page: the playwright page, equations set and images loaded.
        errors: console errors and uncaught exceptions.
        outside: addresses asked for that do not lie in the book's folder.
        failed: requests that failed.
    """

    def __init__(
        self,
        browser: Browser,
        root: Path,
        name: str,
        viewport: dict[str, int],
        prepare: Callable[[Page], None] | None = None,
        **options,
    ) -> None:
        root = root.resolve()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.failed: list[str] = []
        context = browser.new_context(offline=True, viewport=viewport, **options)
        self.page: Page = context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(root, request.url))
        self.page.on("requestfailed", lambda request: self.failed.append(request.url))
        if prepare:
            prepare(self.page)
        self.page.goto((root / name).as_uri(), wait_until="load")
        self.settle()

    def settle(self) -> None:
        """Wait until equations are set and images loaded: who leaves before aborts a request."""
        if self.page.locator("div.math, span.math").count():
            self.page.wait_for_function(
                "window.MathJax && MathJax.Hub && MathJax.Hub.queue.pending === 0"
                " && !MathJax.Hub.queue.running && document.querySelector('.MathJax')"
            )
        # Pictures below the fold load lazily; ask for all of them.
        self.page.evaluate(
            "Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))"
        )

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _request(self, root: Path, address: str) -> None:
        parts = urlsplit(address)
        inside = parts.scheme == "file" and Path(unquote(parts.path)).is_relative_to(root)
        if not inside and parts.scheme not in ("data", "blob"):
            self.outside.append(address)

    def barriers(self) -> list[str]:
        """What axe-core finds on the page that keeps people out, a line for each rule."""
        from axe_playwright_python.sync_playwright import Axe

        # Without `preload`, which asks for the style sheets by a request that file:// refuses.
        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{rule['id']}: {rule['nodes'][0]['html'][:200]}" for rule in found]

    def unseen(self) -> list[str]:
        """The words of table cells that have the colour of their ground."""
        return self.page.evaluate(
            """[...document.querySelectorAll('article :is(td, th)')].filter(cell => {
                const color = getComputedStyle(cell).color;
                let ground = cell, own = '';
                while (ground && /^rgba\\(.* 0\\)$|^$/.test(own)) {
                    own = getComputedStyle(ground).backgroundColor;
                    ground = ground.parentElement;
                }
                return cell.innerText.trim() && own === color;
            }).map(cell => cell.innerText)"""
        )

    def widest(self) -> int:
        """How wide the page is, in pixels; wider than the screen, it scrolls sideways."""
        return self.page.evaluate("document.documentElement.scrollWidth")

    def screens(self) -> float:
        """How many screens the page is long."""
        height = self.page.evaluate("document.querySelector('.bd-main').scrollHeight")
        return height / self.page.viewport_size["height"]

    def smallest_letter(self) -> float:
        """The smallest letters in a figure with a width of its own, in pixels, by its scale.

        Figures are drawn so that their letters have at least nine at `width` pixels (test_figures).
        """
        return self.page.evaluate(
            """Math.min(9, ...[...document.querySelectorAll('a.image-reference img')].map(
                img => 9 * img.getBoundingClientRect().width / parseFloat(img.style.width)))"""
        )

    def close(self) -> None:
        """Close the page and forget its storage."""
        self.page.context.close()
