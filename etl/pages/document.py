"""The page around the content: one document that loads nothing, with a policy that forbids everything else.

The policy allows one style, by its hash: no script runs, no image or font is requested, and no form leads away, even if
a text on the page were not escaped.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import htpy as h
from markupsafe import Markup


@cache
def style() -> str:
    """The style sheet."""
    return (files("etl.pages") / "style.css").read_text(encoding="utf-8")


def policy(*more: str) -> str:
    """The content security policy, with `more` directives."""
    digest = b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return "; ".join(["default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'", *more])


def document(
    title: str,
    top: h.Node,
    links: Sequence[tuple[str, str]],
    content: h.Node,
    foot: h.Node,
    *,
    here: str = "",
    forms: bool = False,
) -> str:
    """The page as HTML: `links` (address, text) lead to its sections or to other pages, of which it is `here`."""
    policies = policy("form-action 'self'" if forms else "form-action 'none'")
    page = h.html(lang="en")[
        h.head[
            h.meta(charset="utf-8"),
            h.meta(http_equiv="Content-Security-Policy", content=policies),
            h.meta(name="viewport", content="width=device-width, initial-scale=1"),
            h.meta(name="referrer", content="same-origin"),
            h.title[title],
            h.style[Markup(style())],  # noqa: S704 - our own file
        ],
        h.body[
            h.a(".skip", href="#content")["Skip to the content"],
            h.div(".page")[
                h.nav(".sections", aria_label="Pages" if here else "Sections")[
                    h.ul[
                        (
                            h.li[h.a(href=address, aria_current="page" if address == here else None)[text]]
                            for address, text in links
                        )
                    ]
                ]
                if links
                else None,
                h.header(".top")[top],
                h.main("#content")[content],
                h.footer[foot],
            ],
        ],
    ]
    return str(page)
