"""Make docs/pictures/report.png: parts of the report of a real run of `glmtune demo`.

    glmtune demo --dir demo
    python docs/pictures/make.py demo/adapter/report.html

Shown are its verdict, its proofs without their numbers, and two answers of the base and of the
tuned model. Needs playwright and Chromium.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("report.png")
MOST_BYTES = 200_000
SHOWN = """
h1, .lead, nav, footer, details, .hint, section { display: none }
#proofs, #answers { display: block }
body { padding-bottom: 0 }
.tiles .tile:nth-child(n + 5) { display: none }
.proofs { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: 0 1.5rem }
"""


def main() -> None:
    """Open the report, hide what is not shown, and write the picture."""
    report = Path(sys.argv[1]).resolve()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 600}, color_scheme="light")
        page.goto(report.as_uri())
        page.add_style_tag(content=SHOWN)
        page.screenshot(path=PICTURE, full_page=True)
        browser.close()
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"expected at most {MOST_BYTES:,}. Show less of the page.")


if __name__ == "__main__":
    main()
