/* What was measured, and how it is printed.
 *
 *     struct results    shared memory: each part of the run is a process of its own and adds to it
 *       facts           "OpenBLAS" = "0.3.21 ... SkylakeX"
 *       details         one contestant of one case: median, MAD, rate, error, ratio
 *       figures         one line of the last table: ours, the peer's, their ratio, what is wanted
 *
 * Talk goes to `talk` as it comes (stderr with --json), the table or the JSON object to stdout.
 */
#ifndef BENCH_FIGURES_H
#define BENCH_FIGURES_H

#include "bench/roof.h"
#include <stdarg.h>

enum verdict { FIGURE_INFO, FIGURE_OK, FIGURE_SHORT, FIGURE_MISSING };

struct fact {
    char name[32], text[224];
};

struct detail {
    char where[56], who[96], unit[8];
    double median_s, mad_s, rate; /* seconds a call; rate in `unit` */
    double ratio, ratio_mad;      /* how many times as fast as the first of ours, pair by pair */
    double rel_err;               /* against float64; < 0: not checked */
    int rounds;
};

struct figure {
    char name[96], ours[32], peer[64], wanted[24];
    double ratio; /* 0: none */
    int verdict;  /* enum verdict */
    int is_busy;  /* the machine was not ours alone: the verdict means little */
};

struct results {
    struct roof roof;
    int fact_count, detail_count, figure_count;
    struct fact facts[48];
    struct detail details[160];
    struct figure figures[64];
};

static FILE *talk;

/* ---- Adding -------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static void
add_fact(struct results *results, const char *name, const char *format, ...)
{
    va_list list;
    struct fact *fact = &results->facts[results->fact_count];
    if (results->fact_count == (int)(sizeof results->facts / sizeof *results->facts))
        return;
    results->fact_count++;
    snprintf(fact->name, sizeof fact->name, "%s", name);
    va_start(list, format);
    vsnprintf(fact->text, sizeof fact->text, format, list);
    va_end(list);
    fprintf(talk, "  %-14s %s\n", fact->name, fact->text);
    fflush(talk);
}

static void add_detail(struct results *results, const struct detail *detail)
{
    char rate[32] = "", ratio[48] = "", error[32] = "";
    if (detail->rate > 0)
        snprintf(rate, sizeof rate, "%9.1f %s", detail->rate, detail->unit);
    if (detail->ratio > 0)
        snprintf(ratio, sizeof ratio, "x%.3f +-%.3f", detail->ratio, detail->ratio_mad);
    if (detail->rel_err >= 0)
        snprintf(error, sizeof error, "err %.1e", detail->rel_err);
    fprintf(talk, "    %-52s %11.3f ms +-%5.1f%% %-18s %-16s %s\n", detail->who,
            detail->median_s * 1e3,
            detail->median_s > 0 ? 100 * detail->mad_s / detail->median_s : 0, rate, ratio, error);
    fflush(talk);
    if (results->detail_count < (int)(sizeof results->details / sizeof *results->details))
        results->details[results->detail_count++] = *detail;
}

static struct figure *add_figure(struct results *results, const char *name)
{
    int most = (int)(sizeof results->figures / sizeof *results->figures);
    struct figure *figure =
        &results->figures[results->figure_count < most ? results->figure_count++ : most - 1];
    memset(figure, 0, sizeof *figure);
    snprintf(figure->name, sizeof figure->name, "%s", name);
    return figure;
}

/* A ratio that should be at least `wanted` (0: nothing is asked). */
static void judge_ratio(struct figure *figure, double ratio, double wanted)
{
    figure->ratio = ratio;
    if (wanted > 0)
        snprintf(figure->wanted, sizeof figure->wanted, ">= %.2f", wanted);
    if (ratio <= 0)
        figure->verdict = FIGURE_MISSING;
    else if (wanted > 0)
        figure->verdict = ratio >= wanted ? FIGURE_OK : FIGURE_SHORT;
}

