/* Winners of a cache that is read-only, full or damaged: what was tuned serves as long as the
 * context, as it would with a cache in memory.
 *
 *     ctx->winners ──> newest ──> older ──> oldest
 *
 * The list only grows at its head and no row on it changes, so it is read without a lock. Of two
 * rows of one key the newer stands first.
 */
#include "jit/winners.h"

#include <stdlib.h>
#include <string.h>

struct qn_winner {
    struct qn_winner *next;
    struct qn_tuned row;
};

/* Deep; false when memory ran out. */
static bool row_dup(const struct qn_tuned *row, struct qn_tuned *copy)
{
    char *const from[] = { row->text,
                           row->group,
                           row->family,
                           row->variant,
                           row->config,
                           row->digest,
                           row->toolkit,
                           row->profile,
                           row->provenance,
                           row->heuristic_variant,
                           row->heuristic_config };
    *copy = *row;
    char **const to[] = { &copy->text,
                          &copy->group,
                          &copy->family,
                          &copy->variant,
                          &copy->config,
                          &copy->digest,
                          &copy->toolkit,
                          &copy->profile,
                          &copy->provenance,
                          &copy->heuristic_variant,
                          &copy->heuristic_config };
    bool is_whole = true;
    for (size_t i = 0; i < sizeof(to) / sizeof(to[0]); i++) {
        *to[i] = strdup(from[i] ? from[i] : "");
        is_whole &= *to[i] != NULL;
    }
    qn_key_hex(row->text, strlen(row->text), copy->key);
    if (!is_whole)
        qn_tuned_fini(copy);
    return is_whole;
}

static const struct qn_tuned *kept_find(struct quern_context *ctx, const char *text)
{
    const struct qn_winner *winner = atomic_load(&ctx->winners);
    while (winner && strcmp(winner->row.text, text))
        winner = winner->next;
    return winner ? &winner->row : NULL;
}

int qn_winner_find(struct quern_context *ctx, const char *text, struct qn_tuned *row)
{
    const struct qn_tuned *kept = kept_find(ctx, text);
    struct qn_tuned copy;
    int status = qn_tuned_find(ctx->store, text, row);
    bool is_newer = kept && (status != QN_STORE_OK || row->generation < kept->generation);
    if (!is_newer || !row_dup(kept, &copy))
        return status;
    if (status == QN_STORE_OK)
        qn_tuned_fini(row);
    *row = copy;
    return QN_STORE_OK;
}

void qn_winner_each(struct quern_context *ctx, const char *group,
                    int (*visit)(void *user, const struct qn_tuned *row), void *user)
{
    const struct qn_winner *winner = atomic_load(&ctx->winners);
    for (; winner; winner = winner->next) {
        if (!strcmp(winner->row.group, group) && visit(user, &winner->row))
            return;
    }
    qn_tuned_each(ctx->store, group, visit, user);
}

void qn_winner_keep(struct quern_context *ctx, const struct qn_tuned *row)
{
    struct qn_winner *winner = malloc(sizeof(*winner));
    if (!winner || !row_dup(row, &winner->row)) {
        free(winner);
        return;
    }
    winner->next = atomic_load(&ctx->winners);
    while (!atomic_compare_exchange_weak(&ctx->winners, &winner->next, winner))
        ;
}

void qn_winners_fini(struct quern_context *ctx)
{
    struct qn_winner *winner = atomic_load(&ctx->winners);
    while (winner) {
        struct qn_winner *next = winner->next;
        qn_tuned_fini(&winner->row);
        free(winner);
        winner = next;
    }
}
