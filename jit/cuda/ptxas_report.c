/* What ptxas -v said, as NVRTC hands it on:
 *
 *     ptxas info    : Compiling entry function 'k2' for 'sm_90a'
 *     ptxas info    : Function properties for k2
 *     ptxas         .     240 bytes stack frame, 240 bytes spill stores, 348 bytes spill loads
 *     ptxas info    : Used 32 registers, used 1 barriers, 128 bytes smem
 *     ptxas info    : Function properties for _Z6helperPfi
 *     ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
 *
 * becomes one line for each entry:
 *
 *     entry=k2 registers=32 spills=588 shared=128 stack=240
 *
 * spills is stores plus loads, in bytes; stack is there when there is one (spilled registers, or an
 * array that is indexed at run time). A function that was not inlined has properties and no entry
 * of its own: which entries call it is not said, so what it spills counts against every one.
 *
 * Lines of other forms are passed over. The report is a help; that the warnings below are seen is a
 * promise: code with them runs, and is wrong about its speed by a factor. */
#define _GNU_SOURCE
#include "jit/cuda/nvrtc.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jit/text.h"

enum { WAIT_INJECTED = 7517 };

struct entry {
    char name[96];
    long long registers, spills, shared, stack;
};

/* Entries so far, and whose properties the next line has. */
struct reading {
    struct entry *entries;
    int count;
    int current;              /* the entry that lines are about; -1: a function that is none */
    long long foreign_spills; /* of such functions */
    bool is_out_of_memory;
};

/* ---- Warnings ------------------------------------------------------------------------------ */

/* The number of the warning in a line that makes the code useless, else 0. C7508: setmaxnreg is
 * ignored. C7510 to C7518: wgmma is serialized, or waits are put in. The line must be ptxas' own: a
 * quoted line of source may say anything. */
static int fatal_number(const char *line, size_t length)
{
    const char *code = memmem(line, length, "(C75", 4);
    long number = code && !strncmp(line, "ptxas", 5) ? strtol(code + 2, NULL, 10) : 0;

    return number == 7508 || (number >= 7510 && number <= 7518) ? (int)number : 0;
}

/* Such a line goes into `why`. C7517 comes with others, which say more: it gives way to them. */
static void note_fatal(const char *line, size_t length, int *noted, struct quern_message *why)
{
    int number = fatal_number(line, length);

    if (number && (!*noted || (*noted == WAIT_INJECTED && number != WAIT_INJECTED))) {
        quern_refuse(why, "%.*s", (int)length, line);
        *noted = number;
    }
}

/* ---- Properties ---------------------------------------------------------------------------- */

/* The number ahead of `word` in the line: "128 bytes smem" -> 128; 0 where there is none. */
static long long number_before(const char *line, size_t length, const char *word)
{
    const char *at = memmem(line, length, word, strlen(word));

    while (at && at > line && at[-1] == ' ')
        at--;
    while (at && at > line && isdigit((unsigned char)at[-1]))
        at--;
    return at ? strtoll(at, NULL, 10) : 0;
}

/* The name behind `words`, without quotes; false if the line does not have them. */
static bool name_after(const char *line, size_t length, const char *words, char *name, size_t bytes)
{
    const char *at = memmem(line, length, words, strlen(words));

    if (!at)
        return false;
    at += strlen(words);
    at += *at == '\'';
    int count = (int)strcspn(at, "' \r\n");
    snprintf(name, bytes, "%.*s", count, at);
    return true;
}

static int entry_find(const struct reading *reading, const char *name)
{
    for (int i = 0; i < reading->count; i++) {
        if (!strcmp(reading->entries[i].name, name))
            return i;
    }
    return -1;
}

static void entry_add(struct reading *reading, const char *name)
{
    struct entry *grown =
        realloc(reading->entries, (size_t)(reading->count + 1) * sizeof *reading->entries);

    reading->is_out_of_memory |= !grown;
    if (!grown)
        return;
    reading->entries = grown;
    reading->current = reading->count++;
    grown[reading->current] = (struct entry){ .registers = 0 };
    snprintf(grown[reading->current].name, sizeof grown->name, "%s", name);
}

static void read_line(struct reading *reading, const char *line, size_t length)
{
    struct entry *entry = reading->current < 0 ? NULL : &reading->entries[reading->current];
    char name[sizeof entry->name];

    if (name_after(line, length, "Compiling entry function ", name, sizeof name)) {
        entry_add(reading, name);
    } else if (name_after(line, length, "Function properties for ", name, sizeof name)) {
        reading->current = entry_find(reading, name);
    } else if (memmem(line, length, " bytes stack frame", 18)) {
        long long spills = number_before(line, length, " bytes spill stores") +
                           number_before(line, length, " bytes spill loads");
        if (!entry) {
            reading->foreign_spills += spills;
            return;
        }
        entry->stack = number_before(line, length, " bytes stack frame");
        entry->spills = spills;
    } else if (entry && memmem(line, length, " registers", 10)) {
        entry->registers = number_before(line, length, " registers");
        entry->shared = number_before(line, length, " bytes smem");
    }
}

/* ---- The report ---------------------------------------------------------------------------- */

/* malloc'ed; NULL when memory ran out. */
static char *report_make(const struct reading *reading)
{
    struct qn_text text = { 0 };

    qn_text_append(&text, "", 0);
    for (int i = 0; i < reading->count; i++) {
        const struct entry *entry = &reading->entries[i];
        qn_text_print(&text, "entry=%s registers=%lld spills=%lld shared=%lld", entry->name,
                      entry->registers, entry->spills + reading->foreign_spills, entry->shared);
        if (entry->stack)
            qn_text_print(&text, " stack=%lld", entry->stack);
        qn_text_append(&text, "\n", 1);
    }
    if (!text.is_failed && !reading->is_out_of_memory)
        return text.data;
    qn_text_fini(&text);
    return NULL;
}

int qn_ptxas_report(const char *log, char **report, struct quern_message *why)
{
    struct reading reading = { .current = -1 };
    int noted = 0;

    for (const char *line = log; *line;) {
        size_t length = strcspn(line, "\n");
        note_fatal(line, length, &noted, why);
        read_line(&reading, line, length);
        line += length + (line[length] == '\n');
    }
    char *text = noted ? NULL : report_make(&reading);
    free(reading.entries);
    if (noted)
        return QUERN_COMPILE;
    if (!text) {
        quern_refuse(why, "nvrtc: out of memory");
        return QUERN_NO_MEMORY;
    }
    *report = text;
    return QUERN_OK;
}
