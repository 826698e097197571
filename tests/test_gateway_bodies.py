"""Forms and media types: how a body is taken apart, and which answer a client gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whybox_proto.errors import ContractError
from whybox_service.rest import media, multipart

TYPE = 'multipart/form-data; boundary="frontier"'


def form(*parts: tuple[str, str, bytes], end: bytes = b"--frontier--\r\n") -> bytes:
    """A body of parts: name, further headers, data."""
    return (
        b"".join(
            b'--frontier\r\nContent-Disposition: form-data; name="%s"; filename="a b.jpg"\r\n%s\r\n%s\r\n'
            % (name.encode(), headers.encode(), data)
            for name, headers, data in parts
        )
        + end
    )


@given(st.binary(), st.binary())
def test_any_bytes_pass_through_a_form(first: bytes, second: bytes) -> None:
    body = form(("image", "Content-Type: image/jpeg\r\n", first), ("request", "", second))
    assert multipart.split(body, TYPE) == [
        multipart.Part("image", "image/jpeg", first),
        multipart.Part("request", "", second),
    ]


@given(st.data())
def test_a_form_that_is_cut_off_is_refused(data: st.DataObject) -> None:
    whole = form(("image", "", b"\r\n--frontie\r\n"), ("request", "", b"{}"))
    closed = whole.index(b"--frontier--") + len(b"--frontier--")
    cut = data.draw(st.integers(0, closed - 1))
    with pytest.raises(ContractError) as caught:
        multipart.split(whole[:cut], TYPE)
    assert caught.value.type == "invalid_request"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(("image", "", b"x")), "multipart/form-data"),
        (form(("image", "", b"x")), "multipart/form-data; boundary="),
        (form(("image", "", b"x")), f"multipart/form-data; boundary={'b' * 71}"),
        (form(("image", "", b"x")), "multipart/form-data; boundary=ü"),
        (form(("image", "", b"x")), "multipart/form-data; boundary=other"),
        (form(*[("image", "", b"x")] * 20), TYPE),
        (b"--frontier\r\n\r\nno headers\r\n--frontier--\r\n", TYPE),
        (b"--frontier\r\nContent-Type: image/png\r\n\r\nno name\r\n--frontier--\r\n", TYPE),
        (b'--frontier\r\nContent-Disposition: attachment; name="image"\r\n\r\nx\r\n--frontier--\r\n', TYPE),
        (form(("image", "Content-Transfer-Encoding: base64\r\n", b"x")), TYPE),
        (form(("image", "X-Long: " + "x" * 9000 + "\r\n", b"x")), TYPE),
        (form(("image", "", b"x"), end=b"--frontier!"), TYPE),
        (form(end=b""), TYPE),
    ],
)
def test_a_form_that_breaks_the_rules_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(ContractError) as caught:
        multipart.split(body, content_type)
    assert caught.value.type == "invalid_request"


@pytest.mark.parametrize("nested", ["(" * 900, '"' * 901, ";" * 800, "=?" * 400])
def test_headers_made_to_break_the_parser_are_refused_or_read(nested: str) -> None:
    body = (
        b'--frontier\r\nContent-Disposition: form-data; name="a"; b=%s\r\n\r\nx\r\n--frontier--'
        % nested.encode()
    )
    try:
        read = multipart.split(body, TYPE)
    except ContractError as error:
        outcome = error.type
    else:
        outcome = "read" if read == [multipart.Part("a", "", b"x")] else "misread"
    assert outcome in ("read", "invalid_request")


def test_a_form_may_have_a_preamble_and_an_epilogue() -> None:
    body = b"preamble\r\n" + form(("image", "", b"x")) + b"epilogue"
    assert [part.data for part in multipart.split(body, TYPE)] == [b"x"]


OFFERS = [media.JSON, media.PROTOBUF, media.PNG]


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", media.JSON),
        ("*/*", media.JSON),
        ("application/*", media.JSON),
        ("image/png", media.PNG),
        ("image/*", media.PNG),
        ("Application/X-Protobuf", media.PROTOBUF),
        ("text/html,application/xhtml+xml,*/*;q=0.8", media.JSON),
        ("application/json;q=0.5, application/x-protobuf", media.PROTOBUF),
        ("application/json;q=0, */*", media.PROTOBUF),
        ("application/json; charset=utf-8", media.JSON),
        ("image/png;q=0.9, */*;q=0.1", media.PNG),
    ],
)
def test_the_answer_is_what_the_client_likes_best(accept: str, chosen: str) -> None:
    assert media.choose(accept, OFFERS) == chosen


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "application/json;q=0", "nonsense", "*/*;q=x", ",;,"]
)
def test_a_client_that_wants_nothing_we_have_is_told(accept: str) -> None:
    with pytest.raises(ContractError) as caught:
        media.choose(accept, OFFERS)
    assert (caught.value.type, caught.value.field) == ("not_acceptable", "Accept")
