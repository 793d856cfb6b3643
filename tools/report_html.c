/* A report as one static page: its style, its few lines of script and its pictures are in it, and
 * its policy lets a browser load nothing else. Whatever comes from the file is escaped. */
#include "report_data.h"

#include "human.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char head[] =
    "<!DOCTYPE html>\n<!-- quern report -->\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
    "<title>quern report</title>\n<style>\n"
    ":root { color-scheme: light dark; --back: #fff; --text: #1c2024; --dim: #5f6872;\n"
    "  --line: #d9dde2; --panel: #f5f7f9; --good: #1a7f48; --bad: #b3261e; --roof: #7a828b;\n"
    "  --c0: #2563c9; --c1: #c2570c; --c2: #1a7f48; --c3: #8a3ab9; --c4: #b3261e; --c5: #0e7490;\n"
    "  --c6: #8a6d00; --c7: #be2d75; }\n"
    "@media (prefers-color-scheme: dark) { :root { --back: #14171a; --text: #e4e8ec;\n"
    "  --dim: #9aa4ae; --line: #343a41; --panel: #1d2125; --good: #5cc98a; --bad: #ff8a80;\n"
    "  --roof: #8d96a0; --c0: #7aa8ff; --c1: #ffa15c; --c2: #5cc98a; --c3: #cf9bf0;\n"
    "  --c4: #ff8a80; --c5: #5fc8e0; --c6: #dcbf4b; --c7: #ff8fc0; } }\n"
    "body { margin: 0 auto; padding: 1.5rem; max-width: 90rem; background: var(--back);\n"
    "  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }\n"
    "h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }\n"
    "h3 { font-size: 1rem; margin: 1rem 0 .25rem; overflow-wrap: anywhere; }\n"
    ".note { color: var(--dim); margin: .25rem 0; overflow-wrap: anywhere; }\n"
    ".facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1rem 0; padding: 0; }\n"
    ".facts div { background: var(--panel); border: 1px solid var(--line); border-radius: 6px;\n"
    "  padding: .5rem .9rem; } .facts b { display: block; font-size: 1.25rem; }\n"
    ".wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; }\n"
    "th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;\n"
    "  vertical-align: top; } td.n { text-align: right; white-space: nowrap;\n"
    "  font-variant-numeric: tabular-nums; } td.t { overflow-wrap: break-word; min-width: 8rem; }\n"
    "td.t, code { font-family: ui-monospace, monospace; font-size: .8rem; }\n"
    "td.l { white-space: pre-wrap; } th { white-space: nowrap; background: var(--panel); }\n"
    "th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }\n"
    "th[aria-sort=ascending] button::after { content: ' \\25B2'; }\n"
    "th[aria-sort=descending] button::after { content: ' \\25BC'; }\n"
    "svg text { fill: var(--dim); font-size: 12px; } .grid { stroke: var(--line); }\n"
    ".roof { fill: none; stroke: var(--roof); stroke-width: 1.5; }\n"
    ".seen { stroke-dasharray: 6 4; }\n"
    ".roofline { width: 100%; min-width: 600px; max-width: 860px; display: block; }\n"
    "circle { stroke: var(--back); fill-opacity: .85; }\n"
    "figure { margin: 1rem 0 1.75rem; } figcaption { overflow-wrap: anywhere; }\n"
    ".strip { position: relative; height: 36px; margin: .4rem 20px 1.2rem; }\n"
    ".strip i { position: absolute; width: 8px; height: 8px; margin: -4px; border-radius: 50%; }\n"
    ".strip b { position: absolute; top: 0; height: 36px; width: 1px; background: var(--line); }\n"
    ".strip span { position: absolute; top: 36px; left: -1.5rem; width: 3rem; color: var(--dim);\n"
    "  font: 12px system-ui, sans-serif; text-align: center; }\n"
    ".tried { background: var(--dim); opacity: .6; } .heuristic { background: var(--c1); }\n"
    ".won { opacity: 1; outline: 2.5px solid var(--good); outline-offset: 2px; z-index: 1; }\n"
    ".legend i { display: inline-block; width: 8px; height: 8px; border-radius: 50%;\n"
    "  margin: 0 .4em 0 .8em; }\n"
    ".key { display: inline-block; width: .7em; height: .7em; border-radius: 50%;\n"
    "  margin-right: .3em; } .name { white-space: nowrap; margin-right: .8em; }\n"
    ".f0 { fill: var(--c0); background: var(--c0); } .f1 { fill: var(--c1); "
    "background: var(--c1); }\n"
    ".f2 { fill: var(--c2); background: var(--c2); } .f3 { fill: var(--c3); "
    "background: var(--c3); }\n"
    ".f4 { fill: var(--c4); background: var(--c4); } .f5 { fill: var(--c5); "
    "background: var(--c5); }\n"
    ".f6 { fill: var(--c6); background: var(--c6); } .f7 { fill: var(--c7); "
    "background: var(--c7); }\n"
    "</style>\n</head>\n<body>\n";

