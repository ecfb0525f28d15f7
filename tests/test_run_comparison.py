"""Run folders side by side: `report.compare` and the command ``pyrovae compare``."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import fails, make_vae

import pyrovae
from pyrovae.cli import main
from pyrovae.report import report_files
from pyrovae.report.page import render_comparison
from pyrovae.results import Evaluation
from pyrovae.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def evaluations() -> dict[str, Evaluation]:
    """Return evaluations of three untrained models, the last on other data."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    data = pyrovae.data.digits().for_form("binary")
    found = {}
    for seed, (name, split) in enumerate({"a": data.test, "b": data.test, "c": data.validation}.items()):
        torch.manual_seed(seed)
        vae = make_vae()
        found[name] = pyrovae.evaluate(vae.model, vae.guide, split.first(20), ks=(1, 4), show_progress=False)
    torch.set_default_dtype(default)
    return found


def write(folder: str, evaluation: Evaluation, name: str = "report") -> None:
    """Write the numbers of a report into a run folder."""
    RunFolder(folder).write(
        {
            "config.json": b"{}",
            f"{name}/evaluation.json": evaluation.to_json().encode(),
            f"{name}/per_datum.safetensors": safetensors.torch.save(evaluation.per_datum),
        }
    )


@pytest.fixture
def runs(evaluations: dict[str, Evaluation]) -> list[str]:
    for name, evaluation in evaluations.items():
        write(f"runs/{name}", evaluation)
    return [f"runs/{name}" for name in evaluations]


