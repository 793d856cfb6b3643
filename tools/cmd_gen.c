/* quern gen: the source of a spec's kernels, as the compiler would receive it. */
#include "cmd.h"
#include "json_out.h"
#include "session.h"

#include <stdio.h>

static int print_source(const struct args *args, const struct quern_spec *spec, const char *source)
{
    struct quern_family_description family;
    char text[1024];

    if (!args_has(args, OPTION_json)) {
        fputs(source, stdout);
        return EXIT_DONE;
    }
    quern_family_describe(spec->family, &family);
    session_spec_text(spec, text);
    return json_out_print(json_pack("{s:s, s:s, s:o, s:o}", "family", family.name, "spec", text,
                                    "target", json_out_text(args->text[OPTION_target]), "source",
                                    json_out_text(source)));
}

int cmd_gen(const struct args *args)
{
    struct session session;
    struct quern_spec spec;
    struct quern_request request;
    char *source = NULL;
    int code = session_open(&session, args);

    if (!code)
        code = session_spec(&session, 1, &spec);
    if (!code) {
        session_request(&session, &spec, &request);
        request.target = args->text[OPTION_target];
        int status = quern_generate(session.ctx, &request, &source);
        code = status ? session_fail(&session, status) : print_source(args, &spec, source);
    }
    quern_text_free(source);
    session_close(&session);
    return code;
}
