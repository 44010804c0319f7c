"""What a report looks like on paper: every cell worked by hand."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lightning_sparse.export import Report
from lightning_sparse.export.reports.rows import Latency, Machine, Row

HERE = Machine("A CPU", 2, 1, "Linux x86_64", "3.11.2", {"torch": "2.13.0", "onnxruntime": "1.2.3"}, "2026-01-31")


def timed(eager, onnx):
    """Wall times; CPU times are half of them."""
    def one(runtime, seconds):
        missing = isinstance(seconds, str)
        return Latency(runtime, 1, why=seconds) if missing else Latency(runtime, 1, seconds, seconds / 2)

    return one("eager", eager), one("onnxruntime", onnx)


DENSE = Row(
    "dense", False, 1_000_000, 999_000, metric=0.9876, bytes=4_000_000, bound_bytes=3_200_000.0,
    plain_bytes=4_002_000, flops=2e6, live_flops=1.998e6, latencies=timed(0.012, 0.003),
)  # fmt: skip
SMALL = Row(
    "sparse + int8", True, 1_000_000, 50_000, metric=0.98, bytes=80_000, bound_bytes=76_190.0,
    plain_bytes=4_002_000, flops=2e6, live_flops=1e5, latencies=timed("float only", 0.0006),
)  # fmt: skip
REPORT = Report((DENSE, SMALL), HERE, "accuracy", ("OpenVINO was not measured",))
BY_HAND = """\
| variant       | accuracy | parameters | non-zeros |     bytes | smaller | over entropy | FLOPs | of non-zeros | PyTorch eager @1 | ONNX Runtime @1 |
|:--------------|---------:|-----------:|----------:|----------:|--------:|-------------:|------:|-------------:|-----------------:|----------------:|
| dense         |   0.9876 |  1,000,000 |   999,000 | 4,000,000 |    1.0x |        1.25x |   2 M |          2 M |            12 ms |            3 ms |
| sparse + int8 |     0.98 |  1,000,000 |    50,000 |    80,000 |   50.0x |        1.05x |   2 M |        100 k |       float only |          600 us |

Times faster than dense in PyTorch eager / ONNX Runtime, by CPU time:

| variant       | PyTorch eager @1 | ONNX Runtime @1 |
|:--------------|-----------------:|----------------:|
| dense         |    1.00x / 0.25x |   4.00x / 1.00x |
| sparse + int8 |                - |  20.00x / 5.00x |

- bytes: of the compressed file; smaller: than the 4,002,000 that torch.save takes for dense
- FLOPs: of a forward pass, a sample
- latency: median wall time of one call, batch size behind the @; all calls in turns
- OpenVINO was not measured
- A CPU (2 cores, 1 thread used), Linux x86_64, Python 3.11.2, torch 2.13.0, onnxruntime 1.2.3, 2026-01-31"""  # noqa: E501


class Tags(HTMLParser):
    """What a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.found, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_the_markdown_is_what_was_worked_by_hand():
    assert str(REPORT) == REPORT.markdown() == BY_HAND


def test_on_several_threads_speedups_are_by_wall_time():
    slow = replace(SMALL, latencies=(Latency("eager", 1, 0.006, 0.0), Latency("onnxruntime", 1, 0.001, 0.5)))
    text = Report((DENSE, slow), replace(HERE, threads=2)).markdown()
    assert "by wall time" in text
    assert "2.00x / 0.50x" in text
    assert "12.00x / 3.00x" in text
    assert "2 threads used" in text


def test_without_latencies_and_metric_there_are_no_such_columns():
    bare = Report((replace(DENSE, metric=None, latencies=()),), HERE)
    assert "accuracy" not in bare.markdown()
    assert "faster" not in bare.markdown()
    assert "Latency" not in bare.html()


