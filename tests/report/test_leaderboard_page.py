"""The leaderboard's page: what a parser of HTML, a JavaScript engine and a browser make of it.

The parser is Python's. Sorting and filtering run in node where there is one. With TANGO_TEST_BROWSER=chromium, the
whole page is clicked through in that browser, which must be Chromium or Chrome.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tango.report.leaderboard_page import page
from tango.report.leaderboard_paper import paper_entries
from tests.report.test_leaderboard import ENTRY, REPORT

NODE, BROWSER = shutil.which("node"), os.environ.get("TANGO_TEST_BROWSER")
VOID = {"meta", "input", "br", "circle", "line"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str) -> list[Node]:
        own = [child for child in self.children if isinstance(child, Node)]
        return [found for child in own for found in ([child] * (child.tag == tag) + child.all(tag))]

    def nodes(self) -> list[Node]:
        return [self, *(n for child in self.children if isinstance(child, Node) for n in child.nodes())]

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Tree(HTMLParser):
    """A tree in which every element that is opened must be closed, in order."""

    def __init__(self, text: str):
        super().__init__()
        self.root = Node("root")
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [node.tag for node in self.open] == ["root"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop().tag == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def row(**changes: Any) -> dict[str, Any]:
    return {**ENTRY, **changes}


def random_row(**changes: Any) -> dict[str, Any]:
    method = {"method": "random", "options": {"retention_ratio": 0.1}}
    return row(name="random", method=method, control=True, **changes)


FULL = row(name="none", method={"method": "none", "options": {}}, nominal_ratio=1.0, kept_share=1.0, accuracy=60.0)
ENTRIES = [
    row(name="late", accuracy=58.5, kept_share=0.11),
    row(name="early", accuracy=59.5, kept_share=None, nominal_ratio=0.2),
    random_row(accuracy=9.5, interval=[8.0, 11.0]),
    FULL,
    row(name="sub", set="with subtitles", accuracy=70.0, interval=[68, 72]),
    row(name="some", part="the first 10 clips", num_clips=10),
    row(benchmark="MLVU", set="dev", name="of dev"),
    row(benchmark="MLVU", set="test", name="of test"),
    {**REPORT, "set": None, "name": "printed"},
]


def sections(entries: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """By a table's two lines of title: the first words of the cells of every row."""
    found = {}
    for section in Tree(page(entries)).root.all("section"):
        (title,), (about, *_) = section.all("h2"), section.all("p")
        rows = section.all("tbody")[0].all("tr")
        cells = [[c for c in r.children if isinstance(c, Node) and c.tag in ("th", "td")] for r in rows]
        found[f"{title.text} | {about.text}"] = [[" ".join(cell.text.split()) for cell in line] for line in cells]
    return found


