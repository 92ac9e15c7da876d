"""The page in a real browser, on a real server, with a camera that shows the synthetic world.

`pip install playwright`, a chromium of the system (`apt-get install chromium`), then
`pytest -m browser`. Without the browser, `tests/serve/test_page.py` reads the page's files.
"""

import re

import pytest
from browsers import ask, button, chromium, demo, panels, seconds, wait_for_map

from jaxmem.data.world.files import held_out

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="there is no chromium"),
]
expect = pytest.importorskip("playwright.sync_api").expect


def test_a_camera_is_watched_asked_and_found_again(server, visit, clip):
    page = visit(f"{server}/")
    button(page, "Use the camera").click()
    expect(page.locator("figcaption", has_text="pictures sent")).to_be_visible()
    wait_for_map(page, 4)
    expect(page.locator(".legend")).to_contain_text("vision")
    expect(page.locator(".legend")).to_contain_text("audio")
    held = page.locator(".bytes strong").inner_text()
    begun, sent = seconds(page), page.locator(".own figcaption").inner_text()
    wait_for_map(page, begun + 2)  # the map grows,
    assert page.locator(".bytes strong").inner_text() == held  # the bytes do not
    assert page.locator(".own figcaption").inner_text() != sent
    assert page.evaluate("document.querySelector('img.live').naturalWidth") == 48
    one = ask(page, "What was the last shape?")
    expect(one.locator("dd")).to_contain_text(clip[1])  # the one that the camera shows
    expect(page.locator("#announcer")).to_contain_text(clip[1])

    button(page, "Add a memory").click()
    page.get_by_role("dialog").get_by_label("Memory").select_option("recent")
    button(page, "Add it").click()
    expect(panels(page)).to_have_count(2)
    expect(panels(page).nth(1).locator(".legend")).to_contain_text("vision")
    two = ask(page, "Which shape is there now?")
    expect(two.locator("dd", has_text=clip[1])).to_have_count(2)

    page.reload()
    expect(panels(page)).to_have_count(2)
    expect(page.locator(".history .asked")).to_have_count(2)
    expect(page.locator(".history .asked").first).to_contain_text("Which shape is there now?")
    expect(button(page, "Start the camera")).to_be_visible()
    button(page, "Start the camera").click()
    wait_for_map(page, seconds(page) + 2)
    button(page, "Close").first.click()


def test_the_same_moment_in_two_memories(server, visit):
    page = visit(f"{server}/")
    button(page, "New stream").click()
    page.get_by_label("Side by side with").select_option("recent")
    button(page, "Start").click()
    expect(panels(page)).to_have_count(2)
    wait_for_map(page, 6)
    box = page.get_by_role("slider").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + 20)
    moments = page.locator(".moment p")
    expect(moments.first).to_contain_text(re.compile("tokens?, in"))
    newest = re.compile(r"^\d\d:\d\d: ")
    times = [newest.match(text)[0] for text in moments.all_inner_texts()]
    assert times[0] == times[1]
    expect(page.locator(".moment img").first).to_be_visible()
    page.mouse.move(5, 5)
    expect(moments.first).to_contain_text("Point at the map")
    later = ask(page, "Which was the last shape?")  # now, and at a time that is still to come:
    expect(later.locator("dd")).to_have_count(2)
    page.get_by_label("at", exact=True).fill("soon")
    ask(page, "Which was the last sound?")
    expect(page.locator("#asking-error")).to_contain_text('"soon" is no time')
    page.get_by_label("at", exact=True).fill("0:30")
    planned = ask(page, "Which was the last sound?")
    expect(planned).to_contain_text("waits for 00:30")
    page.get_by_label("at", exact=True).fill("")
    expect(ask(page, "What of elephants?")).to_contain_text("does not know elephants")


def test_a_file_and_a_microphone(server, visit, tmp_path):
    page = visit(f"{server}/")
    video, _ = held_out(3, 6, tmp_path, count=1, scale=1)
    button(page, "New stream").click()
    page.get_by_role("radio", name="Video file").check()
    page.locator("input[type=file]").set_input_files(video)
    button(page, "Start").click()
    wait_for_map(page, 6)
    expect(page.locator(".stream-head")).to_contain_text("at its end, 00:06")
    expect(ask(page, "Which was the last shape?").locator("dd")).to_have_count(1)
    button(page, "New stream").click()
    page.get_by_role("radio", name="Microphone").check()
    button(page, "Start").click()
    expect(page.locator(".own")).to_contain_text("Your microphone is on")
    wait_for_map(page, 2)
    expect(page.locator(".legend")).to_contain_text("audio")
    button(page, "Stop").click()
    expect(button(page, "Start the microphone")).to_be_visible()


def test_standing_questions_saves_and_branches(server, visit):
    id = demo(server)
    page = visit(f"{server}/#session={id}")
    wait_for_map(page, 2)
    page.get_by_label("Yes-or-no question").fill("Was the bell heard?")
    button(page, "Tell me").click()
    expect(page.locator(".watches li")).to_contain_text("Was the bell heard?")
    button(page, "Save").click()
    expect(page.locator(".message.good", has_text="Saved as")).to_be_visible()
    page.reload()
    expect(page.locator(".watches li")).to_have_count(1)
    page.locator(".watches button").click()
    expect(page.locator(".watches li")).to_have_count(0)
    button(page, "Branch").click()
    page.wait_for_function("id => location.hash !== `#session=${id}`", arg=id)
    wait_for_map(page, 2)
    button(page, "New stream").click()
    page.get_by_role("dialog").get_by_text("Saved stream").first.click()
    expect(page.get_by_role("dialog").get_by_label("Saved stream").last).to_be_visible()
    button(page, "Start").click()
    wait_for_map(page, 2)
