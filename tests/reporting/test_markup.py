"""Whatever a text is, it comes out of the page as it went in, and never as markup."""

from __future__ import annotations

from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from spp_cli.reporting.markup import Markup, element, join


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"])), st.text())
def test_any_text_is_text_again_when_it_is_read(text, whatever):
    read = ElementTree.fromstring(element("p", text, title=whatever))
    assert (read.text or "") == text
    assert len(read) == 0


@given(st.text(st.characters()))
def test_what_no_page_may_hold_is_replaced_sign_by_sign(text):
    text = text.replace("\r", "")  # which XML reads as a line's end
    read = ElementTree.fromstring(element("p", text))
    assert len(read.text or "") == len(text)


def test_markup_goes_in_as_it_is_and_none_is_left_out():
    assert join(Markup("<b>x</b>"), None, "<i>") == "<b>x</b>&lt;i&gt;"
    assert element("meta", name="a", content='"') == '<meta name="a" content="&quot;"/>'