/* A click on a heading sorts by that column: by data-v where a cell has it, else by its text. */
static const char tail[] =
    "<script>\n"
    "const value = (row, i) => row.cells[i].dataset.v ?? row.cells[i].textContent;\n"
    "for (const button of document.querySelectorAll('th button')) {\n"
    "  button.addEventListener('click', () => {\n"
    "    const th = button.parentNode, body = th.closest('table').tBodies[0];\n"
    "    const up = th.getAttribute('aria-sort') !== 'ascending', i = th.cellIndex;\n"
    "    for (const other of th.parentNode.cells) other.removeAttribute('aria-sort');\n"
    "    th.setAttribute('aria-sort', up ? 'ascending' : 'descending');\n"
    "    const order = (a, b) => value(a, i).localeCompare(value(b, i), 'en', "
    "{ numeric: true });\n"
    "    const number = (a, b) => value(a, i) - value(b, i);\n"
    "    const rows = [...body.rows];\n"
    "    const by = rows.every(row => row.cells[i].dataset.v) ? number : order;\n"
    "    rows.sort((a, b) => up ? by(a, b) : by(b, a));\n"
    "    body.append(...rows);\n"
    "  });\n"
    "}\n"
    "</script>\n</body>\n</html>\n";

#define STRIPS_MOST 400 /* more would be slow to look at */

/* ---- Cells --------------------------------------------------------------------------------- */

/* names: columns, apart by '|'. */
static void begin_table(FILE *page, const char *names)
{
    fprintf(page, "<div class=\"wide\"><table>\n<thead><tr>");
    while (*names) {
        int length = (int)strcspn(names, "|");
        fprintf(page, "<th scope=\"col\"><button type=\"button\">%.*s</button></th>", length,
                names);
        names += length + (names[length] == '|');
    }
    fprintf(page, "</tr></thead>\n<tbody>\n");
}

static void end_table(FILE *page)
{
    fprintf(page, "</tbody>\n</table></div>\n");
}

static void text_cell(FILE *page, const char *text)
{
    fprintf(page, "<td class=\"t\">");
    report_escape(page, text);
    fprintf(page, "</td>");
}

/* With all of its parameters when pointed at. */
static void bucket_cell(FILE *page, const struct report_search *search)
{
    fprintf(page, "<td class=\"t\" title=\"");
    report_escape(page, search->bucket);
    fprintf(page, "\">");
    report_escape(page, search->brief);
    fprintf(page, "</td>");
}

/* Lines may break after a comma. */
static void config_cell(FILE *page, const char *text)
{
    char part[64];
    fprintf(page, "<td class=\"t\">");
    while (*text) {
        size_t length = strcspn(text, ",");
        length += text[length] == ',';
        length = length < sizeof(part) ? length : sizeof(part) - 1;
        snprintf(part, sizeof(part), "%.*s", (int)length, text);
        report_escape(page, part);
        fprintf(page, "<wbr>");
        text += length;
    }
    fprintf(page, "</td>");
}

/* A number is shown as `shown` and sorted by its value; what is not known sorts first. */
static void number_cell(FILE *page, double value, const char *shown)
{
    int is_known = isfinite(value);
    fprintf(page, "<td class=\"n\" data-v=\"%.9g\">%s</td>", is_known ? value : -1,
            is_known ? shown : "&ndash;");
}

static void count_cell(FILE *page, int64_t count)
{
    fprintf(page, "<td class=\"n\" data-v=\"%" PRId64 "\">%" PRId64 "</td>", count, count);
}

static void rate_cell(FILE *page, double value, int digits)
{
    char shown[HUMAN_BYTES];
    snprintf(shown, sizeof(shown), "%.*g", digits, value);
    number_cell(page, value, shown);
}

static void size_cell(FILE *page, int64_t bytes)
{
    char shown[HUMAN_BYTES];
    human_size(bytes, shown);
    number_cell(page, (double)bytes, shown);
}

