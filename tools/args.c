/* The command line. One list (OPTION_LIST in args.h) makes the enum, the table for getopt_long, the
 * checks which verb takes what, and the help, so that none of them can fall behind.
 *
 * A mistake is told in one line on stderr that names it as name=value, says what is allowed and,
 * where one is near, the word that was probably meant.
 */
#include "args.h"

#include "nearest.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define HELP_COLUMN 28

struct option_info {
    const char *name;
    int letter;
    const char *argument;
    int verbs;
    const char *doc;
};

static const struct option_info options[OPTION_COUNT] = {
#define X(name, letter, argument, verbs, doc) { #name, letter, argument, verbs, doc },
    OPTION_LIST(X)
#undef X
};

int complain(enum exit_code code, const char *format, ...)
{
    char line[2048];
    va_list list;

    va_start(list, format);
    vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    for (char *at = line; *at; at++)
        if ((unsigned char)*at < ' ')
            *at = ' ';
    fprintf(stderr, "quern: %s\n", line);
    return code;
}

int args_split(const char *text, char *name, size_t name_size, const char **value)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text || (size_t)(equals - text) >= name_size)
        return -1;
    memcpy(name, text, (size_t)(equals - text));
    name[equals - text] = 0;
    *value = equals + 1;
    return 0;
}

/* The option's name as typed: device_profile is --device-profile. */
static const char *spelling(const struct option_info *option, char text[32])
{
    snprintf(text, 32, "%s", option->name);
    for (char *at = text; *at; at++)
        if (*at == '_')
            *at = '-';
    return text;
}

/* ---- Numbers ------------------------------------------------------------------------------- */

static int parse_whole(enum option_id id, const char *text, int64_t least, int64_t most,
                       int64_t *number)
{
    char name[32], *end;
    errno = 0;
    long long parsed = strtoll(text, &end, 10);
    int is_digit = (*text >= '0' && *text <= '9') || *text == '-';
    if (!is_digit || *end || errno || parsed < least || parsed > most)
        return complain(EXIT_USAGE, "%s=%s: must be a whole number from %lld to %lld",
                        spelling(&options[id], name), text, (long long)least, (long long)most);
    *number = parsed;
    return EXIT_DONE;
}

static int parse_seconds(const char *text, double *seconds)
{
    char *end;
    double parsed = strtod(text, &end);
    if (end == text || *end || !isfinite(parsed) || parsed <= 0 || parsed > 1e9)
        return complain(EXIT_USAGE, "budget=%s: must be a number of seconds above 0", text);
    *seconds = parsed;
    return EXIT_DONE;
}

/* What a plan is made for, and what gc leaves. */
static int parse_sizes(struct args *args)
{
    const struct {
        enum option_id id;
        int64_t *number, otherwise, most;
    } sizes[] = { { OPTION_older_than, &args->older_than, 0, 36500 },
                  { OPTION_max_size, &args->max_size, 0, 1 << 24 },
                  { OPTION_tp, &args->tp, 1, 1024 },
                  { OPTION_ep, &args->ep, 1, 1024 },
                  { OPTION_max_tokens, &args->max_tokens, 8192, 1 << 22 },
                  { OPTION_max_batch, &args->max_batch, 256, 1 << 16 },
                  { OPTION_max_seq, &args->max_seq, 32768, 1 << 24 },
                  { OPTION_page, &args->page, 16, 256 },
                  { OPTION_jobs, &args->jobs, 0, 1024 },
                  { OPTION_memory, &args->memory, 0, 1 << 24 },
                  { OPTION_candidates, &args->candidates, 2, 256 } };
    int status = EXIT_DONE;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]) && !status; i++) {
        *sizes[i].number = sizes[i].otherwise;
        if (args_has(args, sizes[i].id))
            status = parse_whole(sizes[i].id, args->text[sizes[i].id],
                                 sizes[i].id == OPTION_candidates ? 0 : 1, sizes[i].most,
                                 sizes[i].number);
    }
    return status;
}

static int parse_numbers(struct args *args)
{
    int status = parse_sizes(args);
    args->seed = 1;
    if (!status && args_has(args, OPTION_iters))
        status = parse_whole(OPTION_iters, args->text[OPTION_iters], 1, 1000000, &args->iters);
    if (!status && args_has(args, OPTION_seed))
        status = parse_whole(OPTION_seed, args->text[OPTION_seed], 0, INT64_MAX, &args->seed);
    if (!status && args_has(args, OPTION_max_configs))
        status = parse_whole(OPTION_max_configs, args->text[OPTION_max_configs], 1, 1000000,
                             &args->max_configs);
    if (!status && args_has(args, OPTION_budget))
        status = parse_seconds(args->text[OPTION_budget], &args->budget_s);
    return status;
}

/* ---- Options ------------------------------------------------------------------------------- */

static int keep(const char **list, int *count, int max, enum option_id id, const char *text)
{
    if (*count == max)
        return complain(EXIT_USAGE, "%s=%s: may be given at most %d times", options[id].name, text,
                        max);
    list[(*count)++] = text;
    return EXIT_DONE;
}

