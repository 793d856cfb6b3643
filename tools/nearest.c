/* The word that somebody probably meant: the least edit distance (Damerau, in the restricted form
 * where no part is edited twice), as long as it is small against the word's length. */
#include "nearest.h"

#include <string.h>

#define LONGEST 64 /* longer words are cut: they are tensor names that share their beginnings */

static int least(int a, int b, int c)
{
    int ab = a < b ? a : b;
    return ab < c ? ab : c;
}

int nearest_distance(const char *a, const char *b)
{
    int a_length = (int)strnlen(a, LONGEST), b_length = (int)strnlen(b, LONGEST);
    int rows[3][LONGEST + 1]; /* of prefix pairs: the row before last, the last, the current */
    int *before = rows[0], *last = rows[1], *row = rows[2];

    for (int j = 0; j <= b_length; j++)
        last[j] = j;
    for (int i = 1; i <= a_length; i++) {
        row[0] = i;
        for (int j = 1; j <= b_length; j++) {
            row[j] = least(last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], row[j], before[j - 2] + 1);
        }
        int *oldest = before;
        before = last, last = row, row = oldest;
    }
    return last[b_length];
}

void nearest_init(struct nearest *nearest, const char *wanted)
{
    nearest->wanted = wanted;
    nearest->best = NULL;
    nearest->prefix = 0;
    nearest->distance = 2 + (int)strnlen(wanted, LONGEST) / 3; /* this far is no longer near */
}

void nearest_offer(struct nearest *nearest, const char *candidate)
{
    const char *wanted = nearest->wanted;
    int distance = nearest_distance(wanted, candidate), prefix = 0;

    if (distance >= (int)strlen(wanted) && distance >= (int)strlen(candidate))
        return; /* nothing of the word was kept */
    while (wanted[prefix] && wanted[prefix] == candidate[prefix])
        prefix++;
    int is_tie = nearest->best && distance == nearest->distance;
    if (distance < nearest->distance || (is_tie && prefix > nearest->prefix)) {
        nearest->best = candidate;
        nearest->distance = distance;
        nearest->prefix = prefix;
    }
}
