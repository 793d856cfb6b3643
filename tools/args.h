/* The command line: verbs, options, and the one way to complain about them. */
#ifndef TOOLS_ARGS_H
#define TOOLS_ARGS_H

#include <stdint.h>
#include <stdio.h>

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

#define ARGS_MAX_FILES 16 /* --in, --out: as many as a family may have arrays */
#define ARGS_MAX_PLUGINS 8

/* Every option of every verb, in the order of --help:
 * name, short letter or 0, argument or NULL, the verbs that take it, what it does. */
#define OPTION_LIST(X)                                                                             \
    X(target, 0, "TARGET", FOR_GEN | FOR_BUILD | FOR_CACHE,                                        \
      "what to compile (explain) for: sm_90a, cpu:x86-64-v3; build takes a list: T,T")             \
    X(in, 0, "ARRAY=FILE", FOR_RUN | FOR_TUNE,                                                     \
      "an input from x.npy or x.safetensors:tensor; else it is drawn")                             \
    X(out, 0, "ARRAY=FILE", FOR_RUN | FOR_TUNE, "write this array to a .npy file afterwards")      \
    X(check, 0, NULL, FOR_RUN, "compare the output with the float64 reference")                    \
    X(iters, 0, "N", FOR_RUN, "how many calls to time; else as many as fit a fifth of a second")   \
    X(seed, 0, "S", FOR_RUN | FOR_TUNE, "seed of drawn arrays and sampled checks; else 1")         \
    X(budget, 0, "SECONDS", FOR_TUNE, "start no further candidate after this long")                \
    X(max_configs, 0, "N", FOR_TUNE, "try at most this many candidates")                           \
    X(force, 0, NULL, FOR_TUNE, "tune again although a winner is stored")                          \
    X(cache, 0, "FILE", FOR_ALL, "the store; else $QUERN_CACHE, else ~/.cache/quern/quern.db")     \
    X(device, 0, "DEVICE", FOR_ALL, "cpu, cuda or cuda:N; else cuda if usable, else cpu")          \
    X(variant, 0, "NAME", FOR_ALL, "only this variant of the family")                              \
    X(config, 0, "K=V,...", FOR_ALL, "exactly these choices; else tuned, neighbour, heuristic")    \
    X(device_profile, 0, "NAME", FOR_ALL, "plan for this device; else for the one that is here")   \
    X(plugin, 0, "FILE", FOR_ALL, "load families from a shared object; may be repeated")           \
    X(dump, 0, "LETTERS", FOR_ALL, "log what pipeline stages made, as docs/CLI.md lists them")     \
    X(json, 0, NULL, FOR_ALL, "one JSON object on stdout")                                         \
    X(verbose, 'v', NULL, FOR_ALL, "say what is compiled, loaded and tuned; twice: everything")    \
    X(quiet, 'q', NULL, FOR_ALL, "no warnings and no progress on stderr, only errors")             \
    X(help, 'h', NULL, FOR_ALL, "this text")                                                       \
    X(version, 0, NULL, FOR_ALL, "the version of quern")

enum option_verbs {
    FOR_DOCTOR = 1,
    FOR_FAMILIES = 2,
    FOR_GEN = 4,
    FOR_BUILD = 8,
    FOR_RUN = 16,
    FOR_TUNE = 32,
    FOR_CACHE = 64,
    FOR_ALL = 127
};

enum option_id {
#define X(name, ...) OPTION_##name,
    OPTION_LIST(X)
#undef X
        OPTION_COUNT
};

/* A command line, taken apart. Strings belong to argv. */
struct args {
    char **words; /* the verb, then what else is not an option */
    int word_count;
    uint32_t given;                 /* bit 1 << OPTION_x of every option given */
    const char *text[OPTION_COUNT]; /* the last argument of each */
    const char *in[ARGS_MAX_FILES], *out[ARGS_MAX_FILES], *plugins[ARGS_MAX_PLUGINS];
    int in_count, out_count, plugin_count;
    int verbosity; /* times -v was given */
    int64_t iters, seed, max_configs;
    double budget_s;
};

struct verb {
    const char *name;
    enum option_verbs bit;
    const char *words, *doc; /* for help */
    int (*run)(const struct args *args);
};

static inline int args_has(const struct args *args, enum option_id id)
{
    return (int)(args->given >> id & 1);
}

/* Take argv apart; options may stand anywhere, also before the verb. An exit code. */
int args_parse(int argc, char **argv, struct args *args);
/* Refuse options that belong to other verbs. */
int args_check_verb(const struct args *args, const struct verb *verb);
/* The lines of --help for the options of one verb. */
void args_help(FILE *stream, enum option_verbs bit);

/* Split "name=value" at the first '='. 0 and the place of the value; -1 if there is none. */
int args_split(const char *text, char *name, size_t name_size, const char **value);

/* "quern: ..." and a newline on stderr, control characters made visible. Returns code. */
int complain(enum exit_code code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
