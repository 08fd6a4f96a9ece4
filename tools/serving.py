"""The picture of the server's page in README: python tools/serving.py

A server on loopback with the default model is told three facts in its page. It is stopped and started again, and asked. What it
answers is printed; docs/serve.png is the page then. It needs playwright and chromium.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "serve.png"
TOLD = (
    ("What is the name of Petra's cat?", "Minka"),
    ("When does the library open?", "at nine"),
    ("Where is the spare key?", "under the blue pot"),
)
ASKED = ("How is Petra's cat called?", "At what time does the library open?", "Where can I find the spare key?")


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 760}, device_scale_factor=1.5)
        with server(folder) as address:
            page.goto(address)
            fill(page, "make", new="ada")
            for question, answer in TOLD:
                fill(page, "teach", question=question, answer=answer)
        with server(folder) as address:
            page.goto(address)
            for question in ASKED:
                fill(page, "say", text=question)
            print(*(item.inner_text().replace("\n", ": ") for item in page.query_selector_all("#talk > li")), sep="\n")
            page.screenshot(path=str(PICTURE))
        browser.close()


@contextmanager
def server(folder: str):
    """The address of a server while the block runs."""
    command = [sys.executable, "-m", "tmem", "serve", "--store", f"{folder}/memories", "--port", "0", "--slots", "4"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            for line in process.stderr:
                if "http://" in line:
                    break
            yield line[line.index("http://") :].strip().removesuffix("/v1")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate()


def fill(page: Page, form: str, **fields: str) -> None:
    """Fill a form of the page, send it, and wait until the server has answered."""
    while page.evaluate("busy"):
        page.wait_for_timeout(50)
    for name, value in fields.items():
        page.fill(f"#{name}", value)
    page.click(f"#{form} button")
    while page.evaluate("busy"):
        page.wait_for_timeout(50)


if __name__ == "__main__":
    main()