static void time_cell(FILE *page, double us)
{
    char shown[HUMAN_BYTES];
    human_time(us, shown);
    number_cell(page, us, shown);
}

static void date_cell(FILE *page, int64_t seconds)
{
    char shown[HUMAN_BYTES];
    human_date(seconds, shown);
    fprintf(page, "<td class=\"n\" data-v=\"%" PRId64 "\">%s</td>", seconds, shown);
}

/* ---- Sections ------------------------------------------------------------------------------ */

static void fact(FILE *page, const char *value, const char *name)
{
    fprintf(page, "<div><b>%s</b>%s</div>\n", value, name);
}

static void count_fact(FILE *page, int64_t value, const char *one, const char *many)
{
    char shown[HUMAN_BYTES];
    snprintf(shown, sizeof(shown), "%" PRId64, value);
    fact(page, shown, value == 1 ? one : many);
}

static void print_facts(const struct report_data *data, FILE *page)
{
    char shown[HUMAN_BYTES];
    const char *slash = strrchr(data->path, '/'); /* a page is sent to others: no folders */

    human_date(data->made, shown);
    fprintf(page, "<h1>quern report</h1>\n<p class=\"note\"><code>");
    report_escape(page, slash ? slash + 1 : data->path);
    fprintf(page, "</code>, schema %" PRId64 ", read %s</p>\n<div class=\"facts\">\n", data->schema,
            shown);
    human_size(data->bytes, shown);
    fact(page, shown, "file");
    count_fact(page, report_artifacts(data), "artifact", "artifacts");
    count_fact(page, report_winners(data), "tuned bucket", "tuned buckets");
    snprintf(shown, sizeof(shown), "%.2f", report_speedup(data));
    fact(page, isfinite(report_speedup(data)) ? shown : "&ndash;",
         "times the heuristics&#39; speed");
    count_fact(page, report_failures(data), "failed candidate", "failed candidates");
    count_fact(page, data->miss_count, "spec not tuned", "specs not tuned");
    if (!data->manifest.row_count) { /* else they are those of whoever made the bundle */
        count_fact(page, data->compiles, "compile", "compiles");
        count_fact(page, data->hits, "hit", "hits");
        count_fact(page, data->misses_counted, "miss", "misses");
    }
    count_fact(page, data->damaged, "damaged row", "damaged rows");
    fprintf(page, "</div>\n");
}

static void print_groups(const struct report_data *data, FILE *page)
{
    fprintf(page, "<h2>Cached</h2>\n");
    if (!data->group_count) {
        fprintf(page, "<p>Nothing.</p>\n");
        return;
    }
    begin_table(page, "Family|Target|Artifacts|Size|Compiling|Hits|Oldest|Newest|Last use");
    for (int i = 0; i < data->group_count; i++) {
        const struct report_group *group = &data->groups[i];
        fprintf(page, "<tr>");
        text_cell(page, group->family);
        text_cell(page, group->target);
        count_cell(page, group->count);
        size_cell(page, group->bytes);
        time_cell(page, group->compile_ms * 1e3);
        count_cell(page, group->hits);
        date_cell(page, group->created);
        date_cell(page, group->newest);
        date_cell(page, group->last_use);
        fprintf(page, "</tr>\n");
    }
    end_table(page);
}

/* The first search of its profile, of all or of those with a winner. */
static int is_new_profile(const struct report_data *data, int index, int is_won)
{
    const struct report_search *search = &data->searches[index];
    if (is_won && !search->is_won)
        return 0;
    for (int i = 0; i < index; i++)
        if (!strcmp(data->searches[i].profile, search->profile) &&
            (data->searches[i].is_won || !is_won))
            return 0;
    return 1;
}

static void print_rooflines(const struct report_data *data, FILE *page)
{
    if (!report_winners(data))
        return;
    fprintf(page, "<h2>Roofline</h2>\n<p class=\"note\">");
    for (int i = 0; i < data->search_count; i++) {
        int is_new = data->searches[i].is_won && isfinite(report_intensity(&data->searches[i]));
        for (int j = 0; j < i && is_new; j++)
            is_new = strcmp(data->searches[j].family, data->searches[i].family) != 0;
        if (!is_new)
            continue;
        fprintf(page, "<span class=\"name\"><span class=\"key f%d\"></span>",
                data->searches[i].colour);
        report_escape(page, data->searches[i].family);
        fprintf(page, "</span> ");
    }
    fprintf(page, "</p>\n");
    for (int i = 0; i < data->search_count; i++) {
        if (!is_new_profile(data, i, 1))
            continue;
        fprintf(page, "<h3>");
        report_escape(page, data->searches[i].profile);
        fprintf(page, "</h3>\n");
        report_roofline(data, data->searches[i].profile, page);
    }
}

