/* The pictures of a report's page, whose colours its style sheet says.
 *
 *   roofline   SVG: flop/s over flops a byte, both logarithmic, a point a tuned bucket. The roofs
 *              are those of the device profile that was given, solid, one for each kind of product
 *              that is there; else the best rates among these very points, dashed: nothing in a
 *              cache file says what a device can do. One point is no roof.
 *   strip      HTML, so that it takes what width there is: the candidates of one search, their time
 *              over the fastest's, logarithmic. Lanes only keep dots apart.
 */
#include "report_data.h"

#include "human.h"

#include <math.h>
#include <string.h>

void report_escape(FILE *page, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", page);
            break;
        case '<':
            fputs("&lt;", page);
            break;
        case '>':
            fputs("&gt;", page);
            break;
        case '"':
            fputs("&quot;", page);
            break;
        case '\'':
            fputs("&#39;", page);
            break;
        default:
            putc(*text, page);
        }
    }
}

/* ---- Roofline ------------------------------------------------------------------------------ */

enum { WIDTH = 860, HEIGHT = 420, LEFT = 80, RIGHT = 20, TOP = 20, BOTTOM = 50, LETTER = 15 };

struct axes {
    double left, right, low, high; /* decades: intensity, TFLOP/s */
    double gbps, tflops[2];        /* the roofs: of f32, of halves; 0: there is none */
    int is_measured;               /* of the device; else they are the best seen */
};

static double place_x(const struct axes *axes, double intensity)
{
    return LEFT +
           (WIDTH - LEFT - RIGHT) * (log10(intensity) - axes->left) / (axes->right - axes->left);
}

static double place_y(const struct axes *axes, double tflops)
{
    return HEIGHT - BOTTOM -
           (HEIGHT - TOP - BOTTOM) * (log10(tflops) - axes->low) / (axes->high - axes->low);
}

static int is_point(const struct report_search *search, const char *profile)
{
    return search->is_won && !strcmp(search->profile, profile) &&
           isfinite(report_intensity(search)) && isfinite(report_tflops(search)) &&
           report_tflops(search) > 0; /* a time in the file may be infinite */
}

/* The ridges and levels of the profile's roofs are within the picture. */
static void take_profile(const struct quern_profile *profile, struct axes *axes)
{
    axes->gbps = profile->memory_gbps;
    axes->is_measured = 1;
    for (int i = 0; i < 2; i++) {
        double peak = roof_tflops(profile, i);
        int is_there = axes->tflops[i] > 0 && peak > 0;
        axes->tflops[i] = is_there ? peak : 0;
        if (!is_there)
            continue;
        axes->high = fmax(axes->high, floor(log10(peak)) + 1);
        axes->right = fmax(axes->right, floor(log10(peak * 1e3 / axes->gbps)) + 1);
    }
}

/* 0: there is no point. */
static int find_axes(const struct report_data *data, const char *profile, struct axes *axes)
{
    int count = 0;

    *axes = (struct axes){ INFINITY, -INFINITY, INFINITY, -INFINITY, 0, { 0 }, 0 };
    for (int i = 0; i < data->search_count; i++) {
        const struct report_search *search = &data->searches[i];
        if (!is_point(search, profile))
            continue;
        double intensity = log10(report_intensity(search)), tflops = report_tflops(search);
        double *best = &axes->tflops[search->call.is_tensor];
        axes->left = fmin(axes->left, floor(intensity));
        axes->right = fmax(axes->right, floor(intensity) + 1);
        axes->low = fmin(axes->low, floor(log10(tflops)));
        axes->high = fmax(axes->high, floor(log10(tflops)) + 1);
        axes->gbps = fmax(axes->gbps, report_gbps(search));
        *best = fmax(*best, tflops);
        count++;
    }
    if (!strcmp(profile, data->roof.name))
        take_profile(&data->roof, axes);
    return count;
}

