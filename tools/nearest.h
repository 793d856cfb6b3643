/* The word that somebody probably meant. */
#ifndef TOOLS_NEAREST_H
#define TOOLS_NEAREST_H

struct nearest {
    const char *wanted;
    const char *best; /* NULL: nothing near enough yet */
    int distance;
};

/* Offer each candidate in turn; the first of the nearest ones is kept. */
void nearest_init(struct nearest *nearest, const char *wanted);
void nearest_offer(struct nearest *nearest, const char *candidate);

/* Edit distance: insertions, deletions, replacements and swaps of neighbours. */
int nearest_distance(const char *a, const char *b);

#endif
