"""The server's page in a real browser: what a person does there, on a desktop and on a phone."""

import shutil

import pytest
from tiny import pairs
from tiny_server import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("starlette", reason="needs tmem[serve]")
from tmem.serve.tenants import Tenants  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
EVIL = "<img src=x onerror=\"document.title = 'hacked'\">"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that answers dialogs with `page.says`, and fails the test for an error of its script or a request elsewhere."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page, wrong = context.new_page(), []
    page.says = "Bergen"
    page.on("dialog", lambda dialog: dialog.accept(page.says if dialog.type == "prompt" else ""))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if "//127.0.0.1:" not in request.url else None)
    yield page
    context.close()
    assert wrong == []


def settled(page):
    while page.evaluate("busy"):
        page.wait_for_timeout(20)


def filled(page, form, **fields):
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.click(f"#{form} button")
    settled(page)


def listed(page, name):
    return [item.inner_text() for item in page.query_selector_all(f"#{name} > li")]


def test_a_person_makes_a_memory_chats_teaches_corrects_deletes_and_goes_back(page, tmp_path):
    first, second = pairs(2, "a")
    with serving(tmp_path / "s") as (client, store):
        page.goto(str(client.base_url))
        filled(page, "make", new="ada")
        filled(page, "say", text="Good morning.")
        assert [line.split("\n")[0] for line in listed(page, "talk")] == ["user", "assistant"] and store.waits(
            "ada"
        ) is not None
        filled(page, "teach", question=first.question, answer=first.answer)
        filled(page, "teach", question=second.question, answer=second.answer)
        assert listed(page, "pairs")[0].startswith(f"{first.question} {first.answer}\nwrite 1, page, loss ")
        assert "(2 pairs, ‖ΔW‖" in page.inner_text("#size")
        page.click("#pairs > li:first-child button:text('Correct')")
        settled(page)
        assert listed(page, "pairs")[0].startswith(f"{first.question} Bergen\n") and "; corrected" in listed(page, "pairs")[0]
        page.click("#pairs > li:first-child button:text('Delete')")
        settled(page)
        assert [f.question for f in store.pairs("ada")] == [second.question] and len(listed(page, "pairs")) == 1
        page.says = "ada two"
        page.click("#fork")
        settled(page)
        assert page.input_value("#memory") == "ada two" and len(store) == 2
        page.click("#log > li:first-child button")
        settled(page)
        assert store.pairs("ada two") == [] and len(store.pairs("ada")) == 1 and listed(page, "pairs") == []
        page.click("#remove")
        settled(page)
        assert page.input_value("#memory") == "ada" and "ada two" not in store and page.inner_text("#error") == ""


def test_what_users_said_is_text_and_what_is_refused_is_a_sentence(page, tmp_path):
    with serving(tmp_path / "s") as (client, _):
        page.goto(str(client.base_url))
        filled(page, "make", new=EVIL)
        filled(page, "teach", question=f"{EVIL}?", answer=EVIL)
        filled(page, "say", text=EVIL)
        assert EVIL in listed(page, "pairs")[0] and EVIL in listed(page, "talk")[0]
        assert page.title() == "tmem" and page.query_selector("img") is None
        filled(page, "make", new=EVIL)
        assert page.inner_text("#error").startswith("make: there is a memory")
        filled(page, "make", new="ben")
        assert page.inner_text("#error") == "" and page.input_value("#memory") == "ben"


def test_on_a_phone_nothing_is_cut_off(page, tmp_path):
    page.set_viewport_size({"width": 360, "height": 700})
    with serving(tmp_path / "s") as (client, store):
        store.make("ada")
        store.learn("ada", [("w" * 300, "v" * 300)], source="s" * 100)
        page.goto(str(client.base_url))
        settled(page)
        assert len(listed(page, "pairs")) == 1
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_with_keys_the_page_asks_for_one_and_keeps_it_for_this_tab_alone(page, tmp_path):
    tenants = Tenants([("acme", "acme-key-0123456789")])
    with serving(tmp_path / "s", tenants=tenants) as (client, store):
        store.make("acme/ada")
        store.make("beta/ben")
        page.goto(str(client.base_url))
        settled(page)
        assert page.is_visible("#enter") and not page.is_visible("main")
        filled(page, "enter", key="wrong-key-0123456789")
        assert "a key is needed" in page.inner_text("#error") and page.evaluate("sessionStorage.length") == 0
        filled(page, "enter", key="acme-key-0123456789")
        assert page.is_visible("main") and [o.inner_text() for o in page.query_selector_all("option")] == ["ada"]
        page.reload()
        settled(page)
        assert page.is_visible("main") and page.evaluate("localStorage.length + document.cookie.length") == 0
        other = page.context.new_page()
        other.goto(str(client.base_url))
        settled(other)
        assert other.is_visible("#enter")
