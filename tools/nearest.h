/* The word that somebody probably meant. */
#ifndef TOOLS_NEAREST_H
#define TOOLS_NEAREST_H

struct nearest {
    const char *wanted;
    const char *best;     /* NULL: nothing near enough yet */
    int distance, prefix; /* of best: edits to reach it, letters it shares at the beginning */
};

/* Offer each candidate in turn; of equally near ones the one that begins alike is kept. */
void nearest_init(struct nearest *nearest, const char *wanted);
void nearest_offer(struct nearest *nearest, const char *candidate);

/* Edit distance: insertions, deletions, replacements and swaps of neighbours. */
int nearest_distance(const char *a, const char *b);

#endif
