/* The recurrence in float64, a token of one value head at a time: what kda_prefill, kda_decode and
 * kda_step are measured against. */
#ifndef KDA_RECURRENCE_REF_H
#define KDA_RECURRENCE_REF_H
#include <quern/family.h>

/* What a family's parameters say of the step. */
struct kda_rule {
    int64_t k, v;                        /* widths */
    int gate;                            /* KDA_GATE_* */
    int l2norm, beta_logits, neg_eigval; /* flags */
    double scale;                        /* of o, already resolved (k^-0.5 if not given) */
    double lower_bound;                  /* gate=bounded */
};

/* A token's inputs as they stand in the arrays; norm, gate and sigmoid are applied here. */
struct kda_token {
    const double *q, *key, *value; /* [k] [k] [v] */
    const double *g, *bias;        /* [k], or [1] with g_count 1; bias NULL: none */
    int64_t g_count;
    double A_log, beta; /* A_log 0 where there is none */
};

/* state[k][v] advances by the token; out[v] is written. scratch holds 3 k + v doubles. Returns the
 * norm of the terms that out's elements are sums of. */
double kda_recurrence(const struct kda_rule *rule, const struct kda_token *token, double *state,
                      double *out, double *scratch);

/* `count` elements of an array from `first` on, in scratch memory. */
double *kda_take(struct quern_ref *ref, int index, int64_t first, int64_t count);
/* rows by columns to columns by rows, in scratch memory. */
double *kda_transposed(struct quern_ref *ref, const double *from, int64_t rows, int64_t columns);
/* What a dtype (f32, bf16, f16) makes of a finite value within its range. */
double kda_rounded(double value, int dtype);

#endif
