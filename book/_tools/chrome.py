"""Find an installed Chrome, Chromium or Edge; `python book/_tools/chrome.py` prints which."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

COMMANDS = (
    "chromium-headless-shell",  # the same pages without a window that nobody sees: a third faster
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
    "microsoft-edge-stable",
    "chrome",
    "msedge",
)
MAC = ("Google Chrome", "Chromium", "Microsoft Edge")
WINDOWS = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
ADVICE = (
    "no Chrome, Chromium or Edge was found. Install one (Debian: apt-get install "
    "chromium-headless-shell; elsewhere: any desktop Chrome or Edge), or name its executable in "
    "MINQ_BROWSER"
)


def find_browser() -> str | None:
    """The executable named by MINQ_BROWSER, else the first one installed in a usual place."""
    if named := os.environ.get("MINQ_BROWSER"):
        return shutil.which(named)
    places = [Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in MAC]
    for variable in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA"):
        if folder := os.environ.get(variable):
            places += [Path(folder, name) for name in WINDOWS]
    found = [path for path in map(shutil.which, COMMANDS) if path]
    return next(iter(found + [str(path) for path in places if path.exists()]), None)


def launched(playwright, executable: str, flags: list[str] | None = None):
    """The browser, started by Playwright; an administrator has it without a sandbox."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    args = [*(flags or []), *["--no-sandbox"] * root]
    return playwright.chromium.launch(executable_path=executable, args=args)


if __name__ == "__main__":
    browser = find_browser()
    print(browser or ADVICE)
    sys.exit(browser is None)
