/* The quern command: finds the verb and runs it. docs/CLI.md describes them all.
 *
 * Results go to stdout and everything else to stderr. Exit 0: done. 1: it failed, or a check did.
 * 2: the command line asks for something that does not exist.
 */
#include "cmd.h"
#include "nearest.h"

#include <quern.h>

#include <stdio.h>
#include <string.h>

static const struct verb verbs[] = {
    { "doctor", FOR_DOCTOR, "", "what is here, what is missing and how to get it", cmd_doctor },
    { "families", FOR_FAMILIES, "[FAMILY]", "families, variants, parameters, arrays",
      cmd_families },
    { "gen", FOR_GEN, "FAMILY k=v ...", "print the generated source", cmd_gen },
    { "build", FOR_BUILD, "FAMILY k=v ...", "compile into the cache, also for another machine",
      cmd_build },
    { "run", FOR_RUN, "FAMILY k=v ...", "run once, check, time", cmd_run },
    { "tune", FOR_TUNE, "FAMILY k=v ...", "find the fastest config and remember it", cmd_tune },
    { "prebuild", FOR_PREBUILD, "--model config.json --tp N ...",
      "every kernel that a model needs, from its config.json", cmd_prebuild },
    { "sweep", FOR_SWEEP, "--model | --shapes | --grid | --from-misses | --standard ...",
      "tune many specs on every device that is here", cmd_sweep },
    { "cache", FOR_CACHE,
      "ls | show KEY | explain FAMILY k=v ... | stats | verify | export -o FILE | import FILE... | "
      "gc",
      "look into the cache", cmd_cache },
    { "report", FOR_REPORT, "[FILE] [-o page.html]", "what a cache holds: a page, text or JSON",
      cmd_report },
};

#define VERB_COUNT (sizeof(verbs) / sizeof(verbs[0]))

static void print_help(void)
{
    printf("quern makes kernels for your shapes, dtypes and processor, and remembers them.\n\n"
           "  quern VERB [OPTIONS] ...\n\n");
    for (size_t i = 0; i < VERB_COUNT; i++)
        printf("  %-10s %s\n", verbs[i].name, verbs[i].doc);
    printf("\nquern VERB --help lists a verb's options; these go with all of them:\n\n");
    args_help(stdout, FOR_DOCTOR);
    printf("\nTry: quern run gemm m=512 n=512 k=512 --check\n");
}

static void print_verb_help(const struct verb *verb)
{
    printf("quern %s %s\n  %s\n\n", verb->name, verb->words, verb->doc);
    args_help(stdout, verb->bit);
}

static const struct verb *find_verb(const char *name)
{
    struct nearest nearest;

    nearest_init(&nearest, name);
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (!strcmp(verbs[i].name, name))
            return &verbs[i];
        nearest_offer(&nearest, verbs[i].name);
    }
    complain(EXIT_USAGE,
             "verb=%s: must be one of: doctor families gen build run tune prebuild sweep report "
             "cache%s%s%s",
             name, nearest.best ? "; did you mean " : "", nearest.best ? nearest.best : "",
             nearest.best ? "?" : "");
    return NULL;
}

static int is_word(const struct args *args, const char *word)
{
    return args->word_count && !strcmp(args->words[0], word);
}

static int dispatch(const struct args *args)
{
    const struct verb *verb;

    if (args_has(args, OPTION_version) || is_word(args, "version")) {
        printf("quern %s\n", quern_version());
        return EXIT_DONE;
    }
    if (is_word(args, "help")) { /* quern help VERB is quern VERB --help */
        struct args rest = *args;
        rest.words++, rest.word_count--;
        rest.given |= UINT64_C(1) << OPTION_help;
        return dispatch(&rest);
    }
    if (!args->word_count) {
        if (!args_has(args, OPTION_help))
            return complain(EXIT_USAGE, "verb: must be given; quern --help lists them");
        print_help();
        return EXIT_DONE;
    }
    verb = find_verb(args->words[0]);
    if (!verb)
        return EXIT_USAGE;
    if (args_has(args, OPTION_help)) {
        print_verb_help(verb);
        return EXIT_DONE;
    }
    int code = args_check_verb(args, verb);
    return code ? code : verb->run(args);
}

int main(int argc, char **argv)
{
    struct args args;
    int code = args_parse(argc, argv, &args);

    if (!code)
        code = dispatch(&args);
    if (fflush(stdout) || ferror(stdout)) /* a full disk must not look like success */
        return complain(EXIT_FAILED, "stdout: cannot be written");
    return code;
}
