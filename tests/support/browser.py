"""A real browser: Debian's Chromium, driven by playwright; tests that need one are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed (Debian: apt-get install chromium)")
WIDTHS = (1280, 390)
MODES = ("light", "dark")


@dataclass(slots=True)
class Seen:
    """Everything that a page did besides being shown."""

    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    """Of the console, of errors and of dialogs."""


@contextmanager
def browsing(width: int = 1280, mode: str = "light") -> Iterator[tuple[Page, Seen]]:
    """A page of a new browser, and what it does."""
    with sync_playwright() as playwright:
        # In a container, Chromium's own sandbox needs rights that the tests do not have.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=mode)
            page, seen = context.new_page(), Seen()
            page.on("request", lambda request: seen.requests.append(request.url))
            page.on("console", lambda message: seen.messages.append(message.text))
            page.on("pageerror", lambda error: seen.messages.append(str(error)))
            page.on("dialog", lambda dialog: (seen.messages.append(dialog.message), dialog.dismiss()))
            page.on("popup", lambda popup: seen.messages.append(popup.url))
            yield page, seen
        finally:
            browser.close()


def overflows(page: Page) -> bool:
    """Whether the page is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def focused(page: Page) -> str:
    """The name, else the text, of the element that has the keyboard."""
    return str(page.evaluate("document.activeElement.name || document.activeElement.textContent.trim()"))
