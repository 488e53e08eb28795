"""In a notebook `kept` is a table and the graph a picture; both are still what they print."""

from __future__ import annotations

from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

import tinyllm
from tinyllm import nn
from tinyllm.inspect.kept import Kept, Row
from tinyllm.lora import apply_lora
from tinyllm.models import DecoderModel
from tinyllm.models.config import llama_shape

IDS = np.arange(6).reshape(1, 6)


@pytest.fixture(scope="module")
def model():
    return DecoderModel(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, seed=0)


class Cells(HTMLParser):
    """The texts of the cells, a list a row; fails at a tag that a table does not have."""

    def __init__(self, html: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.cell = False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        assert tag in ("table", "caption", "thead", "tbody", "tfoot", "tr", "td", "th") and not attrs
        if tag == "tr":
            self.rows.append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.cell = False


def test_the_table_of_kept_has_every_row_and_both_sums(model):
    found = tinyllm.kept(model.loss(IDS, IDS), model)
    rows = Cells(found._repr_html_()).rows
    cells = [[r.operation, r.name, str(r.shape), r.dtype, f"{r.bytes:,}"] for r in [*found, *found.owned]]
    assert [row for row in rows if len(row) == 5 and row[0] not in ("operation", "total")] == cells
    by = [[name, f"{n:,}"] for sums in (found.by_operation(), found.by_layer()) for name, n in sums.items()]
    assert [row for row in rows if len(row) == 2 and row[0] not in ("operation", "layer", "total")] == by
    sums = [row[-1] for row in rows if row[0] == "total"]
    assert sums == [f"{n:,}" for n in (found.total, found.owned_total, found.total, found.total)]
    assert [row[-1] for row in map(str.split, str(found).splitlines()) if row[:1] == ["total"]] == sums


def test_kept_adds_up_by_operation_and_by_layer():
    """Every byte has one operation and one layer; a deeper model has more layers with as much in each."""
    model = DecoderModel(40, 32, 3, 2, seed=0, **llama_shape(num_kv_heads=1))
    apply_lora(model, rank=2, target_modules="all-linear", verbose=False)
    found = tinyllm.kept(model.loss(IDS % 40, IDS % 40), model)
    assert sum(found.by_operation().values()) == sum(found.by_layer().values()) == found.total
    layers = found.by_layer()
    assert list(layers) == ["layers.0", "layers.1", "layers.2", "elsewhere"]
    assert layers["layers.1"] == layers["layers.2"] > layers["elsewhere"]
    names = {row.name for row in found}
    assert {"q", "k", "v", "gate", "up"} <= names and not names & {"a", "b", "c"}
    numbers = [row for row in found if row.shape == ()]
    assert [row.layer for row in numbers] == ["layers.0", "layers.1", "layers.2"]  # alpha / r, of seven matrices each
    with pytest.raises(ValueError, match=r"kept\(loss, model\)"):
        tinyllm.kept(model.loss(IDS % 40, IDS % 40)).by_layer()


def test_a_layers_share_is_what_one_more_layer_keeps():
    """Also checkpointed, where the rule names the block and none of its weights, and trained whole."""
    for checkpointing in (False, True):
        for adapt in (lambda m: apply_lora(m, rank=2, verbose=False), lambda m: m):
            found = []
            for layers in (3, 4):
                model = adapt(DecoderModel(40, 32, layers, 2, seed=0, **llama_shape(num_kv_heads=1)))
                model.checkpointing = checkpointing
                found.append(tinyllm.kept(model.loss(IDS, IDS), model))
            assert found[1].by_layer()["layers.3"] == found[1].total - found[0].total > 0


def test_names_in_the_table_are_text():
    nasty = "<script>alert('&')</script>"
    html = Kept([Row(nasty, nasty, (1,), nasty, 4)], [Row("a", nasty, (1,), "nf4", 4)])._repr_html_()
    assert "<script>" not in html and html.count("&lt;script&gt;") == 4
    assert unescape(Cells(html).rows[1][1]) == nasty


def test_nothing_kept_is_a_table_too():
    assert Cells(tinyllm.kept(tinyllm.Tensor([1.0]))._repr_html_()).rows[-1] == ["total", "", "", "", "0"]


def test_the_graph_is_a_picture_and_a_string(model, tmp_path):
    picture = tinyllm.graph_svg(model.loss(IDS, IDS), model, tmp_path / "graph.svg")
    assert isinstance(picture, str) and type(picture._repr_svg_()) is str
    assert picture == picture._repr_svg_() == (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"


def test_a_weight_that_looks_into_a_file_has_its_own_shape():
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data = np.frombuffer(bytes(48), np.float32).reshape(3, 4)
    x = tinyllm.Tensor(np.ones((2, 4), np.float32), requires_grad=True)
    (row,) = tinyllm.kept(layer(x), layer).owned
    assert (row.name, row.shape, row.bytes) == ("weight", (3, 4), 48)
