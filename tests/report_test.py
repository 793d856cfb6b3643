#!/usr/bin/env python3
"""quern report: the page, the text and the JSON of a cache that a build and a search have filled.

Needs python3 and the CPU's compiler; the look at the page needs a chromium and is skipped without.
"""
import html.parser
import json
import os
import re
import shutil
import sqlite3
import struct
import subprocess
import tempfile
import unittest
import zlib

BUILD = os.environ.get("QUERN_BUILD", "build")
BINARY = os.path.abspath(os.environ.get("QUERN_BIN", os.path.join(BUILD, "quern")))
MANUAL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "docs", "CLI.md")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
SMALL = "gemm m=5 n=7 k=11".split()
NASTY = "</td><script>alert('x')</script>&\"\x01"
VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}
FIELDS = ("cache schema bytes read totals artifacts tuned unfinished misses compilers "
          "manifest").split()
TUNED_FIELDS = ("key bucket family profile generation variant config time_us spread_us samples "
                "speedup disturbed tflops gbps intensity roof_share toolkit provenance created failed "
                "trials").split()


class Page(html.parser.HTMLParser):
    """Elements must nest; what they would load, and the cells of each table, are kept."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.scripts, self.handlers, self.tables = [], [], 0, [], []
        self.circles, self.dots, self.titles = 0, 0, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.circles += tag == "circle"
        self.dots += tag == "i" and "style" in dict(attributes)
        for name, value in attributes:
            if name == "title":
                self.titles.append(value)
            if name in ("src", "href", "srcset", "data", "action", "xlink:href"):
                self.loads.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.circles += tag == "circle"

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> closes nothing that is open")

    def handle_data(self, data):
        if self.tables and ("td" in self.open or "th" in self.open) and "svg" not in self.open:
            self.tables[-1][-1][-1] += data

    def table(self, *begin):
        """The rows, without the heading, of the table whose heading begins so."""
        return next(rows[1:] for rows in self.tables if rows[0][:len(begin)] == list(begin))


def pixels(path):
    """How many different rows of bytes a PNG has, of those that its filters leave."""
    with open(path, "rb") as file:
        data = file.read()
    at, packed = 8, b""
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, at + 8)
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(packed)
    step = len(raw) // height
    return width, height, len({raw[i * step:(i + 1) * step] for i in range(height)})


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="quern_report_")
        cls.cache = cls.path("t.db")
        cls.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("QUERN_")
        }
        cls.environment.update(HOME=cls.folder, LC_ALL="C", TZ="UTC")
        if "QUERN_CLANG" in os.environ:
            cls.environment["QUERN_CLANG"] = os.environ["QUERN_CLANG"]
        device = ["--cache", cls.cache, "--device", "cpu", "-q"]
        cls.call("tune", *SMALL, "--max-configs", "4", *device)
        cls.call("run", *SMALL, "layout=nn", "--iters", "1", *device)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def path(cls, name):
        return os.path.join(cls.folder, name)

    @classmethod
    def call(cls, *words, code=0):
        done = subprocess.run([BINARY, *words], env=cls.environment, capture_output=True,
                              text=True, check=False, timeout=300)
        if done.returncode != code:
            raise AssertionError(f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def page(self, cache, name):
        self.call("report", cache, "-o", self.path(name))
        with open(self.path(name), encoding="utf-8") as file:
            return file.read()

    def copy(self, name, *statements):
        """The cache with more rows: each a statement and its values."""
        shutil.copy(self.cache, self.path(name))
        with sqlite3.connect(self.path(name)) as database:
            for sql, *values in statements:
                database.execute(sql, values)
        database.close()
        return self.path(name)

    def crowded(self):
        fail = ("INSERT INTO trial (key, generation, variant, config, text, digest, toolkit, "
                "outcome, time_us, spread_us, samples, created) SELECT key, generation + ?, "
                "'gemm_cpu', ?, text, '', '', ?, 0, 0, 0, 7 FROM tuned LIMIT 1")
        return self.copy(
            "crowded.db", (fail, 0, "mr=99", NASTY), (fail, 1, "mr=98", "was wrong"),
            ("INSERT INTO miss VALUES ('k', 't', ?, 'gemm', 3, 1, 2)", "gemm " + NASTY),
            ("INSERT INTO manifest VALUES ('k', 't', ?, 'tp=1', 'qkv', 'gemm', 'built', '', 7)",
             NASTY))

    def test_json_tells_artifacts_winners_and_trials(self):
        report = json.loads(self.call("report", self.cache, "--json").stdout)
        self.assertEqual(list(report), FIELDS)
        with sqlite3.connect(self.cache) as database:
            count, size = database.execute(
                "SELECT count(*), sum(blob_bytes) FROM artifact").fetchone()
            trials = database.execute("SELECT count(*) FROM trial").fetchone()[0]
            config, time_us = database.execute("SELECT config, time_us FROM tuned").fetchone()
        database.close()
        self.assertEqual(report["totals"]["artifacts"], count)
        self.assertEqual(sum(group["bytes"] for group in report["artifacts"]), size)
        self.assertEqual(len(report["tuned"]), 1)
        tuned = report["tuned"][0]
        self.assertEqual(list(tuned), TUNED_FIELDS)
        self.assertEqual(len(tuned["trials"]), trials)
        self.assertEqual(",".join(f"{k}={v}" for k, v in tuned["config"].items()), config)
        self.assertAlmostEqual(tuned["time_us"], time_us, delta=1e-6 * time_us)
        self.assertTrue(tuned["bucket"].startswith("gemm m="))

    def test_rates_are_those_of_the_familys_cost(self):
        tuned = json.loads(self.call("report", self.cache, "--json").stdout)["tuned"][0]
        m, n, k = (int(re.search(rf" {name}=(\d+)", tuned["bucket"])[1]) for name in "mnk")
        self.assertAlmostEqual(tuned["tflops"] * tuned["time_us"] * 1e6, 2 * m * n * k,
                               delta=1e-6 * m * n * k)
        self.assertAlmostEqual(tuned["intensity"], tuned["tflops"] * 1e3 / tuned["gbps"], places=6)

    def test_roofs_are_those_of_a_device_profile(self):
        tuned = json.loads(self.call("report", self.cache, "--json").stdout)["tuned"][0]
        self.assertIsNone(tuned["roof_share"])
        gbps = 4 * tuned["gbps"]
        with open(self.path("roof.txt"), "w", encoding="utf-8") as file:
            file.write(f"quern device profile 1\nname={tuned['profile']}\nmemory_gbps={gbps!r}\n"
                       "sm=0\ntensor_tflops=0\nf32_tflops=1e6\n")
        roofs = ("--device-profile", self.path("roof.txt"))
        report = json.loads(self.call("report", self.cache, "--json", *roofs).stdout)
        self.assertAlmostEqual(report["tuned"][0]["roof_share"], 0.25, places=5)
        self.assertIn("25% of its roof", self.call("report", self.cache, *roofs).stdout)
        self.call("report", self.cache, "-o", self.path("roof.html"), *roofs)
        with open(self.path("roof.html"), encoding="utf-8") as file:
            self.assertIn("Solid: what the device profile", file.read())
        done = self.call("report", self.cache, "--device-profile", self.cache, code=1)
        self.assertIn(f"device-profile={self.cache}: must be a device profile", done.stderr)
        done = self.call("report", self.cache, "--device-profile", "h200", code=1)
        self.assertIn("device-profile=h200: must be a file", done.stderr)

    def test_the_roof_is_that_of_the_dtype_and_no_call_is_shorter_than_a_launch(self):
        tuned = json.loads(self.call("report", self.cache, "--json").stdout)["tuned"][0]
        flops_us = tuned["tflops"] * tuned["time_us"] / 2e-6  # at 2e-6 TFLOP/s
        for launch_us, share in ((0, flops_us / tuned["time_us"]), (9 * flops_us, None)):
            with open(self.path("dtype.txt"), "w", encoding="utf-8") as file:
                file.write(f"quern device profile 1\nname={tuned['profile']}\n"
                           f"memory_gbps=1e6\ntensor_tflops=100\nf32_tflops=2e-6\n"
                           f"launch_us={launch_us!r}\n")
            report = json.loads(self.call("report", self.cache, "--json", "--device-profile",
                                          self.path("dtype.txt")).stdout)
            wanted = share or launch_us / tuned["time_us"]
            self.assertAlmostEqual(report["tuned"][0]["roof_share"] / wanted, 1, places=4)

    def test_speedup_is_over_the_heuristic_timed_with_the_winner(self):
        cache = self.copy("speed.db", ("UPDATE tuned SET time_us = 8, heuristic_us = 12",),
                          ("UPDATE trial SET time_us = 5",))
        report = json.loads(self.call("report", cache, "--json").stdout)
        self.assertAlmostEqual(report["tuned"][0]["speedup"], 1.5)
        self.assertAlmostEqual(report["totals"]["speedup"], 1.5)
        self.assertIn("1.50 times the heuristic's speed", self.call("report", cache).stdout)

    def test_speedup_is_unknown_where_the_heuristic_was_not_timed(self):
        for name, *statements in (
                ("failed", ("UPDATE tuned SET heuristic_us = 0",)),
                ("old", ("DROP TABLE manifest",), ("PRAGMA user_version = 1",),
                 *((f"ALTER TABLE tuned DROP COLUMN heuristic_{column}",)
                   for column in ("variant", "config", "us", "spread_us")))):
            cache = self.copy(f"unknown_{name}.db", *statements)
            report = json.loads(self.call("report", cache, "--json").stdout)
            self.assertIsNone(report["tuned"][0]["speedup"])
            self.page(cache, "unknown.html")

    def test_page_names_what_differs_from_the_defaults_and_no_folder(self):
        tuned = json.loads(self.call("report", self.cache, "--json").stdout)["tuned"][0]
        text = self.page(self.cache, "brief.html")
        page = Page(text)
        brief = page.table("Bucket", "Variant", "Config", "Time")[0][0]
        self.assertRegex(brief, r"^gemm m=\d+ n=\d+ k=\d+$")
        self.assertGreater(len(tuned["bucket"]), len(brief))
        self.assertIn(tuned["bucket"], page.titles)
        self.assertIn(brief, self.call("report", self.cache).stdout)
        self.assertIn("t.db", text)
        self.assertNotIn(self.folder, text)

    def test_page_is_well_formed_and_loads_nothing(self):
        text = self.page(self.crowded(), "page.html")
        page = Page(text)
        self.assertEqual(page.open, [])
        self.assertEqual(page.loads, [])
        self.assertEqual(page.handlers, [])
        self.assertNotRegex(text, r"https?:|url\(|@import|//[a-z]")
        self.assertIn("default-src 'none'", text)
        self.assertIn("prefers-color-scheme: dark", text)

    def test_page_escapes_what_the_file_holds(self):
        text = self.page(self.crowded(), "escaped.html")
        page = Page(text)
        shown = NASTY.replace("\x01", "?")
        self.assertEqual(page.scripts, 1)
        self.assertNotIn("\x01", text)
        self.assertIn(shown, [row[3] for row in page.table("Bucket", "Variant", "Config",
                                                           "Reason")])
        self.assertEqual(page.table("Spec")[0][0], "gemm " + shown)
        manifest = next(rows for rows in page.tables if "kind" in rows[0])
        self.assertIn(shown, manifest[1])
        self.assertNotIn("</b>compiles</div>", text, "a bundle has those of who made it")

    def test_page_draws_each_candidate_and_each_bucket(self):
        report = json.loads(self.call("report", self.cache, "--json").stdout)
        ran = sum(trial["outcome"] == "ok" for trial in report["tuned"][0]["trials"])
        page = Page(self.page(self.cache, "drawn.html"))
        self.assertEqual((page.circles, page.dots), (1, ran))
        self.assertEqual(sum("the heuristic's" in title for title in page.titles), 1)
        self.assertEqual(sum("chosen" in title for title in page.titles), 1)
        self.assertEqual(len(page.table("Bucket", "Variant", "Config", "Time")), 1)

    def test_a_manifest_is_counted_and_json_has_its_rows(self):
        rows = [("INSERT INTO manifest VALUES (?, 'sm_90a', 'model', 'tp=8', ?, ?, ?, '', 7)",
                 f"k{i % 30}", use, f"gemm m={i} n=8 k=8", kind)
                for i in range(60) for use in ("prefill", "decode") for kind in ("built",)]
        cache = self.copy("many.db", *rows, (
            "INSERT INTO manifest VALUES ('k', 'sm_90a', 'model', 'tp=8', 'decode', 'copy n=1', "
            "'tuned', '', 7)",))
        self.assertEqual(len(json.loads(self.call("report", cache, "--json").stdout)["manifest"]),
                         121)
        text = self.call("report", cache).stdout
        self.assertIn("model=model, rank=tp=8, target=sm_90a, kind=built, calls=60, kernels=30\n",
                      text)
        self.assertIn("used_in=decode, family=copy, calls=1, kernels=1\n", text)
        self.assertNotIn("m=59", text)
        page = Page(self.page(cache, "many.html"))
        self.assertEqual(len(page.table("model", "rank", "target", "kind")), 2)
        self.assertEqual(page.table("model", "rank", "target", "used_in"), [
            ["model", "tp=8", "sm_90a", use, family, calls, kernels] for use, family, calls, kernels
            in (("decode", "copy", "1", "1"), ("decode", "gemm", "60", "30"),
                ("prefill", "gemm", "60", "30"))])

    def test_what_has_since_been_tuned_is_no_miss(self):
        miss = ("INSERT OR REPLACE INTO miss SELECT ?, text, 'gemm m=9', 'gemm', 1, 1, 2 FROM tuned")
        for key, count in (("another", 1), (None, 0)):
            cache = self.copy("miss.db", ("DELETE FROM miss",), (miss, key or ""))
            if not key:
                with sqlite3.connect(cache) as database:
                    database.execute("UPDATE miss SET key = (SELECT key FROM tuned)")
                database.close()
            report = json.loads(self.call("report", cache, "--json").stdout)
            self.assertEqual(len(report["misses"]), count)

    def test_a_doubtful_speed_up_is_marked(self):
        cache = self.copy("doubt.db", ("UPDATE tuned SET time_us = 8, spread_us = 1, "
                                       "heuristic_us = 12, heuristic_spread_us = 7",))
        self.assertTrue(json.loads(self.call("report", cache, "--json").stdout)["tuned"][0]
                        ["disturbed"])
        self.assertIn("speed (doubtful", self.call("report", cache).stdout)
        self.assertIn(">1.50?<", self.page(cache, "doubt.html"))

    def test_one_bucket_is_no_roof(self):
        self.assertNotIn('<line class="roof', self.page(self.cache, "one.html"))

    def test_search_without_a_winner_stands_apart(self):
        report = json.loads(self.call("report", self.crowded(), "--json").stdout)
        self.assertEqual([search["failed"] for search in report["unfinished"]], [1])
        self.assertEqual(report["unfinished"][0]["generation"],
                         report["tuned"][0]["generation"] + 1)

    def test_text_says_the_same(self):
        text = self.call("report", self.crowded()).stdout
        self.assertIn("searches without a winner", text)
        self.assertIn("</td><script>", text)
        self.assertNotIn("\x01", text)
        self.assertIn("manifest, 1 row\n", text)

    def test_bytes_that_are_no_utf8_are_replaced(self):
        cache = self.copy("bytes.db", ("UPDATE artifact SET compiler = CAST(? AS TEXT)",
                                       b"clang \xff\xe2\x82 \xe2\x82\xac"))
        report = json.loads(self.call("report", cache, "--json").stdout)
        self.assertEqual(report["compilers"][0]["compiler"], "clang ??? \u20ac")
        self.page(cache, "bytes.html")

    def test_numbers_that_no_device_gives_end_no_report(self):
        report = json.loads(self.call("report", self.cache, "--json").stdout)
        profile = report["tuned"][0]["profile"]
        with open(self.path("odd.txt"), "w", encoding="utf-8") as file:
            file.write(f"quern device profile 1\nname={profile}\nmemory_gbps=1e-8\n"
                       "tensor_tflops=1e300\nf32_tflops=1e6\nlaunch_us=inf\n")
        for value in ("9e999", "-9e999", "-1", "0", "1e-300", "1e300", "'text'", "x'00'"):
            cache = self.copy("odd.db", (f"UPDATE tuned SET time_us = {value}",),
                              (f"UPDATE tuned SET heuristic_us = {value}, spread_us = {value}",),
                              (f"UPDATE trial SET time_us = {value}, samples = {value}",))
            with self.subTest(value):
                self.call("report", cache, "-o", self.path("odd.html"), "--device-profile",
                          self.path("odd.txt"))
                with open(self.path("odd.html"), encoding="utf-8") as file:
                    self.assertEqual(Page(file.read()).open, [])
                json.loads(self.call("report", cache, "--json").stdout)

    def test_bundle_without_trials_has_a_report(self):
        text = self.page(self.copy("bundle.db", ("DELETE FROM trial",)), "bundle.html")
        self.assertNotIn("Candidates</h2>", text)
        self.assertEqual(len(Page(text).table("Bucket", "Variant", "Config", "Time")), 1)

    def test_empty_cache_has_a_report(self):
        cache = self.copy("empty.db", ("DELETE FROM artifact",), ("DELETE FROM tuned",),
                          ("DELETE FROM trial",), ("DELETE FROM miss",))
        self.assertEqual(Page(self.page(cache, "empty.html")).open, [])
        self.call("report", cache)
        self.assertIsNone(json.loads(self.call("report", cache, "--json").stdout)["totals"]
                          ["speedup"])

    def test_file_is_not_changed(self):
        cache = self.copy("same.db")
        with open(cache, "rb") as file:
            before = file.read()
        self.page(cache, "same.html")
        with open(cache, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_nothing_is_left_beside_the_file(self):
        folder = self.path("alone")
        os.mkdir(folder)
        cache = self.copy("alone/b.qdb", ("PRAGMA user_version = 2",))
        before = os.listdir(folder)
        self.call("report", cache)
        self.assertEqual(os.listdir(folder), before)
        with sqlite3.connect(cache) as database:  # what is in a WAL is read, too
            database.execute("DELETE FROM miss")
            database.commit()
            self.assertTrue(os.path.exists(cache + "-wal"))
            self.assertIn(" 0 specs not tuned", self.call("report", cache).stdout)
        database.close()

    def test_page_replaces_a_report_and_nothing_else(self):
        self.page(self.cache, "again.html")
        self.page(self.cache, "again.html")
        with open(self.path("mine.html"), "w", encoding="utf-8") as file:
            file.write("<!DOCTYPE html>\nmine")
        done = self.call("report", self.cache, "-o", self.path("mine.html"), code=1)
        self.assertIn("mine.html: exists and is no report", done.stderr)
        self.call("report", self.cache, "-o", self.cache, code=1)
        self.call("report", self.cache, "-o", self.path("no/such/folder.html"), code=1)

    def test_other_files_are_refused(self):
        with open(self.path("text"), "w", encoding="utf-8") as file:
            file.write("no database " * 100)
        sqlite3.connect(self.path("other.db")).execute("CREATE TABLE t (x)").connection.close()
        newer = self.copy("newer.db", ("PRAGMA user_version = 99",))
        for path, reason in ((self.path("text"), "not a database"), (newer, "schema is 99"),
                             (self.path("other.db"), "must be a cache of quern"),
                             (self.folder, "must be a file"),
                             (self.path("none"), "No such file")):
            done = self.call("report", path, code=1)
            self.assertIn(f"cache={path}: ", done.stderr)
            self.assertIn(reason, done.stderr)

    def test_the_command_of_the_manual_writes_a_page(self):
        with open(MANUAL, encoding="utf-8") as file:
            section = file.read().split("\n## report\n")[1].split("\n## ")[0]
        words = re.search(r"^    quern (report .*)$", section, re.M)[1].split()
        words = [self.cache if word == "FILE" else word for word in words]
        at = words.index("-o") + 1
        words[at] = self.path(words[at])
        self.call(*words)
        with open(words[at], encoding="utf-8") as file:
            self.assertEqual(Page(file.read()).open, [])

    def test_command_line_must_make_sense(self):
        self.assertIn("cache: must be given", self.call("report", code=2).stderr)
        self.assertIn("word=b", self.call("report", "a", "b", code=2).stderr)
        self.assertIn("text: ", self.call("report", "a", "--text", "--json", code=2).stderr)
        self.call("tune", *SMALL, "--text", code=2)

    def browse(self, *words):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--user-data-dir=" + self.path("profile"), *words]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=120,
                              check=True, text=True).stdout

    def dom_after(self, text, script, *words):
        """The page once a further script has run in it."""
        with open(self.path("script.html"), "w", encoding="utf-8") as file:
            file.write(text.replace("</script>", script + "</script>"))
        return self.browse("--dump-dom", *words, "file://" + self.path("script.html"))

    @unittest.skipUnless(CHROMIUM, "no chromium")
    def test_page_is_seen_in_a_browser(self):
        self.page(self.crowded(), "seen.html")
        self.browse("--window-size=1300,1600", "--screenshot=" + self.path("seen.png"),
                    "file://" + self.path("seen.html"))
        width, height, rows = pixels(self.path("seen.png"))
        self.assertEqual((width, height), (1300, 1600))
        self.assertGreater(rows, 300)

    @unittest.skipUnless(CHROMIUM, "no chromium")
    def test_page_fits_wide_and_narrow_windows(self):
        text = self.page(self.crowded(), "fits.html")
        script = """
            const root = document.documentElement, box = e => e.getBoundingClientRect();
            const dots = [...document.querySelectorAll('.strip i')];
            const inside = dots.filter(dot => {
              const a = box(dot), b = box(dot.parentNode);
              return a.width > 0 && a.left >= b.left - 10 && a.right <= b.right + 10 &&
                     a.top >= b.top - 5 && a.bottom <= b.bottom + 5;
            });
            const plot = box(document.querySelector('svg.roofline'));
            document.title = [innerWidth, root.scrollWidth, dots.length, inside.length,
                              Math.round(plot.width), Math.round(plot.height)].join(' ');
        """
        for width in (420, 1300):
            dom = self.dom_after(text, script, f"--window-size={width},900")
            seen = [int(word) for word in re.search("<title>(.*)</title>", dom)[1].split()]
            window, scroll, dots, inside, plot_width, plot_height = seen
            self.assertLessEqual(window, max(width, 500))
            self.assertLessEqual(scroll, window, "scrolls sideways as a whole")
            self.assertGreater(dots, 0)
            self.assertEqual(dots, inside)
            self.assertGreaterEqual(plot_width, 600)
            self.assertGreater(plot_height, 250)

    @unittest.skipUnless(CHROMIUM, "no chromium")
    def test_heading_sorts_its_column(self):
        cache = self.copy("sorted.db", *(
            ("INSERT INTO miss VALUES (?, 't', ?, 'gemm', ?, 1, 2)", f"k{i}", f"gemm m={i}", count)
            for i, count in enumerate((9, 100, 20))), ("DELETE FROM miss WHERE text <> 't'",))
        text = self.page(cache, "plain.html")
        click = ("[...document.querySelectorAll('th button')].filter(b => b.textContent === "
                 "'Count')[0].click();")
        dom = self.dom_after(text, click)
        self.assertEqual([row[2] for row in Page(dom).table("Spec")], ["9", "20", "100"])
        self.assertEqual([row[2] for row in Page(text).table("Spec")], ["100", "20", "9"])


if __name__ == "__main__":
    if not CHROMIUM:
        print("skipped: what a browser makes of the page: there is no chromium here")
    unittest.main()