def test_formats_go_to_the_terminal_or_a_file(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    comparison = pyrovae.report.compare(runs[:2])
    expected = {
        "text": f"{comparison}\n",
        "markdown": comparison.to_markdown(),
        "latex": comparison.to_latex(),
        "csv": comparison.to_csv(),
        "json": comparison.to_json(),
        "html": render_comparison(comparison),
    }
    endings = {"text": ".txt", "markdown": ".md", "latex": ".tex", "csv": ".CSV", "json": ".json", "html": ".html"}
    for name, ending in endings.items():
        assert main(["compare", *runs[:2], "--format", name]) == 0
        assert capsys.readouterr().out == expected[name]
        assert main(["compare", "--output", f"table{ending}", *runs[:2]]) == 0
        assert capsys.readouterr().out == f"comparison: table{ending}\n"
        assert Path(f"table{ending}").read_text() == expected[name]
    assert main(["compare", *runs[:2], "--output", "table.md", "--format", "csv"]) == 0
    assert Path("table.md").read_text() == expected["csv"], "the option counts more than the ending"
    assert not list(Path().glob(".*")), "nothing temporary is left"
    assert "cannot be written (No such file or directory); choose another --output" in fails(
        capsys, "compare", *runs[:2], "--output", "nowhere/table.md"
    )
    assert "invalid choice: 'pdf'" in fails(capsys, "compare", *runs[:2], "--format", "pdf")


def test_seeds_and_power_have_the_same_digits_everywhere(evaluations: dict[str, Evaluation]) -> None:
    """All sentences and all cells of the terminal stand on the page; the JSON has the numbers in full."""
    models = {name: evaluations[name] for name in "ab"} | {"ab": [evaluations["a"], evaluations["b"]]}
    comparison = pyrovae.compare(models)
    plain, page = json.loads(comparison.to_json()), html.unescape(render_comparison(comparison))
    page = "".join(re.sub("<[^>]+>", " ", page).replace("±", "+-").split())
    terminal = "".join(str(comparison).split())
    (table,) = comparison.tables()
    assert plain["sentences"] == [*table.title, *table.notes]
    assert sum("To tell 0.2 nats apart" in line or "Bounds are means over" in line for line in plain["sentences"]) == 2
    cells = [str(cell) for row in table.rows for cell in row if str(cell)]
    for text in (*plain["sentences"], *cells):
        assert "".join(text.split()) in page
        assert "".join(text.split()) in terminal
    (block,) = plain["blocks"]
    sd = f"{block['rows'][2]['sd_seeds']:.3f}"
    assert sd in page
    assert sd in terminal


def test_any_run_is_the_reference_by_name_or_folder(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for reference in ("b", "runs/b", "./runs/b/"):
        assert main(["compare", *runs[:2], "--reference", reference, "--format", "csv"]) == 0
        a, b = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (a["model"], b["model"], b["difference"]) == ("a", "b", "")
        assert float(a["95 % interval low"]) < float(a["difference"]) < float(a["95 % interval high"])
    assert "the reference is one of a, b, but received 'runs/z'" in fails(
        capsys, "compare", *runs[:2], "--reference", "runs/z"
    )


def test_other_data_are_refused_unless_kept_apart(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "compare", *runs)
    assert "these differ in data, observed values, scored values (a, b: 20 data of digits/test[:20], " in line
    assert "; c: 20 data of digits/validation[:20], " in line
    assert "evaluate all on the same values" in line
    assert main(["compare", *runs, "--blocks"]) == 0
    assert "Nats compare models within a block only" in capsys.readouterr().out


def test_folders_are_named_so_that_they_differ(runs: list[str], evaluations: dict[str, Evaluation]) -> None:
    write("others/a", evaluations["b"])
    write("others/runs/b", evaluations["b"])
    compare = pyrovae.report.compare
    assert [row.name for row in compare([runs[0], Path(runs[1])]).rows] == ["a", "b"]
    mixed = compare(["runs/a", "others/a", "runs/b", "others/runs/b"])
    here = Path.cwd().name
    assert [row.name for row in mixed.rows] == ["runs/a", "others/a", f"{here}/runs/b", "others/runs/b"]
    assert [row.name for row in compare({"ours": "runs/a", "theirs": evaluations["b"]}).rows] == ["ours", "theirs"]
    for twice in (["runs/a", "runs/b", "runs/../runs/a"], ["runs/a", "runs/a"]):
        with pytest.raises(ValueError, match=r"runs/a is given 2 times; name each run once"):
            compare(twice)


def test_errors_of_folders_without_an_evaluation_name_a_remedy(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere is not a run folder: it has no manifest.json" in fails(capsys, "compare", "runs/a", "nowhere")
    assert fails(capsys, "compare", "runs").endswith("no manifest.json; it holds 3 runs; name them: runs/*")
    RunFolder("runs/new").write({"config.json": b"{}"})
    line = fails(capsys, "compare", "runs/new")
    assert "runs/new has no report/evaluation.json; evaluate it: pyrovae evaluate runs/new" in line
    assert "the following arguments are required: RUN" in fails(capsys, "compare")
    with pytest.raises(
        TypeError, match=r"takes a list of run folders, but received 'runs/a'; give evaluations by name"
    ):
        pyrovae.report.compare("runs/a")


def test_a_report_that_cannot_be_read_fails_with_one_line(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(Path("runs/b/report/evaluation.json").read_text()) | {"a_new_field": 1}
    RunFolder("runs/b").write({"report/evaluation.json": json.dumps(record).encode()})
    assert fails(capsys, "compare", *runs[:2]) == (
        "pyrovae: error: the report of runs/b cannot be read (this is not the Evaluation that this version of pyrovae "
        "writes: it differs in a_new_field); evaluate it: pyrovae evaluate runs/b --overwrite"
    )


def test_the_report_that_all_runs_have_is_compared(
    runs: list[str], evaluations: dict[str, Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several reports one can be named; a run without it, or several without a name in common, are refused."""
    a, b, other = runs[0], runs[1], "report-validation"
    whole = str(pyrovae.report.compare([a, b]))
    write(a, evaluations["c"], other)
    assert str(pyrovae.report.compare([a, b])) == whole, "both have the default report"
    line = fails(capsys, "compare", a, b, "--report", other)
    assert f"the run runs/b has no {other}/evaluation.json; evaluate it" in line
    write(b, evaluations["c"], other)
    assert str(pyrovae.report.compare([a, b])) == whole
    apart = pyrovae.report.compare([a, b], name=other)
    assert apart.blocks[0].title.startswith("digits/validation[:20]")
    assert main(["compare", a, b, "--report", other]) == 0
    assert capsys.readouterr().out == f"{apart}\n"
    for folder, name in (("runs/d", other), ("runs/e", "first"), ("runs/f", "second")):
        write(folder, evaluations["c"], name)
    assert pyrovae.report.compare([a, "runs/d"]).blocks[0].title == apart.blocks[0].title, "what both have"
    assert [row.name for row in pyrovae.report.compare(["runs/d", "runs/e"]).rows] == ["d", "e"], "the only ones"
    write("runs/e", evaluations["c"], "third")
    line = fails(capsys, "compare", "runs/d", "runs/e")
    assert "the run runs/e has several reports, first, third; name one of them (name=, --report)" in line


def test_runs_that_differ_in_their_seed_are_one_row(
    evaluations: dict[str, Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"objective": {}, "optimizer": {}, "data": {}}
    trained = {"a_seed-0": (0, 5, 5), "b": (0, 9, 9), "a_seed-1": (1, 5, 5), "again": (1, 5, 5), "stopped": (2, 5, 3)}
    for name, (seed, epochs, done) in trained.items():
        settings = {"weights": name}
        write(name, replace(evaluations["b" if name == "b" else "a"], settings=settings))
        config = {**parts, "training": {"seed": seed, "epochs": epochs}, "command": {"folder": name, "seed": seed}}
        files = {"config.json": json.dumps(config).encode(), "model.json": b"{}", "metrics.jsonl": b"{}\n" * done}
        RunFolder(name).write(files)
    names = [*trained]
    comparison = pyrovae.report.compare(names, reference="a_seed-1")
    assert [(row.name, row.num_seeds) for row in comparison.rows] == [("a", 2), ("b", 1), ("again", 1), ("stopped", 1)]
    assert comparison.blocks[0].reference == "a"
    apart = pyrovae.report.compare(names, group_seeds=False)
    assert [row.name for row in apart.rows] == names
    assert main(["compare", *names, "--group_seeds", "false"]) == 0
    assert capsys.readouterr().out == f"{apart}\n"
    listed = pyrovae.report.compare({"first": ["a_seed-0", "a_seed-1"], "b": "b"})
    assert [(row.name, row.num_seeds) for row in listed.rows] == [("first", 2), ("b", 1)]
    assert listed.rows[1].bound == comparison.rows[1].bound


def test_names_of_groups_never_collide(monkeypatch: pytest.MonkeyPatch, evaluations: dict[str, Evaluation]) -> None:
    names = [f"d-{i}" for i in range(1, 13)]
    monkeypatch.setattr(report_files, "_recipe_and_seed", lambda name: (str((int(name[2:]) - 1) // 3), int(name[2:])))
    groups = report_files._group_by_recipe(dict(zip(names, names, strict=True)), dict.fromkeys(names, evaluations["a"]))
    assert [*groups] == ["d-1 and 2 more", "d-4 and 2 more", "d-7 and 2 more", "d-10 and 2 more"]
    apart = [f"x{i}_seed-{j}" for i in (1, 2) for j in (3, 14, 5)]
    monkeypatch.setattr(report_files, "_recipe_and_seed", lambda name: (name[:2], int(name.partition("-")[2])))
    groups = report_files._group_by_recipe(dict(zip(apart, apart, strict=True)), dict.fromkeys(apart, evaluations["a"]))
    assert groups == {"x1": apart[:3], "x2": apart[3:]}