def test_a_reason_stands_where_a_number_is_missing():
    row = replace(SMALL, metric=None, bytes=None, bound_bytes=None, flops=None, live_flops=None)
    row = replace(row, why={"metric": "failed: ValueError", "bytes": "failed: OSError", "flops": "failed: KeyError"})
    line = Report((DENSE, row), HERE).markdown().splitlines()[3]
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    assert cells[1] == "failed: ValueError"
    assert cells[4:9] == ["failed: OSError", "-", "-", "failed: KeyError", "-"]


def test_json_comes_back_as_the_same_report():
    assert Report.from_json(REPORT.json()) == REPORT
    plain = json.loads(REPORT.json())
    assert plain["version"] == 1
    assert plain["rows"][1]["latencies"][1] == {
        "runtime": "onnxruntime", "batch": 1, "wall": 0.0006, "cpu": 0.0003, "why": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "rows": [{}]}', REPORT.json().replace('"cpu"', '"gpu"')]
)
def test_what_is_no_report_is_not_read(text):
    with pytest.raises(ValueError, match="cannot read the report"):
        Report.from_json(text)


def test_the_page_is_well_formed_and_needs_nothing_else():
    text = REPORT.html()
    assert text.startswith("<!DOCTYPE html>")
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    tags = Tags(text).found
    kinds = {tag for tag, _ in tags}
    assert not kinds & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"https?:|@import|url\(|javascript:", text)
    assert not {name for _, attributes in tags for name in attributes} & {"src", "href", "onload", "onclick"}


def test_the_page_shows_every_cell_and_four_plots():
    text, words = REPORT.html(), set(Tags(REPORT.html()).words)
    cells = [cell.strip() for line in BY_HAND.splitlines() if line.startswith("| ") for cell in line.split("|")]
    assert set(filter(None, cells)) <= words
    assert text.count("<svg ") == 4  # bytes, FLOPs, latency at 1, accuracy over bytes
    ends = [float(attributes["width"]) for tag, attributes in Tags(text).found if tag == "rect"]
    assert ends[:2] == [440.0, 8.8]  # 80,000 of 4,000,000 bytes: 2 % of 440 pixels
    assert ends[2:6] == [440.0, 439.6, 440.0, 22.0]  # FLOPs, of non-zeros, of both rows
    assert ends[6:] == [440.0, 110.0, 22.0]  # 12, 3 and 0.6 ms


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b&c', "a|b", "[x](javascript:y)", "`*`", "x" * 300])
def test_names_are_text_wherever_they_are_written(name):
    found = Report((replace(DENSE, name=name), replace(SMALL, name=f"{name} 2")), HERE, metric=name, notes=(name,))
    ElementTree.fromstring(found.html().removeprefix("<!DOCTYPE html>"))
    assert name in Tags(found.html()).words
    assert not {"script"} & {tag for tag, _ in Tags(found.html()).found}
    table = [line for line in found.markdown().splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]} == {12}
    assert "<script" not in found.markdown()
    assert Report.from_json(found.json()).rows[0].name == name


def test_saving_writes_three_files_and_nothing_else(tmp_path):
    folder = tmp_path / "new" / "report"
    assert REPORT.save(folder) == folder
    REPORT.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md"]
    assert (folder / "report.md").read_text() == BY_HAND + "\n"
    assert Report.from_json((folder / "report.json").read_text()) == REPORT


def test_a_write_that_breaks_leaves_the_old_file(tmp_path, monkeypatch):
    REPORT.save(tmp_path)
    monkeypatch.setattr("os.fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace(REPORT, metric="other").save(tmp_path)
    assert (tmp_path / "report.md").read_text() == BY_HAND + "\n"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(ValueError, match="is a file; give the name of a folder"):
        REPORT.save(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_the_processor_is_named_as_the_system_names_it(tmp_path):
    from lightning_sparse.export.reports.machine import cpu_name

    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Another\n")
    assert cpu_name(str(info)) == "Some CPU @ 2 GHz"
    assert cpu_name(str(Path("no such file")))
