"""The page in a real browser, on a real server, with a camera that shows the synthetic world.

`pip install playwright`, a chromium of the system (`apt-get install chromium`), then
`pytest -m browser`. Without the browser, `tests/serve/test_page.py` reads the page's files.
"""

import json
import re
import urllib.request

import pytest
from browsers import FLAGS, chromium, serving, write_clip

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="there is no chromium"),
]
expect = playwright.expect
SLOW = 60_000  # milliseconds; a memory that is new is compiled first
OPTIONS = ("--budget", "64")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Path of what the camera shows, and the one shape in it."""
    path = tmp_path_factory.mktemp("clip") / "clip.y4m"
    return path, write_clip(path)


@pytest.fixture(scope="module")
def browser(clip):
    flags = [*FLAGS, f"--use-file-for-fake-video-capture={clip[0]}"]
    with playwright.sync_playwright() as found:
        started = found.chromium.launch(executable_path=chromium(), args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with serving(*OPTIONS, "--saves", str(folder / "saves"), cwd=folder) as address:
        yield address


@pytest.fixture
def visit(browser):
    """Return a function that opens a page; whatever else it loads or logs fails the test."""
    contexts, wrong = [], []

    def open_page(address, *, quiet=True, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if quiet:
            page.on("console", lambda entry: wrong.append(entry.text) if is_error(entry) else None)
        own = (re.match(r"http://[^/]+/", address)[0], "blob:", "data:")
        page.on("request", lambda one: None if one.url.startswith(own) else wrong.append(one.url))
        page.goto(address)
        return page

    expect.set_options(timeout=SLOW)
    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def is_error(entry):
    """Whether an entry of the console tells of an error; a branch has no picture at first."""
    return entry.type == "error" and "/picture" not in entry.location["url"]


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def panels(page):
    return page.locator(".panel")


def seconds(page):
    """Where the map of the first memory ends."""
    return int(page.get_by_role("slider").first.get_attribute("aria-valuemax") or 0)


def wait_for_map(page, at_least):
    """Wait until every memory holds something, and the stream has so many seconds."""
    script = """least => {
      const maps = [...document.querySelectorAll(".map")];
      const holds = (map) => map.ariaValueMax >= least && map.querySelector(".empty").hidden;
      return maps.length > 0 && maps.every(holds);
    }"""
    page.wait_for_function(script, arg=at_least)


def ask(page, text):
    page.get_by_label("Question", exact=True).fill(text)
    button(page, "Ask").click()
    return page.locator(".history .asked").first


def demo(server):
    """Begin a session that reads the demo, over HTTP; return its id."""
    body = json.dumps({"source": "demo"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/v1/streaming/sessions", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["id"]


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
    assert first.startswith("00:00: ")
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
        page = visit(f"{address}/?token=secret")
        button(page, "Watch the demo").click()
        wait_for_map(page, 2)
        assert "secret" not in page.url
        page.reload()
        wait_for_map(page, 2)
