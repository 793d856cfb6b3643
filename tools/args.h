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
    X(target, 0, "TARGET", FOR_GEN | FOR_BUILD | FOR_CACHE | FOR_PREBUILD,                         \
      "what to compile (explain) for: sm_90a, cpu:x86-64-v3; (pre)build takes a list: T,T")        \
    X(in, 0, "ARRAY=FILE", FOR_RUN | FOR_TUNE,                                                     \
      "an input from x.npy or x.safetensors:tensor; else it is drawn")                             \
    X(out, 0, "ARRAY=FILE", FOR_RUN | FOR_TUNE, "write this array to a .npy file afterwards")      \
    X(check, 0, NULL, FOR_RUN | FOR_PREBUILD,                                                      \
      "run: compare the output with the float64 reference; prebuild: say what a bundle lacks")     \
    X(iters, 0, "N", FOR_RUN, "how many calls to time; else as many as fit a fifth of a second")   \
    X(seed, 0, "S", FOR_RUN | FOR_TUNE | FOR_SWEEP,                                                \
      "seed of drawn arrays and sampled checks; else 1")                                           \
    X(budget, 0, "SECONDS", FOR_TUNE | FOR_SWEEP, "start no further candidate after this long")    \
    X(max_configs, 0, "N", FOR_TUNE | FOR_SWEEP, "try at most this many candidates")               \
    X(force, 0, NULL, FOR_TUNE, "tune again although a winner is stored")                          \
    X(model, 0, "FILE", FOR_PREBUILD | FOR_SWEEP | FOR_CACHE,                                      \
      "config.json of a Hugging Face model; export: only what the manifest has for this name")     \
    X(plan, 0, "FILE", FOR_PREBUILD, "instead of a model: what --dry-run --json printed")          \
    X(tp, 0, "N", FOR_PREBUILD | FOR_SWEEP, "ranks that share each layer; else 1")                 \
    X(ep, 0, "N", FOR_PREBUILD | FOR_SWEEP,                                                        \
      "ranks that have experts of their own; else 1: they share them")                             \
    X(max_tokens, 0, "N", FOR_PREBUILD | FOR_SWEEP,                                                \
      "tokens of a prefill step, at most; else 8192")                                              \
    X(max_batch, 0, "N", FOR_PREBUILD | FOR_SWEEP,                                                 \
      "sequences of a decode step, at most; else 256")                                             \
    X(max_seq, 0, "N", FOR_PREBUILD | FOR_SWEEP, "tokens of a sequence, at most; else 32768")      \
    X(page, 0, "N", FOR_PREBUILD | FOR_SWEEP, "tokens of a page of the cache; else 16")            \
    X(dtype, 0, "DTYPE", FOR_PREBUILD | FOR_SWEEP,                                                 \
      "bf16, f16 or f32, of everything; else as the model has")                                    \
    X(kv_dtype, 0, "DTYPE", FOR_PREBUILD | FOR_SWEEP, "of the cache: dtype or e4m3; else dtype")   \
    X(output, 'o', "FILE", FOR_PREBUILD | FOR_CACHE | FOR_REPORT,                                  \
      "the bundle; prebuild completes one that is there, export makes a new one; report: a page")  \
    X(text, 0, NULL, FOR_REPORT, "text on stdout, also beside a page")                             \
    X(jobs, 0, "N", FOR_PREBUILD, "kernels that are compiled at once; else one a processor")       \
    X(memory, 0, "MIB", FOR_PREBUILD, "compile no more at once than fit, at 160 MiB each")         \
    X(candidates, 0, "N", FOR_PREBUILD,                                                            \
      "compile so many configs of each beside the chosen one; else 2")                             \
    X(dry_run, 0, NULL, FOR_PREBUILD, "print the plan and compile nothing")                        \
    X(shapes, 0, "FILE", FOR_SWEEP, "tune these: a spec a line, or columns of parameters (CSV)")   \
    X(family, 0, "FAMILY", FOR_SWEEP | FOR_CACHE,                                                  \
      "sweep: of --grid, or only these of a model's calls: F,F; export: only its rows")            \
    X(grid, 0, "K=V,V ...", FOR_SWEEP, "tune every combination of these values of --family")       \
    X(from_misses, 0, NULL, FOR_SWEEP, "tune what ran with a config that was not tuned")           \
    X(standard, 0, NULL, FOR_SWEEP, "tune a set of shapes of every family of language models")     \
    X(retune, 0, "WHICH", FOR_SWEEP, "also what is tuned: older-than=DAYS, driver-changed, all")   \
    X(device_profile_out, 0, "FILE", FOR_SWEEP,                                                    \
      "measure what the device can do at most and write its profile")                              \
    X(older_than, 0, "DAYS", FOR_CACHE, "gc: what was not used for so long goes")                  \
    X(max_size, 0, "MIB", FOR_CACHE, "gc: the longest unused go until the file is no larger")      \
    X(cache, 0, "FILE", FOR_ALL, "the store; else $QUERN_CACHE, else ~/.cache/quern/quern.db")     \
    X(device, 0, "DEVICE", FOR_ALL, "cpu, cuda or cuda:N; else cuda if usable, else cpu")          \
    X(variant, 0, "NAME", FOR_ALL, "only this variant of the family")                              \
    X(config, 0, "K=V,...", FOR_ALL, "exactly these choices; else tuned, neighbour, heuristic")    \
    X(device_profile, 0, "NAME", FOR_ALL,                                                          \
      "plan for this device, a name or file; else the one here")                                   \
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
    FOR_PREBUILD = 128,
    FOR_SWEEP = 256,
    FOR_REPORT = 512,
    FOR_ALL = 1023
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
    uint64_t given;                 /* bit 1 << OPTION_x of every option given */
    const char *text[OPTION_COUNT]; /* the last argument of each */
    const char *in[ARGS_MAX_FILES], *out[ARGS_MAX_FILES], *plugins[ARGS_MAX_PLUGINS];
    int in_count, out_count, plugin_count;
    int verbosity; /* times -v was given */
    int64_t iters, seed, max_configs;
    int64_t tp, ep, max_tokens, max_batch, max_seq, page, jobs, memory, candidates;
    int64_t older_than, max_size; /* 0: not given */
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