static int take_option(struct args *args, int id, const char *text)
{
    args->given |= UINT64_C(1) << id;
    args->text[id] = text;
    switch (id) {
    case OPTION_in:
        return keep(args->in, &args->in_count, ARGS_MAX_FILES, id, text);
    case OPTION_out:
        return keep(args->out, &args->out_count, ARGS_MAX_FILES, id, text);
    case OPTION_plugin:
        return keep(args->plugins, &args->plugin_count, ARGS_MAX_PLUGINS, id, text);
    case OPTION_verbose:
        args->verbosity++;
        return EXIT_DONE;
    default:
        return EXIT_DONE;
    }
}

static int refuse_unknown(const char *typed)
{
    char wanted[64], names[OPTION_COUNT][32];
    const char *bare = typed + strspn(typed, "-");
    struct nearest nearest;

    snprintf(wanted, sizeof(wanted), "%.*s", (int)strcspn(bare, "="), bare);
    nearest_init(&nearest, wanted);
    for (int i = 0; i < OPTION_COUNT; i++)
        nearest_offer(&nearest, spelling(&options[i], names[i]));
    if (nearest.best)
        return complain(EXIT_USAGE, "option=%s: unknown; did you mean --%s?", typed, nearest.best);
    return complain(EXIT_USAGE,
                    "option=%s: unknown, or the beginning of several; quern VERB --help "
                    "lists them",
                    typed);
}

static int refuse_option(const char *typed, int is_argument_missing,
                         const struct option_info *option)
{
    char name[32];

    if (is_argument_missing)
        return complain(EXIT_USAGE, "option=%s: needs an argument, --%s %s", typed,
                        spelling(option, name), option->argument);
    if (option)
        return complain(EXIT_USAGE, "option=%s: takes no argument", typed);
    return refuse_unknown(typed);
}

static void fill_getopt(struct option table[OPTION_COUNT + 1], char names[OPTION_COUNT][32],
                        char letters[2 * OPTION_COUNT + 2])
{
    int letter_count = 0;
    letters[letter_count++] = ':'; /* tell a missing argument from an unknown option */
    memset(table, 0, (OPTION_COUNT + 1) * sizeof(*table));
    for (int i = 0; i < OPTION_COUNT; i++) {
        table[i].name = spelling(&options[i], names[i]);
        table[i].has_arg = options[i].argument ? required_argument : no_argument;
        table[i].val = 256 + i;
        if (options[i].letter)
            letters[letter_count++] = (char)options[i].letter;
        if (options[i].letter && options[i].argument)
            letters[letter_count++] = ':';
    }
    letters[letter_count] = 0;
}

static int option_of(int value)
{
    for (int i = 0; i < OPTION_COUNT; i++)
        if (value == 256 + i || (options[i].letter && value == options[i].letter))
            return i;
    return -1;
}

int args_parse(int argc, char **argv, struct args *args)
{
    struct option table[OPTION_COUNT + 1];
    char names[OPTION_COUNT][32], letters[2 * OPTION_COUNT + 2], letter[3] = "-";
    int value, status = EXIT_DONE;

    memset(args, 0, sizeof(*args));
    fill_getopt(table, names, letters);
    opterr = 0;
    while (!status && (value = getopt_long(argc, argv, letters, table, NULL)) != -1) {
        letter[1] = (char)optopt;
        if (value == ':') {
            status = refuse_option(argv[optind - 1], 1, &options[option_of(optopt)]);
        } else if (value == '?') {
            int known = optopt ? option_of(optopt) : -1;
            int is_long = !optopt || known >= 0;
            status = refuse_option(is_long ? argv[optind - 1] : letter, 0,
                                   known < 0 ? NULL : &options[known]);
        } else {
            status = take_option(args, option_of(value), optarg);
        }
    }
    if (status)
        return status;
    args->words = argv + optind;
    args->word_count = argc - optind;
    return parse_numbers(args);
}

int args_check_verb(const struct args *args, const struct verb *verb)
{
    char name[32];
    for (int i = 0; i < OPTION_COUNT; i++)
        if (args_has(args, i) && !(options[i].verbs & verb->bit))
            return complain(EXIT_USAGE, "option=--%s: %s does not take it; quern %s --help",
                            spelling(&options[i], name), verb->name, verb->name);
    return EXIT_DONE;
}

void args_help(FILE *stream, enum option_verbs bit)
{
    char name[32], left[64];
    for (int i = 0; i < OPTION_COUNT; i++) {
        const struct option_info *option = &options[i];
        if (!(option->verbs & bit))
            continue;
        int used = option->letter ? snprintf(left, sizeof(left), "-%c, ", option->letter) : 0;
        snprintf(left + used, sizeof(left) - (size_t)used, "--%s%s%s", spelling(option, name),
                 option->argument ? " " : "", option->argument ? option->argument : "");
        fprintf(stream, "  %-*s %s\n", HELP_COLUMN, left, option->doc);
    }
}
