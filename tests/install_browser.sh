#!/bin/sh
# Make sure that a Chromium is there for the tests that open the book's pages.
set -u

found() {
    if [ -n "${CHROMIUM:-}" ]; then
        [ -x "$CHROMIUM" ] && return 0
        echo "install_browser: CHROMIUM=$CHROMIUM is not a program" >&2
        exit 1
    fi
    for name in chromium chromium-browser google-chrome chrome; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    python -c '
import os, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as p:
    sys.exit(not os.path.exists(p.chromium.executable_path))
' 2>/dev/null
}

by_apt() {
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" -eq 0 ]; then
        root=""
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        root="sudo -n"
    else
        return 1
    fi
    # On Ubuntu the package is a snap, which may not see the files under test; not there, then.
    if [ -r /etc/os-release ] && grep -q '^ID=ubuntu' /etc/os-release; then
        return 1
    fi
    $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium
}

found && exit 0
echo "install_browser: no Chromium yet, getting one"
by_apt >&2
found && exit 0
python -m playwright install chromium >&2
found && exit 0
cat >&2 <<'END'
install_browser: no Chromium could be installed.
The tests open the built book in a browser. Do one of these:
  - install Chromium or Google Chrome with your system's package manager;
  - set CHROMIUM to the path of an installed one;
  - run "python -m playwright install --with-deps chromium" with network access.
END
exit 1
