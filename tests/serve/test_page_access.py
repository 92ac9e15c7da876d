"""The page for everybody: narrow, dark, without a mouse; and after a restart, and with a token."""

import re

import pytest
from browsers import OPTIONS, ask, button, chromium, demo, seconds, serving, wait_for_map

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="there is no chromium"),
]
expect = pytest.importorskip("playwright.sync_api").expect


def test_narrow_pages_do_not_scroll_sideways(server, visit):
    page = visit(f"{server}/", color_scheme="dark")
    page.set_viewport_size({"width": 375, "height": 800})
    fits = lambda: page.evaluate("document.documentElement.scrollWidth") <= 375
    expect(button(page, "Watch the demo")).to_be_visible()
    assert fits()
    button(page, "New stream").click()
    expect(button(page, "Start")).to_be_visible()
    inside = "d => d.scrollWidth <= d.clientWidth && d.getBoundingClientRect().width <= 375"
    assert fits() and page.locator("#new-stream").evaluate(inside)
    page.get_by_label("Side by side with").select_option("recent")
    button(page, "Start").click()
    wait_for_map(page, 2)
    expect(ask(page, "Which was the last sound?").locator("dd")).to_have_count(2)
    assert fits()
    box = page.get_by_role("slider").last.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 375


def tab_to(page, script):
    """Press Tab until the element that has the focus satisfies a script."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate(f"(e => {script})(document.activeElement)"):
            return
    raise AssertionError(f"nothing that is reached by Tab satisfies {script}")


def test_all_of_it_works_with_the_keyboard_alone(server, visit):
    page = visit(f"{server}/")
    expect(button(page, "New stream")).to_be_enabled()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the stream"
    tab_to(page, "e.id === 'add'")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    tab_to(page, "e.textContent === 'Start'")
    page.keyboard.press("Enter")
    wait_for_map(page, 4)
    tab_to(page, "e.name === 'question'")
    page.keyboard.type("Which was the last shape?")
    page.keyboard.press("Enter")
    expect(page.locator(".history .asked dd")).to_have_count(1)
    tab_to(page, "e.getAttribute('role') === 'slider'")
    text = lambda: page.locator(".map").get_attribute("aria-valuetext")
    assert re.search("tokens?, in", text())  # the newest moment, when it gets the focus
    page.keyboard.press("Home")
    first = text()
    assert re.match(r"00:\d\d: .* tokens?, in", first)
    page.keyboard.press("ArrowRight")
    assert text() != first and text() == page.locator(".moment p").inner_text()
    nameless = """
      [...document.querySelectorAll("button, input, select, [role=slider], img")].filter((e) =>
        !(e.labels?.length || e.ariaLabel || e.textContent.trim() || e.hasAttribute("alt")))
        .map((e) => e.outerHTML)
    """
    assert page.evaluate(nameless) == []


def test_dark_and_light(server, visit):
    id = demo(server)
    page = visit(f"{server}/#session={id}", color_scheme="dark")
    wait_for_map(page, 2)
    ground = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")
    drawn = """() => {
      const canvas = document.querySelector(".map canvas");
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const found = new Set();
      for (let i = 0; i < data.length; i += 4) found.add([...data.slice(i, i + 3)].join());
      return [...found];
    }"""
    assert ground() == "rgb(15, 20, 25)" and "74,168,224" in page.evaluate(drawn)
    button(page, "Theme: system").click()
    expect(button(page, "Theme: light")).to_be_visible()
    assert ground() == "rgb(244, 246, 248)" and "0,114,178" in page.evaluate(drawn)
    page.reload()
    expect(button(page, "Theme: light")).to_be_visible()


def test_a_server_that_restarts_is_found_again(visit, tmp_path):
    options = (*OPTIONS, "--saves", str(tmp_path / "saves"))
    with serving(*options, cwd=tmp_path) as address:
        page = visit(f"{address}/#session={demo(address)}", quiet=False)
        wait_for_map(page, 3)
        said = ask(page, "Which was the last shape?").locator("dd")
        expect(said).not_to_contain_text("…")
        before = seconds(page)
    expect(page.locator("#connection")).to_contain_text("Connection lost")
    with serving(*options, cwd=tmp_path, port=int(address.rpartition(":")[2])):
        expect(page.locator("#connection")).to_contain_text("Connected")
        wait_for_map(page, before + 1)
        expect(page.locator(".history .asked")).to_have_count(1)


def test_a_token_is_taken_out_of_the_address(visit, tmp_path):
    with serving(*OPTIONS, "--token", "secret", cwd=tmp_path) as address:
        page = visit(f"{address}/", quiet=False)
        expect(page.locator("main")).to_contain_text("The server wants its token")
        page = visit(f"{address}/?token=secret", quiet=False)
        button(page, "Watch the demo").click()
        wait_for_map(page, 2)
        assert "secret" not in page.url
        page.reload()
        wait_for_map(page, 2)