class TestHtml:
    def test_is_well_formed_and_asks_for_nothing(self):
        text = page([*ENTRIES, *paper_entries()])
        nodes = Tree(text).root.nodes()
        assert not {"link", "img", "iframe", "object", "embed", "base"} & {node.tag for node in nodes}
        assert not {"src", "srcset", "style", "action"} & {name for node in nodes for name in node.attributes}
        assert not [name for node in nodes for name in node.attributes if name.startswith("on")]
        links = {node.attributes["href"] for node in nodes if "href" in node.attributes}
        assert links == {"https://example.org/records", "https://arxiv.org/abs/2604.09547v2"}
        (style,) = (node for node in nodes if node.tag == "style")
        assert "url(" not in style.text
        assert "@import" not in style.text
        assert "prefers-color-scheme: dark" in style.text
        assert not re.findall(r"@[A-Z]+@", text)

    def test_serves_readers_of_the_screen(self):
        root = Tree(page(ENTRIES)).root
        nodes = root.nodes()
        ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
        assert len(set(ids)) == len(ids)
        assert {name for node in nodes if (name := node.attributes.get("aria-labelledby"))} <= set(ids)
        assert root.all("html")[0].attributes["lang"] == "en"
        for table in root.all("table"):
            heads = table.all("thead")[0].all("th")
            assert all(head.attributes["scope"] == "col" for head in heads)
            assert all(line.all("th")[0].attributes["scope"] == "row" for line in table.all("tbody")[0].all("tr"))
            assert all(len(head.all("button")) == ("aria-sort" in head.attributes) for head in heads)
            width = {sum(isinstance(c, Node) for c in line.children) for line in table.all("tr")}
            assert width == {len(heads)}
        assert all(svg.attributes["role"] == "img" and svg.attributes["aria-label"] for svg in root.all("svg"))
        in_labels = [tag for label in root.all("label") for tag in (*label.all("select"), *label.all("input"))]
        assert len(in_labels) == len(root.all("select")) + len(root.all("input")) == 5

    def test_rows_of_different_sets_stand_apart(self):
        found = {title: [cells[0].split("details")[0] for cells in rows] for title, rows in sections(ENTRIES).items()}
        model = "LLaVA-OneVision-7B"
        assert found == {
            f"Video-MME · {model} | set: without subtitles; the whole set; 32 frames; 900 clips": [
                "all tokens", "late", "random control", "early",
            ],
            f"Video-MME · {model} | set: with subtitles; the whole set; 32 frames; 900 clips": ["sub"],
            f"Video-MME · {model} | set: without subtitles; a part: the first 10 clips; 32 frames; 10 clips": ["some"],
            f"MLVU · {model} | set: dev; the whole set; 32 frames; 900 clips": ["of dev"],
            f"MLVU · {model} | set: test; the whole set; 32 frames; 900 clips": ["of test"],
            f"Video-MME · {model} | set not stated; the whole set; 32 frames": ["printed"],
        }  # fmt: skip
        assert list(found)[-1].endswith("set not stated; the whole set; 32 frames")  # what was measured comes first

    def test_cells(self):
        rows = sections(ENTRIES)["Video-MME · LLaVA-OneVision-7B | set: without subtitles; the whole set; 32 frames; "
                                 "900 clips"]  # fmt: skip
        assert [cells[1:] for cells in rows] == [
            ["100", "100.0", "60.0 [56.1, 60.9]", "", "1580 of 2700", "3", "measured hereA. Tester"],
            ["10", "11.0", "58.5 [56.1, 60.9]", "", "1580 of 2700", "3", "measured hereA. Tester"],
            ["10", "10.8", "9.5 [8.0, 11.0]", "", "1580 of 2700", "3", "measured hereA. Tester"],
            ["20", "–", "59.5 [56.1, 60.9]", "", "1580 of 2700", "3", "measured hereA. Tester"],
        ]
        told = rows[1][0]
        assert '"alpha": 1.5' in told
        assert "tango 0.1.0, torch 2.15.0" in told
        assert "1 x NVIDIA H200" in told
        assert "2026-11-21" in told

    def test_bars_are_where_the_numbers_are(self):
        """One scale for a table: its least end at 4 of 160, its greatest at 156."""
        root = Tree(page([FULL, random_row(accuracy=9.5, interval=[8.0, 60.9])])).root
        bars = root.all("svg")
        assert [bar.attributes["aria-label"] for bar in bars] == [
            "60.0 %, 95 % interval 56.1 to 60.9 %",
            "9.5 %, 95 % interval 8.0 to 60.9 %",
        ]

        def place(percent: float) -> str:
            return f"{4 + 152 * (percent - 8.0) / 52.9:.1f}"

        for bar, (low, value, high) in zip(bars, ((56.1, 60.0, 60.9), (8.0, 9.5, 60.9)), strict=True):
            lines = {line.attributes["class"]: line.attributes for line in bar.all("line")}
            assert (lines["interval"]["x1"], lines["interval"]["x2"]) == (place(low), place(high))
            assert (lines["full"]["x1"], lines["full"]["x2"]) == (place(60.0), place(60.0))
            assert bar.all("circle")[0].attributes["cx"] == place(value)

    def test_of_two_rows_with_all_tokens_neither_is_drawn_through_the_others(self):
        root = Tree(page([FULL, {**FULL, "kind": "measured elsewhere"}, ENTRIES[0]])).root
        assert "full" not in {line.attributes["class"] for line in root.all("line")}

    def test_texts_of_others_are_texts(self):
        evil = '"><script>alert(1)</script>@TABLES@&'
        entry = row(
            name=evil, model=evil, benchmark=evil, set=evil, part=evil, hardware=evil, notes=evil, date=evil,
            source={"who": evil, "link": f"https://example.org/{evil}"}, versions={evil: evil},
            method={"method": evil, "options": {evil: evil}}, kind=f"reported by the authors of {evil}",
        )  # fmt: skip
        root = Tree(page([entry])).root
        assert [script.attributes["id"] for script in root.all("script")] == ["logic", "page"]
        (section,) = root.all("section")
        assert section.text.count("alert(1)") >= 10
        assert section.all("a")[0].attributes["href"] == f"https://example.org/{evil}"
        assert root.all("option")[1].text == evil

    def test_the_same_entries_give_the_same_page(self):
        assert page(ENTRIES) == page(ENTRIES)