static void print_winner(const struct report_data *data, const struct report_search *search,
                         FILE *page)
{
    char speedup[HUMAN_BYTES];

    snprintf(speedup, sizeof(speedup), "%.2f%s", search->speedup, search->is_disturbed ? "?" : "");
    fprintf(page, "<tr>");
    bucket_cell(page, search);
    text_cell(page, search->variant);
    config_cell(page, search->config);
    time_cell(page, search->time_us);
    time_cell(page, search->spread_us);
    number_cell(page, search->speedup, speedup);
    rate_cell(page, report_tflops(search), 4);
    rate_cell(page, report_gbps(search), 4);
    rate_cell(page, 100 * report_share(data, search), 3);
    count_cell(page, search->trial_count);
    count_cell(page, search->failed);
    fprintf(page, "</tr>\n");
}

static void print_tuned(const struct report_data *data, FILE *page)
{
    fprintf(page, "<h2>Tuned</h2>\n");
    if (!report_winners(data)) {
        fprintf(page, "<p>Nothing.</p>\n");
        return;
    }
    fprintf(page,
            "<p class=\"note\">Speed-up is over the heuristic&#39;s config, timed in turns "
            "with the winner; with a ? it is doubtful: timing was disturbed. Parameters that are "
            "as by default are left out. %s</p>\n",
            data->roof.name[0] ? "A call that runs from a cache may be above its roof."
                               : "Roofs need a device profile.");
    begin_table(page,
                "Bucket|Variant|Config|Time|Spread|Speed-up|TFLOP/s|GB/s|% of roof|Tried|Failed");
    for (int i = 0; i < data->search_count; i++)
        if (data->searches[i].is_won)
            print_winner(data, &data->searches[i], page);
    end_table(page);
}

static void print_unfinished(const struct report_data *data, FILE *page)
{
    if (report_winners(data) == data->search_count)
        return;
    fprintf(page, "<h2>Searches without a winner</h2>\n");
    begin_table(page, "Bucket|Device profile|Generation|Tried|Failed");
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        if (search->is_won)
            continue;
        fprintf(page, "<tr>");
        bucket_cell(page, search);
        text_cell(page, search->profile);
        count_cell(page, search->generation);
        count_cell(page, search->trial_count);
        count_cell(page, search->failed);
        fprintf(page, "</tr>\n");
    }
    end_table(page);
}

static void print_strip(const struct report_search *search, FILE *page)
{
    fprintf(page, "<figure><figcaption><code>");
    report_escape(page, search->brief);
    fprintf(page, "</code> <span class=\"note\">%d tried, %d failed%s</span></figcaption>\n",
            search->trial_count, search->failed, search->is_won ? "" : ", no winner");
    report_strip(search, page);
    fprintf(page, "</figure>\n");
}

static void print_candidates(const struct report_data *data, FILE *page)
{
    int left = STRIPS_MOST, tried = 0;
    for (int i = 0; i < data->search_count; i++)
        tried += data->searches[i].trial_count;
    if (!tried) /* a bundle has none */
        return;
    fprintf(page,
            "<h2>Candidates</h2>\n<p class=\"note legend\">Time of each in the first round over "
            "the fastest&#39;s; what took %d times as long or longer stands at the edge. "
            "<i class=\"heuristic\"></i>the heuristic&#39;s<i class=\"tried\"></i>others"
            "<i class=\"tried won\"></i>chosen, in later rounds. Point at one to see it.</p>\n",
            REPORT_STRIP_MOST);
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        if (!is_new_profile(data, i, 0))
            continue;
        fprintf(page, "<h3>");
        report_escape(page, search->profile);
        fprintf(page, "</h3>\n");
        for (int j = i; j < data->search_count; j++)
            if (!strcmp(data->searches[j].profile, search->profile) &&
                data->searches[j].trial_count && left-- > 0)
                print_strip(&data->searches[j], page);
    }
    if (left < 0)
        fprintf(page, "<p>%d more searches are not drawn; --json has them.</p>\n", -left);
}

