"""The page: one file, no address outside itself, names inert, the policy strict, the sorting right."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from reports import html_page as page_module
from reports.figures import all_figures
from reports.html_page import page
from reports.result_set import load_stores
from tests.reports.synthetic import HOSTILE, add_attempt, add_run, cell_config, five_tasks

ROOT = Path(__file__).resolve().parents[2]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
NODE = shutil.which("node")
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(html.parser.HTMLParser):
    """Takes a page apart, and finds elements that are not closed in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.scripts, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    five_tasks(folder, seeds=2, tasks=("listops", "text"))
    for number, name in enumerate(HOSTILE):
        add_run(folder, 400 + number, variant=name, profile=HOSTILE[0], title=HOSTILE[0], baselines={HOSTILE[1]: 10.0})
    add_run(folder, None, variant="linear")
    add_attempt(folder, "oom", variant="local")
    with pytest.MonkeyPatch.context() as patch:  # the figures of one of the two tasks
        patch.setattr(
            page_module, "all_figures", lambda results: all_figures(results.filter(lambda c: c.task != "text"))
        )
        return page(load_stores([folder]), "lra-report html <b>")


@pytest.fixture(scope="module")
def read(content):
    reader = Reader()
    reader.feed(content)
    reader.close()
    assert reader.open == []
    return reader


def test_it_holds_tables_figures_runs_settings_and_caveats(read):
    assert read.tags.count("table") >= 7
    assert read.tags.count("img") >= 9
    assert read.tags.count("details") >= 5
    for expected in ("Before you read", "2 seeds; five make a table", "1 runs diverged, and 1 runs were tried",
                     "model.num_layers", "OOM (1/1)", "Average ranks", "Ours and published numbers"):  # fmt: skip
        assert expected in read.text, expected


def test_it_says_of_which_step_the_weights_are(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "all_figures", lambda results: [])  # the text is wanted, quickly
    for variant, selection in (("full", "best"), ("linear", "best"), ("conv", "last")):
        config = cell_config(variant=variant, track="matched" if variant == "full" else "open")
        train = config.train.model_copy(update={"selection": selection})
        add_run(tmp_path, 400, config=config.model_copy(update={"train": train}))
    text = page(load_stores([tmp_path]), "a command")
    best = "the weights are those that were best on validation data"
    assert f"Profile quick, matched track: {best}." in text
    assert f"Profile quick, open track: {best}, or those of the last step." in text
    assert "conv [selection=last]" in text


def test_what_it_says_of_all_runs_counts_full_attention_beside_a_selection(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "all_figures", lambda *_: [])
    for seed in range(5):
        add_run(tmp_path, 400 + seed, variant="local", seed=seed)
    add_run(tmp_path, 400, environment={"device": "cuda", "device_name": "a card"})
    add_run(tmp_path, None, seed=1)
    reader = Reader()
    reader.feed(
        page(
            load_stores([tmp_path]).filter(lambda config: config.variant.name == "local"),
            "lra-report html --variant local",
        )
    )
    assert "numbers rest on 1 to 5 seeds" in reader.text
    assert "1 runs diverged" in reader.text
    assert "a card" in reader.text


def test_there_is_a_table_by_depth_also_where_another_depth_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "all_figures", lambda results: [])
    add_run(tmp_path, 400, track="open")
    add_attempt(tmp_path, "oom", track="open", layers=4)
    assert "Test accuracy by depth" in page(load_stores([tmp_path]), "a command")


def test_links_lead_to_places_in_the_page(read):
    places = {value for _, name, value in read.attributes if name == "id"}
    links = [value for _, name, value in read.attributes if name == "href"]
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} <= places
    assert all(link.startswith("#") for link in links)


def test_the_contents_lead_to_every_table_and_figures_come_first(content, read):
    contents = content.partition("<nav>")[2].partition("</nav>")[0]
    captions = re.findall(r"<caption>(.*?)</caption>", content)
    assert len(captions) >= 6
    assert re.findall(r'href="#table-\d+">(.*?)</a>', contents) == captions
    first = [content.index(text) for text in ("<nav>", "<figure", "<caption>", 'id="runs"')]
    assert first == sorted(first)
    assert len(re.findall(r'<div class="wide"><table', content)) == content.count("<table")