def script(name: str) -> str:
    (found,) = (node for node in Tree(page(ENTRIES)).root.all("script") if node.attributes.get("id") == name)
    return found.text


@pytest.mark.skipif(NODE is None, reason="no node here")
class TestLogic:
    def run(self, code: str) -> Any:
        assert NODE is not None
        done = subprocess.run(
            [NODE, "-"], input=f"{script('logic')}\n{code}", capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @pytest.mark.parametrize(
        ("keys", "text", "ascending", "expected"),
        [
            (["9.5", "", "58.5", "100", "0"], False, True, ["0", "9.5", "58.5", "100", ""]),
            (["9.5", "", "58.5", "100", "0"], False, False, ["100", "58.5", "9.5", "0", ""]),
            (["1e-05", "0.1", "0.05"], False, True, ["1e-05", "0.05", "0.1"]),
            (["tango", "fastv", "", "Dart", "m10", "m9"], True, True, ["Dart", "fastv", "m9", "m10", "tango", ""]),
            (["tango", "fastv", "", "Dart"], True, False, ["tango", "fastv", "Dart", ""]),
        ],
    )
    def test_sorting(self, keys, text, ascending, expected):
        order = f"(a, b) => compare(a, b, {json.dumps(text)}, {json.dumps(ascending)})"
        assert self.run(f"console.log(JSON.stringify({json.dumps(keys)}.sort({order})))") == expected

    def test_equal_rows_keep_their_places(self):
        keys = [["5", i] for i in range(40)]
        code = f"{json.dumps(keys)}.sort((a, b) => compare(a[0], b[0], false, false))"
        assert self.run(f"console.log(JSON.stringify({code}))") == keys

    def test_a_click_turns_the_order_round(self):
        calls = "[next('none', 'descending'), next('descending', 'descending'), next('ascending', 'descending')]"
        assert self.run(f"console.log(JSON.stringify({calls}))") == ["descending", "ascending", "descending"]

    @pytest.mark.parametrize(
        ("chosen", "shown"),
        [
            ({}, ["full", "tango", "random", "printed", "other"]),
            ({"model": "A"}, ["full", "tango", "random", "printed"]),
            ({"benchmark": "Y"}, ["printed", "other"]),
            ({"ratio": "0.1"}, ["full", "tango", "random"]),
            ({"reported": False}, ["full", "tango", "random", "other"]),
            ({"controls": False}, ["full", "tango", "printed", "other"]),
            ({"model": "A", "ratio": "0.2", "reported": False}, ["full"]),
        ],
    )
    def test_filters(self, chosen, shown):
        rows = {
            "full": ("A", "X", "1", "true", "false", "false"),
            "tango": ("A", "X", "0.1", "false", "false", "false"),
            "random": ("A", "X", "0.1", "false", "false", "true"),
            "printed": ("A", "Y", "0.2", "false", "true", "false"),
            "other": ("B", "Y", "0.2", "false", "false", "false"),
        }
        names = ("model", "benchmark", "ratio", "all", "reported", "control")
        data = {name: dict(zip(names, values, strict=True)) for name, values in rows.items()}
        choice = {"model": "", "benchmark": "", "ratio": "", "reported": True, "controls": True, **chosen}
        code = (
            f"Object.entries({json.dumps(data)}).filter(([_, row]) => shows(row, {json.dumps(choice)})).map(r => r[0])"
        )
        assert self.run(f"console.log(JSON.stringify({code}))") == shown


# Does what a user does, and leaves what is to be seen then as JSON in an element of its own.
CLICKS = """<script>
const seen = {}, names = section => [...section.querySelectorAll("tbody tr")].filter(row => !row.hidden)
  .map(row => row.cells[0].dataset.key);
const first = [...document.querySelectorAll("section")].find(section => section.textContent.includes("random"));
const heads = [...first.querySelectorAll("thead button")];
const note = what => { seen[what] = names(first); };
const choose = (name, value) => {
  const element = document.getElementById(name);
  if (element.type === "checkbox") element.checked = value; else element.value = value;
  element.dispatchEvent(new Event("change", { bubbles: true }));
};
const open = () => [...document.querySelectorAll("section")].filter(section => !section.hidden).length;
note("at first");
const button = title => heads.find(head => head.textContent === title);
button("Accuracy, % [95 %]").click(); note("accuracy");
seen.sorted = [...first.querySelectorAll("th[aria-sort]")].map(head => head.getAttribute("aria-sort"));
button("Accuracy, % [95 %]").click(); note("accuracy again");
button("Kept, %").click(); note("kept");
button("Kept, %").click(); note("kept again");
button("Method").click(); note("method");
choose("ratio", "0.1"); note("ratio");
choose("controls", false); note("no controls");
seen.count = document.getElementById("count").textContent;
choose("controls", true); choose("ratio", "");
seen.tables = [open()];
choose("benchmark", "MLVU"); seen.tables.push(open());
choose("benchmark", ""); choose("reported", false); seen.tables.push(open());
choose("reported", true);
seen.count_of_all = document.getElementById("count").textContent;
seen.form = !document.querySelector("form").hidden;
seen.colours = getComputedStyle(document.body).backgroundColor;
const told = document.createElement("pre");
told.id = "seen"; told.textContent = JSON.stringify(seen); document.body.append(told);
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="TANGO_TEST_BROWSER names no browser")
def test_in_a_browser(tmp_path: Path) -> None:
    assert BROWSER is not None
    file = tmp_path / "index.html"
    file.write_text(page(ENTRIES).replace("</body>", CLICKS), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, file.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stderr
    seen = json.loads(found[1].replace("&amp;", "&"))
    assert seen.pop("colours") in ("rgb(255, 255, 255)", "rgb(16, 20, 24)")  # the stylesheet is used
    assert seen == {
        "at first": ["all tokens", "late", "random", "early"],
        "accuracy": ["all tokens", "early", "late", "random"],
        "sorted": ["none", "none", "none", "descending", "none", "none", "none"],
        "accuracy again": ["random", "late", "early", "all tokens"],
        "kept": ["random", "late", "all tokens", "early"],
        "kept again": ["all tokens", "late", "random", "early"],
        "method": ["all tokens", "early", "late", "random"],
        "ratio": ["all tokens", "late", "random"],
        "no controls": ["all tokens", "late"],
        "count": "7 of 9 rows",
        "tables": [6, 2, 5],
        "count_of_all": "9 of 9 rows",
        "form": True,
    }