/* A quantity in `unit` that should be at most `most`. value < 0: could not be measured. */
static void judge_most(struct figure *figure, double value, double most, const char *unit)
{
    snprintf(figure->wanted, sizeof figure->wanted, "<= %.0f %s", most, unit);
    if (value >= 0)
        snprintf(figure->ours, sizeof figure->ours, "%.*f %s", value < 10 ? 2 : 1, value, unit);
    figure->verdict = value < 0 ? FIGURE_MISSING : value <= most ? FIGURE_OK : FIGURE_SHORT;
}

/* Mark the figures from `first` on when others had too much of the machine meanwhile. */
static void mark_noise(struct results *results, int first, double others)
{
    for (int i = first; i < results->figure_count; i++)
        results->figures[i].is_busy = others > QUIET;
}

/* ---- Printing ------------------------------------------------------------------------------ */

static const char *verdict_word(int verdict)
{
    static const char *const words[] = { "", "ok", "SHORT", "missing" };
    return words[verdict];
}

static void print_table(const struct results *results)
{
    printf("\n%-50s %-16s %-32s %7s  %-10s\n", "figure", "ours", "peer", "ratio", "wanted");
    for (int i = 0; i < results->figure_count; i++) {
        const struct figure *f = &results->figures[i];
        char ratio[16] = "";
        if (f->ratio > 0)
            snprintf(ratio, sizeof ratio, "%.3f", f->ratio);
        printf("%-50s %-16s %-32s %7s  %-10s %s%s\n", f->name, f->ours, f->peer, ratio, f->wanted,
               verdict_word(f->verdict), f->is_busy && f->verdict ? " (busy)" : "");
    }
}

static void print_json_text(const char *before, const char *text, const char *after)
{
    printf("%s\"", before);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c == '"' || *c == '\\')
            printf("\\%c", *c);
        else if (*c < 32)
            printf("\\u%04x", *c);
        else
            putchar(*c);
    printf("\"%s", after);
}

static void print_json(const struct results *results)
{
    const struct roof *roof = &results->roof;
    printf("{\"facts\": [");
    for (int i = 0; i < results->fact_count; i++) {
        print_json_text(i ? ",\n{\"name\": " : "\n{\"name\": ", results->facts[i].name, ", ");
        print_json_text("\"text\": ", results->facts[i].text, "}");
    }
    printf(
        "],\n\"roof\": {\"f32_gflops\": [%.1f, %.1f], \"bf16_gflops\": [%.1f, %.1f], "
        "\"amx_gflops\": [%.1f, %.1f], \"stream_gbps\": [%.2f, %.2f], \"stream_bytes\": %lld},\n",
        roof->f32_gflops[0], roof->f32_gflops[1], roof->bf16_gflops[0], roof->bf16_gflops[1],
        roof->amx_gflops[0], roof->amx_gflops[1], roof->stream_gbps[0], roof->stream_gbps[1],
        (long long)roof->stream_bytes);
    printf("\"details\": [");
    for (int i = 0; i < results->detail_count; i++) {
        const struct detail *d = &results->details[i];
        print_json_text(i ? ",\n{\"case\": " : "\n{\"case\": ", d->where, ", ");
        print_json_text("\"who\": ", d->who, ", ");
        print_json_text("\"unit\": ", d->unit, ", ");
        printf("\"median_s\": %.9g, \"mad_s\": %.9g, \"rate\": %.6g, \"ratio\": %.6g, "
               "\"ratio_mad\": %.6g, \"rel_err\": %.3g, \"rounds\": %d}",
               d->median_s, d->mad_s, d->rate, d->ratio, d->ratio_mad, d->rel_err, d->rounds);
    }
    printf("],\n\"figures\": [");
    for (int i = 0; i < results->figure_count; i++) {
        const struct figure *f = &results->figures[i];
        print_json_text(i ? ",\n{\"figure\": " : "\n{\"figure\": ", f->name, ", ");
        print_json_text("\"ours\": ", f->ours, ", ");
        print_json_text("\"peer\": ", f->peer, ", ");
        print_json_text("\"wanted\": ", f->wanted, ", ");
        printf("\"ratio\": %.6g, \"verdict\": \"%s\", \"busy\": %s}", f->ratio,
               f->verdict ? verdict_word(f->verdict) : "info", f->is_busy ? "true" : "false");
    }
    printf("]}\n");
}
#endif
