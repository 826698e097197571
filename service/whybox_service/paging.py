"""Lists in pages: how large a page is, and where the next one begins."""

from __future__ import annotations

import base64
import binascii

from whybox_proto import checks
from whybox_proto.errors import ContractError, shorten

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000


def size_of(asked: int) -> int:
    """Return the size of a page, 0 standing for the default.

    Raises:
        ContractError: where it is too large.
    """
    checks.check_range(asked, field="page_size", low=0, high=MAX_PAGE_SIZE)
    return asked or DEFAULT_PAGE_SIZE


def token(last: str) -> str:
    """Return the token of the page that begins after something."""
    return base64.urlsafe_b64encode(last.encode()).decode("ascii")


def read_token(given: str) -> str:
    """Return after what a page begins; empty for the first one.

    Raises:
        ContractError: where it is no token.
    """
    try:
        return base64.b64decode(given.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise bad_token(given) from None


def bad_token(given: str) -> ContractError:
    """Return what says that a token is none."""
    return ContractError(
        "invalid_argument",
        "the page token is none of ours",
        field="page_token",
        expected="the next_page_token of the page before",
        got=shorten(given),
    )
