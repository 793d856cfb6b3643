/* quern report: what a cache file holds, as a page, as text, as JSON. */
#include "cmd.h"
#include "report_data.h"
#include "session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A page of ours may be replaced; anything else that is there stays. */
static int check_output(const char *path)
{
    static const char mark[] = "<!DOCTYPE html>\n<!-- quern report -->";
    char begin[sizeof(mark)] = "";
    FILE *file = fopen(path, "rb");

    if (!file)
        return access(path, F_OK)
                   ? EXIT_DONE
                   : complain(EXIT_FAILED, "output=%s: cannot be read: %s", path, strerror(errno));
    size_t bytes = fread(begin, 1, sizeof(mark) - 1, file);
    fclose(file);
    if (bytes != sizeof(mark) - 1 || memcmp(begin, mark, bytes))
        return complain(EXIT_FAILED, "output=%s: exists and is no report: must be a new file",
                        path);
    return EXIT_DONE;
}

/* Written beside it and renamed: whole or not at all. */
static int write_page(const struct report_data *data, const char *path)
{
    char *beside = NULL;
    FILE *page = NULL;
    int code = check_output(path), number;

    if (code)
        return code;
    if (asprintf(&beside, "%s.%ld", path, (long)getpid()) < 0)
        return complain(EXIT_FAILED, "output=%s: out of memory", path);
    page = fopen(beside, "wbx");
    if (!page) {
        code = complain(EXIT_FAILED, "output=%s: cannot be written: %s", path, strerror(errno));
        goto out;
    }
    report_html(data, page);
    number = ferror(page);
    if (fclose(page) || number || rename(beside, path)) {
        code = complain(EXIT_FAILED, "output=%s: cannot be written: %s", path, strerror(errno));
        unlink(beside);
    }
out:
    free(beside);
    return code;
}

static int print(const struct args *args, const struct report_data *data)
{
    const char *output = args->text[OPTION_output];
    int code = output ? write_page(data, output) : EXIT_DONE;

    if (code)
        return code;
    if (args_has(args, OPTION_json))
        return report_json(data);
    if (args_has(args, OPTION_text) || !output)
        report_text(data);
    return EXIT_DONE;
}

int cmd_report(const struct args *args)
{
    const char *path = args->word_count > 1 ? args->words[1] : args->text[OPTION_cache];
    struct args own = *args; /* a report opens no store and needs no device */
    struct report_data data = { 0 };
    struct session session;

    if (!path)
        path = getenv("QUERN_CACHE");
    if (!path || !*path)
        return complain(EXIT_USAGE, "cache: must be given, as quern report FILE");
    if (args->word_count > 2)
        return complain(EXIT_USAGE, "word=%s: one file is enough", args->words[2]);
    if (args_has(args, OPTION_text) && args_has(args, OPTION_json))
        return complain(EXIT_USAGE, "text: must not be given with --json");
    own.text[OPTION_cache] = "";
    own.text[OPTION_device] = "cpu";
    own.text[OPTION_device_profile] = NULL; /* here it is the file that has the roofs */
    int code = session_open(&session, &own);
    if (!code)
        code = report_data_init(&data, session.ctx, path);
    if (!code && args->text[OPTION_device_profile])
        code = roof_read(&data.roof, args->text[OPTION_device_profile]);
    if (!code)
        code = print(args, &data);
    report_data_fini(&data);
    session_close(&session);
    return code;
}
