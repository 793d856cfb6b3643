/* The family concat_mla_absorb_q. */
#ifndef CONCAT_MLA_ABSORB_Q_H
#define CONCAT_MLA_ABSORB_Q_H

#include "mla_concat.h"

#endif
