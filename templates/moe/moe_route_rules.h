/* What CPU and GPU kernels of routing are compiled from: the rules by which a token's experts are
 * chosen, as defines, and the numbers that come at run time. Shared with the host side. */
#ifndef MOE_ROUTE_RULES_H
#define MOE_ROUTE_RULES_H
#include "common/types.h"

/* What experts are chosen by, z being the logit after softcap, and what their weight is. */
#define ROUTE_BY_LOGIT 0   /* z + bias; softmax of that */
#define ROUTE_BY_SIGMOID 1 /* sigmoid(z) + bias; sigmoid(z) */
#define ROUTE_BY_SOFTMAX 2 /* softmax(z) + bias; softmax(z) */

struct moe_route_scalars {
    float softcap, softcap_inverse; /* c and 1 / c; 0 without */
    float scaling;                  /* factor of the weights; 1 without */
};

#ifndef ROUTE_SCORING
#define ROUTE_SCORING ROUTE_BY_LOGIT
#endif
#ifndef ROUTE_EXPERTS
#define ROUTE_EXPERTS 256
#endif
#ifndef ROUTE_TOPK
#define ROUTE_TOPK 8 /* without shared experts */
#endif
#ifndef ROUTE_GROUPS
#define ROUTE_GROUPS 1
#endif
#ifndef ROUTE_TOPK_GROUP
#define ROUTE_TOPK_GROUP 1
#endif
#ifndef ROUTE_DTYPE
#define ROUTE_DTYPE DT_F32
#endif
#ifndef ROUTE_HAS_BIAS
#define ROUTE_HAS_BIAS 0
#endif
#ifndef ROUTE_HAS_SOFTCAP
#define ROUTE_HAS_SOFTCAP 0
#endif
#ifndef ROUTE_RENORMALIZE
#define ROUTE_RENORMALIZE 0
#endif
#endif