def test_words_are_explained_once_and_figures_each(read):
    assert read.text.count("Cells: mean ± standard deviation") == 1
    assert read.text.count("Area: peak memory.") == read.text.count(". Filled: nothing is cheaper") >= 2


def test_nothing_outside_the_file_is_asked_for(content, read):
    assert len(content.encode()) < 2_000_000
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    sources = [value for _, name, value in read.attributes if name in ("src", "srcset", "data", "action", "poster")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    style = content.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_admits_one_script_by_its_hash(read):
    policy = next(
        value for tag, name, value in read.attributes if tag == "meta" and name == "content" and "src" in value
    )
    (script,) = read.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == (f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'")


def test_names_are_inert(read):
    assert not [name for _, name, _ in read.attributes if name.startswith("on")]
    assert "alert(1)" not in "".join(read.scripts)
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[6]):
        assert name in read.text
    assert "\x1b" not in read.text


@pytest.mark.nightly
def test_a_big_page_says_what_it_leaves_out(tmp_path, monkeypatch):
    five_tasks(tmp_path, seeds=5, tasks=["listops"])
    monkeypatch.setattr(page_module, "FIGURE_BYTES", 20_000)
    monkeypatch.setattr(page_module, "MOST_RUNS", 7)
    text = page(load_stores([tmp_path]), "")
    assert "3 more runs are not listed" in text
    assert re.search(r"\d+ figures are left out because of their size", text)
    assert len(text) < 300_000


SORT = """
const cell = (text) => ({textContent: text});
const rows = ROWS.map((texts) => ({cells: texts.map(cell)}));
const body = {rows, appendChild(row) { order.push(row.cells[0].textContent); }};
let order = [], click;
const head = {dataset: {}, closest: () => ({tBodies: [body]}), addEventListener: (_, f) => { click = f; }};
head.parentNode = {children: PLACE ? [{}, head] : [head]};
global.document = {querySelectorAll: () => [head]};
SCRIPT
click(); const first = order; order = []; click();
console.log(JSON.stringify([first, order]));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize(("place", "first"), [(0, ["a", "b", "c"]), (1, ["c", "a", "b"])])
def test_the_script_sorts_numbers_by_value_and_names_by_letter(place, first):
    rows = [["b", "9.5 ± 0.1 (3)"], ["a", "10.2 (1)"], ["c", "1,000.0"]]
    script = (ROOT / "reports" / "html_page.js").read_text()
    program = SORT.replace("ROWS", json.dumps(rows)).replace("PLACE", str(place)).replace("SCRIPT", script)
    done = subprocess.run([NODE, "-e", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [first, first[::-1]]


def browse(content, folder):
    """Open a page from disk; return what was printed, the DOM and the addresses it asked for, the browser's own out."""
    (folder / "report.html").write_text(content)
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", f"--log-net-log={folder}/net.json",
        f"--screenshot={folder}/shot.png", "--dump-dom", f"file://{folder}/report.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    urls = re.findall(r'"url":"(https?://[^"]+)"', (folder / "net.json").read_text())
    own = re.compile(r"https?://([\w-]+\.)*(google|googleapis|gvt1)\.com(:\d+)?/")
    return done.stderr, done.stdout, sorted({url for url in urls if not own.match(url)})


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_opens_it_from_disk(content, tmp_path):
    printed, dom, asked = browse(content, tmp_path)
    assert "CONSOLE" not in printed
    assert asked == []
    assert dom.count("<table") >= 7
    with Image.open(tmp_path / "shot.png") as shot:
        assert len(shot.convert("RGB").getcolors(maxcolors=1 << 24)) > 50  # a blank page has one


@pytest.mark.nightly
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_page_that_asks_the_network_is_caught(tmp_path):
    page_text = '<img src="http://elsewhere.test/x.png"><script>console.error("no")</script>'
    printed, _, asked = browse(page_text, tmp_path)
    assert "CONSOLE" in printed
    assert asked == ["http://elsewhere.test/x.png"]
