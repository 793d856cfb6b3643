/* What attention_prefill and attention_extend share on the host side: the rules of heads, widths
 * and index arrays, and what a call costs. */
#ifndef ATTENTION_RULES_H
#define ATTENTION_RULES_H

#include <quern/family.h>

#define ATTENTION_MAX_TOKENS (INT64_C(1) << 30) /* of an array's token dimension */
#define ATTENTION_MAX_ROWS (INT64_C(1) << 32)   /* tokens of all sequences, each rounded up */

/* Heads, widths and the softcap. */
struct attention_heads {
    int64_t hq, hkv, d, dv;
    double softcap;
};
int attention_check_heads(const struct attention_heads *heads, struct quern_message *why);
/* name=value is at most `most`. */
int attention_check_most(const char *name, int64_t value, int64_t most, struct quern_message *why);
/* The width of v that d implies. */
int64_t attention_implied_dv(int64_t d);

/* ---- Index arrays, for check_indices(): host copies, NULL where the call has none ------------ */

/* b + 1 borders: the first 0, none below the one before it, the last `total`, which is the value of
 * the parameter total_name; is_padded: at most that. */
struct attention_borders {
    const char *name, *total_name;
    int64_t b, total;
    int is_padded;
};
int attention_check_borders(const struct attention_borders *of, const int32_t *borders,
                            struct quern_message *why);
/* Border i as device code reads it: from 0 to the total. */
int64_t attention_border(const int32_t *borders, int64_t i, int64_t total);

/* A paged cache: the pages in use are within it, lengths within the table. */
struct attention_pages {
    const char *lens_name;
    int64_t b, pages, page, max_pages;
};
int attention_check_pages(const struct attention_pages *of, const int32_t *table,
                          const int32_t *lens, struct quern_message *why);
/* Tokens of a sequence as device code counts them: from 0 to what its row of the table holds. */
int64_t attention_length(const struct attention_pages *of, const int32_t *lens, int64_t sequence);

/* Adds the bytes of token `slot` of page `page` in a cache [pages, page, heads, width]. */
void attention_touch_token(const struct quern_array *cache, const struct quern_shape *shape,
                           int64_t page, int64_t slot, struct quern_ranges *ranges);
/* Adds all bytes that shape and strides span. */
void attention_touch_all(const struct quern_array *array, const struct quern_shape *shape,
                         struct quern_ranges *ranges);

/* ---- Cost ------------------------------------------------------------------------------------ */

/* Pairs of a query and a key that it sees, in a sequence of sq queries and sk keys. */
double attention_pairs(double sq, double sk, int64_t causal, int64_t window);

#endif
