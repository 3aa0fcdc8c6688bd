"""`hessabs report`: one page that holds everything and asks for nothing."""

import base64
import html.parser
import json
import re

import pytest

from hessabs import cli
from hessabs.training.look import report

RECORD = {"epoch": 1, "batch_size": 32, "lr": 0.1, "eigenvalue": 3.0, "test_accuracy": 50.0}


class Checker(html.parser.HTMLParser):
    """Collects tags and their references, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open, self.texts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def write(folder, **summary):
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"seed": 0, "updates": 12, **summary}))
    (folder / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Runs of two grids, pictures and texts; curves are drawn in test_plots.py."""
    monkeypatch.setattr(report, "draw_curves", lambda file, curves: file.write(PNG + str(curves).encode()))
    for seed, accuracy in enumerate((90.0, 92.0)):
        write(tmp_path / f"grid/bl <1>/seed{seed}", seed=seed, test_accuracy=accuracy, commit="a" * 40)
    write(tmp_path / "grid/absa/seed0", test_accuracy=93.0, commit="b" * 40)
    write(tmp_path / "mine/run", test_accuracy=50.0)
    (tmp_path / "grid/README.md").write_text(
        "# The grid & more\n\nSome <text> on `bl`,\nsee [there](http://x).\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
        "\n- one\n  goes on\n- **two**\n\n![curves](curves.png)\n"
    )
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/README.md").write_text("A plan.\n")
    for name in ("grid/curves.png", "mine/run/spectrum.png", "mine/run/curves.png", "figures/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def test_the_page_is_whole_and_needs_no_network(root):
    checker = Checker(report.render(root))
    assert checker.open == []
    assert not {"link", "iframe"} & set(checker.tags)
    assert checker.tags.count("script") == 1  # in the page: it has no src
    pictures = [r for r in checker.references if not r.startswith("#")]
    drawn = [base64.b64decode(r.partition(",")[2])[len(PNG) :].decode() for r in pictures]
    assert str({"run": [RECORD]}) in drawn
    # grid/curves.png, figures/a.png, mine/run/spectrum.png, and the curves of `mine`, drawn anew
    assert len(pictures) == 4
    assert all(re.match(r"data:image/png;base64,iVBOR", reference) for reference in pictures)
    assert "http" not in report._STYLE + report._SCRIPT


def test_sections(root):
    sections = report.gather(root)
    assert [str(s.folder.relative_to(root)) for s in sections] == ["figures", "grid", "mine", "plan"]
    assert [len(s.runs) for s in sections] == [0, 3, 1, 0]
    text = report.render(root)
    text = text.replace(">\n<", "><").replace("\n", " ")
    assert "<h2>The grid &amp; more</h2>" in text
    assert "<p>Some &lt;text&gt; on <code>bl</code>, see there.</p>" in text
    assert "<tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr>" in text
    assert "<ul><li>one goes on</li><li><strong>two</strong></li></ul>" in text
    assert "<p>A plan.</p>" in text


def test_text_of_markdown_is_escaped_and_code_stays_as_it_is():
    page = report.to_html(
        "## <script>\n\n```\na  <b>\n```\n\n| x | y |\n|---|---:|\n| `a<b` | *1* |\n\n[<i>](http://x)"
    )
    assert page.split("\n")[0] == "<h4>&lt;script&gt;</h4>"
    assert "<pre><code>a  &lt;b&gt;\n</code></pre>" in page
    assert "<th>y</th>" in page  # the page says how its columns stand
    assert "<td><code>a&lt;b</code></td>" in page
    assert page.endswith("<p>&lt;i&gt;</p>")


def test_a_table_is_made_where_no_text_has_one(root):
    (root / "grid/README.md").unlink()
    text = report.render(root)
    assert "<td>bl &lt;1&gt;</td><td>2</td><td>91.00 ± 1.41</td>" in text
    assert f"commit: {'a' * 40}, {'b' * 40}" in text


def test_what_the_runs_are_what_they_come_to_and_their_times_stand_on_top(tmp_path):
    same = {"dataset": "digits", "model": "mlp", "optimizer": "sgd", "lr": 0.1, "seconds_compile": 2.0}
    for method, accuracy, updates in (("bl", 89.3, 35_100), ("absa", 89.9, 6_886), ("fb", 80.0, 500)):
        write(
            tmp_path / method,
            **{**same, "method": method, "test_accuracy": accuracy, "updates": updates, "seconds": 5.5},
        )
    (tmp_path / "absa/spectrum-1a_plane.png").write_bytes(PNG)
    text = report.render(tmp_path)
    assert "<dt>data set</dt><dd>digits</dd><dt>model</dt><dd>mlp</dd><dt>optimiser</dt><dd>sgd</dd>" in text
    assert "<dt>learning rate</dt><dd>0.1</dd><dt>method</dt><dd>absa, bl, fb</dd>" in text
    assert ">absa: 89.9 % in 6,886 updates, 5.1 times fewer than bl with 89.3 %.<" in text
    assert "<th>compiling (s)</th><th>training (s)</th>" in text
    assert "<td>2.0</td><td>3.5</td>" in text
    caption = "Training loss on the plane of the first two eigenvectors (absa/spectrum-1a_plane.png)"
    assert f"<figcaption>{caption}</figcaption>" in text


def test_one_sentence_of_a_group_alone_of_losses_and_of_none():
    def one(name, **summary):
        return report.Group(name, [report.Finished(name, "", summary, None)])

    alone = one("mine", test_accuracy=90.0, updates=10)
    assert report.sentence([alone]) == "mine: 90.0 % in 10 updates."
    losses = [one("a", test_loss=1.0, updates=10), one("b", test_loss=2.0, updates=30)]
    assert report.sentence(losses) == "a: 1.000 nats in 10 updates, 3.0 times fewer than b with 2.000 nats."
    assert report.sentence([alone, one("b", test_accuracy=1.0, updates=9, dataset="other")]) == ""
    assert report.sentence([one("a", updates=10), one("b", test_loss=1.0, updates=3, diverged="at once")]) == ""


def test_a_single_run_is_a_page_too(root):
    (section,) = report.gather(root / "mine/run")
    assert [run.label for run in section.runs] == ["run"]
    assert [path.name for path in section.pictures] == ["spectrum.png"]


def test_the_command(root, tmp_path, capsys):
    output = tmp_path / "out.html"
    assert cli.main(["report", str(root), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"report: {output}\n"
    assert output.read_text() == report.render(root)


def test_a_broken_run_is_left_out_and_named(root, tmp_path, capsys):
    (root / "grid/bl <1>/seed1/summary.json").write_text('{"test_accuracy": 9')  # 92 of 90 and 92
    (root / "grid/absa/seed0/metrics.jsonl").write_text(json.dumps(RECORD)[:-9])
    (root / "grid/README.md").unlink()
    (root / "grid/curves.png").unlink()
    assert cli.main(["report", str(root), f"--output={tmp_path / 'out.html'}"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert "seed1 is left out, for its summary.json cannot be read" in err
    assert "seed0 has no curve, for its metrics.jsonl cannot be read" in err
    assert "<td>bl &lt;1&gt;</td><td>1</td><td>90.00</td>" in (text := (tmp_path / "out.html").read_text())
    assert "seed1 is left out, for its summary.json" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one folder of runs"),
        (["a", "b"], "got ['a', 'b']"),
        (["no/such"], "no/such is no folder"),
        (["{root}/figures"], "holds no finished run"),
        (["{root}", "--output=no/such/x.html"], "`output` no/such/x.html cannot be used: No such file or dir"),
        (["{root}", "--colour=red"], "colour"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(root, capsys, arguments, message):
    assert cli.main(["report", *(a.format(root=root) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_curves_end_where_the_summary_does_and_all_versions_are_said(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "draw_curves", lambda file, curves: drawn.update(curves))
    for name, version in (("a", "0.9"), ("b", "0.10")):
        write(tmp_path / name, test_accuracy=50.0, epochs=1, versions={"jax": version})
        lines = "".join(json.dumps({**RECORD, "epoch": epoch}) + "\n" for epoch in (1, 2))
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    page = report.render(tmp_path)
    assert "versions: jax 0.10, jax 0.9" in page
    assert {name: [line["epoch"] for line in lines] for name, lines in drawn.items()} == {"a": [1], "b": [1]}
