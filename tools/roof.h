/* The least time that a device allows a call, from its profile's rates. */
#ifndef TOOLS_ROOF_H
#define TOOLS_ROOF_H

#include <quern.h>
#include <quern/family.h>

/* What a call must do at least, by its family's cost function. */
struct roof_call {
    double flops, bytes; /* 0: not known, or none */
    int is_tensor;       /* its products are of halves or less: tensor cores make them */
};

/* All 0 of a spec whose family tells no cost. */
void roof_call_of(struct quern_context *ctx, const struct quern_spec *spec, struct roof_call *call);
/* flop/s of that kind of product; 0: not known. */
double roof_tflops(const struct quern_profile *profile, int is_tensor);
/* Its flops or its bytes at the profile's rates, or a launch, whichever takes longest; NaN where
 * the profile lacks the rate. */
double roof_us(const struct quern_profile *profile, const struct roof_call *call);

/* Read name and rates of a device profile's file. An exit code, after complaining. */
int roof_read(struct quern_profile *profile, const char *path);

#endif
