"""A page as Chromium shows it: its console, the sizes of its parts, and its pixels.

The page is in a frame, so that a narrow one is not widened to the smallest window of Chromium.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--enable-logging=stderr", "--force-color-profile=srgb", "--force-device-scale-factor=1"),
)
PROBE = """
<script>
addEventListener("load", () => {
  const box = (element) => {
    const {x, y, width, height} = element.getBoundingClientRect();
    return [y + scrollY, y + scrollY + height, x, x + width].map(Math.round);
  };
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const page = document.documentElement, paper = getComputedStyle(page).backgroundColor;
  const texts = [...document.body.querySelectorAll("*")].filter(
    (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  parent.postMessage({
    width: innerWidth, scrollWidth: page.scrollWidth, height: page.scrollHeight,
    figures: [...document.querySelectorAll("figure img")].map(box),
    contrasts: texts.map((element) => contrast(getComputedStyle(element).color, paper)),
  }, "*");
});
</script>
"""
FRAME = """<!DOCTYPE html><html><head><meta name="color-scheme" content="light dark"><title>Frame</title>
<style>body {{ margin: 0 }} iframe {{ border: 0 }}</style></head><body>
<iframe src="probed.html" width="{width}" height="{height}"></iframe><pre id="found" hidden></pre>
<script>
addEventListener("message", ({{data}}) => {{ document.getElementById("found").textContent = JSON.stringify(data); }});
</script></body></html>"""


def look(page: str, folder: Path, *, width: int, height: int, dark: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Show a page in a frame; return the measurements of the probe, and the pixels ``(height, width, 3)``."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')  # forbids the probe
    (folder / "probed.html").write_text(policy.sub("", page).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME.format(width=width, height=height), encoding="utf-8")
    picture = folder / "picture.png"
    window = (f"--window-size={max(width, 600)},{height}", "--virtual-time-budget=5000", "--dump-dom")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM or "", *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", *window]
    command += [f"--screenshot={picture}", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ":CONSOLE" not in done.stderr
    (text,) = re.findall(r'<pre id="found"[^>]*>(.*?)</pre>', done.stdout, flags=re.S)
    return json.loads(html.unescape(text)), np.asarray(Image.open(picture).convert("RGB"))