static void draw_grid(const struct axes *axes, FILE *page)
{
    for (double decade = axes->left; decade <= axes->right; decade++) {
        double x = place_x(axes, pow(10, decade));
        fprintf(page,
                "<line class=\"grid\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>"
                "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                x, TOP, x, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 18, pow(10, decade));
    }
    for (double decade = axes->low; decade <= axes->high; decade++) {
        double y = place_y(axes, pow(10, decade));
        fprintf(page,
                "<line class=\"grid\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
                LEFT, y, WIDTH - RIGHT, y, LEFT - 8, y + 4, pow(10, decade));
    }
    fprintf(page,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">flops a byte</text>"
            "<text transform=\"translate(16 %d) rotate(-90)\" text-anchor=\"middle\">TFLOP/s"
            "</text>\n",
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, (TOP + HEIGHT - BOTTOM) / 2);
}

/* From the slope to the right edge. The lower one's name stands below it, if need be. */
static void draw_level(const struct axes *axes, double tflops, const char *name, FILE *page)
{
    double other = axes->tflops[tflops == axes->tflops[0]];
    int is_below = other > tflops && place_y(axes, tflops) - place_y(axes, other) < LETTER;
    double ridge = fmax(tflops * 1e3 / axes->gbps, pow(10, axes->left));
    double y = place_y(axes, tflops), end = pow(10, axes->right);

    if (ridge < end)
        fprintf(page,
                "<line class=\"roof%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s: %.4g TFLOP/s</text>\n",
                axes->is_measured ? "" : " seen", place_x(axes, ridge), y, place_x(axes, end), y,
                WIDTH - RIGHT - 4, is_below ? y + LETTER : y - 5, name, tflops);
}

/* Up with the bandwidth from the left edge, or the bottom, to the highest ridge, or the right edge.
 */
static void draw_roofs(const struct axes *axes, FILE *page)
{
    double slope = axes->gbps * 1e-3, highest = fmax(axes->tflops[0], axes->tflops[1]);
    double begin = fmax(pow(10, axes->left), pow(10, axes->low) / slope);
    double end = fmin(highest / slope, pow(10, axes->right));

    if (begin < end)
        fprintf(page, "<line class=\"roof%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n",
                axes->is_measured ? "" : " seen", place_x(axes, begin),
                place_y(axes, begin * slope), place_x(axes, end), place_y(axes, end * slope));
    for (int i = 0; i < 2; i++)
        if (axes->tflops[i] > 0)
            draw_level(axes, axes->tflops[i], i ? "bf16" : "f32", page);
}

static void draw_point(const struct report_search *search, const struct axes *axes, FILE *page)
{
    char time[HUMAN_BYTES];

    human_time(search->time_us, time);
    fprintf(page, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"5\"><title>", search->colour,
            place_x(axes, report_intensity(search)), place_y(axes, report_tflops(search)));
    report_escape(page, search->brief);
    fprintf(page, ": %s, %.3g TFLOP/s, %.3g GB/s</title></circle>\n", time, report_tflops(search),
            report_gbps(search));
}

void report_roofline(const struct report_data *data, const char *profile, FILE *page)
{
    struct axes axes;
    int count = find_axes(data, profile, &axes);

    if (!count) {
        fprintf(page, "<p>No tuned bucket whose flops and bytes are known.</p>\n");
        return;
    }
    fprintf(page,
            "<div class=\"wide\"><svg class=\"roofline\" viewBox=\"0 0 %d %d\" role=\"img\" "
            "aria-label=\"Rate of each tuned bucket over its flops a byte\">\n",
            WIDTH, HEIGHT);
    draw_grid(&axes, page);
    if (axes.is_measured || count > 1)
        draw_roofs(&axes, page);
    for (int i = 0; i < data->search_count; i++)
        if (is_point(&data->searches[i], profile))
            draw_point(&data->searches[i], &axes, page);
    fprintf(page, "</svg></div>\n");
    if (axes.is_measured || count > 1)
        fprintf(page, "<p class=\"note\">%s; memory: %.4g GB/s.</p>\n",
                axes.is_measured ? "Solid: what the device profile says"
                                 : "Dashed: the best rates among these buckets, which are not the "
                                   "device's limits",
                axes.gbps);
    else
        fprintf(page, "<p class=\"note\">One bucket shows no roof; a device profile has the "
                      "device's.</p>\n");
}

/* ---- Candidates ---------------------------------------------------------------------------- */

enum { LANES = 4, LANE_PIXELS = 8 };

/* Percent of the width. */
static double place_trial(double time_us, double best_us)
{
    double share = log(time_us / best_us) / log(REPORT_STRIP_MOST);
    return 100 * fmin(fmax(share, 0), 1);
}

static int is_winner(const struct report_search *search, const struct report_trial *trial)
{
    return search->is_won && !strcmp(trial->variant, search->variant) &&
           !strcmp(trial->config, search->config);
}

static void draw_trial(const struct report_search *search, int index, double best_us, FILE *page)
{
    const struct report_trial *trial = &search->trials[index];
    char time[HUMAN_BYTES];

    human_time(trial->time_us, time);
    fprintf(page, "<i class=\"%s%s\" style=\"left:%.2f%%;top:%dpx\" title=\"",
            trial->is_heuristic ? "heuristic" : "tried", is_winner(search, trial) ? " won" : "",
            place_trial(trial->time_us, best_us), 6 + index % LANES * LANE_PIXELS);
    report_escape(page, trial->variant);
    putc(' ', page);
    report_escape(page, trial->config);
    fprintf(page, ": %s, %.2f times the fastest%s%s\"></i>", time, trial->time_us / best_us,
            is_winner(search, trial) ? ", chosen" : "",
            trial->is_heuristic ? ", the heuristic's" : "");
}

void report_strip(const struct report_search *search, FILE *page)
{
    double best_us = INFINITY;

    for (int i = 0; i < search->trial_count; i++)
        if (search->trials[i].is_ok)
            best_us = fmin(best_us, search->trials[i].time_us);
    if (!isfinite(best_us)) {
        fprintf(page, "<p class=\"note\">None ran.</p>\n");
        return;
    }
    fprintf(page, "<div class=\"strip\" role=\"img\" aria-label=\"%d candidates, %d failed\">",
            search->trial_count, search->failed);
    for (int times = 1; times <= REPORT_STRIP_MOST; times *= 2)
        fprintf(page, "<b style=\"left:%.2f%%\"><span>%s%d&times;</span></b>",
                place_trial(times, 1), times == REPORT_STRIP_MOST ? "&ge;" : "", times);
    for (int i = 0; i < search->trial_count; i++)
        if (search->trials[i].is_ok)
            draw_trial(search, i, best_us, page);
    fprintf(page, "</div>\n");
}