static void print_failures(const struct report_data *data, FILE *page)
{
    fprintf(page, "<h2>Failed candidates</h2>\n");
    if (!report_failures(data)) {
        fprintf(page, "<p>None.</p>\n");
        return;
    }
    begin_table(page, "Bucket|Variant|Config|Reason");
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        for (int j = 0; j < search->trial_count; j++) {
            const struct report_trial *trial = &search->trials[j];
            if (trial->is_ok)
                continue;
            fprintf(page, "<tr>");
            bucket_cell(page, search);
            text_cell(page, trial->variant);
            config_cell(page, trial->config);
            fprintf(page, "<td class=\"l\">");
            report_escape(page, trial->outcome);
            fprintf(page, "</td></tr>\n");
        }
    }
    end_table(page);
}

static void print_misses(const struct report_data *data, FILE *page)
{
    fprintf(page, "<h2>Used and not tuned</h2>\n");
    if (!data->miss_count) {
        fprintf(page, "<p>None.</p>\n");
        return;
    }
    begin_table(page, "Spec|Family|Count|First seen|Last seen");
    for (int i = 0; i < data->miss_count; i++) {
        fprintf(page, "<tr>");
        text_cell(page, data->misses[i].spec);
        text_cell(page, data->misses[i].family);
        count_cell(page, data->misses[i].count);
        date_cell(page, data->misses[i].first_seen);
        date_cell(page, data->misses[i].last_seen);
        fprintf(page, "</tr>\n");
    }
    end_table(page);
}

static void print_provenance(const struct report_data *data, FILE *page)
{
    if (!data->compiler_count && !report_winners(data))
        return;
    fprintf(page, "<h2>Provenance</h2>\n<h3>Artifacts</h3>\n");
    begin_table(page, "Compiler|Artifacts|Oldest|Newest");
    for (int i = 0; i < data->compiler_count; i++) {
        fprintf(page, "<tr>");
        text_cell(page, data->compilers[i].name);
        count_cell(page, data->compilers[i].count);
        date_cell(page, data->compilers[i].created);
        date_cell(page, data->compilers[i].newest);
        fprintf(page, "</tr>\n");
    }
    end_table(page);
    fprintf(page, "<h3>Tuned buckets</h3>\n");
    begin_table(page, "Bucket|Device profile|Toolkit|Search|Samples|Generation|Tuned at|Key");
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        if (!search->is_won)
            continue;
        fprintf(page, "<tr>");
        bucket_cell(page, search);
        text_cell(page, search->profile);
        text_cell(page, search->toolkit);
        text_cell(page, search->provenance);
        count_cell(page, search->samples);
        count_cell(page, search->generation);
        date_cell(page, search->created);
        text_cell(page, search->key);
        fprintf(page, "</tr>\n");
    }
    end_table(page);
}

static void print_table(const struct report_table *table, FILE *page)
{
    fprintf(page, "<div class=\"wide\"><table>\n<thead><tr>");
    for (int i = 0; i < table->column_count; i++) {
        fprintf(page, "<th scope=\"col\"><button type=\"button\">");
        report_escape(page, table->names[i]);
        fprintf(page, "</button></th>");
    }
    fprintf(page, "</tr></thead>\n<tbody>\n");
    for (int i = 0; i < table->row_count; i++) {
        fprintf(page, "<tr>");
        for (int j = 0; j < table->column_count; j++) {
            const char *cell = table->cells[i * table->column_count + j];
            if (!strcmp(table->names[j], "calls") || !strcmp(table->names[j], "kernels"))
                count_cell(page, strtoll(cell, NULL, 10));
            else
                text_cell(page, cell);
        }
        fprintf(page, "</tr>\n");
    }
    end_table(page);
}

/* What a bundle is comes first; its calls, of which there are thousands, by family. */
static void print_models(const struct report_data *data, FILE *page)
{
    if (!data->manifest.row_count)
        return;
    fprintf(page, "<h2>Bundle</h2>\n");
    print_table(&data->models, page);
}

static void print_manifest(const struct report_data *data, FILE *page)
{
    if (!data->manifest.row_count)
        return;
    fprintf(page,
            "<h2>Manifest</h2>\n<p class=\"note\">%d rows, by family; --json has them all.</p>\n",
            data->manifest.row_count);
    print_table(&data->calls, page);
}

void report_html(const struct report_data *data, FILE *page)
{
    fputs(head, page);
    print_facts(data, page);
    print_models(data, page);
    print_groups(data, page);
    print_rooflines(data, page);
    print_tuned(data, page);
    print_unfinished(data, page);
    print_candidates(data, page);
    print_failures(data, page);
    print_misses(data, page);
    print_provenance(data, page);
    print_manifest(data, page);
    fputs(tail, page);
}
