"""A page as Chromium shows it: its console, the sizes of its parts, and its pixels.

One start of the browser measures and photographs a page at several widths, each in a frame of its own, so that narrow
frames are not widened to the smallest window of Chromium.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
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
    return {x: x + scrollX, y: y + scrollY, width, height};
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
    boxes: [...document.querySelectorAll("h1, h2, p, dl, nav, .scroll, .notes, figcaption")].map(box),
    contrasts: texts.map((element) => contrast(getComputedStyle(element).color, paper)),
  }, "*");
});
</script>
"""
FRAMES = """<!DOCTYPE html><html><head><meta name="color-scheme" content="light dark"><title>Frames</title>
<style>body {{ margin: 0 }} iframe {{ border: 0; position: absolute; top: 0 }}</style></head><body>{frames}
<pre id="found" hidden></pre>
<script>
const found = [];
addEventListener("message", (event) => {{
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script></body></html>"""


@dataclass(frozen=True)
class Sight:
    """A page at one width.

    Attributes:
        found: measurements of the probe.
        pixels: ``(height, width, 3)``, bytes.

    """

    found: dict[str, Any]
    pixels: np.ndarray

    def crop(self, box: dict[str, float]) -> np.ndarray:
        """Return the pixels of a box, as far as they lie inside the window."""
        left, top = round(box["x"]), round(box["y"])
        return self.pixels[top : top + round(box["height"]), left : left + round(box["width"])]


def look(page: str, folder: Path, *, widths: Sequence[int], height: int, dark: bool) -> tuple[list[Sight], list[str]]:
    """Show a page in frames of several widths and one height; return a sight of each and the lines of the console."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')  # forbids the probe
    (folder / "probed.html").write_text(policy.sub("", page).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    lefts = [sum(widths[:index]) for index in range(len(widths))]
    frames = "".join(
        f'<iframe src="probed.html" width="{width}" height="{height}" style="left: {left}px"></iframe>'
        for width, left in zip(widths, lefts, strict=True)
    )
    (folder / "frames.html").write_text(FRAMES.format(frames=frames), encoding="utf-8")
    picture = folder / "picture.png"
    window = (f"--window-size={sum(widths)},{height}", "--virtual-time-budget=5000", "--dump-dom")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM or "", *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", *window]
    command += [f"--screenshot={picture}", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    (text,) = re.findall(r'<pre id="found"[^>]*>(.*?)</pre>', done.stdout, flags=re.S)
    found = {record["width"]: record for record in json.loads(html.unescape(text))}
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    sights = [Sight(found[width], pixels[:, left : left + width]) for width, left in zip(widths, lefts, strict=True)]
    return sights, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
