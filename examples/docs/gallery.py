"""Write examples/README.md from the docstrings of the examples and from examples/gallery.

    python examples/docs/gallery.py    a second

An example takes part as soon as its picture and its output lie in examples/gallery, made by

    python examples/NAME.py --picture examples/gallery/NAME.png | tee examples/gallery/NAME.txt

Commit both before this script runs: it prints the commit that last changed the output.
"""

import ast
import re
import subprocess
import textwrap
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
GROUPS = {
    "First steps": ("vae", "by_hand", "simple_vae", "from_torch", "minivae"),
    "How good is the bound": ("bounds",),
    "What the latent space does": ("latent_space", "traversals", "rate_distortion", "variance", "latent_maps"),
    "One part at a time": ("likelihoods", "priors", "posteriors", "objectives"),
    "More than one latent variable, more than x": ("two_layers", "conditional", "diffusion"),
}
HEAD = """\
# Examples

Each example is one page: read it, run it, change a line. Most take other data by `--data mnist`; `--picture FILE` names
the picture, `--smoke` runs for a few seconds. The scripts made the tables and pictures below on two cores of a CPU. The
commit beside an output added it; later versions may print more lines. The last digits differ on other machines. All
bounds are in nats per datum, larger is better. Written by `python examples/docs/gallery.py`; timings are in
`benchmarks/README.md`.
"""


def page() -> str:
    """Return the gallery in Markdown; examples outside the groups come last."""
    names = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if _file(path.stem, "txt").exists()]
    grouped = [name for group in GROUPS.values() for name in group]
    groups = GROUPS | {"Further": tuple(name for name in names if name not in grouped)}
    parts = [HEAD]
    for title, members in groups.items():
        sections = [section(name) for name in members if name in names]
        parts += [f"## {title}\n", *sections] if sections else []
    return "\n".join(parts)


def section(name: str) -> str:
    """Return one example: title, commands, picture, explanation and output."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text())) or ""
    title, rest = docstring.split("\n\n", 1)
    commands, text = re.fullmatch(r"((?: {4}[^\n]*\n)+)\n?(.*)", rest, re.S).groups()
    text = re.sub(r"(https?://[^\s,)]+[^\s,.)])", r"<\1>", text.strip())
    return f"""\
### {title.rstrip(".")}

[`{name}.py`](./{name}.py)

```
{textwrap.dedent(commands).rstrip()}
```

![{title}](gallery/{name}.png)

{text[0].upper()}{text[1:]}

<details>
<summary>Output{_commit(name)}</summary>

```
{_file(name, "txt").read_text().strip()}
```

</details>
"""


def _file(name: str, suffix: str) -> Path:
    return EXAMPLES / "gallery" / f"{name}.{suffix}"


def _commit(name: str) -> str:
    """Return the commit that last changed the output of an example, as text; empty outside a repository."""
    command = ["git", "log", "-1", "--format= (commit %h, %cs)", "--", str(_file(name, "txt"))]
    return subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False).stdout.rstrip()


if __name__ == "__main__":
    (EXAMPLES / "README.md").write_text(page())
